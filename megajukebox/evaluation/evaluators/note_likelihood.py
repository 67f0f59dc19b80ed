"""How well a composer predicts pieces it was not trained on: nats of every event, left to right, nothing told ahead."""

# T events of a window   V vocabulary
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from megajukebox.data.stream.note_windows import (
    PROGRESS,
    PieceEvents,
    piece_events,
    window_from,
)
from megajukebox.notes.notes import Notes
from megajukebox.sampling.composing.composer import Composer
from megajukebox.sampling.composing.event_sampler import CLOCK, SCORE

OVERLAP = 0.5  # of a window that is read again, so that every event has so much behind it


class PieceNats(NamedTuple):
    """What a piece costs."""

    nats: float
    tempo_nats: float  # of them for TEMPO, which grids do not have
    events: int


def piece_nats(composer: Composer, piece: Notes, labels: Mapping[str, torch.Tensor]) -> PieceNats:
    """Every event once, each with at least half a window behind it where the piece has that.

    Args:
        labels: ids [1, max_values] of each condition.
    Raises:
        ValueError: the composer's vocabulary lacks an event of the piece.
    """
    vocabulary = composer.vocabulary
    events = piece_events(piece, vocabulary)
    nats = np.zeros(len(events.events))
    counted, start = 0, 0
    while counted < len(events.events):
        window, rows, given = window_nats(composer, events, start, labels)
        new = (rows >= counted) & ~given
        nats[rows[new]] = window[new]
        counted = int(rows[-1]) + 1
        start = next_start(events, start, counted, len(rows))
    is_tempo = np.array([event.kind == "TEMPO" for event in vocabulary.events])[events.events]
    return PieceNats(float(nats.sum()), float(nats[is_tempo].sum()), len(nats))


def next_start(piece: PieceEvents, start: int, counted: int, size: int) -> int:
    """The bar line from which the next window is read; past `start`, whatever the bars are like."""
    wanted = counted - int(size * OVERLAP)
    later = piece.starts[(piece.starts > start) & (piece.starts <= wanted)]
    return int(later[-1]) if len(later) else max(wanted, start + 1)


@torch.inference_mode()
def window_nats(
    composer: Composer, piece: PieceEvents, start: int, labels: Mapping[str, torch.Tensor]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(nats, the piece's row, whether it was put in) of each event of the window from `start` on."""
    prior = composer.prior
    size = prior.config.window
    window = window_from(piece, start, size)
    clock = window.clock.copy()
    clock[:, PROGRESS] = 0
    missing = size - len(window.events)
    tokens = torch.from_numpy(np.pad(window.events, (0, missing)))[None]
    batch: dict[str, Any] = {
        "conditions": dict(labels),
        CLOCK: torch.from_numpy(np.pad(clock, ((0, missing), (0, 0))))[None],
    }
    if SCORE in prior.aligned:
        slots = prior.config.aligned[SCORE].slots  # type: ignore[attr-defined]
        batch[SCORE] = torch.zeros(1, size, 1 + slots, dtype=torch.int64)
    logits_TV = prior.logits(tokens, prior.conditioning(batch))[0]
    nats_T = F.cross_entropy(logits_TV, tokens[0], reduction="none")
    return nats_T[: len(window.events)].numpy(), window.rows, window.given
