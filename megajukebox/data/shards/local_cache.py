"""The cache of a machine for shard sets behind URLs: bounded, shared by its processes, filled in the order of training.

    <cache>/<set>/index.json, songs.npy, lyrics.model    fetched once, checked
    <cache>/<set>/songs-000007.tar.part                  a shard on its way; compared with its sha256, then renamed
    <cache>/<set>/songs-000007.tar                       the one unused longest goes when the cache is full

Over http a shard that is not here yet is read by range requests meanwhile, so training starts at once.
"""

import contextlib
import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from megajukebox.common.files import FileWindow, write_atomic
from megajukebox.data.audio import OffsetReader
from megajukebox.data.shards.index import SHARD_NAME
from megajukebox.data.shards.remote import LostShard, NoRanges, ShardSource, ShardUnavailable

QUARANTINE = 600.0  # seconds for which a lost shard is not asked for again
AHEAD = 1 << 18  # bytes a range request asks for at least: audio is read in small pieces


class ShardCache:
    """The tars of one remote set: those in `folder` are read there, the others are fetched or read by ranges."""

    def __init__(self, site: ShardSource, folder: Path, shards: Sequence[Mapping[str, Any]]):
        self.site, self.folder, self.shards = site, folder, shards
        self.limit = site.remote.cache_bytes
        self.ranges = site.http
        self._lost: dict[
            int, tuple[float, str]
        ] = {}  # shard -> until when it is not asked for, and why
        self._wanted: tuple[int, ...] = ()
        self._thread: threading.Thread | None = None

    def open(self, shard: int, offset: int, size: int) -> "OffsetReader | RangeReader":
        """A member of a tar. LostShard or StopRun if it cannot be had."""
        name, total = self.shards[shard]["name"], self.shards[shard]["bytes"]
        path = self.folder / name
        while True:
            with contextlib.suppress(FileNotFoundError):
                file = open(path, "rb")  # noqa: SIM115 - closed with the window
                os.utime(path)  # so that the shards unused longest go first
                return OffsetReader(file, offset, size, owned=True)
            self._check_lost(shard)
            if offset + size > total:
                raise ValueError(f"{name} is damaged (the tar ends before the member does)")
            if self.ranges:
                return RangeReader(self, shard, offset, size)
            self.bring(shard)

    def read_range(self, shard: int, start: int, size: int) -> bytes:
        self._check_lost(shard)
        try:
            return self.site.read_range(self.shards[shard]["name"], start, size)
        except NoRanges:
            self.ranges = False
            self.bring(shard)
            with open(self.folder / self.shards[shard]["name"], "rb") as file:
                return os.pread(file.fileno(), size, start)
        except LostShard as error:
            raise self._note_lost(shard, error) from None

    def bring(self, shard: int, wait: bool = True) -> None:
        """Fetch a shard into the cache; without `wait` not if another process is at it."""
        facts = self.shards[shard]
        if not SHARD_NAME.fullmatch(facts["name"]):
            raise ValueError(
                f"shard name {facts['name']!r} is not the name of a tar in this folder"
            )
        path = self.folder / facts["name"]
        with locked(path.with_name(f"{facts['name']}.lock"), wait) as mine:
            if not mine or path.exists():
                return
            if facts["bytes"] > self.limit:
                raise ValueError(
                    f"{facts['name']} has {facts['bytes']} bytes, the cache {self.limit}; enlarge it"
                )
            make_room(self.folder.parent, facts["bytes"], self.limit)
            try:
                self.site.fetch(facts["name"], path, facts["bytes"], facts["sha256"])
            except LostShard as error:
                raise self._note_lost(shard, error) from None

    def prefetch(self, shards: Iterable[int]) -> None:
        """Fetch `shards` one after another in the background, as many as the cache holds."""
        wanted, room = [], self.limit
        for shard in map(int, shards):
            room -= self.shards[shard]["bytes"]
            if room < 0:
                break
            wanted.append(shard)
        self._wanted = tuple(wanted)
        if wanted and not (self._thread and self._thread.is_alive()):
            self._thread = threading.Thread(target=self._fetch_wanted, daemon=True, name="prefetch")
            self._thread.start()

    def _fetch_wanted(self) -> None:
        tried: set[int] = set()
        while left := [shard for shard in self._wanted if shard not in tried]:
            tried.add(left[0])
            with contextlib.suppress(
                OSError, ValueError, ShardUnavailable
            ):  # whoever reads the shard will meet it again
                self.bring(left[0], wait=False)

    def _check_lost(self, shard: int) -> None:
        until, why = self._lost.get(shard, (0.0, ""))
        if time.monotonic() < until:
            raise self._lost_error(why)

    def _note_lost(self, shard: int, error: LostShard) -> Exception:
        self._lost[shard] = (time.monotonic() + QUARANTINE, str(error))
        return self._lost_error(str(error))

    def _lost_error(self, why: str) -> Exception:
        return LostShard(why) if self.site.remote.lost == "skip" else ShardUnavailable(why)


class RangeReader(FileWindow):
    """A window of a remote tar; each request asks for AHEAD bytes or more.

    libsndfile reads through callbacks, in which an error is lost: it is kept, the file seems to end, `close` raises.
    """

    def __init__(self, cache: ShardCache, shard: int, offset: int, size: int):
        super().__init__(offset, size)
        self.cache, self.shard = cache, shard
        self._block, self._block_start = b"", 0
        self._failure: Exception | None = None

    def fill(self, buffer: memoryview) -> int:
        if self._failure:
            return 0
        try:
            buffer[:] = self._bytes(len(buffer))
        except (OSError, ShardUnavailable) as error:
            self._failure = error
            return 0
        return len(buffer)

    def close(self) -> None:
        super().close()
        failure, self._failure = self._failure, None
        if failure:
            raise failure

    def _bytes(self, want: int) -> bytes:
        first = self.position - self._block_start
        if first < 0 or first + want > len(self._block):
            ask = min(max(want, AHEAD), self.size - self.position)
            self._block = self.cache.read_range(self.shard, self.offset + self.position, ask)
            self._block_start, first = self.position, 0
        return self._block[first : first + want]


@contextlib.contextmanager
def locked(path: Path, wait: bool) -> Iterator[bool]:
    """Alone at `path` among the processes of this machine; False without `wait` while another one is."""
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def make_room(root: Path, wanted: int, limit: int) -> None:
    """Remove the tars unused longest until `wanted` more bytes fit. Who has one open keeps reading it."""
    tars = []
    for path in root.glob("*/*.tar"):
        with contextlib.suppress(FileNotFoundError):
            facts = path.stat()
            tars.append((facts.st_mtime, facts.st_size, path))
    used = sum(size for _, size, _ in tars)
    for _, size, path in sorted(tars):
        if used + wanted <= limit:
            return
        path.unlink(missing_ok=True)
        used -= size


def fetch_index(site: ShardSource) -> tuple[Path, bytes]:
    """The folder of this machine that stands for a remote set of this very content, and the bytes of its index.json."""
    try:
        data = site.read("index.json")
    except LostShard as error:
        raise ValueError(f"{error}; is it the folder that prepare or encode wrote?") from None
    folder = site.remote.cache / hashlib.sha256(site.base.encode() + data).hexdigest()[:20]
    folder.mkdir(parents=True, exist_ok=True)
    write_if_new(folder / "index.json", lambda: data)
    return folder, data


def fetch_small(site: ShardSource, folder: Path, files: Iterable[Mapping[str, str]]) -> None:
    """songs.npy and lyrics.model, each checked against index.json."""
    for file in files:
        path = folder / file["name"]
        with locked(path.with_name(f"{path.name}.lock"), wait=True):
            if not path.exists():
                data = site.read(file["name"], limit=16 << 30)
                if hashlib.sha256(data).hexdigest() != file["sha256"]:
                    raise ValueError(
                        f"{site.shown}/{file['name']} is not the file that index.json speaks of (sha256)"
                    )
                write_atomic(path, data)


def write_if_new(path: Path, make: Callable[[], bytes]) -> None:
    with locked(path.with_name(f"{path.name}.lock"), wait=True):
        if not path.exists():
            write_atomic(path, make())
