"""How long the page Draw waits for three answers: two bars of melody, four voices, the best of eight.

    python benchmarks/draw_latency.py runs/tiny --out benchmarks/results/draw_latency.json

It asks the composer's process as the server does. The first question is answered by a process that was just started
and warmed up, as it is when somebody has drawn a melody.
"""

import json
import os
import tempfile
import time
from datetime import date
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from megajukebox.common.provenance import made_by
from megajukebox.explorer.server.draw_api import DrawServices
from megajukebox.records.drawn_piece import DrawnVoices, FillOrder

# Two bars in quarters, then the same in eighths: G major, within a soprano's range.
QUARTERS = (67, 71, 74, 72, 71, 69, 67, 67)
EIGHTHS = (67, 69, 71, 72, 74, 76, 74, 72, 71, 69, 71, 72, 69, 67, 66, 67)


def melody(pitches: tuple[int, ...]) -> DrawnVoices:
    ticks = 192 // len(pitches)
    notes = [(place * ticks, ticks, pitch, 0) for place, pitch in enumerate(pitches)]
    return DrawnVoices(notes=tuple(notes), bars=2, key="G major")


def main(
    run: Annotated[Path, typer.Argument(help="The run of a composer, or the folder above it.")],
    times: Annotated[int, typer.Option(min=1, help="Questions of each melody.")] = 5,
    out: Annotated[Path | None, typer.Option(help="A JSON file for the figures.")] = None,
) -> None:
    found: dict = {"date": str(date.today()), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as work:
        services = DrawServices(run, Path(work, "work"))
        began = time.monotonic()
        services.warm_up()
        services.fill(FillOrder(piece=melody(QUARTERS), variations=1, keep=1))
        found["loaded_seconds"] = round(time.monotonic() - began, 2)
        for name, pitches in (("quarters", QUARTERS), ("eighths", EIGHTHS)):
            seconds = []
            for seed in range(times):
                began = time.monotonic()
                answer = services.fill(FillOrder(piece=melody(pitches), seed=8 * seed))
                seconds.append(round(time.monotonic() - began, 3))
                assert len(answer.answers) == 3
            found[name] = {"seconds": seconds, "median": median(seconds)}
        found["memory_bytes"] = answer.memory
        services.close()
    print(json.dumps(found, indent=1))
    if out:
        out.write_text(
            json.dumps({**found, "made_by": made_by("draw_latency.py")}, indent=1) + "\n"
        )


if __name__ == "__main__":
    typer.run(main)
