"""The one training loop: every stage is a task, every way of parallelism an engine."""

import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from megajukebox.data.order import philox
from megajukebox.data.piped import PipedBatches
from megajukebox.data.stream import Batches
from megajukebox.data.weights import save_weights
from megajukebox.monitoring.metrics import RunLog
from megajukebox.training import checkpoint, parallel
from megajukebox.training.config import TrainingSettings
from megajukebox.training.schedule import rate
from megajukebox.training.tasks import Task


class StopAsked:
    """A signal only raises a flag; the loop looks at it between steps, saves, and leaves."""

    def __init__(self) -> None:
        self.signal: int | None = None
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: object) -> None:
        self.signal = number

    def __bool__(self) -> bool:
        return self.signal is not None


@dataclass
class Run:
    """Where a run lives, how it trains, and which of its processes this one is."""

    folder: Path
    settings: TrainingSettings
    rank: int
    stop_after: int | None = None
    log: RunLog = field(init=False)

    def __post_init__(self) -> None:
        self.log = RunLog(self.folder, writes=self.rank == 0, rank=self.rank)


def train(run: Run, task: Task, engine: parallel.Engine) -> bool:
    """Train `task` to its last step, or until asked to stop. Returns whether it is finished.

    Raises TrainingDiverged, with the step, when the loss is not a number; the last checkpoint stays as it is.
    """
    first, asked = resume(run, task, engine), StopAsked()
    last = min(run.settings.steps, first + (run.stop_after or run.settings.steps))
    stream, done = task.batches(first), first
    batches = iter(stream)
    with progress_bar(run, first) as advance:
        while done < last and not parallel.anyone(bool(asked)):
            advance(train_one_step(run, task, engine, batches, stream, done))
            done += 1
            if done % run.settings.evaluate_every == 0 or done == run.settings.steps:
                evaluate(run, task, engine, done)
            if done % run.settings.save_every == 0 and done < last:
                save(run, task, engine, done)
    if done > first:
        save(run, task, engine, done)
    finished = done == run.settings.steps
    reason = {} if finished else {"signal": asked.signal, "stop_after": run.stop_after}
    run.log.event("done" if finished else "stop", done, **reason)
    return finished


def resume(run: Run, task: Task, engine: parallel.Engine) -> int:
    """Load the newest whole checkpoint, if the run has one; returns the first step to train (0-based)."""
    folder, rejected = parallel.from_rank_0(checkpoint.newest(run.folder) if run.rank == 0 else None)
    for reason in rejected:
        run.log.event("reject", reason=reason)
    if folder is None:
        run.log.event("start", 0)
        return 0
    state = checkpoint.read_state(folder)
    task.check_state(state["stream"])
    engine.load(folder)
    run.log.forget_after(state["step"])
    run.log.event("resume", state["step"], checkpoint=folder.name)
    return state["step"]


def train_one_step(
    run: Run,
    task: Task,
    engine: parallel.Engine,
    batches: Iterator[list[dict]],
    stream: Batches | PipedBatches,
    step: int,
) -> float:
    """Train step `step` (0-based), log it if it is due, and return its loss."""
    settings, started = run.settings, time.perf_counter()
    micro_batches = next(batches)
    waited = time.perf_counter() - started
    # A seed for each step makes every draw inside the model a function of (seed, rank, step): no generator is saved.
    torch.manual_seed(int(philox(settings.seed, f"model/{run.rank}", step).random_raw()) % 2**63)
    share = rate(step, settings.steps, settings.warmup, settings.decay, settings.decay_floor)
    try:
        metrics = engine.step(micro_batches, share)
    except parallel.TrainingDiverged as error:
        run.log.event("diverged", step + 1, reason=str(error))
        where = f"at step {step + 1} of {run.folder}"
        raise parallel.TrainingDiverged(f"{error} {where}; its last checkpoint is as it was") from None
    if (step + 1) % settings.log_every == 0 or step == 0:
        seconds = time.perf_counter() - started
        heard = {
            "audio_seconds_per_second": task.audio_seconds / seconds,
            "stall_share": waited / seconds,
            **stream.report(),
        }
        speed = {"step_seconds": seconds, "data_seconds": waited, task.speed_name: task.units_per_step / seconds}
        run.log.metrics(step + 1, "train", metrics | heard | speed)
    return metrics["loss"]


def evaluate(run: Run, task: Task, engine: parallel.Engine, step: int) -> dict[str, float]:
    """Average the metrics over the held-out batches and log them."""
    seen = [engine.evaluate(batch) for batch in task.held_out()]
    averages = {name: sum(s[name] for s in seen) / len(seen) for name in seen[0]} if seen else {}
    if averages:
        run.log.metrics(step, "held_out", averages)
    return averages


def save(run: Run, task: Task, engine: parallel.Engine, step: int) -> None:
    """A checkpoint of everything, and the weights on their own for those who only read them."""
    started = time.perf_counter()
    written = checkpoint.partial(run.folder, step)
    if run.rank == 0:
        shutil.rmtree(written, ignore_errors=True)
        written.mkdir(parents=True)
    parallel.barrier()
    engine.save(written)
    parallel.barrier()
    if run.rank == 0:
        checkpoint.seal(run.folder, step, {"step": step, "stream": task.stream_state(step)}, run.settings.keep)
    export(run, task, engine, step)
    run.log.event("save", step, seconds=round(time.perf_counter() - started, 3))


def export(run: Run, task: Task, engine: parallel.Engine, step: int) -> None:
    """model.safetensors + model.json: rank 0 writes, the others only help to gather."""
    weights = engine.weights()
    if run.rank == 0:
        save_weights(run.folder, task.kind, task.config, weights, step, **task.facts)
    else:
        for pending in weights.values():
            pending.make()
    parallel.barrier()


@contextmanager
def progress_bar(run: Run, first: int) -> Iterator[Callable[[float], None]]:
    """A bar on rank 0; what it yields is called with the loss of each step."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("loss {task.fields[loss]:.3f}"))
    with Progress(TextColumn("{task.description}"), *columns, disable=run.rank != 0) as bar:
        row = bar.add_task(run.folder.name, total=run.settings.steps, completed=first, loss=float("nan"))
        yield lambda loss: bar.update(row, advance=1, loss=loss)
