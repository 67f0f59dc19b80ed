"""The cache of a user on a machine for shard sets behind URLs: bounded, shared by its processes, filled in
the order of training.

    <cache>/<uid>/<set>/index.json, songs.npy, lyrics.model    fetched once, checked; <uid> is nobody else's
    <cache>/<uid>/<set>/songs-000007.tar.part         a shard on its way; compared with its sha256, then renamed
    <cache>/<uid>/<set>/songs-000007.tar              the least recently used one goes when the cache is full
    <cache>/<uid>/<set>/songs-000007.tar.verified     inode, time, size and sha256 of that tar: it was compared

Where a site answers range requests, a shard that is not here yet is read by them, so training
starts at once.
"""

import contextlib
import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from megajukebox.common.errors import BadSampleError, UserError
from megajukebox.common.files import (
    FileWindow,
    make_private_folder,
    sha256_of,
    sha256_of_open,
    write_atomic,
)
from megajukebox.common.untrusted_files import UnsafeFileError, open_inside, parse_json, read_inside
from megajukebox.data.audio import OffsetReader
from megajukebox.data.shards.index import (
    MAX_INDEX_BYTES,
    MAX_LYRICS_MODEL_BYTES,
    SHARD_NAME,
    SONGS_FILE,
)
from megajukebox.data.shards.remote import (
    AnotherFile,
    LostShard,
    ShardSource,
    ShardUnavailable,
    file_identity,
    note_verified,
    verified_record,
)
from megajukebox.data.shards.transports import NoRanges

QUARANTINE_SECONDS = 600.0  # for which a lost shard is not asked for again
MIN_RANGE = 1 << 18  # bytes a range request asks for at least: audio is read in small pieces
MAX_SONGS_BYTES = 16 << 30  # of songs.npy, on the disk: some 100 million songs


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
        self._verified: dict[int, dict[str, int]] = {}  # shard -> the file that was compared
        self._wanted: tuple[int, ...] = ()
        self._thread: threading.Thread | None = None

    def open(self, shard: int, offset: int, size: int) -> "OffsetReader | RangeReader":
        """A member of a tar. LostShard or ShardUnavailable if it cannot be fetched."""
        name = self.shards[shard]["name"]
        while True:
            file = self._open_verified(shard)
            if file:
                return OffsetReader(file, offset, size, owned=True)
            self._check_lost(shard)
            if offset + size > self.shards[shard]["bytes"]:
                raise BadSampleError(
                    "truncated", f"{name} is damaged (the tar ends before the member does)"
                )
            if self.ranges:
                return RangeReader(self, shard, offset, size)
            self.bring(shard)

    def _open_verified(self, shard: int) -> BinaryIO | None:
        """The tar of a shard, if it is here and has its checksum; one that has another is removed."""
        path = self.folder / self.shards[shard]["name"]
        try:
            file = open_inside(self.folder, path.name)
        except FileNotFoundError:
            return None
        except UnsafeFileError:
            path.unlink()
            return None
        status = os.fstat(file.fileno())
        if self._verified.get(shard) != file_identity(status):
            if not self._verify(shard, path, file):
                file.close()
                return None
            self._verified[shard] = file_identity(status)
        # So that the least recently used shards go first; the time of the last change is part of the record.
        os.utime(file.fileno(), ns=(time.time_ns(), status.st_mtime_ns))
        return file

    def _verify(self, shard: int, path: Path, file: BinaryIO) -> bool:
        """Whether an open tar has its checksum, by the record of who compared it, else by comparing it now."""
        sha256 = self.shards[shard]["sha256"]
        identity = file_identity(os.fstat(file.fileno()))
        with locked(path):
            with contextlib.suppress(OSError, ValueError):
                record = parse_json(read_inside(self.folder, verified_record(path).name))
                if record == {**identity, "sha256": sha256}:
                    return True
            if sha256_of_open(file) == sha256:
                note_verified(identity, path, sha256)
                return True
            path.unlink(missing_ok=True)
            verified_record(path).unlink(missing_ok=True)
        return False

    def read_range(self, shard: int, start: int, size: int) -> bytes:
        """Bytes of a shard that is not here; a site without ranges sends the whole shard first."""
        self._check_lost(shard)
        try:
            return self.site.read_range(self.shards[shard]["name"], start, size)
        except NoRanges:
            self.ranges = False
            with self.open(shard, start, size) as window:
                return window.read(size)
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
    flags = (
        os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    )  # never emptied: it may be another file
    lock = os.open(path.with_name(f"{path.name}.lock"), flags, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)  # at once, though a forked process may have it open
    finally:
        os.close(lock)


def evict(root: Path, wanted: int, limit: int) -> None:
    """Remove the least recently used tars until `wanted` more bytes fit.

    A process that has one open keeps it.
    """
    tars = []
    for path in root.glob("*/*.tar"):
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            tars.append((status.st_atime, status.st_size, path))
    used = sum(size for _, size, _ in tars)
    for _, size, path in sorted(tars):
        if used + wanted <= limit:
            return
        path.unlink(missing_ok=True)
        verified_record(path).unlink(missing_ok=True)
        used -= size


def fetch_index(site: ShardSource) -> tuple[Path, bytes]:
    """The folder of this machine that stands for a remote set of this very content, and the
    bytes of its index.json.
    """
    try:
        data = site.read("index.json", MAX_INDEX_BYTES)
    except LostShard as error:
        raise UserError(f"{error}; is it the folder that prepare or encode wrote?") from None
    own = make_private_folder(site.remote.cache / str(os.getuid()))
    folder = own / hashlib.sha256(site.base.encode() + data).hexdigest()[:20]
    folder.mkdir(exist_ok=True)
    with locked(folder / "index.json"):
        if not holds(folder / "index.json", hashlib.sha256(data).hexdigest()):
            write_atomic(folder / "index.json", data)
    return folder, data


def fetch_small(site: ShardSource, folder: Path, files: Iterable[Mapping[str, str]]) -> None:
    """songs.npy and lyrics.model. Raises UserError where one is not the file that index.json names."""
    for file in files:
        path = folder / file["name"]
        limit = MAX_SONGS_BYTES if path.name == SONGS_FILE else MAX_LYRICS_MODEL_BYTES
        with locked(path):
            if holds(path, file["sha256"]):
                continue
            try:
                site.fetch_small(path.name, path, limit, file["sha256"])
            except AnotherFile as error:
                raise UserError(str(error)) from None


def holds(path: Path, sha256: str) -> bool:
    """Whether there is a file of this checksum."""
    return path.is_file() and sha256_of(path) == sha256
