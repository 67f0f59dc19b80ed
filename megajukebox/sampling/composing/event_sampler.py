"""Pieces event by event: the composer's logits, what the grammar and the known notes allow, and the noise of each seed.

A piece does not depend on the others of its batch: noise is a hash of seed and position, and where the order of a sum
could decide, the full forward pass of that piece alone does (as for songs, decoding/window_sampler.py).
"""

# B pieces   T events of a window   V vocabulary   W width
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from megajukebox.data.stream.note_windows import (
    CLOCK_COLUMNS,
    PieceEvents,
    clock_ids,
    window_from,
)
from megajukebox.models.prior import Conditioning, Prior
from megajukebox.notes.clock import Clock
from megajukebox.notes.events import PAD, NoteVocabulary
from megajukebox.notes.grammar import Bounds, Grammar
from megajukebox.notes.holes import FRAME_TICKS, ScoreLayout, score_frames
from megajukebox.notes.known_music import KnownCursor, KnownMusic
from megajukebox.sampling.decoding.decoder import PackedPrior, window_decoder
from megajukebox.sampling.decoding.token_sampling import TokenSampler, logit_error

CLOCK, SCORE = "clock", "score"  # the composer's conditions of these names
KEPT_SHARE = 0.5  # of a full window: what the next one begins with, from a bar line on


@dataclass(frozen=True)
class PiecePlan:
    """What a piece that is drawn begins with, keeps to, and is told."""

    beginning: Sequence[int] = ()  # events
    bounds: Bounds = field(default_factory=Bounds)
    known: KnownMusic | None = None


class DrawnPiece:
    """One piece while it is drawn: its events so far, where each stands, and the window that the composer sees."""

    def __init__(self, grammar: Grammar, plan: PiecePlan):
        self.grammar = grammar
        self.clock = Clock(grammar.vocabulary)
        self.bounds = plan.bounds
        self.cursor = KnownCursor(plan.known, grammar) if plan.known else None
        self.events: list[int] = []
        self.ids: list[tuple[int, ...]] = []  # of the clock before each event
        self.ticks: list[int] = []  # absolute, of each event
        self.tempo: list[int] = []  # the TEMPO event that holds before each
        self.bars: list[int] = []  # where in `events` each bar begins
        self.onsets: list[int] = []  # where each note does
        self.fed: list[int] = []  # events of the window
        self.fed_ids: list[tuple[int, ...]] = []
        self.fed_ticks: list[int] = []
        for event in plan.beginning:
            self._note(int(event))

    @property
    def ended(self) -> bool:
        return self.clock.ended

    def allowed(self, max_events: int) -> np.ndarray:
        """bool [vocabulary]: what may come next. A piece that is long enough is only ended."""
        allowed = self.grammar.legal(self.clock, self.bounds)
        if self.cursor:
            self.cursor.restrict(self.clock, allowed)
        if len(self.events) < max_events or self.clock.last in ("NOTE", "LOUD"):
            return allowed
        kinds = self.grammar.of_kind
        ending = np.zeros_like(allowed)
        for kind in ("END",) if allowed[kinds["END"]].any() else ("SHIFT", "BAR", "TEMPO"):
            ending[kinds.get(kind, [])] = True
        return allowed & ending if (allowed & ending).any() else allowed

    def next_ids(self) -> tuple[int, ...]:
        """Of the clock, for the event that comes next."""
        return clock_ids(self.clock, self.bounds.length)

    def _note(self, event: int) -> None:
        events = self.clock.vocabulary.events
        if events[event].kind == "BAR":
            self.bars.append(len(self.events))
        elif events[event].kind == "NOTE":
            self.onsets.append(len(self.events))
        self.ids.append(self.next_ids())
        self.ticks.append(self.clock.tick)
        holds = self.tempo[-1] if self.tempo else PAD
        before = self.events[-1] if self.events else PAD
        self.tempo.append(before if events[before].kind == "TEMPO" else holds)
        self.events.append(event)
        if self.cursor:
            self.cursor.push(self.clock, event)
        self.clock.push(event)

    def push(self, event: int) -> None:
        """Take an event that was drawn."""
        self.fed.append(event)
        self.fed_ids.append(self.next_ids())
        self.fed_ticks.append(self.clock.tick)
        self._note(event)

    def begin_window(self, size: int) -> None:
        """What of the piece so far the composer sees next: all of it, or its end from a bar line on."""
        start = 0
        if len(self.events) >= size:
            wanted = len(self.events) - int(size * KEPT_SHARE)
            places = [place for place in self.bars if place >= wanted]
            # A bar that fills a window, and music without bars, are cut at a note.
            places = places or [place for place in self.onsets if place >= wanted]
            start = places[0] if places else wanted
        piece = PieceEvents(
            np.array(self.events, np.int64),
            np.array(self.ids, np.int64).reshape(-1, CLOCK_COLUMNS),
            np.array(self.tempo, np.int64),
            np.array(self.bars, np.int64),
            np.array(self.ticks, np.int64),
        )
        self.fed, self.fed_ids, self.fed_ticks = [], [], []
        if self.events:
            window = window_from(piece, start, size)
            self.fed = window.events.tolist()
            self.fed_ids = [tuple(row) for row in window.clock.tolist()]
            self.fed_ticks = piece.ticks[window.rows].tolist()

    def ids_at(self, t: int) -> tuple[int, ...]:
        """Of the clock before event `t` of the window."""
        if t < len(self.fed_ids):
            return self.fed_ids[t]
        return (0,) * CLOCK_COLUMNS if self.ended else self.next_ids()

    def frame_at(self, t: int) -> int:
        """The frame of the score in which event `t` of the window stands, from 0 on."""
        first = self.fed_ticks[0] if self.fed_ticks else self.clock.tick
        tick = self.fed_ticks[t] if t < len(self.fed_ticks) else self.clock.tick
        return (tick - first) // FRAME_TICKS


class EventSampler:
    """Draws pieces from one composer."""

    def __init__(self, prior: Prior, vocabulary: NoteVocabulary) -> None:
        self.prior = prior
        self.vocabulary = vocabulary
        self.grammar = Grammar(vocabulary)
        self.layout = ScoreLayout(vocabulary)
        self.packed = PackedPrior(prior)

    @torch.inference_mode()
    def draw(
        self,
        labels: dict[str, Tensor],
        sampler: TokenSampler,
        plans: Sequence[PiecePlan],
        max_events: int,
    ) -> list[list[int]]:
        """Events of every piece, the last of them END.

        Args:
            labels: ids [B, max_values] of each condition.
            max_events: a piece that reaches them is ended as soon as no note sounds.
        """
        pieces = [DrawnPiece(self.grammar, plan) for plan in plans]
        while not all(piece.ended for piece in pieces):
            self._draw_window(pieces, plans, labels, sampler, max_events)
        return [piece.events for piece in pieces]

    def _draw_window(
        self,
        pieces: list[DrawnPiece],
        plans: Sequence[PiecePlan],
        labels: dict[str, Tensor],
        sampler: TokenSampler,
        max_events: int,
    ) -> None:
        """Go on until the window is full, or all pieces have ended."""
        size = self.prior.config.window
        for piece in pieces:
            piece.begin_window(size)
        scores = [self._score(piece, plan) for piece, plan in zip(pieces, plans)]
        start = self.prior.labels(labels) if self.prior.labels else None
        added_BTW = torch.zeros(len(pieces), size, self.prior.config.transformer.width)
        if start is not None:
            added_BTW += start
        tokens_BT = torch.zeros(len(pieces), size, dtype=torch.int64)
        given = Conditioning(start, added_BTW, None)
        clock = self.prior.aligned[CLOCK]
        with window_decoder(self.prior, given, len(pieces)) as decoder:
            for t in range(size):
                if all(piece.ended for piece in pieces):
                    return
                ids = torch.tensor([piece.ids_at(t) for piece in pieces])
                added_BTW[:, t : t + 1] += clock(ids[:, None])
                for row, (piece, frames_FW) in enumerate(zip(pieces, scores)):
                    if frames_FW is not None and piece.frame_at(t) < len(frames_FW):
                        added_BTW[row, t] += frames_FW[piece.frame_at(t)]
                logits_BV = decoder.step(self.packed, tokens_BT, t)[:, 0]
                drawing = [t >= len(piece.fed) and not piece.ended for piece in pieces]
                if any(drawing):
                    drawn = self._choose(
                        pieces, drawing, logits_BV, sampler, tokens_BT, given, t, max_events
                    )
                    for row, piece in enumerate(pieces):
                        if drawing[row]:
                            piece.push(drawn[row])
                for row, piece in enumerate(pieces):
                    tokens_BT[row, t] = piece.fed[t] if t < len(piece.fed) else PAD

    def _score(self, piece: DrawnPiece, plan: PiecePlan) -> Tensor | None:
        """What the known notes add to the events of each frame of the window, [F, W]; computed for this piece alone."""
        if plan.known is None or SCORE not in self.prior.aligned:
            return None
        first_tick = piece.fed_ticks[0] if piece.fed_ticks else 0
        score = self.prior.aligned[SCORE]
        slots = self.prior.config.aligned[SCORE].slots  # type: ignore[attr-defined]
        ids_FS = score_frames(
            *(self.layout, plan.known.grid, plan.known.notes, first_tick),
            *(self.prior.config.window, slots),
        )
        frames: Tensor = score.frames(torch.from_numpy(ids_FS)[None])[0]  # type: ignore[operator]
        return frames

    def _choose(
        self,
        pieces: list[DrawnPiece],
        drawing: list[bool],
        logits_BV: Tensor,
        sampler: TokenSampler,
        tokens_BT: Tensor,
        given: Conditioning,
        t: int,
        max_events: int,
    ) -> list[int]:
        """The next event of every piece; only those of pieces in `drawing` mean something."""
        allowed = np.ones(logits_BV.shape, bool)
        for row, piece in enumerate(pieces):
            if drawing[row]:
                allowed[row] = piece.allowed(max_events)
        forbidden = ~torch.from_numpy(allowed)
        position = torch.tensor([[len(piece.events)] for piece in pieces])
        noise = sampler.gumbel(position, logits_BV.shape[-1])
        masked = logits_BV.masked_fill(forbidden, -torch.inf)
        error = logit_error(logits_BV[:, None])
        sampled = sampler(masked[:, None], position, error, gumbel=noise)
        events = sampled.codes[:, 0].tolist()
        for row in torch.nonzero(sampled.near_tie[:, 0]).flatten().tolist():
            if drawing[row]:
                alone = Conditioning(
                    None if given.start is None else given.start[row : row + 1],
                    None if given.added is None else given.added[row : row + 1],
                    None,
                )
                exact = self.prior.logits(tokens_BT[row : row + 1], alone)[:, t]
                one = sampler.select(torch.tensor([row]))
                exact = exact.masked_fill(forbidden[row : row + 1], -torch.inf)
                again = one(exact[:, None], position[row : row + 1], error[row : row + 1])
                events[row] = int(again.codes[0, 0])
        return events
