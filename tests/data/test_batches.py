"""The stream: any rank, worker count and resume gives the same global order; broken songs are replaced alike."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures.tiny_shards import (
    CLIP,
    GLOBAL_BATCH,
    PLACES,
    SONGS,
    all_ranks,
    batches,
    frames_of,
    ramp,
    same,
    steps,
    write_codes,
    write_songs,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.stream.augment import Augment
from megajukebox.data.stream.bad_samples import StorageUnavailable
from megajukebox.data.stream.batches import held_out_batches
from megajukebox.data.stream.code_dataset import CodeWindows
from megajukebox.data.stream.song_dataset import SongClips
from megajukebox.data.stream.worker_pool import ReadAhead


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_songs(tmp_path_factory.mktemp("sets") / "songs")


@pytest.fixture(scope="module")
def codes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_codes(tmp_path_factory.mktemp("sets") / "codes")


# ---- One global order -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [2, 4, 8])
def test_any_number_of_ranks_reads_the_same_global_batches(
    songs: Path, codes: Path, world: int
) -> None:
    for source in (SongClips(ShardSet(songs), CLIP), CodeWindows(ShardSet(codes), "middle", 8)):
        assert same(all_ranks(source, world, 6), steps(batches(source), 6))


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_same_batches(codes: Path, workers: int) -> None:
    source = CodeWindows(ShardSet(codes), "bottom", 16)
    assert same(steps(batches(source, ahead=ReadAhead(workers)), 7), steps(batches(source), 7))


@pytest.mark.parametrize("micro_batch", [1, 2, 8])
def test_accumulation_does_not_change_the_global_batch(songs: Path, micro_batch: int) -> None:
    source = SongClips(ShardSet(songs), CLIP)
    stream = batches(source, micro_batch=micro_batch)
    first = next(iter(stream))
    assert [batch["audio"].shape for batch in first] == [(micro_batch, CLIP, 1)] * (
        GLOBAL_BATCH // micro_batch
    )
    assert same([torch.cat([batch["audio"] for batch in first])], steps(batches(source), 1))


def test_every_clip_is_heard_once_an_epoch(songs: Path) -> None:
    source = SongClips(ShardSet(songs), CLIP)
    heard: dict[int, int] = {}
    stream = batches(source, global_batch=1)
    for batch in islice(iter(stream), stream.order.clips):
        song = song_of(batch[0]["audio"])
        heard[song] = heard.get(song, 0) + 1
    assert heard == {song: frames_of(song) // CLIP for song in range(SONGS)}


def song_of(audio: torch.Tensor) -> int:
    """Which song's ramp a clip is of: its slope is the mix, so the value at time 0 is where the ramp begins."""
    return int(
        np.abs(np.asarray(ALL_STARTS)[:, None] - possible_starts(audio)).min(axis=1).argmin()
    )


ALL_STARTS = [song / 16 for song in range(SONGS)]


def possible_starts(audio: torch.Tensor) -> np.ndarray:
    """Value of the ramp at time 0 for each place the clip may lie: audio[0] - slope * place."""
    x = audio[0, :, 0].double().numpy()
    slope = (x[-1] - x[0]) / (len(x) - 1)
    return x[0] - slope * np.arange(0, frames_of(SONGS), dtype=np.float64)


@pytest.mark.parametrize("cut", [0, 1, 5])
@pytest.mark.parametrize("world", [1, 2])
def test_resuming_at_any_step_on_any_world_continues_the_same_order(
    codes: Path, cut: int, world: int
) -> None:
    source = CodeWindows(ShardSet(codes), "top", 8)
    whole = steps(batches(source), 8)
    first = batches(source, world=4, rank=3)
    steps(first, cut)
    state = json.loads(json.dumps(first.state()))
    rest = []
    for rank in range(world):
        resumed = batches(source, world, rank, ahead=ReadAhead(rank))
        resumed.resume(state)
        rest.append(steps(resumed, 8 - cut))
    assert same([torch.cat(parts) for parts in zip(*rest)], whole[cut:])


@given(
    st.sampled_from([1, 2, 3, 4, 8]),
    st.sampled_from([1, 2, 3, 4, 8]),
    st.integers(0, 3),
    st.integers(0, 8),
)
@settings(
    deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_worlds_workers_and_cut_give_every_clip_once_an_epoch(
    codes: Path, before: int, after: int, workers: int, cut: int
) -> None:
    """24 clips a step, so that all the worlds divide it; eight steps are three epochs of uneven shards."""
    source = CodeWindows(ShardSet(codes), "top", 8)
    first = [batches(source, before, rank, global_batch=24) for rank in range(before)]
    read = [torch.cat(step) for step in zip(*(steps(stream, cut) for stream in first))]
    state = json.loads(json.dumps(first[0].state()))
    rest = []
    for rank in range(after):
        resumed = batches(
            source,
            after,
            rank,
            global_batch=24,
            ahead=ReadAhead(workers if rank == after - 1 else 0),
        )
        resumed.resume(state)
        rest.append(steps(resumed, 8 - cut))
    read += [torch.cat(step) for step in zip(*rest)]
    assert same(read, whole_order(codes))


@cache
def whole_order(codes: Path) -> list[torch.Tensor]:
    return steps(batches(CodeWindows(ShardSet(codes), "top", 8), global_batch=24), 8)


def test_a_state_of_another_order_is_refused_with_the_two_things_that_disagree(songs: Path) -> None:
    source = SongClips(ShardSet(songs), CLIP)
    state = batches(source).state()
    assert len(json.dumps(state)) < 1000
    for changed, message in [
        ({"seed": 4}, "seed 3 but this run has 4"),
        ({"global_batch": 16}, "global_batch 8 but this run has 16"),
        ({"block": 3}, "block 2 but this run has 3"),
    ]:
        with pytest.raises(ValueError, match=message):
            batches(source, **changed).identity.check(state)
    with pytest.raises(ValueError, match=r"clips \d+ but this run has \d+"):
        batches(SongClips(ShardSet(songs), CLIP // 2)).identity.check(state)


def test_what_the_run_had_and_no_longer_has_is_another_order_too(songs: Path) -> None:
    source = SongClips(ShardSet(songs), CLIP)
    louder = SongClips(ShardSet(songs), CLIP, augment=Augment(volume_db=6))
    for before, fact in (
        (batches(source, clips_per_song_visit=4), "visit 4"),
        (batches(louder), "volume_db 6"),
    ):
        with pytest.raises(ValueError, match=f"{fact} but this run has"):
            batches(source).identity.check(before.state())


def test_a_batch_that_does_not_come_out_even_is_refused_with_the_way_out(songs: Path) -> None:
    source = SongClips(ShardSet(songs), CLIP)
    with pytest.raises(
        ValueError,
        match=r"global batch 10 is not micro batch 4 x accumulation x 2 ranks; set it to 8",
    ):
        batches(source, world=2, global_batch=10, micro_batch=4)


# ---- Held-out songs -------------------------------------------------------------------------------------------------


def test_held_out_batches_are_fixed_and_shared_by_the_ranks(songs: Path) -> None:
    source = SongClips(ShardSet(songs), CLIP, held_out=0.5)
    held = np.flatnonzero(source.clips("held_out"))
    assert 0 < len(held) < SONGS and not (source.clips("held_out") * source.clips("train")).any()
    whole = list(held_out_batches(source, micro_batch=4, ahead=ReadAhead(1)))
    halves = [
        list(held_out_batches(source, micro_batch=2, world=2, rank=rank)) for rank in range(2)
    ]
    assert len(whole) == source.clips("held_out").sum() // 4
    for step, parts in zip(whole, zip(*halves), strict=True):
        assert torch.equal(step["audio"], torch.cat([part["audio"] for part in parts]))
    first = whole[0]["audio"][0, :, 0].numpy()
    assert np.allclose(first, ramp(int(held[0]))[:CLIP].mean(axis=1)), (
        "not shifted, both channels alike"
    )


def test_few_held_out_clips_still_fill_one_batch_on_every_rank(songs: Path) -> None:
    source = SongClips(ShardSet(songs), CLIP, held_out=0.5)
    ranks = [
        list(held_out_batches(source, micro_batch=4, world=2, rank=rank, limit=3))
        for rank in range(2)
    ]
    assert [len(rank) for rank in ranks] == [1, 1]
    assert list(held_out_batches(SongClips(ShardSet(songs), CLIP), micro_batch=4)) == []
    assert list(held_out_batches(source, micro_batch=4, limit=0)) == []


# ---- Broken songs ---------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(codes: Path, tmp_path: Path) -> Path:
    """The code set with song 6's middle codes flipped in the tar."""
    folder = shutil.copytree(codes, tmp_path / "damaged")
    song = ShardSet(folder).songs[6]
    with open(ShardSet(folder).path(song["shard"]), "r+b") as tar:
        tar.seek(int(song["middle_offset"]) + 130)
        tar.write(b"\x00\x01")
    return folder


def test_a_broken_song_is_replaced_alike_on_any_world_and_reported(
    codes: Path, damaged: Path
) -> None:
    sound = steps(batches(CodeWindows(ShardSet(codes), "middle", 8)), 12)
    events: list[tuple[str, str, str]] = []
    source = CodeWindows(ShardSet(damaged), "middle", 8)
    whole = steps(
        batches(source, on_bad=lambda *event: events.append(event), max_bad_sample_ratio=1.0), 12
    )
    assert same(
        all_ranks(CodeWindows(ShardSet(damaged), "middle", 8), 4, 12, max_bad_sample_ratio=1.0),
        whole,
    )
    assert same(steps(batches(source, ahead=ReadAhead(2), max_bad_sample_ratio=1.0), 12), whole)
    old, new = torch.cat(sound), torch.cat(whole)
    replaced = (old[:, 0] // PLACES) == 6
    assert replaced.any() and not ((new[:, 0] // PLACES) == 6).any()
    assert torch.equal(old[~replaced], new[~replaced]), "all other clips are untouched"
    assert {event[:2] for event in events} == {("codes-000001.tar", "song-06")}
    assert "damaged" in events[0][2] and len(events) >= int(replaced.sum())


def test_events_come_from_worker_processes_too(damaged: Path) -> None:
    seen: list[list[tuple[str, ...]]] = []
    for workers in (0, 2):
        events: list[tuple[str, ...]] = []
        source = CodeWindows(ShardSet(damaged), "middle", 8)
        steps(
            batches(
                source,
                ahead=ReadAhead(workers),
                on_bad=lambda *event, to=events: to.append(event),
                max_bad_sample_ratio=1.0,
            ),
            12,
        )
        seen.append(events)
    assert seen[0] == seen[1] != []


def test_too_many_broken_songs_stop_the_run(damaged: Path) -> None:
    source = CodeWindows(ShardSet(damaged), "middle", 8)
    stream = batches(source, max_bad_sample_ratio=0.01, ratio_after_clips=16)
    with pytest.raises(
        ValueError, match=r"too many bad samples: \d+ of \d+ clips could not be read"
    ):
        steps(stream, 1000)


class Failing(SongClips):
    """Song clips; all songs but some fail as the system would say it."""

    def __init__(self, songs: Path, sound: set[int], error: OSError, **more: Any) -> None:
        super().__init__(ShardSet(songs), CLIP, **more)
        self.sound, self.error = sound, error

    def read(self, song: int, clip: int, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        if song not in self.sound:
            raise self.error
        return super().read(song, clip, rng)


def test_most_of_the_held_out_songs_may_be_broken_and_a_share_of_1_never_stops(songs: Path) -> None:
    every = SongClips(ShardSet(songs), CLIP, held_out=0.5)
    sound = {int(part.nonzero()[0][0]) for part in (every.clips("held_out"), every.clips("train"))}
    source = Failing(songs, sound, OSError(errno.EIO, "Input/output error"), held_out=0.5)
    assert len(list(held_out_batches(source, micro_batch=1, limit=8))) == 8
    assert len(steps(batches(source, max_bad_sample_ratio=1.0, ratio_after_clips=0), 6)) == 6


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EIO, StorageUnavailable),
        (errno.ESTALE, StorageUnavailable),
        (errno.EMFILE, StorageUnavailable),
        (errno.ENOENT, ValueError),
    ],
)
@pytest.mark.parametrize("sound", [set(), {3}], ids=["nothing", "one"])
def test_a_disk_that_does_not_answer_is_not_a_corpus_that_a_person_must_mend(
    songs: Path, number: int, kind: type, sound: set[int]
) -> None:
    source = Failing(songs, sound, OSError(number, os.strerror(number)))
    with pytest.raises(kind, match="too many bad samples"):
        steps(batches(source, max_bad_sample_ratio=0.1, ratio_after_clips=8), 10)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_set_in_which_nothing_can_be_read_stops_at_once(
    codes: Path, tmp_path: Path, workers: int
) -> None:
    folder = shutil.copytree(codes, tmp_path / "lost")
    for shard in folder.glob("*.tar"):
        shard.write_bytes(b"")
    with pytest.raises(ValueError, match="too many bad samples: none of"):
        steps(batches(CodeWindows(ShardSet(folder), "top", 8), ahead=ReadAhead(workers)), 1)


@pytest.fixture
def half_a_song(songs: Path, tmp_path: Path) -> Iterator[Path]:
    """The song set with the last shard cut short."""
    folder = shutil.copytree(songs, tmp_path / "short")
    shard = folder / "songs-000002.tar"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    yield folder


def test_a_shard_that_ends_early_costs_only_the_songs_behind_the_cut(half_a_song: Path) -> None:
    events: set[str] = set()
    source = SongClips(ShardSet(half_a_song), CLIP)
    stream = batches(
        source, on_bad=lambda shard, key, kind, reason: events.add(key), max_bad_sample_ratio=1.0
    )
    steps(stream, 10)
    assert {"song-11"} <= events <= {"song-10", "song-11"}
