"""What monitoring costs a training process: every call that the loop makes, timed one by one.

    python benchmarks/metrics_overhead.py

The sum is set against steps of 100 ms (the tiny presets on a CPU) and of 1 s (a prior of a billion on a V100). A loop
with and without would tell less: a step on a shared machine varies by far more than this.
Writes benchmarks/results/metrics_overhead.json.
"""

import json
import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import torch

from megajukebox.common.provenance import made_by
from megajukebox.records.run_log import RunLog
from megajukebox.resilience.exit_codes import ExitRecord
from megajukebox.resilience.watchdog import HEARTBEAT_SECONDS, HangTimeouts, Watchdog
from megajukebox.training.engines import collectives
from megajukebox.training.engines.comm_timing import Communication

RESULTS = Path(__file__).parent / "results" / "metrics_overhead.json"
STEPS = {"100 ms": 0.1, "1 s": 1.0}
LOG_EVERY = 10
COLLECTIVES = (
    300  # in a step: ZeRO-3 over 72 layers, each gathered twice and reduced once, and some more
)
LINE = {
    f"level/metric_{n}": n * 1.1 for n in range(40)
}  # as many numbers as a VQ-VAE of three levels logs


def microseconds(call: Callable[[], object], repeats: int = 2000) -> float:
    """The median time of one call."""
    seen = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        seen.append(time.perf_counter() - started)
    return median(seen) * 1e6


def measure(folder: Path) -> dict[str, float]:
    """Microseconds of each part; `every step` and `every logged step` are on the loop's own thread."""
    log = RunLog(folder, writes=True)
    watchdog = Watchdog(
        log, SimpleNamespace(number=1, is_current=lambda: True), HangTimeouts(), ExitRecord(folder)
    )  # type: ignore[arg-type]
    clock = Communication(torch.device("cpu"))

    def every_step() -> None:
        with watchdog.phase("data_wait"):
            pass
        with clock.timed():
            pass
        watchdog.record_step(7, 0.1, clock.seconds())

    def every_logged_step() -> None:
        log.metrics(7, "train", LINE | watchdog.phase_seconds() | collectives.memory())

    return {
        "every step": microseconds(every_step),
        "every collective": timing_of_a_collective(clock),
        "every logged step": microseconds(every_logged_step),
        "a heartbeat, on its own thread": microseconds(watchdog.write_heartbeat, 300),
    }


def timing_of_a_collective(clock: Communication) -> float:
    """Microseconds that it takes to time one, here one that does nothing, and to add its time up."""

    def nothing() -> None:
        pass

    timed = clock._wrap(nothing)

    def many(call: Callable[[], object]) -> None:
        for _ in range(COLLECTIVES):
            call()
        clock.seconds()

    return (microseconds(lambda: many(timed)) - microseconds(lambda: many(nothing))) / COLLECTIVES


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        parts = measure(Path(folder))
    parts["every collective"] = round(parts["every collective"], 3)
    a_step = (
        parts["every step"]
        + COLLECTIVES * parts["every collective"]
        + parts["every logged step"] / LOG_EVERY
    )
    shares = {
        name: (
            a_step * 1e-6
            + parts["a heartbeat, on its own thread"] * 1e-6 * seconds / HEARTBEAT_SECONDS
        )
        / seconds
        for name, seconds in STEPS.items()
    }
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "commit": made_by()["commit"],
        "threads": threading.active_count(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "log_every": LOG_EVERY,
        "collectives_a_step": COLLECTIVES,
        "microseconds": {name: round(value, 1) for name, value in parts.items()},
        "share_of_a_step": {name: round(share, 6) for name, share in shares.items()},
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
