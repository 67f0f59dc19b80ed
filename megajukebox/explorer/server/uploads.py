"""Recordings from outside: bounded on the way in, decoded in a process of their own that may not grow."""

import contextlib
import json
import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import BoundedSemaphore
from typing import BinaryIO

from megajukebox.common.child_processes import child_environment, module_command
from megajukebox.common.errors import UserError
from megajukebox.common.files import create_new, make_private_folder

MAX_BYTES = 64 << 20
MAX_SECONDS = 180.0
MAX_VALUES = 70_000_000  # frames x channels, by its header and then by what comes: 180 s of stereo at 192 kHz
MAX_MEMORY = 2 << 30  # bytes of address space of the process that decodes
TIMEOUT_SECONDS = 60  # of that process
LEFTOVER_SECONDS = 24 * 3600  # after which a recording belongs to no server that still runs
MAX_KEPT = 50  # recordings; the oldest goes first
DECODER_VARIABLES = (
    *("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONSAFEPATH", "PYTHONHOME", "OMP_NUM_THREADS"),
    *("LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "SYSTEMROOT"),
)
MAX_DECODERS = 2  # processes that decode at once; more recordings wait


@dataclass(frozen=True)
class Upload:
    """A recording that was decoded: a plain WAV under a generated name."""

    id: str
    path: Path
    seconds: float


class UploadStore:
    """The recordings in `folder`, which nobody else can read; they go when the server ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uploads: dict[str, Upload] = {}
        self.decoders = BoundedSemaphore(MAX_DECODERS)
        if folder.exists():  # of a server that was killed
            oldest = time.time() - LEFTOVER_SECONDS
            for path in self.private_folder().iterdir():
                if path.lstat().st_mtime < oldest:
                    path.unlink(missing_ok=True)

    def private_folder(self) -> Path:
        """The folder, made where it is not there yet.

        Raises:
            UserError: it is somebody else's.
        """
        make_private_folder(self.folder)
        self.folder.chmod(0o700)  # up to version 1 it was open to all
        return self.folder

    @contextmanager
    def incoming(self) -> Iterator[tuple[Path, BinaryIO]]:
        """A file for what is sent, by its path; it is gone after the block."""
        path = self.private_folder() / f"{secrets.token_hex(8)}.incoming"
        try:
            with create_new(path) as file:
                os.fchmod(file.fileno(), 0o600)
                yield path, file
        finally:
            path.unlink(missing_ok=True)

    def decode(self, source: Path) -> Upload:
        """Keep the recording at `source`. At most MAX_DECODERS are decoded at once; others wait.

        Raises:
            UserError: it is none, or too long; the message is for its owner.
        """
        identity = secrets.token_hex(8)
        target = self.private_folder() / f"{identity}.wav"
        with self.decoders:
            answer = decode_in_process(source, target)
        if "error" in answer or not target.is_file():
            target.unlink(missing_ok=True)
            reason = answer.get("error", "it could not be decoded")
            raise UserError(f"This recording cannot be used: {reason}.")
        self.uploads[identity] = Upload(identity, target, answer["seconds"])
        while len(self.uploads) > MAX_KEPT:
            oldest = self.uploads.pop(next(iter(self.uploads)))
            oldest.path.unlink(missing_ok=True)
        return self.uploads[identity]

    def close(self) -> None:
        """Remove the recordings; another server's of the same folder stay."""
        for upload in self.uploads.values():
            upload.path.unlink(missing_ok=True)
        self.uploads.clear()
        with contextlib.suppress(OSError):  # not empty, or not there
            self.folder.rmdir()

    def get(self, identity: object) -> Upload:
        """The upload of that id, for a request cannot name a file.

        Raises:
            UserError: there is no such recording.
        """
        upload = self.uploads.get(identity) if isinstance(identity, str) else None
        if upload is None or not upload.path.is_file():
            raise UserError("the uploaded recording is not here any more; choose it again")
        return upload


def decode_in_process(source: Path, target: Path) -> dict:
    """The answer of decode_upload.py: whatever a hostile file does to the decoder, it does it in another process."""
    limits = [str(MAX_SECONDS), str(MAX_VALUES), str(MAX_MEMORY), str(TIMEOUT_SECONDS)]
    module = "megajukebox.explorer.server.decode_upload"
    command = module_command(module, str(source.absolute()), str(target.absolute()), *limits)
    with TemporaryDirectory() as empty_folder:
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                timeout=TIMEOUT_SECONDS,
                cwd=empty_folder,
                env=decoder_environment(),
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            return {"error": f"decoding it takes over {TIMEOUT_SECONDS} seconds"}
    try:
        return json.loads(done.stdout) if done.returncode == 0 else {}
    except ValueError:
        return {}


def decoder_environment() -> dict[str, str]:
    """Of a process that reads what a stranger sent: nothing of ours but where programs and libraries are."""
    inherited = child_environment()
    return {name: inherited[name] for name in DECODER_VARIABLES if name in inherited}
