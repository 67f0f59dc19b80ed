"""The cache of a machine for shard sets behind URLs: bounded, shared by its processes, filled in
the order of training.

    <cache>/<set>/index.json, songs.npy, lyrics.model    fetched once, checked
    <cache>/<set>/songs-000007.tar.part                  a shard on its way; compared with its sha256, then renamed
    <cache>/<set>/songs-000007.tar                       the least recently used one goes when the cache is full

Where a site answers range requests, a shard that is not here yet is read by them, so training
starts at once.
"""

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from megajukebox.common.errors import BadSampleError, UserError
from megajukebox.common.files import FileWindow, write_atomic
from megajukebox.data.audio import OffsetReader
from megajukebox.data.shards.index import SHARD_NAME
from megajukebox.data.shards.remote import LostShard, ShardSource, ShardUnavailable
from megajukebox.data.shards.transports import NoRanges

QUARANTINE_SECONDS = 600.0  # for which a lost shard is not asked for again
MIN_RANGE = 1 << 18  # bytes a range request asks for at least: audio is read in small pieces
MAX_SMALL_FILE = 16 << 30  # bytes of songs.npy or lyrics.model


class ShardCache:
    """The tars of one remote set: those in `folder` are read there, the others are fetched or
    read by ranges.
    """

    def __init__(
        self, site: ShardSource, folder: Path, shards: Sequence[Mapping[str, Any]]
    ) -> None:
        self.site = site
        self.folder = folder
        self.shards = shards
        self.limit = site.remote.cache_bytes
        self.ranges = site.ranges
        self._lost_error: type[Exception] = ShardUnavailable
        if site.remote.lost == "skip":
            self._lost_error = LostShard
        # shard -> (until when it is not asked for, why)
        self._lost: dict[int, tuple[float, str]] = {}
        self._wanted: tuple[int, ...] = ()
        self._thread: threading.Thread | None = None

    def open(self, shard: int, offset: int, size: int) -> "OffsetReader | RangeReader":
        """A member of a tar. LostShard or ShardUnavailable if it cannot be fetched."""
        name = self.shards[shard]["name"]
        path = self.folder / name
        while True:
            with contextlib.suppress(FileNotFoundError):
                file = open(path, "rb")  # noqa: SIM115 - closed with the window
                os.utime(path)  # so that the least recently used shards go first
                return OffsetReader(file, offset, size, owned=True)
            self._check_lost(shard)
            if offset + size > self.shards[shard]["bytes"]:
                raise BadSampleError(
                    "truncated", f"{name} is damaged (the tar ends before the member does)"
                )
            if self.ranges:
                return RangeReader(self, shard, offset, size)
            self.bring(shard)

    def read_range(self, shard: int, start: int, size: int) -> bytes:
        """Bytes of a shard that is not here; a site without ranges sends the whole shard first."""
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
        """Fetch a shard into the cache; without `wait` not if another process is fetching it."""
        entry = self.shards[shard]
        if not SHARD_NAME.fullmatch(entry["name"]):
            raise BadSampleError(
                "bad_name", f"shard name {entry['name']!r} is not the name of a tar in this folder"
            )
        path = self.folder / entry["name"]
        with locked(path, wait) as has_lock:
            if not has_lock or path.exists():
                return
            if entry["bytes"] > self.limit:
                raise UserError(
                    f"{entry['name']} has {entry['bytes']} bytes, the cache {self.limit}; enlarge it"
                )
            evict(self.folder.parent, entry["bytes"], self.limit)
            try:
                self.site.fetch(entry["name"], path, entry["bytes"], entry["sha256"])
            except LostShard as error:
                raise self._note_lost(shard, error) from None

    def prefetch(self, shards: Iterable[int]) -> None:
        """Fetch `shards` one after another in the background, as many as the cache holds."""
        wanted = []
        free = self.limit
        for shard in map(int, shards):
            free -= self.shards[shard]["bytes"]
            if free < 0:
                break
            wanted.append(shard)
        self._wanted = tuple(wanted)
        if wanted and not (self._thread and self._thread.is_alive()):
            self._thread = threading.Thread(target=self._fetch_wanted, daemon=True, name="prefetch")
            self._thread.start()

    def _fetch_wanted(self) -> None:
        tried: set[int] = set()
        while untried := [shard for shard in self._wanted if shard not in tried]:
            tried.add(untried[0])
            # the reader of the shard will meet the error again
            with contextlib.suppress(OSError, ValueError, ShardUnavailable):
                self.bring(untried[0], wait=False)

    def _check_lost(self, shard: int) -> None:
        until, why = self._lost.get(shard, (0.0, ""))
        if time.monotonic() < until:
            raise self._lost_error(why)

    def _note_lost(self, shard: int, error: LostShard) -> Exception:
        self._lost[shard] = (time.monotonic() + QUARANTINE_SECONDS, str(error))
        return self._lost_error(str(error))


class RangeReader(FileWindow):
    """A window of a remote tar; each request asks for MIN_RANGE bytes or more.

    libsndfile reads through callbacks, in which an error is lost: it is kept, the file seems to
    end, `close` raises.
    """

    def __init__(self, cache: ShardCache, shard: int, offset: int, size: int) -> None:
        super().__init__(offset, size)
        self.cache = cache
        self.shard = shard
        self._block = b""
        self._block_start = 0
        self._failure: Exception | None = None

    def fill(self, buffer: memoryview) -> int:
        if self._failure:
            return 0
        want = len(buffer)
        first = self.position - self._block_start
        if first < 0 or first + want > len(self._block):
            size = min(max(want, MIN_RANGE), self.size - self.position)
            start = self.offset + self.position
            try:
                self._block = self.cache.read_range(self.shard, start, size)
            except (OSError, ShardUnavailable) as error:
                self._failure = error
                return 0
            self._block_start = self.position
            first = 0
        buffer[:] = self._block[first : first + want]
        return want

    def close(self) -> None:
        super().close()
        failure = self._failure
        self._failure = None
        if failure:
            raise failure


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold the lock beside `path` among the processes of this machine; False if another has it,
    without `wait`.
    """
    lock = FileLock(path.with_name(f"{path.name}.lock"), timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def evict(root: Path, wanted: int, limit: int) -> None:
    """Remove the least recently used tars until `wanted` more bytes fit.

    A process that has one open keeps it.
    """
    tars = []
    for path in root.glob("*/*.tar"):
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            tars.append((status.st_mtime, status.st_size, path))
    used = sum(size for _, size, _ in tars)
    for _, size, path in sorted(tars):
        if used + wanted <= limit:
            return
        path.unlink(missing_ok=True)
        used -= size


def fetch_index(site: ShardSource) -> tuple[Path, bytes]:
    """The folder of this machine that stands for a remote set of this very content, and the
    bytes of its index.json.
    """
    try:
        data = site.read("index.json")
    except LostShard as error:
        raise UserError(f"{error}; is it the folder that prepare or encode wrote?") from None
    folder = site.remote.cache / hashlib.sha256(site.base.encode() + data).hexdigest()[:20]
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "index.json"):
        if not (folder / "index.json").exists():
            write_atomic(folder / "index.json", data)
    return folder, data


def fetch_small(site: ShardSource, folder: Path, files: Iterable[Mapping[str, str]]) -> None:
    """songs.npy and lyrics.model. Raises UserError where one is not the file that index.json names."""
    for file in files:
        name = file["name"]
        with locked(folder / name):
            if (folder / name).exists():
                continue
            data = site.read(name, limit=MAX_SMALL_FILE)
            if hashlib.sha256(data).hexdigest() != file["sha256"]:
                raise UserError(
                    f"{site.shown}/{name} is not the file that index.json speaks of (sha256)"
                )
            write_atomic(folder / name, data)
