"""`Composer`: a trained composer and what is asked of it, in Python.

from megajukebox import Composer, read_notes

(piece,) = Composer("runs/tiny").fill(read_notes("tune.mid"), parts="ATB", seed=7)
piece.save("harmonised.mid")
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megajukebox.common.errors import UserError
from megajukebox.common.levels import COMPOSER_FOLDER
from megajukebox.common.model_files import load_into, read_facts
from megajukebox.common.untrusted_files import parse_json, read_inside
from megajukebox.conditioning.vocabulary import Vocabulary, read_vocabularies
from megajukebox.data.piece_files import save_piece
from megajukebox.models.prior import Prior, PriorConfig
from megajukebox.notes.clock import Clock, decode
from megajukebox.notes.events import (
    END,
    NOTES_VOCABULARY,
    NoteEvent,
    NoteVocabulary,
    class_name,
    encode,
    on_steps,
    tempo_step,
)
from megajukebox.notes.fill import FillPlan, FillRegion, as_given, fill_plan
from megajukebox.notes.grammar import Bounds
from megajukebox.notes.holes import HoleGrid
from megajukebox.notes.known_music import KnownMusic
from megajukebox.notes.notes import Notes, ticks_of_bar
from megajukebox.sampling.composing.choose import best_first, figures_of
from megajukebox.sampling.composing.event_sampler import SCORE, EventSampler, PiecePlan
from megajukebox.sampling.decoding.gumbel_noise import noise_keys
from megajukebox.sampling.decoding.token_sampling import FILTERS, TokenSampler

MAX_EVENTS = 20_000  # of a piece: some minutes of ten instruments
REWRITTEN_BARS, REWRITTEN_PARTS = 2, 2  # of a rectangle that is drawn anew, at most
REWRITE_SEEDS = 1 << 32  # between the seeds of a piece and of each of its rewrites


@dataclass(frozen=True)
class PieceRequest:
    """A piece that is wanted. What is left out the composer decides."""

    seed: int = 0
    artist: str | None = None  # in whose manner
    genres: tuple[str, ...] = ()
    instruments: tuple[str, ...] = ()  # families; no other is then used
    bars: int = 0  # 0: as many as it likes
    metre: tuple[int, int] = (4, 4)
    bpm: float = 0.0  # 0: as it likes
    beginning: Notes | None = None  # goes on from there, or is completed where there is a `region`
    region: FillRegion | None = None  # of the beginning, to be written anew
    rewrites: int = 0  # rectangles of a few bars and parts of the region that are then drawn anew
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.0
    max_events: int = MAX_EVENTS


@dataclass(frozen=True)
class ComposedPiece:
    """A piece, and what it was asked for."""

    request: PieceRequest
    notes: Notes
    events: tuple[int, ...]
    figures: dict[str, float] = field(
        default_factory=dict
    )  # of counterpoint, where parts are voices

    def save(self, path: str | Path) -> None:
        """Write it as .mid, .musicxml, .abc or .wav, by the path's ending."""
        path = Path(path)
        save_piece(self.notes, path.parent, path.stem, [path.suffix.removeprefix(".")])


class Composer:
    """The run of a trained composer, or the folder above it.

    Raises:
        UserError: the folder holds none.
    """

    def __init__(self, run: str | Path) -> None:
        run = Path(run)
        folder = run if (run / NOTES_VOCABULARY).is_file() else run / COMPOSER_FOLDER
        if not (folder / NOTES_VOCABULARY).is_file():
            raise UserError(f"{run} holds no composer; give a run of: megajukebox train composer")
        self.folder = folder
        self.facts = read_facts(folder)
        self.vocabulary = NoteVocabulary.from_json(
            parse_json(read_inside(folder, NOTES_VOCABULARY))
        )
        self.names = read_vocabularies(folder)
        config = PriorConfig(**self.facts["config"])
        with torch.device("meta"):
            prior = Prior(config)
        load_into(prior, folder, dtype=torch.float32, device=torch.device("cpu"))
        self.prior = prior.eval()
        self.sampler = EventSampler(self.prior, self.vocabulary)

    def fill(
        self,
        notes: Notes,
        parts: str = "",
        bars: str = "",
        seed: int = 0,
        variations: int = 1,
        keep: int | None = None,
        **more: Any,
    ) -> list[ComposedPiece]:
        """Write the holes of a piece: accompany, harmonise, rewrite, go on, vary.

        Args:
            parts: to write, "ATB" of a choir or "violin 2, cello 1"; all by default.
            bars: to write, "3-4", "9-"; all by default. What follows the last bar goes on from the piece.
            variations: pieces drawn, with seeds one after another from `seed` on.
            keep: as many of them as are best by figures of counterpoint, the best first; None: all, in order of seeds.
            more: other fields of PieceRequest: artist, genres, rewrites, temperature, top_k, top_p, max_events.
        Raises:
            UserError: the piece has no such parts or bars, or the composer has learned nothing like it.
        """
        region = FillRegion(parts, bars)
        request = PieceRequest(seed=seed, beginning=notes, region=region, **more)
        pieces = self.compose(expand_seeds(request, variations))
        return pieces if keep is None else best_first(pieces)[:keep]

    def compose(self, requests: Sequence[PieceRequest]) -> list[ComposedPiece]:
        """A piece of every request; each is what it would be alone.

        Raises:
            UserError: a request asks for what the composer has not learned; the message names it.
        """
        plans = []
        fills: list[FillPlan | None] = []
        for request in requests:
            fill = None
            if request.region is not None and request.beginning is not None:
                fill = fill_plan(request.beginning, request.region)
            fills.append(fill)
            plans.append(self.plan(request, fill))
        seeds = [request.seed for request in requests]
        events = self._draw(requests, plans, seeds, fills)
        for number in range(max(request.rewrites for request in requests)):
            events = self._rewritten(requests, fills, events, number)
        pieces = []
        for request, fill, drawn in zip(requests, fills, events):
            notes = decode(drawn, self.vocabulary)
            if fill is not None:
                notes = as_given(notes, fill)
            figures = figures_of(notes)
            pieces.append(ComposedPiece(request, notes, tuple(drawn), figures))
        return pieces

    def _draw(
        self,
        requests: Sequence[PieceRequest],
        plans: Sequence[PiecePlan],
        seeds: Sequence[int],
        fills: Sequence[FillPlan | None],
    ) -> list[list[int]]:
        return self.sampler.draw(
            self.labels(requests, fills),
            token_sampler(requests, seeds),
            plans,
            max(request.max_events for request in requests),
        )

    def _rewritten(
        self,
        requests: Sequence[PieceRequest],
        fills: Sequence[FillPlan | None],
        events: list[list[int]],
        number: int,
    ) -> list[list[int]]:
        """The pieces with a rectangle of each drawn anew, told all the rest: a step of blocked Gibbs sampling."""
        plans, rows, seeds = [], [], []
        for row, (request, fill) in enumerate(zip(requests, fills)):
            if number >= request.rewrites:
                continue
            piece = decode(events[row], self.vocabulary)
            grid = rewritten_grid(piece, fill, request.seed, number)
            known = KnownMusic(piece, self.vocabulary, grid)
            plans.append(PiecePlan((), Bounds(piece.length), known))
            rows.append(row)
            seeds.append(request.seed + REWRITE_SEEDS * (number + 1))
        some = [requests[row] for row in rows]
        drawn = self._draw(some, plans, seeds, [fills[row] for row in rows])
        result = list(events)
        for row, new in zip(rows, drawn):
            result[row] = new
        return result

    def plan(self, request: PieceRequest, fill: FillPlan | None) -> PiecePlan:
        """What the piece begins with, keeps to, and is told.

        Raises:
            UserError: the composer has learned nothing like what is given.
        """
        families = frozenset(request.instruments)
        if fill is None:
            length = request.bars * ticks_of_bar(*request.metre)
            beginning = self.beginning(request)
            if request.beginning is not None and request.bars:
                length += self._length_of(beginning)
            return PiecePlan(beginning, Bounds(length, families))
        if fill.goes_on_from is not None:
            begun = fill.piece.clipped(0, fill.goes_on_from) if fill.goes_on_from else None
            if begun is not None:
                return PiecePlan(self.said(begun), Bounds(fill.length, families))
        elif SCORE not in self.prior.aligned:
            raise UserError(
                f"{self.folder} reads no known notes; train one with composer.score, or go on with bars=N-"
            )
        unknown = [one for one in fill.grid.classes if one not in self.sampler.layout.numbers]
        if unknown:
            names = ", ".join(map(class_name, self.sampler.layout.classes))
            raise UserError(
                f"part {class_name(unknown[0])!r} is unknown to {self.folder}; it knows {names}"
            )
        try:
            known = KnownMusic(fill.piece, self.vocabulary, fill.grid)
        except ValueError as error:
            raise UserError(f"the piece {error}; the composer learned nothing like it") from None
        return PiecePlan((), Bounds(fill.length, families), known)

    def _length_of(self, events: Sequence[int]) -> int:
        clock = Clock(self.vocabulary)
        for event in events:
            clock.push(event)
        return max(clock.tick, clock.end)

    def labels(
        self, requests: Sequence[PieceRequest], fills: Sequence[FillPlan | None]
    ) -> dict[str, Tensor]:
        """Ids [B, max_values] of each condition of the composer."""
        ids = {}
        for name, table in self.prior.config.conditions.items():
            vocabulary = self.names.get(name, Vocabulary())
            rows = []
            for request, fill in zip(requests, fills):
                names = self.asked(request, name)
                if name == "instruments" and not names and fill is not None:
                    families = dict.fromkeys(one.family for one in fill.grid.classes)
                    names = [family for family in families if vocabulary.id(family)]
                rows.append(vocabulary.ids(names, table.max_values))
            ids[name] = torch.from_numpy(np.stack(rows))
        return ids

    def asked(self, request: PieceRequest, name: str) -> list[str]:
        """The names of one condition that a request asks for.

        Raises:
            UserError: one was not among the pieces that the composer learned from.
        """
        wanted: Any = getattr(request, name, None) or ()
        names = [wanted] if isinstance(wanted, str) else list(wanted)
        vocabulary = self.names.get(name, Vocabulary())
        for one in names:
            if not vocabulary.id(one):
                known = ", ".join(vocabulary.names[1:]) or "none"
                raise UserError(f"{name} {one!r} is unknown to {self.folder}; it knows {known}")
        return names

    def beginning(self, request: PieceRequest) -> list[int]:
        """Events with which the piece begins: those of a piece to go on from, or metre and tempo."""
        if request.beginning is not None:
            return self.said(request.beginning)
        if not self.vocabulary.metres:
            return []
        metre = NoteEvent("BAR", *request.metre)
        if metre not in self.vocabulary.numbers:
            known = ", ".join(f"{n}/{d}" for n, d in self.vocabulary.metres)
            wanted = "/".join(map(str, request.metre))
            raise UserError(f"metre {wanted} is unknown to {self.folder}; it knows {known}")
        events = [self.vocabulary.numbers[metre]]
        if request.bpm:
            events.append(self.vocabulary.numbers[NoteEvent("TEMPO", tempo_step(request.bpm))])
        return events

    def said(self, piece: Notes) -> list[int]:
        """The events of a piece to go on from.

        Raises:
            UserError: the composer has no word for some of it.
        """
        try:
            events = encode(on_steps(piece), self.vocabulary).tolist()
        except ValueError as error:
            raise UserError(
                f"the beginning {error}; the composer learned nothing like it"
            ) from None
        return [event for event in events if event != END]


def rewritten_grid(piece: Notes, fill: FillPlan | None, seed: int, number: int) -> HoleGrid:
    """A rectangle of one or two bars and parts, within the region that was asked for."""
    whole = fill or fill_plan(piece, FillRegion())
    digest = hashlib.sha256(f"{seed} {number}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    grid = whole.grid
    spans = np.flatnonzero(grid.is_open[:-1].any(1))
    span = int(rng.choice(spans)) if len(spans) else 0
    columns = np.flatnonzero(grid.is_open[span])
    chosen = rng.permutation(columns)[: int(rng.integers(1, REWRITTEN_PARTS + 1))]
    bars = int(rng.integers(1, REWRITTEN_BARS + 1))
    is_open = np.zeros_like(grid.is_open)
    is_open[span : span + bars, chosen] = True
    return HoleGrid(grid.starts, grid.classes, is_open & grid.is_open)


def token_sampler(requests: Sequence[PieceRequest], seeds: Sequence[int]) -> TokenSampler:
    """How the events of each request are drawn."""
    filters = {}
    for name, token_filter in FILTERS.items():
        values = [getattr(request, name) or token_filter.off for request in requests]
        if any(value != token_filter.off for value in values):
            filters[name] = torch.tensor(values)
    return TokenSampler(
        noise_keys(list(seeds), COMPOSER_FOLDER),
        torch.tensor([request.temperature for request in requests]),
        filters,
    )


def expand_seeds(request: PieceRequest, count: int) -> list[PieceRequest]:
    """The same request with `count` seeds, from its own on."""
    return [replace(request, seed=request.seed + number) for number in range(count)]
