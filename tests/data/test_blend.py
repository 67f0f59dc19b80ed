"""Several sets at once: every position has its clip, weights hold, and nothing but the position is needed to resume."""

import json
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures.tiny_shards import (
    CLIP,
    HOPS,
    MADE_BY,
    RATE,
    all_ranks,
    batches,
    codes_of,
    facts_of,
    frames_of,
    npy,
    ramp,
    same,
    steps,
)
from hypothesis import given
from hypothesis import strategies as st

from megajukebox.common.errors import UserError
from megajukebox.data.audio import encode_wav
from megajukebox.data.shards.blended_sets import ShardBlend, WeightedAddress, open_data, parse_data
from megajukebox.data.shards.build_index import write_index
from megajukebox.data.shards.remote import RemoteConfig
from megajukebox.data.shards.shard_set import ShardSample, ShardSet, write_shard
from megajukebox.data.stream.batches import held_out_batches
from megajukebox.data.stream.blend import WINDOW, BlendedClips, BlendedOrder, dealt, shared
from megajukebox.data.stream.code_dataset import CodeWindows
from megajukebox.data.stream.sample_order import Order
from megajukebox.data.stream.song_dataset import SongClips
from megajukebox.data.stream.worker_pool import ReadAhead

VQVAE = {"fingerprint": "0" * 64, "hops": HOPS, "codes": dict.fromkeys(HOPS, 2048)}


def write(folder: Path, kind: str, songs: range, name: str, **extra: Any) -> Path:
    """A set of `songs` of tiny_shards, under keys of its own, in shards of three."""
    folder.mkdir(parents=True)
    names = []
    for first in range(0, len(songs), 3):
        samples = []
        for song in songs[first : first + 3]:
            key = f"{name}-{song:02d}"
            facts = {**json.loads(facts_of(song)), "key": key, "year": 1990 + song}
            members = {"json": json.dumps(facts).encode()}
            if kind == "songs":
                members["wav"] = encode_wav(ramp(song), RATE)
            else:
                members |= {f"{level}.npy": npy(codes_of(song, level)) for level in HOPS}
            samples.append(ShardSample(key, frames_of(song), members))
        names.append(f"{kind}-{first:06d}.tar")
        write_shard(folder / names[-1], samples)
    about = {"extra": {"vqvae": {**VQVAE, **extra}}} if kind == "codes" else {}
    write_index(folder, names, kind=kind, sample_rate=RATE, made_by=MADE_BY, **about)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sets")
    return {
        "a": write(root / "a", "songs", range(12), "a"),
        "b": write(root / "b", "songs", range(3, 9), "b"),
        "c": write(root / "c", "songs", range(5, 7), "c"),
        "codes a": write(root / "codes_a", "codes", range(12), "a"),
        "codes b": write(root / "codes_b", "codes", range(3, 9), "b"),
        "other codes": write(root / "other", "codes", range(2), "o", fingerprint="1" * 64),
    }


def clips(*data: str, held_out: float = 0.0) -> BlendedClips:
    blend = open_data(data)
    assert isinstance(blend, ShardBlend)
    return BlendedClips(blend, [SongClips(one, CLIP, held_out) for one in blend.sets])


def set_counts(source: BlendedClips, positions: range) -> Counter[str]:
    """How many of the positions each set has, by the first letter of its keys."""
    order = source.order(3, 2, 1)
    return Counter(source.shards.key(order.locate(p)[1])[0] for p in positions)


# ---- the order


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=9), st.integers(0, 10**12))
def test_dealing_gives_each_set_its_numbers_one_after_another(
    weights: list[int], first: int
) -> None:
    """Whatever the weights and wherever one begins: no clip is left out and none comes twice."""
    following: dict[int, int] = {}
    for position in range(first, first + 60):
        number, own = dealt(position, weights)
        assert following.get(number, own) == own
        following[number] = own + 1
    total = sum(weights)
    for number, after in following.items():  # at no position is a set more than a few clips off
        assert abs(after - (first + 60) * weights[number] / total) <= len(weights)


@given(st.lists(st.integers(1, 200), min_size=1, max_size=6))
def test_by_size_an_epoch_deals_every_clip_once(sizes: list[int]) -> None:
    total = sum(sizes)
    for epoch in range(2):
        got = [dealt(p, sizes) for p in range(epoch * total, (epoch + 1) * total)]
        expected = [(n, epoch * size + i) for n, size in enumerate(sizes) for i in range(size)]
        assert sorted(got) == expected


def test_weights_hold_within_a_thousandth_over_an_epoch_and_in_every_large_batch() -> None:
    sizes, weights = (7000, 4001, 900), (60, 33, 7)
    orders = [Order(np.full(n, 1), np.arange(n) // 50, seed, 4) for seed, n in enumerate(sizes)]
    first = np.cumsum([0, *sizes])
    blend = BlendedOrder(orders, weights, first, np.zeros(4, dtype=np.int64), 3)
    numbers = np.array([blend.own(p)[0] for p in range(blend.clips)])
    shares = np.bincount(numbers) / blend.clips
    assert np.abs(shares - np.array(weights) / 100).max() < 0.001
    of_batches = numbers[: len(numbers) // 256 * 256].reshape(-1, 256)
    heaviest = (of_batches == 0).sum(1)
    assert heaviest.min() >= 256 * 0.6 - 2 and heaviest.max() <= 256 * 0.6 + 2
    quarter = numbers[: len(numbers) // WINDOW * WINDOW].reshape(
        -1, 4
    )  # of ranks that read one clip each
    assert (quarter == 2).any(0).all()


def test_each_set_keeps_its_own_shuffled_epochs(folders: dict[str, Path]) -> None:
    source = clips(f"{folders['a']}:1", f"{folders['c']}:1")
    order = source.order(3, 2, 1)
    by_set: dict[int, list[tuple[int, int]]] = {0: [], 1: []}
    for position in range(2 * order.clips):
        number, _ = order.own(position)
        _, song, clip = order.locate(position)
        by_set[number].append((song, clip))
    for number, part in enumerate(source.parts):
        size = int(part.clips("train").sum())
        for epoch in range(len(by_set[number]) // size - 1):
            # within a window a set's clips may change places, so an epoch's ends are a little ragged
            inner = by_set[number][epoch * size + WINDOW : (epoch + 1) * size - WINDOW]
            assert len(set(inner)) == len(inner)
        assert len(set(by_set[number])) == size


def test_a_blend_by_size_has_every_clip_once_an_epoch(folders: dict[str, Path]) -> None:
    source = clips(str(folders["a"]), str(folders["b"]), str(folders["c"]))
    order = source.order(3, 2, 1)
    wanted = []
    for song, count in enumerate(source.clips("train")):
        wanted += [(song, clip) for clip in range(count)]
    for epoch in range(2):
        got = [order.locate(p)[1:] for p in range(epoch * order.clips, (epoch + 1) * order.clips)]
        assert sorted(got) == wanted and got != wanted


def test_weights_are_those_of_the_command_line(folders: dict[str, Path]) -> None:
    source = clips(f"{folders['a']}:3", f"{folders['b']}:1")
    assert set_counts(source, range(WINDOW)) == {"a": 48, "b": 16}
    fractions = clips(f"{folders['a']}:0.25", f"{folders['b']}:1", f"{folders['c']}:0.75")
    assert set_counts(fractions, range(WINDOW)) == {"a": 8, "b": 32, "c": 24}


# ---- the stream


@pytest.mark.parametrize("world", [1, 2, 4])
def test_any_number_of_ranks_and_workers_reads_the_same_clips(
    folders: dict[str, Path], world: int
) -> None:
    source = clips(f"{folders['a']}:3", f"{folders['b']}:1")
    whole = steps(batches(source), 12)
    assert same(all_ranks(source, world, 12), whole)
    assert same(steps(batches(source, ahead=ReadAhead(2)), 12), whole)


def test_a_resumed_stream_goes_on_where_it_was_on_more_ranks(folders: dict[str, Path]) -> None:
    source = clips(f"{folders['a']}:3", f"{folders['b']}:1")
    whole = steps(batches(source), 10)
    begun = batches(source)
    steps(begun, 4)
    state = json.loads(json.dumps(begun.state()))
    parts = []
    for rank in range(2):
        again = batches(clips(f"{folders['b']}:2", f"{folders['a']}:6"), 2, rank)
        again.resume(state)
        parts.append(steps(again, 6))
    assert same([torch.cat(part) for part in zip(*parts)], whole[4:])


def test_a_set_added_removed_or_changed_is_refused_by_name(folders: dict[str, Path]) -> None:
    a, b, c = (str(folders[name]) for name in "abc")
    names = {name: ShardSet(folders[name]).fingerprint[:12] for name in "abc"}
    state = batches(clips(f"{a}:3", f"{b}:1")).state()
    for data, told in (
        ((f"{a}:3", f"{b}:1", f"{c}:1"), f"set {names['c']} is new"),
        ((f"{a}:3", f"{c}:1"), f"set {names['b']} is gone"),
        ((f"{a}:2", f"{b}:1"), f"set {names['a']} has weight 2 instead of 3"),
    ):
        with pytest.raises(UserError, match=told):
            batches(clips(*data)).resume(state)
    alone = batches(SongClips(ShardSet(a), CLIP))
    with pytest.raises(UserError, match="it was 2 sets, and now it is one"):
        alone.resume(state)
    with pytest.raises(UserError, match="it was one set, and now 2 are blended"):
        batches(clips(f"{a}:3", f"{b}:1")).resume(alone.state())


def test_a_broken_clip_is_replaced_from_its_own_set(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = clips(f"{folders['a']}:1", f"{folders['b']}:1")
    read = SongClips.read

    def fails(self: SongClips, song: int, clip: int, rng: Any) -> Any:
        if song == 0:
            raise OSError(5, "of the disk")
        return read(self, song, clip, rng)

    monkeypatch.setattr(SongClips, "read", fails)
    told: list[tuple[str, str]] = []
    stream = batches(
        source, on_bad=lambda shard, key, *_: told.append((shard, key)), max_bad_sample_ratio=1.0
    )
    assert len(steps(stream, 20)) == 20
    assert {key for _, key in told} == {"a-00", "b-03"}
    assert {shard for shard, _ in told} == {f"{folders[name]}/songs-000000.tar" for name in "ab"}
    order = source.order(3, 2, 1)
    for position in range(40):
        number, _ = order.own(position)
        for attempt in range(5):
            _, song, _ = order.candidate(position, attempt)
            assert source.shards.song_of(song)[0] == number


def test_codes_of_several_sets_come_with_their_own_songs(folders: dict[str, Path]) -> None:
    blend = open_data([f"{folders['codes a']}:1", f"{folders['codes b']}:1"])
    assert isinstance(blend, ShardBlend)
    source = BlendedClips(blend, [CodeWindows(one, "top", 8) for one in blend.sets])
    for step in steps(batches(source), 6):
        assert step.shape == (8, 8)
    for song in range(len(blend)):
        wanted = int(blend.key(song).partition("-")[2])
        if source.clips("train")[song]:
            assert source.read(song, 0, None)["codes"][0] // 80 == wanted


# ---- held out


def test_held_out_songs_of_all_sets_are_evaluated_on_by_weight(folders: dict[str, Path]) -> None:
    source = clips(f"{folders['a']}:3", f"{folders['b']}:1", held_out=0.4)
    order = source.held_out_order(16)
    keys = Counter(source.shards.key(order.locate(p)[1])[0] for p in range(order.clips))
    assert order.clips == 16 and keys == {"a": 12, "b": 4}
    trained = {order_song for order_song in np.flatnonzero(source.clips("train"))}
    assert not trained & {order.locate(p)[1] for p in range(16)}
    whole = [b["audio"] for b in held_out_batches(source, micro_batch=4, limit=16)]
    ranks = [
        [b["audio"] for b in held_out_batches(source, micro_batch=2, rank=r, world=2, limit=16)]
        for r in range(2)
    ]
    assert same([torch.cat(part) for part in zip(*ranks)], whole)


@pytest.mark.parametrize(
    ("limit", "weights", "totals", "counts"),
    [
        (16, (3, 1), (100, 100), [12, 4]),
        (16, (3, 1), (5, 100), [5, 11]),
        (16, (3, 1), (5, 6), [5, 6]),
        (1, (1, 9), (4, 4), [0, 1]),
        (10, (1, 1), (0, 40), [0, 10]),
        (3, (1, 1, 100), (4, 4, 1), [1, 1, 1]),
    ],
)
def test_clips_to_evaluate_on_are_shared_by_weight(
    limit: int, weights: tuple[int, ...], totals: tuple[int, ...], counts: list[int]
) -> None:
    assert shared(limit, weights, totals) == counts


# ---- the command line


@pytest.mark.parametrize(
    ("text", "address", "weight"),
    [
        ("shards/a", "shards/a", None),
        ("shards/a:3", "shards/a", 3),
        ("shards/a:0.25", "shards/a", Fraction(1, 4)),
        ("https://host:8080", "https://host:8080", None),
        ("https://host:8080/songs", "https://host:8080/songs", None),
        ("https://host:8080/songs:2", "https://host:8080/songs", 2),
        ("s3://bucket/songs:1.5", "s3://bucket/songs", Fraction(3, 2)),
        ("s3://bucket/songs", "s3://bucket/songs", None),
        (f"https://host/songs#sha256={'0' * 64}:2", f"https://host/songs#sha256={'0' * 64}", 2),
        ("pipe:cat x/{name}:3", "pipe:cat x/{name}:3", None),
    ],
)
def test_a_weight_is_what_follows_the_last_colon(
    text: str, address: str, weight: Fraction | int | None
) -> None:
    assert WeightedAddress.parse(text) == WeightedAddress(
        address, None if weight is None else Fraction(weight)
    )


def test_a_folder_whose_name_ends_like_a_weight_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mix:3").mkdir()
    assert WeightedAddress.parse(str(tmp_path / "mix:3")).weight is None


@pytest.mark.parametrize("weight", ["0", "0.0", "-1", "nan", "inf", "1e9", "x", ""])
def test_a_weight_that_is_none_is_refused_with_what_to_write(
    folders: dict[str, Path], weight: str
) -> None:
    with pytest.raises(UserError, match=r"not a number above 0; write .*/a:2 or .*/a:0.5"):
        parse_data([f"{folders['a']}:{weight}", str(folders["b"])])


def test_what_does_not_fit_together_is_refused_with_both_values(folders: dict[str, Path]) -> None:
    a, b, codes, other = (str(folders[n]) for n in ("a", "b", "codes a", "other codes"))
    for data, told in (
        ((f"{a}:3", b), r"b has no weight, and others have one; write .*b:1, or leave"),
        ((a, a), "is given twice; give it once, with a higher weight"),
        ((a, f"{a}/."), "are the same set; give it once"),
        ((a, codes), "has kind songs and .* has codes"),
        ((codes, other), "has vqvae fingerprint 0+ and .* has 1+; blend sets that"),
    ):
        with pytest.raises(UserError, match=told):
            open_data(data)
    token = RemoteConfig(token="secret")
    with pytest.raises(UserError, match=r"is for one host, and the sets lie on one.org, two.org"):
        open_data(["https://one.org/songs", "https://two.org/songs"], token)


def test_a_single_set_keeps_its_order_identity_and_records(folders: dict[str, Path]) -> None:
    """As before there were blends: a weight of a set that is alone means nothing."""
    alone = open_data([f"{folders['a']}:3"])
    assert isinstance(alone, ShardSet) and isinstance(open_data(str(folders["a"])), ShardSet)
    stream = batches(SongClips(alone, CLIP))
    assert isinstance(stream.order, Order) and "sets" not in stream.state()


def test_a_blend_counts_the_names_and_years_of_all_its_songs(folders: dict[str, Path]) -> None:
    blend = open_data([str(folders["codes a"]), str(folders["codes b"])])
    assert blend.index["vocabulary"]["genres"] == {"Pop": 18, "Rare": 18}
    assert blend.index["years"] == [1990, 2001] and blend.index["songs"] == len(blend) == 18
    turned = open_data([str(folders["codes b"]), str(folders["codes a"])])
    assert turned.fingerprint == blend.fingerprint
