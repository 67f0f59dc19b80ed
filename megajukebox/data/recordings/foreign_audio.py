"""What libsndfile does not read, decoded by ffmpeg (PyAV, an extra) in a process of its own.

A crash, a hang or a bomb costs the song and not the process that wants it.
"""

import importlib.util
import io
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from megajukebox.common.child_processes import child_environment, module_command
from megajukebox.common.errors import BadSampleError
from megajukebox.common.untrusted_files import parse_json
from megajukebox.data.recordings.channels import FLAC_ORDERS, LEFT_RIGHT, Speakers
from megajukebox.data.recordings.kinds import CONVERT, EXTRA, FileKind

MAX_MESSAGE = 1 << 26  # bytes; a block has 65,536 frames of at most 64 channels and some
# Containers round their lengths, and count what an encoder put before and after the sound.
LENGTH_TOLERANCE = 0.5  # seconds


class ForeignDecoder:
    """A process that decodes `file`, once it has begun; a context manager that ends it.

    Raises:
        BadSampleError: PyAV is not installed, or there is no sound that can be decoded.
    """

    def __init__(self, file: BinaryIO, kind: FileKind) -> None:
        self.kind = kind
        if importlib.util.find_spec("av") is None:
            raise BadSampleError(
                "undecodable",
                f"unreadable: {kind.name}; pip install 'megajukebox[{EXTRA}]' to read it, or {CONVERT}",
            )
        with as_regular_file(file) as regular:
            self.process = subprocess.Popen(
                module_command("megajukebox.data.recordings.decode_foreign", kind.demuxer),
                stdin=regular,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=child_environment(),
            )
        try:
            _, facts = self.message(b"F")
            self.facts: dict[str, Any] = parse_json(facts)
        except BaseException:
            self.close()
            raise
        self.codec = str(self.facts["codec"])
        self.sounds = int(self.facts["sounds"])
        self.sample_rate = int(self.facts["sample_rate"])
        self.channels = len(self.facts["speakers"])

    @property
    def speakers(self) -> Speakers | None:
        """What its channels are; None if nobody says, or if there are too many."""
        names = [name if name != "LFE2" else "LFE" for name in self.facts["speakers"]]
        if all(name in LEFT_RIGHT for name in names):
            return tuple(names)
        return FLAC_ORDERS.get(len(names))

    @property
    def promised(self) -> int | None:
        """Frames that its container says, where that is no guess."""
        seconds = self.facts["seconds"]
        return None if seconds is None else round(seconds * self.sample_rate)

    def blocks(self) -> Iterator[np.ndarray]:
        """All of it, a block [n, C] float32 after another.

        Raises:
            BadSampleError: it cannot be decoded, or ends before its container says.
        """
        frames = 0
        while True:
            letter, data = self.message(b"BZ")
            if letter == b"Z":
                break
            block = np.frombuffer(data, "<f4").reshape(-1, self.channels)
            frames += len(block)
            yield block
        if self.promised and frames + LENGTH_TOLERANCE * self.sample_rate < self.promised:
            raise BadSampleError(
                "undecodable",
                f"unreadable: ends after {frames} of {self.promised} promised frames",
            )

    def message(self, wanted: bytes) -> tuple[bytes, bytes]:
        """(letter, content) of the next message of the process; one of the letters `wanted`."""
        assert self.process.stdout is not None, "it was started with a pipe"
        header = self.process.stdout.read(5)
        if len(header) < 5:
            code = self.process.wait()
            raise BadSampleError(
                "undecodable",
                f"unreadable: {self.kind.name}, and its decoder died ({code}: a crash, too much "
                f"memory or time); {CONVERT}",
            )
        size = struct.unpack("<I", header[1:])[0]
        data = self.process.stdout.read(size) if size <= MAX_MESSAGE else b""
        if header[:1] == b"E":
            reason = data.decode("utf-8", "replace")
            raise BadSampleError("undecodable", f"unreadable: {self.kind.name}: {reason}")
        if header[:1] not in wanted or len(data) < size:
            raise BadSampleError("undecodable", f"unreadable: {self.kind.name}: {CONVERT}")
        return header[:1], data

    def close(self) -> None:
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> "ForeignDecoder":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def as_regular_file(file: BinaryIO) -> BinaryIO:
    """`file` as one of the system's, which a process can be given; a copy of what lies in memory, or in a tar."""
    if isinstance(file, io.BufferedReader) and isinstance(file.raw, io.FileIO):
        return os.fdopen(os.dup(file.fileno()), "rb")
    # the caller closes it
    copy: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115
    file.seek(0)
    shutil.copyfileobj(file, copy)
    copy.flush()
    return copy
