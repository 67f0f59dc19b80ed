"""How long a song of the Studio takes: by a process of its own, and by the one that keeps the model.

    python benchmarks/studio_latency.py demo/runs --seconds 0.5 --out benchmarks/results/studio_latency.json

The same short song every time, so that what is left is mostly the way to it: starting Python, torch, reading weights.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from megajukebox.common.provenance import made_by
from megajukebox.explorer.server.sampler_process import SamplerProcess, sampler_command


def main(
    runs: Annotated[Path, typer.Argument(help="The folder of the runs.")],
    seconds: Annotated[float, typer.Option(help="Length of the song.")] = 0.5,
    times: Annotated[int, typer.Option(min=2, help="Songs made in each way.")] = 4,
    out: Annotated[Path | None, typer.Option(help="A JSON file for the figures.")] = None,
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        request = {"id": "song", "seconds": seconds, "seed": 1}
        (folder / "request.json").write_text(json.dumps([request]))
        alone = [
            sys.executable,
            "-m",
            "megajukebox.sample",
            str(runs),
            "--requests",
            str(folder / "request.json"),
        ]
        apart = [
            seconds_of(lambda n=n: run([*alone, "--out", str(folder / f"apart-{n}")]))
            for n in range(times)
        ]
        sampler = SamplerProcess(
            lambda samplers: sampler_command(runs, samplers), folder / "log.txt"
        )

        def kept(number: int) -> None:
            paths = {key: str(folder / f"{key}-{number}") for key in ("out", "progress", "stop")}
            assert sampler.generate([], {"request": request, **paths})["state"] == "done"

        standing = [seconds_of(lambda n=n: kept(n)) for n in range(times)]
        facts = sampler.status()
        sampler.end()
    machine = {"date": str(date.today()), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    found = {
        **machine,
        "song_seconds": seconds,
        "process_each": apart,
        "process_kept": standing,
        "kept_bytes": facts["memory"],
    }
    print(json.dumps(found, indent=1))
    if out:
        out.write_text(
            json.dumps(
                {**found, "made_by": made_by(f"studio_latency.py --seconds {seconds:g}")}, indent=1
            )
            + "\n"
        )


def run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True)


def seconds_of(make: Callable[[], None]) -> float:
    started = time.perf_counter()
    make()
    return round(time.perf_counter() - started, 2)


if __name__ == "__main__":
    typer.run(main)
