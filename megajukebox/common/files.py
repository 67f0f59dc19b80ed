"""Files that appear whole or not at all, and a part of a file as a file of its own."""

import errno
import hashlib
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from megajukebox.common.errors import UserError
from megajukebox.common.untrusted_files import open_given


@contextmanager
def atomic_open(path: str | Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """A file to write that gets its real name only when the block ends well.

        x.tar.partial  --write, fsync-->  --rename-->  x.tar  --fsync of the folder-->  survives a power cut

    After an exception nothing is left; after a kill only `<name>.partial` is, and the next writer
    removes it. A link of that name is removed too, and never written through. `mode` is that of a
    new file, before the umask.

    Raises:
        FileExistsError: somebody makes `<name>.partial` as fast as it is removed.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.partial")
    file = create_new(partial, mode)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def create_new(path: Path, mode: int = 0o666) -> BinaryIO:
    """A new file in place of whatever has its name, open for writing; `mode` before the umask.

    Raises:
        FileExistsError: somebody makes the name again as fast as it is removed.
    """
    path.unlink(missing_ok=True)
    # no link is followed where a file must not exist
    return open(path, "xb", opener=lambda name, flags: os.open(name, flags, mode))


def open_append(path: str | Path, mode: int = 0o644) -> BinaryIO:
    """A file to append to, made where there is none. A link is not followed, and no pipe waited for.

    Raises:
        OSError: it is a link or no regular file, or cannot be written.
    """

    def opened(name: str, flags: int) -> int:
        file = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, mode)
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise OSError(errno.EINVAL, "is no regular file", name)
        return file

    return open(path, "ab", opener=opened)


def sync_folder(folder: Path) -> None:
    """Flush a folder: a rename is only safe from a power cut once the folder itself is on the
    disk.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: str | Path, data: bytes) -> None:
    """`data` as the file at `path`, whole or not at all."""
    with atomic_open(path) as file:
        file.write(data)


def make_folder(folder: Path, mode: int = 0o777) -> None:
    """Make `folder` and those above it. Raises UserError where a file is in the way."""
    try:
        folder.mkdir(mode=mode, parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        file = next(path for path in (folder, *folder.parents) if path.is_file())
        raise UserError(
            f"{str(folder)!r} cannot be a folder: {file} is a file; choose another, or move it"
        ) from error


def make_private_folder(folder: Path) -> Path:
    """Make `folder` for this user alone; one that exists must be this user's, and nobody else's to write to.

    Raises:
        UserError: it is a link, somebody else's, or others may write to it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    facts = folder.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid():
        raise UserError(f"{folder} is not a folder of yours: remove it, or choose another place")
    if facts.st_mode & 0o022:
        raise UserError(f"{folder}: others may write to it; `chmod go-w {folder}`, or remove it")
    return folder


def make_run_folder(run: Path) -> None:
    """Make the folder of a run for its owner and group alone: it has settings, lyrics and file
    names.
    """
    make_folder(run, 0o750)


@dataclass(eq=False)
class HashingFile:
    """A file that knows the size and sha256 of what was written to it, so that nothing is read
    again for its checksum.
    """

    file: BinaryIO
    bytes: int = 0
    sha256: Any = field(default_factory=hashlib.sha256)

    def write(self, data: Any) -> int:
        self.bytes += len(data)
        self.sha256.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


class FileWindow(io.RawIOBase):
    """The bytes [offset, offset + size) of something larger, as a file of their own. `fill` fetches
    them.

    tar file  |--header--|=======member=======|--header--|=====...
                         offset               offset + size
    """

    def __init__(self, offset: int, size: int) -> None:
        super().__init__()
        self.offset = offset
        self.size = size
        self.position = 0

    def fill(self, buffer: memoryview) -> int:
        """Bytes from `position` on into all of `buffer`; returns how many there were."""
        raise NotImplementedError

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence]
        self.position = max(0, start + offset)
        return self.position

    def tell(self) -> int:
        return self.position

    def readinto(self, buffer) -> int:
        want = max(0, min(len(buffer), self.size - self.position))
        got = self.fill(memoryview(buffer)[:want]) if want else 0
        self.position += got
        return got

    def readall(self) -> bytes:
        # at once; the inherited one reads 8 kB at a time
        return self.read(max(0, self.size - self.position))


def sha256_of(path: str | Path) -> str:
    """The sha256 of a file, in hex."""
    with open_given(path) as file:
        return sha256_of_open(file)


def sha256_of_open(file: BinaryIO) -> str:
    """The sha256 of what is left to read of an open file, in hex."""
    total = hashlib.sha256()
    while block := file.read(1 << 20):
        total.update(block)
    return total.hexdigest()
