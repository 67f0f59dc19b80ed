"""Decodes one recording from outside in a process that may not grow: `decode_upload SOURCE TARGET SECONDS BYTES CPU`.

    python -m megajukebox.explorer.server.decode_upload upload.flac upload.wav 180 2147483648 60

It limits its own memory and time before it touches a byte of SOURCE, writes plain 16-bit PCM to TARGET, and prints a
JSON object with `seconds`, or with `error` for the owner of the recording.
"""

import json
import resource
import sys

from megajukebox.data import audio


def main() -> None:
    source, target, max_seconds, max_memory, max_cpu_seconds = sys.argv[1:]
    limits = {
        resource.RLIMIT_AS: int(max_memory),
        resource.RLIMIT_CPU: int(max_cpu_seconds),
        resource.RLIMIT_CORE: 0,
    }
    for kind, value in limits.items():
        resource.setrlimit(kind, (value, value))
    try:
        rate = audio.facts(source).sample_rate
        wave_TC = audio.read(source, rate, max_seconds=float(max_seconds))
        if not len(wave_TC):
            raise ValueError("it holds no sound")
        is_multichannel = wave_TC.shape[1] > 2
        audio.write_wav(target, audio.downmix(wave_TC) if is_multichannel else wave_TC, rate)
    except (ValueError, MemoryError) as error:
        print(json.dumps({"error": str(error) or "it takes too much memory"}))
    else:
        print(json.dumps({"seconds": len(wave_TC) / rate}))


if __name__ == "__main__":
    main()
