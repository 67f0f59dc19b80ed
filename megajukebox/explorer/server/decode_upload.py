"""Decodes one recording from outside in a process that may not grow: `decode_upload SOURCE TARGET SECONDS VALUES BYTES CPU`.

    python -m megajukebox.explorer.server.decode_upload upload.flac upload.wav 180 70000000 2147483648 60

It limits its own memory and time before it touches a byte of SOURCE, refuses what by its header is too much, writes
plain 16-bit PCM to TARGET for its owner alone, and prints a JSON object with `seconds`, or with `error` for the owner
of the recording. VALUES are frames x channels.
"""

import json
import os
import resource
import sys

import numpy as np

from megajukebox.data import audio


def main() -> None:
    source, target, max_seconds, max_values, max_memory, max_cpu_seconds = sys.argv[1:]
    limits = {
        resource.RLIMIT_AS: int(max_memory),
        resource.RLIMIT_CPU: int(max_cpu_seconds),
        resource.RLIMIT_CORE: 0,
    }
    for kind, value in limits.items():
        resource.setrlimit(kind, (value, value))
    os.umask(0o077)
    try:
        wave_TC, rate = read_bounded(source, float(max_seconds), int(max_values))
        audio.write_wav(target, wave_TC, rate)
    except (ValueError, MemoryError) as error:
        print(json.dumps({"error": str(error) or "it takes too much memory"}))
    else:
        print(json.dumps({"seconds": len(wave_TC) / rate}))


def read_bounded(source: str, max_seconds: float, max_values: int) -> tuple[np.ndarray, int]:
    """(audio [T, C], its rate in Hz); more than two channels become one.

    A header that claims too much is refused before anything is decoded.

    Raises:
        ValueError: it cannot be used; the message says why.
    """
    header = audio.facts(source)
    rate = header.sample_rate
    if header.seconds is not None and header.seconds > max_seconds:
        raise ValueError(f"too long: it lasts over {max_seconds:g} seconds")
    # A header without a length, or with a wrong one, is held to the same bound while it is decoded.
    allowed_seconds = max_values / (header.channels * rate)
    if header.seconds is not None and header.seconds > allowed_seconds:
        raise ValueError(
            f"too large: {header.seconds:.0f} s x {header.channels} channels x {rate} Hz is over"
            f" {max_values:,} values"
        )
    limit = min(max_seconds, allowed_seconds)
    is_multichannel = header.channels > 2
    read = audio.read_mono if is_multichannel else audio.read
    wave = read(source, rate, limit)
    if not len(wave):
        raise ValueError("it holds no sound")
    return wave[:, None] if is_multichannel else wave, rate


if __name__ == "__main__":
    main()
