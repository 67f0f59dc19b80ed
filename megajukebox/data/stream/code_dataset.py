"""Which windows of codes a code set has at a level, and one with what it is conditioned on: the
samples of a prior.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy_format

from megajukebox.common.errors import BadSampleError, UserError
from megajukebox.common.model_files import check_vqvae
from megajukebox.conditioning.schema import (
    Condition,
    SongConditioning,
    TimingCondition,
    WindowPosition,
    read_song,
)
from megajukebox.data.audio import OffsetReader
from megajukebox.data.shards.blended_sets import ShardBlend
from megajukebox.data.shards.local_cache import RangeReader
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.stream.sample_order import lru_get
from megajukebox.data.stream.song_dataset import (
    Part,
    believable,
    clip_start,
    of_part,
    report,
    split,
)

# Songs whose conditions and lyrics each process keeps ready: 0.5 MB each with long lyrics.
SONGS_KEPT = 64
NPY_PREAMBLE = 10  # bytes of a .npy file before its header: magic, version, the header's length
HEADERS_KEPT = 1 << 16  # parsed .npy headers, 0.2 kB each; parsing one takes 0.14 ms


def check_kind(codes: ShardSet | ShardBlend) -> None:
    """Raise UserError unless `codes` is a set of code shards."""
    if codes.index["kind"] != "codes":
        raise UserError(
            f"{codes.folder} holds {codes.index['kind']}, a prior reads codes; run encode first"
        )


def check_codes(codes: ShardSet | ShardBlend, run: Path, facts: Mapping[str, Any]) -> None:
    """Raise UserError unless `codes` were made by the VQ-VAE that the prior in `run` was trained
    with.
    """
    check_kind(codes)
    check_vqvae(run, facts, codes.index["vqvae"]["fingerprint"])


@dataclass(frozen=True)
class ShardSong:
    """A song of a shard set, as conditions read it."""

    shards: ShardSet
    song: int

    @cached_property
    def metadata(self) -> Mapping[str, Any]:
        return self.shards.read_facts(self.song)

    def member(self, name: str) -> bytes | None:
        """The bytes of a member; None where the song has none. BadSampleError if damaged."""
        if not self.shards.has(self.song, name):
            return None
        return self.shards.read_member(self.song, name)


class CodeWindows:
    """Windows of `window` codes of `level`, each starting on a code of the level above.

    The upper codes of a window are those of the level above for the same audio, `ratio` times
    fewer:

        upper  |   u0   |   u1   |   u2   |      window 8, ratio 4: codes c4..c11, upper codes u1, u2
        codes   c0 . . . c4 . . . c8 . . .

    With `verify` the first window read from a song checks the CRC of the whole member, once a
    process.
    """

    def __init__(
        self,
        shards: ShardSet,
        level: str,
        window: int,
        held_out: float = 0.0,
        conditions: tuple[Condition, ...] = (TimingCondition(),),
        verify: bool = True,
    ) -> None:
        self.shards = shards
        self.level = level
        self.window = window
        self.held_out = held_out
        self.conditions = conditions
        self.verify = verify
        hops = shards.index["vqvae"]["hops"]
        if level not in hops:
            raise UserError(
                f"level {level!r} is not in the code set; choose one of {', '.join(hops)}"
            )
        self.hop = hops[level]
        self.upper: str | None = None  # the level above; at the top there is none
        for name in hops:
            if hops[name] > self.hop and (self.upper is None or hops[name] < hops[self.upper]):
                self.upper = name
        self.ratio = hops[self.upper] // self.hop if self.upper else 1
        if window < 1 or window % self.ratio:
            raise UserError(
                f"window {window} at level {level} is not a multiple of {self.ratio},"
                f" its codes for one {self.upper} code;"
                f" set it to {max(1, window // self.ratio) * self.ratio}"
            )
        self.shard_of_song = np.asarray(shards.songs["shard"])
        # codes of the level above (at the top: of the top) in each song: whole codes of the slowest
        # level
        slowest = max(hops.values())
        uppers_per_slowest = slowest // (self.hop * self.ratio)
        self._uppers = believable(shards.songs["frames"]) // slowest * uppers_per_slowest
        self._clips = self._uppers // (window // self.ratio)
        self._held_out = split(shards.songs["key"], held_out)
        self._verified = {level: np.zeros(len(self._clips), dtype=bool)}
        if self.upper:
            self._verified[self.upper] = np.zeros(len(self._clips), dtype=bool)
        self._conditioning: dict[int, SongConditioning] = {}

    def clips(self, part: Part) -> np.ndarray:
        """Number of windows of each song, [songs] int64; 0 for the songs of the other part."""
        return of_part(self._clips, self._held_out, part)

    def report(self) -> dict[str, int]:
        return report(self._clips, self._held_out)

    def facts(self) -> dict[str, object]:
        """What fixes the samples beside the seed."""
        return {
            "index": self.shards.fingerprint,
            "level": self.level,
            "window": self.window,
            "held_out": self.held_out,
        }

    def read(self, song: int, clip: int, rng: np.random.Generator | None) -> dict[str, Any]:
        """One window; ValueError if it cannot be read. Without `rng`: not shifted, and with all its
        conditions.

        codes [window] int64, upper_codes [window / ratio] int64 (not at the top), and the arrays of
        the conditions: timing [3] int64 (length of the song, start and length of the window, in
        audio samples), conditions {name: [max_values] int64}, lyrics [tokens] int64 ...
        """
        uppers = self.window // self.ratio
        start = self.ratio * clip_start(clip, uppers, int(self._uppers[song]), rng)
        frames = int(self.shards.songs["frames"][song])
        rate = self.shards.index["sample_rate"]
        earlier = partial(self._codes_between, song)
        position = WindowPosition(frames, start * self.hop, self.window * self.hop, rate, earlier)
        conditioning = lru_get(
            self._conditioning,
            song,
            lambda song: read_song(self.conditions, ShardSong(self.shards, song)),
            size=SONGS_KEPT,
        )
        sample: dict[str, Any] = {"codes": self._codes(self.level, song, start, self.window)}
        sample |= conditioning.window(position, rng)
        if self.upper:
            sample["upper_codes"] = self._codes(self.upper, song, start // self.ratio, uppers)
        return sample

    def _codes_between(self, song: int, first: int, end: int) -> np.ndarray:
        """Codes [first, end) of the level itself, which conditions may read before the window."""
        return self._codes(self.level, song, first, end - first)

    def _codes(self, level: str, song: int, start: int, count: int) -> np.ndarray:
        if self.verify and not self._verified[level][song]:
            self.shards.check_member(song, level)
            self._verified[level][song] = True
        with self.shards.open_member(song, level) as file:
            codes = read_codes(file, start, count)
        size = self.shards.index["vqvae"]["codes"][level]
        if codes.max() >= size:
            raise BadSampleError(
                "bad_codes",
                f"code {codes.max()} in {level} codes is outside its codebook of {size}",
            )
        return codes


def read_codes(file: BinaryIO | OffsetReader | RangeReader, start: int, count: int) -> np.ndarray:
    """Codes [count] int64 from code `start` of a .npy of uint16 [T]; only the header and those
    bytes are read.

    Raises:
        BadSampleError: it is another kind of file, or too short.
    """
    preamble = file.read(NPY_PREAMBLE)
    header = file.read(int.from_bytes(preamble[8:], "little"))
    length = npy_length(preamble + header)
    if start + count > length:
        raise BadSampleError(
            "bad_codes", f"only {length} codes where {start} to {start + count} are wanted"
        )
    file.seek(NPY_PREAMBLE + len(header) + 2 * start)
    data = file.read(2 * count)
    if len(data) != 2 * count:
        raise BadSampleError(
            "bad_codes", f"codes end after {len(data) // 2} of {count} codes from {start}"
        )
    return np.frombuffer(data, dtype="<u2").astype(np.int64)


@lru_cache(maxsize=HEADERS_KEPT)
def npy_length(head: bytes) -> int:
    """How many values a .npy file of uint16 [T] has by its `head`.

    Raises BadSampleError if it is another kind of file.
    """
    file = io.BytesIO(head)
    try:
        version = npy_format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"version {version}")
        shape, fortran_order, dtype = npy_format.read_array_header_1_0(file)
    except Exception as error:
        # numpy's header parser fails in a dozen ways, all of them the file's fault
        raise BadSampleError(
            "bad_codes", f"codes start with {head[:80]!r}, not as a .npy file of version 1.0"
        ) from error
    if len(shape) != 1 or fortran_order or dtype != np.dtype("<u2"):
        raise BadSampleError("bad_codes", f"codes are {dtype} {list(shape)}, not one row of uint16")
    return int(shape[0])
