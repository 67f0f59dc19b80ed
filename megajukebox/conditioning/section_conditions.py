"""Conditions of sections: where in which section each code stands, and the codes of the last time that it sounded.

song     |verse|chorus|verse|chorus|            window     |----------|
             ^------^     a code of the second chorus is told which code stood at its place in the first
"""

# T codes of a window   M codes of a margin
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from megajukebox.conditioning.section_kinds import SECTION_KINDS
from megajukebox.conditioning.song_sections import (
    LabelledSection,
    SectionReturn,
    stored_returns,
    stored_sections,
)

if TYPE_CHECKING:
    from megajukebox.conditioning.schema import (
        ConditionResources,
        RequestedSong,
        SongOnDisk,
        WindowPosition,
    )
    from megajukebox.models.prior import PriorConfig

EarlierCodes = Callable[[int, int], np.ndarray]  # codes [first, end) of a song, int64
SECTIONS = "sections"
MEMORY = "memory"
MAX_OCCURRENCE = 8  # further ones count as the eighth
PLACE_COLUMNS = 4  # kind, occurrence, time since the section's start, share of it that is over
GOLDEN_RATIO = (5**0.5 - 1) / 2  # its multiples are spread evenly over [0, 1)


@dataclass(frozen=True)
class SectionsCondition:
    """In which section each code stands, [T, PLACE_COLUMNS] int64; 0 everywhere outside of sections."""

    window_codes: int
    bins: int  # of the times and shares
    max_seconds: float  # since the start of a section; later ones share the last bin
    dropout: float | None = 0.0
    name: str = SECTIONS
    group: str | None = None

    def read(self, song: SongOnDisk) -> tuple[LabelledSection, ...]:
        return tuple(stored_sections(song.metadata))

    def from_request(self, request: RequestedSong) -> tuple[LabelledSection, ...]:
        return request.section_plan.sections

    def null(self) -> tuple[LabelledSection, ...]:
        return ()

    def window(self, value: tuple[LabelledSection, ...], position: WindowPosition) -> np.ndarray:
        places = np.zeros((self.window_codes, PLACE_COLUMNS), dtype=np.int64)
        samples = np.arange(self.window_codes) * (position.length / self.window_codes)
        times = (position.offset + samples) / position.sample_rate
        seen: dict[str, int] = {}
        for section in value:
            occurrence = seen[section.name] = seen.get(section.name, 0) + 1
            inside = (times >= section.start) & (times < section.end)
            if not inside.any():
                continue
            since = times[inside] - section.start
            shares = since / (section.end - section.start)
            places[inside, 0] = SECTION_KINDS.index(section.kind)
            places[inside, 1] = min(occurrence, MAX_OCCURRENCE)
            places[inside, 2] = 1 + self._bin(since / self.max_seconds)
            places[inside, 3] = 1 + self._bin(shares)
        return places

    def _bin(self, shares: np.ndarray) -> np.ndarray:
        return np.minimum((shares * self.bins).astype(np.int64), self.bins - 1)


class SongReturns(NamedTuple):
    """What of a song sounded before. `shift_seed`: of training windows, whose alignment is off on purpose."""

    returns: tuple[SectionReturn, ...]
    shift_seed: int | None = None


@dataclass(frozen=True)
class MemoryCondition:
    """The codes that stood at the same place of the last earlier occurrence, [M + T + M] int64: code + 1, 0 is nothing.

    Training tells it less than is known, as sampling will: the alignment of each return is off by up to
    `jitter_seconds`, and the share `noise` of the codes is left out.
    """

    window_codes: int
    margin: int
    jitter_seconds: float
    noise: float
    dropout: float | None = 0.0
    name: str = MEMORY
    group: str | None = None

    def read(self, song: SongOnDisk) -> SongReturns:
        return SongReturns(tuple(stored_returns(song.metadata)))

    def from_request(self, request: RequestedSong) -> SongReturns:
        return SongReturns(request.section_plan.returns)

    def null(self) -> SongReturns:
        return SongReturns(())

    def perturbed(self, value: SongReturns, seed: int) -> SongReturns:
        """What a training window is given instead of `value`."""
        return value._replace(shift_seed=seed)

    def window(self, value: SongReturns, position: WindowPosition) -> np.ndarray:
        hop = position.length / self.window_codes
        codes_per_second = position.sample_rate / hop
        start = round(position.offset / hop)
        if value.shift_seed is None or not value.returns or position.earlier is None:
            return memory_of(value.returns, position.earlier, start, self, codes_per_second)
        rng = np.random.default_rng(value.shift_seed)
        reach = round(self.jitter_seconds * codes_per_second)
        shifts = rng.integers(-reach, reach + 1, len(value.returns)).tolist()
        ids = memory_of(value.returns, position.earlier, start, self, codes_per_second, shifts)
        return np.where(rng.random(len(ids)) < self.noise, 0, ids)


def memory_of(
    returns: Sequence[SectionReturn],
    earlier: EarlierCodes | None,
    start: int,
    size: MemoryCondition,
    codes_per_second: float,
    shifts: Sequence[int] | None = None,
) -> np.ndarray:
    """[M + T + M] code + 1 of what each code of a window, and of a margin around it, is said to repeat; 0 is nothing.

    Codes from the window on are never read: in training the window has them itself, in sampling they do not exist yet.
    A return of strength s gives that share of its codes.

    Args:
        earlier: reads codes [first, end) of the song; None: there are none.
        start: the first code of the window.
        shifts: codes by which the alignment of each return is off.
    """
    ids = np.zeros(size.margin + size.window_codes + size.margin, dtype=np.int64)
    first_code = start - size.margin  # ids[0] is of this code of the song
    for number, one in enumerate(returns if earlier else ()):
        begin = round(one.start * codes_per_second)
        lag = begin - round(one.earlier * codes_per_second)
        lag += shifts[number] if shifts else 0
        first = max(begin, first_code, lag)
        end = min(round(one.end * codes_per_second), first_code + len(ids), start + lag)
        if lag < 1 or first >= end:
            continue
        assert earlier is not None, "without codes no return is walked"
        codes = 1 + earlier(first - lag, end - lag)
        if one.strength < 1:
            kept = np.arange(first, end) * GOLDEN_RATIO % 1 < one.strength
            codes = np.where(kept, codes, 0)
        ids[first - first_code : end - first_code] = codes
    return ids


def sections_conditions(
    config: PriorConfig, resources: ConditionResources
) -> Iterator[SectionsCondition]:
    """The condition of a prior whose config has `aligned.sections`."""
    settings: Any = config.aligned.get(SECTIONS)
    if settings:
        dropout = resources.dropout.get(SECTIONS, 0.0)
        yield SectionsCondition(config.window, settings.bins, settings.max_seconds, dropout)


def memory_conditions(
    config: PriorConfig, resources: ConditionResources
) -> Iterator[MemoryCondition]:
    """The condition of a prior whose config has `aligned.memory`."""
    settings: Any = config.aligned.get(MEMORY)
    if settings:
        yield MemoryCondition(
            window_codes=config.window,
            margin=settings.margin,
            jitter_seconds=settings.jitter_seconds,
            noise=settings.noise,
            dropout=resources.dropout.get(MEMORY, 0.0),
        )
