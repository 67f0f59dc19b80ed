"""Decodes by ffmpeg what libsndfile does not read, in a process that may die alone: `decode_foreign DEMUXER`.

    python -m megajukebox.data.recordings.decode_foreign mov < song.m4a

The file is its standard input, opened by the parent; it opens none itself, and cannot: a playlist that names others
leads nowhere. To standard output go messages, which `foreign_audio.py` reads: a letter (F facts, B block, E error, Z end), the
number of bytes, and those. The only file that imports PyAV.
"""

import json
import os
import resource
import struct
import sys
from typing import Any, BinaryIO

import av
import av.subtitles.stream  # or av imports it when it may open no file any more
import numpy as np

from megajukebox.common.process_pool import limit_memory

MEMORY = 3 << 30  # bytes of addresses beyond what the process starts with
CPU_SECONDS = 1800  # an hour of the slowest codec took 150 s
BLOCK_FRAMES = 1 << 16  # frames handed on at a time
# Demuxers whose length is written, and no guess from the first bit rates.
LENGTHS_WRITTEN = {"mov", "asf", "matroska", "wv", "ape", "tta", "tak", "dsf", "w64", "ogg"}
# Titles in another encoding are none of our business here; PyAV 19 has no such option.
METADATA: dict[str, Any] = {}
if int(av.__version__.partition(".")[0]) < 19:
    METADATA["metadata_errors"] = "replace"
FULL_SCALE = {"u1": 1 << 7, "i2": 1 << 15, "i4": 1 << 31, "f4": 1, "f8": 1}


def main() -> None:
    out = sys.stdout.buffer
    limit_process()
    # ffmpeg reads through this object alone.
    source = os.fdopen(0, "rb")
    try:
        source.seek(0)
        decode(source, sys.argv[1], out)
    except (av.FFmpegError, ValueError, MemoryError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error) or "it takes too much memory"
        write_message(out, b"E", reason.encode())


def limit_process() -> None:
    """No more memory and time than a song needs, no core dump, no file or connection of its own."""
    limit_memory(MEMORY)
    wanted = {
        resource.RLIMIT_CPU: CPU_SECONDS,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 3,  # what is open stays open
    }
    for kind, value in wanted.items():
        _, hard = resource.getrlimit(kind)
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        resource.setrlimit(kind, (value, value))


def decode(source: BinaryIO, demuxer: str, out: BinaryIO) -> None:
    """The first stream of sound in `source`: its facts, then its blocks.

    Raises:
        ValueError: there is none, or it changes its rate or its channels.
    """
    with av.open(source, "r", format=demuxer, **METADATA) as container:
        if not container.streams.audio:
            raise ValueError("there is no sound in it")
        stream = container.streams.audio[0]
        first: tuple[int, int] | None = None
        held: list[np.ndarray] = []
        for frame in container.decode(stream):
            x_TC = samples_of(frame)
            if first is None:
                first = (frame.sample_rate, x_TC.shape[1])
                facts = facts_of(container, stream, frame, demuxer)
                write_message(out, b"F", json.dumps(facts).encode())
            elif first != (frame.sample_rate, x_TC.shape[1]):
                raise ValueError(
                    f"it changes from {first[0]} Hz and {first[1]} channels to "
                    f"{frame.sample_rate} Hz and {x_TC.shape[1]}"
                )
            held.append(x_TC)
            if sum(map(len, held)) >= BLOCK_FRAMES:
                write_message(out, b"B", np.concatenate(held).tobytes())
                held = []
    if first is None:
        raise ValueError("no sound could be decoded")
    if held:
        write_message(out, b"B", np.concatenate(held).tobytes())
    write_message(out, b"Z", b"")


def samples_of(frame: av.AudioFrame) -> np.ndarray:
    """[T, C] float32, full scale -1..1."""
    x = frame.to_ndarray()
    x_TC = x.T if frame.format.is_planar else x.reshape(-1, frame.layout.nb_channels)
    scale = FULL_SCALE[x.dtype.str[1:]]
    if x.dtype == np.uint8:
        x_TC = x_TC.astype(np.float32) - scale
    return np.asarray(x_TC / scale, np.float32)


def facts_of(
    container: Any, stream: av.AudioStream, frame: av.AudioFrame, demuxer: str
) -> dict[str, Any]:
    """What the parent must know before the first block."""
    seconds = None
    if demuxer in LENGTHS_WRITTEN:
        if stream.duration and stream.time_base:
            seconds = float(stream.duration * stream.time_base)
        elif container.duration and len(container.streams) == 1:
            seconds = container.duration / av.time_base
    return {
        "codec": stream.codec_context.name,
        "sample_rate": frame.sample_rate,
        "speakers": [channel.name for channel in frame.layout.channels],
        "seconds": seconds,
        "sounds": len(container.streams.audio),
    }


def write_message(out: BinaryIO, kind: bytes, data: bytes) -> None:
    out.write(kind + struct.pack("<I", len(data)) + data)
    out.flush()


if __name__ == "__main__":
    main()
