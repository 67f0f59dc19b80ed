"""The order of training: which clip of which song stands at which position, a pure function of seed
and song lengths.

Let N be the number of clips of all songs. Position p = 0, 1, 2, ... is clip i = p mod N of epoch e
= p div N.

    1. Shards are permuted by the Philox stream ("shards", e).
    2. Each `block` shards in that order form a block; the last block may be smaller.
    3. The clips of a block, listed by shard in that order, then song, then time, are permuted by
    ("clips", e, block);
       with `clips_per_song_visit` v > 1 it permutes visits: runs of v neighbouring clips of a song
       (the last may be shorter).
    4. The epoch is its blocks one after another.

Step t takes positions t*G ... (t+1)*G - 1 for a global batch of G; rank r of W takes the r-th of W
equal runs of them. Nothing depends on the past, the number of ranks or workers, or time, so a step
number is all there is to save. A permutation is the stable argsort of raw 64-bit Philox words,
which numpy keeps for ever (`permutation` it may not).
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from megajukebox.common.errors import UserError

Key = TypeVar("Key")
Value = TypeVar("Value")

STRIDE = 7919  # a prime: candidates for a broken clip lie far from it, and from each other


def philox(seed: int, purpose: str, position: int) -> np.random.Philox:
    """The random stream that belongs to these three."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{position}".encode(), digest_size=16).digest()
    return np.random.Philox(key=int.from_bytes(digest, "little"))


def rng(seed: int, purpose: str, position: int) -> np.random.Generator:
    """Random numbers that depend on these three only: the same on every rank, worker and
    machine.
    """
    return np.random.Generator(philox(seed, purpose, position))


def permutation(n: int, seed: int, purpose: str, position: int) -> np.ndarray:
    """0 ... n - 1 in random order, [n] uint32."""
    words = philox(seed, purpose, position).random_raw(n)
    return np.argsort(words, kind="stable").astype(np.uint32)


def sample_positions(step: int, rank: int, world: int, global_batch: int) -> np.ndarray:
    """Positions [global_batch / world] int64 of `rank` in `step`."""
    if global_batch % world:
        raise UserError(
            f"global batch {global_batch} cannot be shared by {world} ranks; "
            f"set it to {max(1, global_batch // world) * world} or use a number of ranks that divides it"
        )
    share = global_batch // world
    first = step * global_batch + rank * share
    return np.arange(first, first + share, dtype=np.int64)


@dataclass(frozen=True)
class Epoch:
    """The order of the shards in one epoch."""

    shards: np.ndarray  # [shards] the permuted shards
    ends: np.ndarray  # [blocks] clips up to the end of each block


@dataclass(frozen=True)
class ShuffleBlock:
    """The order of the clips in one block of shards."""

    songs: np.ndarray  # [songs of the block] by permuted shard
    ends: np.ndarray  # [songs of the block] visits up to the end of each song
    visits: np.ndarray  # [visits of the block] the permutation
    # [visits of the block] clips up to the end of each permuted visit; None: each visit is one clip
    clip_ends: np.ndarray | None


class Order:
    """The order over songs of `clips_per_song` clips (0 leaves a song out) lying in
    `shard_of_song`, both [songs].

    Holds the permutation of two blocks at a time: positions read one after another cost a binary
    search each.
    """

    blocks_at_once = 1  # in which neighbouring positions lie

    def __init__(
        self,
        clips_per_song: np.ndarray,
        shard_of_song: np.ndarray,
        seed: int,
        block: int = 64,
        clips_per_song_visit: int = 1,
    ) -> None:
        self.clips_per_song = np.asarray(clips_per_song, dtype=np.int64)
        self.clips = int(self.clips_per_song.sum())
        self.seed = seed
        self.block = block
        self.clips_per_song_visit = clips_per_song_visit
        if block < 1 or clips_per_song_visit < 1:
            raise UserError(
                f"block {block} and clips_per_song_visit {clips_per_song_visit} are counts; set each to 1 or more"
            )
        if self.clips == 0:
            raise UserError(
                f"none of the {len(clips_per_song)} songs has a clip; use shorter clips or longer songs"
            )
        self._by_shard = np.argsort(shard_of_song, kind="stable")
        songs_per_shard = np.bincount(np.asarray(shard_of_song, dtype=np.int64))
        self._first = np.concatenate([[0], np.cumsum(songs_per_shard)])
        clips_by_shard = np.bincount(shard_of_song, weights=self.clips_per_song)
        self._clips_of_shard = clips_by_shard.astype(np.int64)
        self._epochs: dict[int, Epoch] = {}
        self._blocks: dict[tuple[int, int], ShuffleBlock] = {}

    def locate(self, position: int) -> tuple[int, int, int]:
        """(epoch, song, clip) at `position`."""
        key = self.block_at(position)
        epoch, number = key
        block = lru_get(self._blocks, key, self._make_block)
        clips_before = int(self._epoch(epoch).ends[number - 1]) if number else 0
        i = int(position) - (epoch * self.clips + clips_before)
        if block.clip_ends is None:
            visit = int(block.visits[i])
            inside = 0
        else:
            n = int(np.searchsorted(block.clip_ends, i, side="right"))
            visit = int(block.visits[n])
            inside = i - (int(block.clip_ends[n - 1]) if n else 0)
        song = int(np.searchsorted(block.ends, visit, side="right"))
        visit_of_song = visit - (int(block.ends[song - 1]) if song else 0)
        return epoch, int(block.songs[song]), visit_of_song * self.clips_per_song_visit + inside

    def candidate(self, position: int, attempt: int) -> tuple[int, int, int]:
        """What stands in for `position` at the `attempt`-th try; at the 0th what is there."""
        return self.locate(candidate(position, attempt, self.clips))

    def block_at(self, position: int) -> tuple[int, int]:
        """(epoch, number of the block) in which `position` lies."""
        epoch, i = divmod(int(position), self.clips)
        return epoch, int(np.searchsorted(self._epoch(epoch).ends, i, side="right"))

    def shards_from(self, key: tuple[int, int]) -> np.ndarray:
        """The shards of a block and the next one: what is read soon."""
        epoch, number = key
        return self._epoch(epoch).shards[number * self.block : (number + 2) * self.block]

    def _epoch(self, epoch: int) -> Epoch:
        return lru_get(self._epochs, epoch, self._make_epoch)

    def _make_epoch(self, epoch: int) -> Epoch:
        shards = permutation(len(self._clips_of_shard), self.seed, "shards", epoch)
        starts = np.arange(0, len(shards), self.block)
        return Epoch(shards, np.cumsum(np.add.reduceat(self._clips_of_shard[shards], starts)))

    def _make_block(self, key: tuple[int, int]) -> ShuffleBlock:
        epoch, number = key
        shards = self._epoch(epoch).shards[number * self.block : (number + 1) * self.block]
        songs = np.concatenate(
            [self._by_shard[self._first[shard] : self._first[shard + 1]] for shard in shards]
        )
        clips = self.clips_per_song[songs]
        visits = -(-clips // self.clips_per_song_visit)
        ends = np.cumsum(visits)
        order = permutation(int(ends[-1]), self.seed, f"clips/{epoch}", number)
        clip_ends = None
        if self.clips_per_song_visit > 1:  # every visit but the last of a song is full
            sizes = np.full(len(order), self.clips_per_song_visit)
            with_clips = visits > 0
            last_sizes = clips - (visits - 1) * self.clips_per_song_visit
            sizes[ends[with_clips] - 1] = last_sizes[with_clips]
            clip_ends = np.cumsum(sizes[order])
        return ShuffleBlock(songs, ends, order, clip_ends)


class InOrder:
    """Clips one after another, for held-out songs: all of them, or `limit` evenly spread over
    them.
    """

    blocks_at_once = 1

    def __init__(self, clips_per_song: np.ndarray, limit: int | None = None) -> None:
        self._ends = np.cumsum(clips_per_song, dtype=np.int64)
        total = int(self._ends[-1])
        self.clips = total if limit is None else min(total, limit)
        self._step = total / self.clips

    def locate(self, position: int) -> tuple[int, int, int]:
        """(round, song, clip) at `position`; after the last clip comes the first again."""
        turn, i = divmod(int(position), self.clips)
        clip = int(i * self._step)
        song = int(np.searchsorted(self._ends, clip, side="right"))
        return turn, song, clip - (int(self._ends[song - 1]) if song else 0)

    def candidate(self, position: int, attempt: int) -> tuple[int, int, int]:
        """What stands in for `position` at the `attempt`-th try."""
        return self.locate(candidate(position, attempt, self.clips))

    def block_at(self, position: int) -> tuple[int, int]:
        return 0, 0

    def shards_from(self, key: tuple[int, int]) -> np.ndarray:
        """None: held-out clips are few and lie everywhere."""
        return np.zeros(0, dtype=np.int64)


def candidate(position: int, attempt: int, clips: int) -> int:
    """The position whose clip stands in for the one at `position` at the `attempt`-th try,
    within the same epoch.
    """
    epoch, i = divmod(int(position), clips)
    stride = STRIDE if clips % STRIDE else STRIDE + 8  # 7927, the next prime
    return epoch * clips + (i + stride * attempt) % clips


def lru_get(
    cache: dict[Key, Value], key: Key, make: Callable[[Key], Value], size: int = 2
) -> Value:
    """`cache[key]`, made where it is missing; with more than `size` entries the least recently
    used one goes.
    """
    value = cache.pop(key) if key in cache else make(key)
    cache[key] = value
    if len(cache) > size:
        del cache[next(iter(cache))]
    return value
