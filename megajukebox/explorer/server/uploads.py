"""Recordings from outside: bounded on the way in, decoded in a process of their own that may not grow."""

import json
import os
import secrets
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from megajukebox.common.errors import UserError

MAX_BYTES = 64 << 20
MAX_SECONDS = 180.0
MAX_MEMORY = 2 << 30  # bytes of address space of the process that decodes
TIMEOUT_SECONDS = 60  # of that process
MAX_KEPT = 50  # recordings; the oldest goes first


@dataclass(frozen=True)
class Upload:
    """A recording that was decoded: a plain WAV under a generated name."""

    id: str
    path: Path
    seconds: float


class UploadStore:
    """The recordings in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uploads: dict[str, Upload] = {}

    def decode(self, source: Path) -> Upload:
        """Keep the recording at `source`.

        Raises:
            UserError: it is none, or too long; the message is for its owner.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        identity = secrets.token_hex(8)
        target = self.folder / f"{identity}.wav"
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
    limits = [str(MAX_SECONDS), str(MAX_MEMORY), str(TIMEOUT_SECONDS)]
    module = "megajukebox.explorer.server.decode_upload"
    command = [sys.executable, "-m", module, str(source), str(target), *limits]
    with TemporaryDirectory() as empty_folder:
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                timeout=TIMEOUT_SECONDS,
                cwd=empty_folder,
                env=child_environment(),
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            return {"error": f"decoding it takes over {TIMEOUT_SECONDS} seconds"}
    try:
        return json.loads(done.stdout) if done.returncode == 0 else {}
    except ValueError:
        return {}


def child_environment() -> dict[str, str]:
    """Of a process that the server starts: one thread, and this very package."""
    package = str(Path(__file__).parents[3])
    search_path = [package, os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "PYTHONPATH": os.pathsep.join(filter(None, search_path)),
    }
