"""How DeepSpeed writes and reads a checkpoint's files: summed on the way, no exception on a full
disk, no pickle.

DeepSpeed's own writer raises on the one rank whose disk is full and leaves the others waiting for
it; its reader runs whatever code a file holds. This one notes the failure for all ranks to agree
upon, and loads tensors and four names.

In the background, a file is first made in memory (what it holds may change with the next step) and
written by a thread, which only sums and writes: it takes no part in a collective and hardly needs
the interpreter.
"""

import io
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import torch

from megajukebox.common.files import HashingFile
from megajukebox.training.engines.restricted_loading import restricted_loading

LONGEST_MESSAGE = 200  # characters of an error that an event keeps


class StoredFile(NamedTuple):
    """What a file must be, measured while it was written."""

    bytes: int
    sha256: str


class CheckpointStorage:
    """The ten methods of DeepSpeed's CheckpointEngine that its engines call. `failure` says why a
    save is no good.
    """

    name = "Storage"

    def __init__(self, allowed: list[Any]) -> None:
        """`allowed`: the classes and functions that a checkpoint's files may name."""
        self.allowed = allowed
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self.begin()

    def begin(self, background: bool = False) -> None:
        """A new checkpoint: nothing written, nothing failed. The one before must be finished."""
        self.background = background
        self.failure: str | None = None
        self.stored: dict[str, StoredFile] = {}
        self._writing: list[Future[None]] = []

    @property
    def busy(self) -> bool:
        """Whether files of this checkpoint are still being written."""
        return not all(file.done() for file in self._writing)

    def finish(self) -> str | None:
        """Wait for the files of this checkpoint; why it is no good, if so."""
        for file in self._writing:
            file.result()
        return self.failure

    def save(self, state_dict: Any, path: str) -> None:
        """Write one file, now or in the background; after a failure the rest of this save is left
        out.
        """
        if not self.background:
            self._write(path, partial(torch.save, state_dict))
            return
        buffer = io.BytesIO()
        torch.save(state_dict, buffer)
        written = self._writer.submit(
            self._write, path, lambda file: file.write(buffer.getbuffer())
        )
        self._writing.append(written)

    def _write(self, path: str, fill: Callable[[IO[bytes]], Any]) -> None:
        """One file, to the disk itself."""
        if self.failure:
            return
        try:
            with open(path, "wb", opener=not_through_a_link) as file:
                hashing = HashingFile(file)
                fill(cast(IO[bytes], hashing))
                file.flush()
                os.fsync(file.fileno())
            self.stored[path] = StoredFile(hashing.bytes, hashing.sha256.hexdigest())
        except (OSError, RuntimeError) as error:
            self.failure = why(error, Path(path))

    def load(self, path: str, map_location: Any = None) -> Any:
        with restricted_loading(self.allowed):
            return torch.load(path, map_location=map_location, weights_only=True)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        try:
            os.makedirs(path, exist_ok=exist_ok)
        except OSError as error:
            self.failure = self.failure or why(error, Path(path))

    def create(self, info: Any) -> None: ...

    def commit(self, info: Any) -> bool:
        return True

    def is_data_parallel_writer(self, dp_rank: int) -> bool:
        return dp_rank == 0

    def is_decoupled(self) -> bool:
        return False

    def set_commit_info(self, info: Any) -> None: ...

    def get_commit_info(self) -> None: ...

    def cleanup(self) -> None: ...

    def preserves_storage_sharing(self) -> bool:
        """True: tensors that are views of a larger one must be cloned first, or the whole would be
        written.
        """
        return True


def not_through_a_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def why(error: BaseException, path: Path) -> str:
    """What went wrong with a file, with the free space: torch hides "no space left" behind its own
    words.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    folder = next(parent for parent in path.parents if parent.exists())
    free = shutil.disk_usage(folder).free
    message = " ".join(str(cause or error).split())[:LONGEST_MESSAGE]
    return f"{path.name}: {message} ({free / 1e6:.1f} MB free)"
