"""Self-similarity of the songs of a shard set: what comes back in those without sections, and how right that is."""

import io
from typing import NamedTuple

import numpy as np

from megajukebox.common.errors import BadSampleError
from megajukebox.conditioning.song_sections import SectionReturn, returns_of, stored_sections
from megajukebox.data.audio import read_mono_slice
from megajukebox.data.self_similarity import similar_returns, song_chroma
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.spectra import CHROMA_STEP_SECONDS

MAX_SECONDS = 3600  # of a song; its audio is held, and time grows with the square
PLACE_TOLERANCE = 0.25  # seconds by which an earlier place may be off and count as right


class ReturnCounts(NamedTuple):
    """Moments of songs, CHROMA_STEP_SECONDS each."""

    repeated: int = 0  # in sections that came before
    found: int = 0  # of these, within a return that was found
    right: int = 0  # of these, at the right earlier place
    first: int = 0  # in sections that are heard for the first time
    false: int = 0  # of these, within a return that was found

    def plus(self, other: "ReturnCounts") -> "ReturnCounts":
        return ReturnCounts(*np.add(self, other).tolist())

    def report(self) -> str:
        """The shares, on one line."""
        found = self.found / max(1, self.repeated)
        right = self.right / max(1, self.found)
        false = self.false / max(1, self.first)
        return (
            f"{found:.1%} of what returns is found, {right:.1%} of that at the right place;"
            f" {false:.1%} of what is new is taken for a return"
        )


def mono_of(shards: ShardSet, row: int) -> np.ndarray:
    """The mono audio [T] of a song.

    Raises:
        BadSampleError: it is damaged, or too long.
    """
    rate = shards.index["sample_rate"]
    frames = int(shards.songs[row]["frames"])
    if frames > MAX_SECONDS * rate:
        raise BadSampleError("too_large", f"{frames / rate:.0f} s is over {MAX_SECONDS} s")
    return read_mono_slice(io.BytesIO(shards.read_member(row, "audio")), 0, frames, rate)


def returns_of_song(shards: ShardSet, row: int, threshold: float) -> list[list[float]] | str:
    """[start, end, earlier start] in seconds of what comes back; [] where the song says so itself; or what is wrong."""
    try:
        facts = shards.read_facts(row)
        if facts.get("sections") or facts.get("returns"):
            return []
        chroma_FC = song_chroma(mono_of(shards, row), shards.index["sample_rate"])
    except BadSampleError as error:
        return str(error)
    rows = []
    for found in similar_returns(chroma_FC, threshold):
        rows.append([round(time, 3) for time in found[:3]])
    return rows


def check_song(shards: ShardSet, row: int, threshold: float) -> ReturnCounts | None:
    """What is found in a song whose sections are known, against them; None for another song."""
    try:
        sections = stored_sections(shards.read_facts(row))
        if not sections:
            return None
        chroma_FC = song_chroma(mono_of(shards, row), shards.index["sample_rate"])
    except BadSampleError:
        return None
    seconds = len(chroma_FC) * CHROMA_STEP_SECONDS
    found = similar_returns(chroma_FC, threshold)
    return compare_returns(found, returns_of(sections), [s.start for s in sections], seconds)


def compare_returns(
    found: list[SectionReturn], known: list[SectionReturn], starts: list[float], seconds: float
) -> ReturnCounts:
    """Each moment of a song, found against known; those before the first section are left out.

    A moment is right where it comes from the same place of an earlier section, be it the last one or one before.
    """
    times = np.arange(min(starts, default=seconds), seconds, CHROMA_STEP_SECONDS)
    known_lag = lag_at(known, times)
    found_lag = lag_at(found, times)
    repeated = np.isfinite(known_lag)
    is_found = np.isfinite(found_lag)
    right = np.zeros(len(times), dtype=bool)
    lag = known_lag
    for _ in starts:  # the one before the last, and so on
        right |= np.abs(found_lag - lag) <= PLACE_TOLERANCE
        lag = lag + lag_at(known, times - np.where(np.isfinite(lag), lag, 0.0))
        if not np.isfinite(lag).any():
            break
    return ReturnCounts(
        repeated=int(repeated.sum()),
        found=int((repeated & is_found).sum()),
        right=int((repeated & is_found & right).sum()),
        first=int((~repeated).sum()),
        false=int((~repeated & is_found).sum()),
    )


def lag_at(returns: list[SectionReturn], times: np.ndarray) -> np.ndarray:
    """Seconds by which each time lies behind where it sounded before; NaN where it did not."""
    lag = np.full(len(times), np.nan)
    for one in returns:
        lag[(times >= one.start) & (times < one.end)] = one.start - one.earlier
    return lag
