"""The order of training on several sets, and their clips as one source.

Position p is clip i = p mod N of epoch e = p div N, where N counts the clips of all sets.

    1. Each WINDOW positions of an epoch are permuted by the Philox stream ("blend/e", window): without that
       every fourth rank would read the lighter set of 3:1 alone. The last window may be shorter.
    2. The permuted position v is dealt to a set. The first set, of weight w among all W, has dealt
       c(v) = floor((v w + W div 2) / W) clips before it: v is the set's own where c(v + 1) > c(v), as
       number c(v) of its order. What is not its own is number v - c(v) for the other sets, dealt likewise.
    3. Each set has its own order (`Order`, with a seed from the run's and the set's fingerprint), its own
       blocks and epochs: a set of greater weight begins its next epoch earlier.

So any run of positions holds each set's share to within a few clips, by size every clip comes once an
epoch, and a position is all there is to save: nothing depends on the past or on the number of ranks.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from megajukebox.common.errors import UserError
from megajukebox.data.shards.blended_sets import ShardBlend, whole_weights
from megajukebox.data.stream.code_dataset import CodeWindows
from megajukebox.data.stream.note_windows import NoteWindows
from megajukebox.data.stream.sample_order import InOrder, Order, candidate, lru_get, permutation
from megajukebox.data.stream.song_dataset import Part, SongClips

WINDOW = 64  # positions shuffled together; divides the global batches of large runs, whose shares are then exact


def dealt(position: int, weights: Sequence[int]) -> tuple[int, int]:
    """(set, number among the clips of that set) of what is dealt at `position` to sets of whole `weights`.

    weights 3, 1     positions 0 1 2 3 4 5 6 7
                     set       0 1 0 0 0 1 0 0
    """
    left = sum(weights)
    for number, weight in enumerate(weights[:-1]):
        before = (position * weight + left // 2) // left
        if ((position + 1) * weight + left // 2) // left > before:
            return number, before
        position -= before
        left -= weight
    return len(weights) - 1, position


@dataclass(frozen=True)
class BlendedBlock:
    """A block of one set's order."""

    number: int  # of the set
    key: tuple[int, int]  # of the block


class BlendedOrder:
    """The orders of several sets dealt by whole `weights`; songs and shards count through the sets."""

    def __init__(
        self,
        orders: Sequence[Order],
        weights: Sequence[int],
        first_song: np.ndarray,
        first_shard: np.ndarray,
        seed: int,
    ) -> None:
        self.orders = orders
        self.weights = tuple(weights)
        self.clips = sum(order.clips for order in orders)
        self.seed = seed
        self.blocks_at_once = 2 * len(orders)  # a set may be at the seam of two blocks
        self._first_song = first_song.tolist()
        self._first_shard = first_shard.tolist()
        self._windows: dict[tuple[int, int], list[int]] = {}

    def own(self, position: int) -> tuple[int, int]:
        """(set, position in that set's order)."""
        epoch, i = divmod(int(position), self.clips)
        number, place = divmod(i, WINDOW)
        window = lru_get(self._windows, (epoch, number), self._make_window)
        return dealt(epoch * self.clips + number * WINDOW + window[place], self.weights)

    def locate(self, position: int) -> tuple[int, int, int]:
        """(epoch of its set, song, clip) at `position`."""
        return self.candidate(position, 0)

    def candidate(self, position: int, attempt: int) -> tuple[int, int, int]:
        """What stands in for `position` at the `attempt`-th try: of the same set, so that the weights hold."""
        number, own = self.own(position)
        epoch, song, clip = self.orders[number].candidate(own, attempt)
        return epoch, self._first_song[number] + song, clip

    def block_at(self, position: int) -> BlendedBlock:
        """The block of its set in which `position` lies."""
        number, own = self.own(position)
        return BlendedBlock(number, self.orders[number].block_at(own))

    def shards_from(self, block: BlendedBlock) -> np.ndarray:
        """The shards of a block and the next one of its set: what is read soon."""
        shards = self.orders[block.number].shards_from(block.key)
        return self._first_shard[block.number] + shards.astype(np.int64)

    def _make_window(self, key: tuple[int, int]) -> list[int]:
        epoch, number = key
        size = min(WINDOW, self.clips - number * WINDOW)
        return permutation(size, self.seed, f"blend/{epoch}", number).tolist()


class BlendedClips:
    """The clips of several sets as one source: song n counts through the sets of `shards`.

    `parts` are the sets' own sources, in the order of `shards.sets`.
    """

    def __init__(
        self, shards: ShardBlend, parts: Sequence[SongClips | CodeWindows | NoteWindows]
    ) -> None:
        self.shards = shards
        self.parts = tuple(parts)
        self.train_clips = [int(part.clips("train").sum()) for part in self.parts]
        for one, clips in zip(shards.sets, self.train_clips):
            if not clips:
                raise UserError(
                    f"{one.source}: none of its {len(one)} songs has a clip to train on; leave the set out, or use"
                    " shorter clips"
                )
        self.weights = whole_weights(shards.weights or self.train_clips)
        shard_of_song = []
        for part, first in zip(self.parts, shards.first_shard):
            shard_of_song.append(np.asarray(part.shard_of_song, dtype=np.int64) + first)
        self.shard_of_song = np.concatenate(shard_of_song)

    @property
    def clip(self) -> int:
        """Samples of a clip of songs."""
        first = self.parts[0]
        assert isinstance(first, SongClips)
        return first.clip

    def clips(self, part: Part) -> np.ndarray:
        """Number of clips of each song, [songs] int64; 0 for the songs of the other part."""
        return np.concatenate([source.clips(part) for source in self.parts])

    def report(self) -> dict[str, int]:
        counts: dict[str, int] = {"sets": len(self.parts)}
        for source in self.parts:
            for name, count in source.report().items():
                counts[name] = counts.get(name, 0) + count
        return counts

    def facts(self) -> dict[str, object]:
        """What fixes the samples beside the seed."""
        facts = dict(self.parts[0].facts())
        return {**facts, "index": self.shards.fingerprint, "sets": self.named_weights()}

    def named_weights(self) -> dict[str, int | str]:
        """The weights by the sets' fingerprints."""
        return self.shards.named_weights(self.weights)

    def read(self, song: int, clip: int, rng: np.random.Generator | None) -> dict[str, Any]:
        """One clip as its set reads it."""
        number, own = self.shards.song_of(song)
        return self.parts[number].read(own, clip, rng)

    def order(self, seed: int, block: int, clips_per_song_visit: int) -> BlendedOrder:
        """The order of the training clips."""
        orders = []
        for one, source in zip(self.shards.sets, self.parts):
            own_seed = seed_of_set(seed, one.fingerprint)
            orders.append(
                Order(
                    source.clips("train"),
                    source.shard_of_song,
                    own_seed,
                    block,
                    clips_per_song_visit,
                )
            )
        shards = self.shards
        return BlendedOrder(orders, self.weights, shards.first_song, shards.first_shard, seed)

    def held_out_order(self, limit: int | None) -> "BlendedHeldOut":
        """Held-out clips: all of them, or `limit` shared among the sets by their weights."""
        clips = [source.clips("held_out") for source in self.parts]
        return BlendedHeldOut(clips, self.weights, limit)


def seed_of_set(seed: int, fingerprint: str) -> int:
    """The seed of a set's own order: sets of one size are not shuffled alike."""
    digest = hashlib.blake2b(f"{seed}/{fingerprint}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


class BlendedHeldOut:
    """Held-out clips of several sets, one set after another; `limit` of them by weight, evenly spread in each."""

    blocks_at_once = 1

    def __init__(
        self, clips_per_set: Sequence[np.ndarray], weights: Sequence[int], limit: int | None
    ) -> None:
        totals = [int(clips.sum()) for clips in clips_per_set]
        counts = totals if limit is None else shared(limit, weights, totals)
        self._first_song = np.cumsum([0, *map(len, clips_per_set)]).tolist()
        self._orders: dict[int, InOrder] = {}
        for number, count in enumerate(counts):
            if count:
                self._orders[number] = InOrder(clips_per_set[number], count)
        self._ends = np.cumsum(counts)
        self.clips = int(self._ends[-1])

    def candidate(self, position: int, attempt: int) -> tuple[int, int, int]:
        """What stands in for `position` at the `attempt`-th try."""
        return self.locate(candidate(position, attempt, self.clips))

    def locate(self, position: int) -> tuple[int, int, int]:
        """(round, song, clip) at `position`; after the last clip comes the first again."""
        turn, i = divmod(int(position), self.clips)
        number = int(np.searchsorted(self._ends, i, side="right"))
        before = int(self._ends[number - 1]) if number else 0
        _, song, clip = self._orders[number].locate(i - before)
        return turn, self._first_song[number] + song, clip

    def block_at(self, position: int) -> tuple[int, int]:
        return 0, 0

    def shards_from(self, key: tuple[int, int]) -> np.ndarray:
        """None: held-out clips are few and lie everywhere."""
        return np.zeros(0, dtype=np.int64)


def shared(limit: int, weights: Sequence[int], totals: Sequence[int]) -> list[int]:
    """`limit` clips shared by `weights`, of no set more than it has; what a small set lacks the others give."""
    counts = [0] * len(totals)
    left = min(limit, sum(totals))
    while left:
        open_sets = [n for n, total in enumerate(totals) if counts[n] < total]
        weight = sum(weights[n] for n in open_sets)
        before = left
        for n in open_sets:
            given = min(totals[n] - counts[n], before * weights[n] // weight, left)
            counts[n] += given
            left -= given
        if left == before:  # fewer than there are sets: to the heaviest
            n = max(open_sets, key=lambda n: weights[n] * (counts[n] == 0))
            counts[n] += 1
            left -= 1
    return counts
