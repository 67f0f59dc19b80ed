"""Files that appear whole or not at all."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write that gets its real name only when the block ends well.

        x.tar.partial  --write, fsync-->  --rename-->  x.tar  --fsync of the folder-->  survives a power cut

    After an exception nothing is left; after a kill only `<name>.partial` is, and the next writer overwrites it.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_whole(path: str | Path, data: bytes) -> None:
    """`data` as the file at `path`, whole or not at all."""
    with whole(path) as file:
        file.write(data)


def sync_folder(folder: Path) -> None:
    """A rename is only safe from a power cut once the folder itself is on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(path: str | Path) -> str:
    """The sha256 of a file, in hex."""
    total = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()
