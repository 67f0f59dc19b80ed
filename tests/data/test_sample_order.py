"""The order of training is a pure function: every clip once an epoch, whatever the ranks, the cuts and the shards."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megajukebox.data.stream.sample_order import STRIDE, Order, candidate, rng, sample_positions

WORLDS = [1, 2, 3, 4, 8]
GLOBAL_BATCH = 24  # every world of the list divides it


@st.composite
def orders(draw: st.DrawFn) -> Order:
    """Orders over uneven shards, some of them empty, with songs of 0 to 9 clips."""
    songs = draw(
        st.lists(st.tuples(st.integers(0, 12), st.integers(0, 9)), min_size=1, max_size=60)
    )
    shard, clips = np.array(songs).T
    clips[0] += 1
    seed, block, visit = (
        draw(st.integers(0, 2**31)),
        draw(st.integers(1, 5)),
        draw(st.sampled_from([1, 1, 2, 3, 20])),
    )
    return Order(clips, np.sort(shard), seed, block, visit)


def every_clip(order: Order) -> list[tuple[int, int]]:
    return [(song, clip) for song, n in enumerate(order.clips_per_song) for clip in range(n)]


@given(orders(), st.integers(0, 3))
@settings(deadline=None, max_examples=60)
def test_every_clip_comes_exactly_once_in_every_epoch(order: Order, epoch: int) -> None:
    seen = [order.locate(epoch * order.clips + i) for i in range(order.clips)]
    assert {e for e, _, _ in seen} == {epoch}
    assert sorted((song, clip) for _, song, clip in seen) == every_clip(order)


@given(st.sampled_from(WORLDS), st.integers(0, 10**12))
def test_ranks_are_disjoint_and_together_take_every_slot_of_a_step_in_order(
    world: int, step: int
) -> None:
    shares = [sample_positions(step, rank, world, GLOBAL_BATCH) for rank in range(world)]
    assert {len(share) for share in shares} == {GLOBAL_BATCH // world}
    assert np.array_equal(np.concatenate(shares), step * GLOBAL_BATCH + np.arange(GLOBAL_BATCH))


@given(orders(), st.sampled_from(WORLDS), st.sampled_from(WORLDS), st.integers(0, 6))
@settings(deadline=None, max_examples=40)
def test_any_cut_and_any_other_world_continue_the_same_order(
    order: Order, before: int, after: int, cut: int
) -> None:
    steps = 7
    worlds = [before] * cut + [after] * (steps - cut)
    shared = [
        p
        for t, world in enumerate(worlds)
        for r in range(world)
        for p in sample_positions(t, r, world, GLOBAL_BATCH)
    ]
    # it knows nothing of the first half
    resumed = Order(
        order.clips_per_song,
        order_shards(order),
        order.seed,
        order.block,
        order.clips_per_song_visit,
    )
    seen = [(order if p < cut * GLOBAL_BATCH else resumed).locate(p) for p in shared]
    assert seen == [order.locate(p) for p in range(steps * GLOBAL_BATCH)]


def order_shards(order: Order) -> np.ndarray:
    shards = np.empty(len(order.clips_per_song), dtype=np.int64)
    for shard, (first, end) in enumerate(zip(order._first, order._first[1:])):
        shards[order._by_shard[first:end]] = shard
    return shards


@given(orders())
@settings(deadline=None, max_examples=30)
def test_reading_out_of_order_finds_the_same_clips(order: Order) -> None:
    forward = [order.locate(p) for p in range(2 * order.clips)]
    assert [order.locate(p) for p in reversed(range(2 * order.clips))] == forward[::-1]


def test_only_the_shards_of_one_block_are_read_at_a_time() -> None:
    order = Order(np.full(40, 3), np.arange(40) // 2, seed=1, block=4)
    clips_of_a_block = 4 * 2 * 3
    for first in range(0, order.clips, clips_of_a_block):
        songs = [order.locate(first + i)[1] for i in range(clips_of_a_block)]
        assert len({song // 2 for song in songs}) == 4


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    first, other = (Order(np.full(30, 4), np.arange(30) // 5, seed=seed) for seed in (0, 1))
    epochs = [
        [order.locate(e * 120 + i)[1:] for i in range(120)]
        for order in (first, other)
        for e in (0, 1)
    ]
    assert all(a != b for n, a in enumerate(epochs) for b in epochs[:n])


def test_the_clips_of_a_visit_follow_each_other_and_visits_are_shuffled() -> None:
    order = Order(np.full(30, 7), np.arange(30) // 10, seed=4, clips_per_song_visit=3)
    seen = [order.locate(p)[1:] for p in range(order.clips)]
    begun = [i for i, (_, clip) in enumerate(seen) if clip % 3 == 0]
    for first, end in zip(begun, [*begun[1:], len(seen)]):
        song, clip = seen[first]
        assert seen[first:end] == [(song, c) for c in range(clip, min(clip + 3, 7))]
    assert len(begun) == 30 * 3 and begun != sorted(begun, key=lambda i: seen[i])


def test_the_shards_needed_soon_are_those_of_this_block_and_the_next() -> None:
    order = Order(np.full(40, 3), np.arange(40) // 2, seed=1, block=4)
    for position in range(0, 2 * order.clips, 7):
        soon = order.shards_from(order.block_at(position))
        assert order.locate(position)[1] // 2 in soon[:4] and len(soon) <= 8
        if position + 24 < order.clips:
            assert order.locate(position + 24)[1] // 2 in soon


def test_clips_of_a_song_are_spread_over_the_epoch() -> None:
    order = Order(np.full(50, 20), np.arange(50) // 5, seed=0, block=64)
    neighbours = Counter(
        order.locate(p)[1] == order.locate(p + 1)[1] for p in range(order.clips - 1)
    )
    assert neighbours[True] < 0.05 * order.clips


@pytest.mark.parametrize("clips", [2, 10, STRIDE, 3 * STRIDE])
def test_candidates_for_a_broken_clip_stay_in_its_epoch_and_differ(clips: int) -> None:
    candidates = [candidate(2 * clips + 1, attempt, clips) for attempt in range(min(clips, 50))]
    assert candidates[0] == 2 * clips + 1
    assert len(set(candidates)) == len(candidates)
    assert all(2 * clips <= p < 3 * clips for p in candidates)


def test_random_numbers_depend_on_seed_purpose_and_position_only() -> None:
    assert rng(1, "clip", 7).random() == rng(1, "clip", 7).random()
    others = {
        rng(s, w, p).random()
        for s, w, p in [(1, "clip", 7), (2, "clip", 7), (1, "mix", 7), (1, "clip", 8)]
    }
    assert len(others) == 4


def test_the_order_is_the_same_on_every_machine_and_version() -> None:
    order = Order(np.array([3, 0, 2, 4]), np.array([0, 0, 1, 2]), seed=5, block=2)
    golden = [(0, 1), (3, 0), (3, 1), (0, 0), (3, 3), (3, 2), (0, 2), (2, 1), (2, 0)]
    assert [order.locate(p)[1:] for p in range(9)] == golden


def test_a_global_batch_that_the_ranks_cannot_share_is_refused_with_the_way_out() -> None:
    with pytest.raises(
        ValueError, match=r"global batch 10 cannot be shared by 4 ranks; set it to 8"
    ):
        sample_positions(0, 0, 4, 10)


def test_songs_without_a_single_clip_are_refused() -> None:
    with pytest.raises(ValueError, match="none of the 2 songs has a clip"):
        Order(np.array([0, 0]), np.array([0, 1]), seed=0)
