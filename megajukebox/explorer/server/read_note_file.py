"""Reads one file of notes from outside in a process that may not grow: `read_note_file .mid BYTES CPU_SECONDS < tune.mid`.

It limits its own memory and time before it touches a byte, and prints a JSON object with `piece`, what the page Draw
draws, and `told`, what was left out; or with `error` for the file's owner.
"""

import json
import os
import resource
import sys

from megajukebox.data.drawn_notes import drawn_of
from megajukebox.notes.readers import pieces_of


def main() -> None:
    ending, max_memory, max_cpu_seconds = sys.argv[1:]
    limits = {
        resource.RLIMIT_AS: int(max_memory),
        resource.RLIMIT_CPU: int(max_cpu_seconds),
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
    }
    for kind, value in limits.items():
        resource.setrlimit(kind, (value, value))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    answers.write(json.dumps(answer(sys.stdin.buffer.read(), ending)))
    answers.flush()


def answer(data: bytes, ending: str) -> dict:
    """The piece, or why there is none."""
    try:
        for read in pieces_of(data, ending):
            if read.notes is not None:
                drawn = drawn_of(read.notes)
                told = list(read.repairs)
                left_out = len(read.notes.notes) - len(drawn.notes)
                if left_out:
                    told.append(f"{left_out} notes behind bar {drawn.bars} or beyond four parts")
                return {"piece": drawn.model_dump(mode="json"), "told": told}
    except (ValueError, MemoryError, RecursionError) as error:
        return {"error": str(error) or "it takes too much memory"}
    return {"error": "it holds no piece that can be read"}


if __name__ == "__main__":
    main()
