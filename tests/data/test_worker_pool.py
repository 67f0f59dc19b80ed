"""Workers that hang are named, workers that die are replaced, and what is read ahead is bounded."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures.tiny_shards import CLIP, batches, same, steps, write_songs

from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.stream import worker_pool
from megajukebox.data.stream.bad_samples import StorageUnavailable
from megajukebox.data.stream.song_dataset import SongClips
from megajukebox.data.stream.worker_pool import ReadAhead

pytestmark = pytest.mark.cold_start  # about what a new process is


@pytest.fixture(autouse=True)
def looked_after_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "POLL_SECONDS", 0.3)


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_songs(tmp_path_factory.mktemp("sets") / "songs")


class Trapped(SongClips):
    """Song clips, one song of which does something to the process that reads it."""

    def __init__(self, folder: Path, song: int, trap: Any) -> None:
        super().__init__(ShardSet(folder), CLIP)
        self.song, self.trap = song, trap

    def read(self, song: int, clip: int, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        if song == self.song:
            self.trap()
        return super().read(song, clip, rng)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_once(folder: Path) -> None:
    if not (folder / "died").exists():
        (folder / "died").touch()
        die()


def hang() -> None:
    time.sleep(1000)


def test_a_worker_that_hangs_is_named_with_what_it_reads(songs: Path) -> None:
    stream = batches(Trapped(songs, 7, hang), ahead=ReadAhead(1, timeout=4))
    with pytest.raises(
        StorageUnavailable,
        match=r"worker \d \(pid \d+\) has been reading song-07 in songs-000001.tar at position",
    ):
        steps(stream, 100)


@pytest.mark.filterwarnings("ignore:a worker died")
def test_a_worker_that_died_is_replaced_and_nothing_changes(songs: Path, tmp_path: Path) -> None:
    expected = steps(batches(SongClips(ShardSet(songs), CLIP)), 8)
    source = Trapped(songs, 7, lambda: die_once(tmp_path))
    events: list[tuple[str, ...]] = []
    ahead = ReadAhead(2, timeout=100)
    assert same(
        steps(batches(source, ahead=ahead, on_bad=lambda *event: events.append(event)), 8), expected
    )
    assert (tmp_path / "died").exists() and not events


@pytest.mark.filterwarnings("ignore:a worker died")
def test_a_song_that_kills_its_readers_is_replaced_like_any_broken_one(songs: Path) -> None:
    events: list[tuple[str, ...]] = []
    source = Trapped(songs, 7, die)
    stream = batches(
        source,
        ahead=ReadAhead(1, timeout=100),
        max_bad_sample_ratio=1.0,
        on_bad=lambda *event: events.append(event),
    )
    read = steps(stream, 8)
    assert len(read) == 8 and {event[1] for event in events} == {"song-07"}
    assert stream.bad_samples() == {"crashed": len(events)}


@pytest.mark.filterwarnings("ignore:a worker died")
def test_no_song_is_blamed_for_workers_that_die_before_they_read_one(songs: Path) -> None:
    source = SongClips(ShardSet(songs), CLIP)
    source.shards.prefetch = lambda shards: die()  # type: ignore[method-assign]
    with pytest.raises(
        ValueError, match=r"workers died 11 times, the last before it read anything; if the machine"
    ):
        steps(batches(source, ahead=ReadAhead(1, timeout=100), max_bad_sample_ratio=1.0), 1)


def test_a_song_that_asks_for_more_memory_than_a_worker_may_take_is_replaced(songs: Path) -> None:
    events: list[tuple[str, ...]] = []
    source = Trapped(songs, 7, lambda: np.ones(1 << 29, dtype=np.uint8))
    for memory, named in ((1 << 28, {"song-07"}), (1 << 31, set())):
        events.clear()
        ahead = ReadAhead(1, memory=memory)
        steps(
            batches(
                source,
                ahead=ahead,
                max_bad_sample_ratio=1.0,
                on_bad=lambda *event: events.append(event),
            ),
            8,
        )
        assert {event[1] for event in events} == named


def test_workers_read_no_further_ahead_than_they_are_told(songs: Path) -> None:
    stream = batches(SongClips(ShardSet(songs), CLIP), ahead=ReadAhead(2, prefetch=3))
    iterator = iter(stream)
    for _ in range(4):
        next(iterator)
    deadline = time.monotonic() + 100
    while stream.report()["prefetch_fill_ratio"] < 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)
    assert (
        stream._steps.status.steps_ready() == 4 + 2 * 3
        and stream.report()["prefetch_fill_ratio"] == 1.0
    )
    iterator.close()  # type: ignore[attr-defined]
    del iterator


def test_the_handling_of_children_that_end_is_left_as_it_was(songs: Path) -> None:
    before = signal.getsignal(signal.SIGCHLD)
    steps(batches(SongClips(ShardSet(songs), CLIP), ahead=ReadAhead(1)), 2)
    assert signal.getsignal(signal.SIGCHLD) == before


def test_no_worker_is_left_behind(songs: Path) -> None:
    steps(batches(SongClips(ShardSet(songs), CLIP), ahead=ReadAhead(2)), 2)
    deadline = time.monotonic() + 100
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not multiprocessing.active_children()


def test_a_limit_that_the_job_has_already_is_not_exceeded_and_no_fault() -> None:
    """SLURM or a site may limit memory for good; who is not root may not ask for more."""
    program = "import os, resource; from megajukebox.data.stream.worker_pool import limit_memory; "
    program += "resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40)); "
    program += "os.setuid(65534) if os.getuid() == 0 else None; "
    program += "limit_memory(1 << 41); print(resource.getrlimit(resource.RLIMIT_AS)[0] == 1 << 40)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=200
    )
    assert done.stdout == "True\n", done.stderr
