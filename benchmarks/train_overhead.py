"""What share of a training step is neither model, data nor DeepSpeed: our own loop, metrics, rules and logs.

    python benchmarks/train_overhead.py shards/codes --steps 60        # the tiny preset's top prior, one process

Times calls into DeepSpeed's engine (which runs the model) and into the data stream; the rest of the time from one step
to the next is ours. Processor time of all threads of the process, so that others on the machine do not count. Writes
benchmarks/results/train_overhead.json.
"""

import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from megajukebox import train
from megajukebox.common.provenance import made_by
from megajukebox.data.shards.remote import DEFAULT_CACHE, RemoteConfig
from megajukebox.resilience.exit_codes import ExitRecord
from megajukebox.training import loop
from megajukebox.training import stage_runner as stage_module
from megajukebox.training.config import load_preset

RESULTS = Path(__file__).parent / "results" / "train_overhead.json"
FIRST = 5  # steps that are not counted: caches fill


class Clock:
    """Seconds spent in what it wraps, and when each step began."""

    def __init__(self) -> None:
        self.inside = 0.0
        self.steps: list[tuple[float, float]] = []

    def timed(self, work: Callable) -> Callable:
        def call(*given: Any, **named: Any) -> Any:
            began = time.process_time()
            try:
                return work(*given, **named)
            finally:
                self.inside += time.process_time() - began

        return call

    def step(self, work: Callable) -> Callable:
        def call(run: Any, task: Any, engine: Any, batches: Any, *rest: Any) -> Any:
            self.steps.append((time.process_time(), self.inside))
            return work(run, task, engine, Timed(batches, self), *rest)

        return call

    def shares(self) -> list[float]:
        """Of every step: the share of its time that was spent outside."""
        pairs = list(zip(self.steps, self.steps[1:]))[FIRST:]
        return [1 - (inside - before) / (now - then) for (then, before), (now, inside) in pairs]

    def seconds(self) -> list[float]:
        return [now - then for (then, _), (now, _) in zip(self.steps, self.steps[1:])][FIRST:]


class Timed:
    """DeepSpeed's engine, or the stream of batches, on the clock."""

    def __init__(self, inner: Any, clock: Clock) -> None:
        self.inner, self.clock = inner, clock

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        return self.clock.timed(found) if name in ("backward", "step") else found

    def __call__(self, *given: Any) -> Any:
        return self.clock.timed(self.inner)(*given)

    def __next__(self) -> Any:
        return self.clock.timed(self.inner.__next__)()


def main(
    data: Annotated[str, typer.Argument(help="Code shards.")],
    preset: Annotated[str, typer.Option()] = "tiny",
    stage: Annotated[str, typer.Option()] = "top_prior",
    steps: Annotated[int, typer.Option(min=10)] = 60,
) -> None:
    """Train for a while and tell."""
    clock = Clock()
    build = stage_module.build_engine

    def timed_engine(*given: Any) -> Any:
        engine = build(*given)
        engine.engine = Timed(engine.engine, clock)
        return engine

    stage_module.build_engine, loop.train_one_step = timed_engine, clock.step(loop.train_one_step)  # type: ignore[assignment]
    quiet = [
        f"training.{stage}.{name}=1000000" for name in ("evaluation.every", "checkpointing.every")
    ]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        remote = RemoteConfig(DEFAULT_CACHE, 0)
        train.run_stage(
            load_preset(preset, quiet), stage, data, remote, out, None, steps, ExitRecord(out)
        )
    found = {
        "machine": platform.processor() or platform.machine(),
        "made_by": made_by(),
        "preset": preset,
        "stage": stage,
        "steps": len(clock.shares()),
        "step_cpu_seconds": statistics.median(clock.seconds()),
        "share_outside": statistics.median(clock.shares()),
        "time": time.strftime("%Y-%m-%d"),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    typer.run(main)
