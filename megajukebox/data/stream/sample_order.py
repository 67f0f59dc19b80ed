"""The order of training: which clip of which song stands at which position, a pure function of seed and song lengths.

Let N be the number of clips of all songs. Position p = 0, 1, 2, ... is clip i = p mod N of epoch e = p div N.

    1. Shards are permuted by the Philox stream ("shards", e).
    2. Each `block` shards in that order form a block; the last block may be smaller.
    3. The clips of a block, listed by shard in that order, then song, then time, are permuted by ("clips", e, block);
       with a `visit` of v > 1, not clips but runs of v neighbouring clips of a song (the last run may be shorter) are.
    4. The epoch is its blocks one after another.

Step t takes positions t*G ... (t+1)*G - 1 for a global batch of G; rank r of W takes the r-th of W equal runs of them.
Nothing depends on the past, the number of ranks or workers, or time, so a step number is all there is to save.
A permutation is the stable argsort of raw 64-bit Philox words, which numpy keeps for ever (`permutation` it may not).
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

Key = TypeVar("Key")
Value = TypeVar("Value")

STRIDE = 7919  # a prime: candidates for a broken clip lie far from it, and from each other


def philox(seed: int, purpose: str, position: int) -> np.random.Philox:
    digest = hashlib.blake2b(f"{seed}/{purpose}/{position}".encode(), digest_size=16).digest()
    return np.random.Philox(key=int.from_bytes(digest, "little"))


def rng(seed: int, purpose: str, position: int) -> np.random.Generator:
    """Random numbers that depend on these three only: the same on every rank, worker and machine."""
    return np.random.Generator(philox(seed, purpose, position))


def permutation(n: int, seed: int, purpose: str, position: int) -> np.ndarray:
    return np.argsort(philox(seed, purpose, position).random_raw(n), kind="stable").astype(
        np.uint32
    )


def slots(step: int, rank: int, world: int, global_batch: int) -> np.ndarray:
    """Positions [global_batch / world] int64 of `rank` in `step`."""
    if global_batch % world:
        raise ValueError(
            f"global batch {global_batch} cannot be shared by {world} ranks; "
            f"set it to {max(1, global_batch // world) * world} or use a number of ranks that divides it"
        )
    share = global_batch // world
    first = step * global_batch + rank * share
    return np.arange(first, first + share, dtype=np.int64)


@dataclass(frozen=True)
class Epoch:
    shards: np.ndarray  # [shards] the permuted shards
    ends: np.ndarray  # [blocks] clips up to the end of each block


@dataclass(frozen=True)
class ShuffleBlock:
    songs: np.ndarray  # [songs of the block] rows, by permuted shard
    ends: np.ndarray  # [songs of the block] visits up to the end of each song
    visits: np.ndarray  # [visits of the block] the permutation
    places: (
        np.ndarray | None
    )  # [visits of the block] clips up to the end of each permuted visit; None: one clip each


class Order:
    """The order over songs of `clips_per_song` clips (0 leaves a song out) lying in `shard_of_song`, both [songs].

    Holds the permutation of two blocks at a time: positions read one after another cost a binary search each.
    """

    def __init__(
        self,
        clips_per_song: np.ndarray,
        shard_of_song: np.ndarray,
        seed: int,
        block: int = 64,
        visit: int = 1,
    ) -> None:
        self.clips_per_song = np.asarray(clips_per_song, dtype=np.int64)
        self.clips = int(self.clips_per_song.sum())
        self.seed = seed
        self.block = block
        self.visit = visit
        if block < 1 or visit < 1:
            raise ValueError(f"block {block} and visit {visit} are counts; set each to 1 or more")
        if self.clips == 0:
            raise ValueError(
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
        block = newest(self._blocks, key, self._make_block)
        number, inside = self._find(block, int(position) - self._start_of(key))
        song = int(np.searchsorted(block.ends, number, side="right"))
        first = number - (int(block.ends[song - 1]) if song else 0)
        return key[0], int(block.songs[song]), first * self.visit + inside

    def block_at(self, position: int) -> tuple[int, int]:
        """(epoch, number of the block) in which `position` lies."""
        epoch, i = divmod(int(position), self.clips)
        return epoch, int(np.searchsorted(self._epoch(epoch).ends, i, side="right"))

    def shards_from(self, key: tuple[int, int]) -> np.ndarray:
        """The shards of a block and the next one: what is read soon."""
        epoch, number = key
        return self._epoch(epoch).shards[number * self.block : (number + 2) * self.block]

    def _epoch(self, epoch: int) -> Epoch:
        return newest(self._epochs, epoch, self._make_epoch)

    def _start_of(self, key: tuple[int, int]) -> int:
        epoch, number = key
        return epoch * self.clips + (int(self._epoch(epoch).ends[number - 1]) if number else 0)

    def _find(self, block: ShuffleBlock, i: int) -> tuple[int, int]:
        """(visit, clip within the visit) of the i-th clip of a block."""
        if block.places is None:
            return int(block.visits[i]), 0
        place = int(np.searchsorted(block.places, i, side="right"))
        return int(block.visits[place]), i - (int(block.places[place - 1]) if place else 0)

    def candidate(self, position: int, attempt: int) -> int:
        return candidate(position, attempt, self.clips)

    def _make_epoch(self, epoch: int) -> Epoch:
        shards = permutation(len(self._clips_of_shard), self.seed, "shards", epoch)
        starts = np.arange(0, len(shards), self.block)
        return Epoch(shards, np.cumsum(np.add.reduceat(self._clips_of_shard[shards], starts)))

    def _make_block(self, key: tuple[int, int]) -> ShuffleBlock:
        epoch, number = key
        shards = self._epoch(epoch).shards[number * self.block : (number + 1) * self.block]
        songs = np.concatenate(
            [self._by_shard[self._first[s] : self._first[s + 1]] for s in shards]
        )
        clips = self.clips_per_song[songs]
        visits = -(-clips // self.visit)
        ends = np.cumsum(visits)
        order = permutation(int(ends[-1]), self.seed, f"clips/{epoch}", number)
        return ShuffleBlock(
            songs, ends, order, None if self.visit == 1 else self._places(clips, visits, order)
        )

    def _places(self, clips: np.ndarray, visits: np.ndarray, order: np.ndarray) -> np.ndarray:
        """Clips up to the end of each visit in the order `order`: all of `visit` clips but the last of a song."""
        sizes = np.full(len(order), self.visit)
        heard = visits > 0
        sizes[np.cumsum(visits)[heard] - 1] = (clips - (visits - 1) * self.visit)[heard]
        return np.cumsum(sizes[order])


class InOrder:
    """Clips one after another, for held-out songs: all of them, or `limit` evenly spread over them."""

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

    def block_at(self, position: int) -> tuple[int, int]:
        return 0, 0

    def shards_from(self, key: tuple[int, int]) -> np.ndarray:
        """None: held-out clips are few and lie everywhere."""
        return np.zeros(0, dtype=np.int64)

    def candidate(self, position: int, attempt: int) -> int:
        return candidate(position, attempt, self.clips)


def candidate(position: int, attempt: int, clips: int) -> int:
    """The position whose clip stands in for the one at `position` at the `attempt`-th try, within the same epoch."""
    epoch, i = divmod(int(position), clips)
    stride = STRIDE if clips % STRIDE else STRIDE + 8  # 7927, the next prime
    return epoch * clips + (i + stride * attempt) % clips


def newest(kept: dict[Key, Value], key: Key, make: Callable[[Key], Value], size: int = 2) -> Value:
    """`kept[key]`, made where it is missing; the one unused longest goes when there are more than `size`."""
    value = kept.pop(key) if key in kept else make(key)
    kept[key] = value
    if len(kept) > size:
        del kept[next(iter(kept))]
    return value
