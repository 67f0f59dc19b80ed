"""The one training loop: every stage is a task, every way of parallelism an engine."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from megajukebox.common.files import write_atomic
from megajukebox.data.sample_errors import ALL_KINDS
from megajukebox.data.stream.sample_order import philox
from megajukebox.records.events import DataOpened, RunFinished, RunStopped
from megajukebox.resilience.exit_codes import TerminateRun
from megajukebox.resilience.signals import FENCED, NOTHING, SAVE, STOP
from megajukebox.training.checkpointing.resume import resume
from megajukebox.training.checkpointing.saver import CheckpointSaver
from megajukebox.training.engines import collectives
from megajukebox.training.engines.zero import ZeroEngine
from megajukebox.training.lr_schedule import lr_factor
from megajukebox.training.previews import PreviewSampler
from megajukebox.training.reconstruction_samples import write_reconstructions
from megajukebox.training.run_context import RunContext
from megajukebox.training.sdc import check_recomputed_loss, check_replicas
from megajukebox.training.spike_recovery import handle_min_loss_scale, handle_skipped_step
from megajukebox.training.tasks import Stream, Task


def train(run: RunContext, task: Task, engine: ZeroEngine) -> bool:
    """Train `task` to its last step, or until asked to stop. Returns whether it is finished.

    Raises TrainingDiverged when too many steps had to be skipped; the last checkpoint stays as it is. Raises Leave when
    a newer start has taken the run, it was set back, a rank holds or computes what it should not, or the last
    checkpoint could not be saved.
    """
    first = resume(run, task, engine)
    if run.rank == 0 and first < run.settings.steps:
        (run.folder / "DONE").unlink(
            missing_ok=True
        )  # of fewer steps: a run that trains on is not done
    saves = CheckpointSaver(run, task, engine, first)
    run.log.event(DataOpened(step=first, counts=task.corpus()))
    last = min(run.settings.steps, first + (run.stop_after or run.settings.steps))
    engine.masters.watched = run.settings.checks.replica_check_every > 0
    stream, done, order = task.batches(run.data_step(first)), first, NOTHING
    batches = iter(stream)
    hearing = PreviewSampler(
        run.folder,
        run.settings.previews,
        run.log,
        first,
        active=run.rank == 0 and task.kind == "prior",
    )
    run.watchdog.step, run.watchdog.stage = first, run.rank * engine.stages // run.ranks
    run.watchdog.enter_phase("step")
    with progress_bar(run, first) as advance:
        while done < last and (order := meet(run, saves)) < STOP:
            if order == SAVE:
                saves.begin(done, export=True)
                saves.end()
            run.signals.saved(order)
            advance(train_one_step(run, task, engine, batches, stream, done))
            done += 1
            if (
                run.settings.checks.replica_check_every
                and done % run.settings.checks.replica_check_every == 0
            ):
                check_replicas(run, engine, done)
            if done % run.settings.evaluation.every == 0 or done == run.settings.steps:
                evaluate(run, task, engine, done)
            if done % run.settings.checkpointing.every == 0 and done < last:
                saves.begin(done)
            hearing.after_save(saves.exported)
    if order == FENCED:
        raise TerminateRun(
            "fenced",
            f"another start of {run.folder} has taken over from generation {run.fencing_token.number}",
        )
    saves.begin(done, export=done == run.settings.steps)
    if not saves.end():
        raise TerminateRun(
            "storage",
            f"step {done} of {run.folder} could not be saved (events.jsonl says why); start again",
        )
    hearing.after_save(saves.exported)
    with run.watchdog.phase("checkpoint_save"):
        hearing.end(wait=done == run.settings.steps)
        collectives.barrier()
    return tell_end(run, done)


def meet(run: RunContext, saves: CheckpointSaver) -> int:
    """All ranks, before a step: the strongest order that one of them knows of. What all have written is made final."""
    order, writing = collectives.all_reduce_max(run.signals.now(), saves.writing)
    if not writing and order != FENCED:
        saves.end()
    return order


def tell_end(run: RunContext, done: int) -> bool:
    """The last event of a run that ends as it should, and the file DONE if nothing is left to train."""
    finished = done == run.settings.steps
    if finished:
        run.log.event(RunFinished(step=done))
        if run.rank == 0:
            write_atomic(run.folder / "DONE", f"{done}\n".encode())
    else:
        reason = run.signals.reason or (
            "stop-after" if run.stop_after else "another rank was asked to"
        )
        event = RunStopped(
            step=done, reason=reason, signal=run.signals.signal, stop_after=run.stop_after
        )
        run.log.event(event)
    collectives.barrier()  # no rank leaves before all is written: launchers end the others when one has gone
    return finished


def train_one_step(
    run: RunContext,
    task: Task,
    engine: ZeroEngine,
    batches: Iterator[list[dict]],
    stream: Stream,
    step: int,
) -> float:
    """Train step `step` (0-based), log it if it is due, and return its loss."""
    settings, started = run.settings, time.perf_counter()
    with run.watchdog.phase("data_wait"):
        micro_batches = next(batches)
    waited = time.perf_counter() - started
    # A seed for each step makes every draw inside the model a function of (seed, rank, step): no generator is saved.
    torch.manual_seed(int(philox(settings.seed, f"model/{run.rank}", step).random_raw()) % 2**63)
    share = lr_factor(step, settings.steps, settings.schedule) * run.rate_share(step)
    try:
        metrics = engine.step(micro_batches, share)
    except collectives.LossScaleAtMinimum as error:
        handle_min_loss_scale(run, engine, step, str(error))
    handle_skipped_step(run, task, engine, step, metrics)
    seconds = time.perf_counter() - started
    met = engine.communication.seconds()
    run.watchdog.record_step(step + 1, seconds, met)
    if (step + 1) % settings.log_every == 0 or step == 0:
        heard = {
            "audio_seconds_per_second": task.audio_seconds / seconds,
            "data_wait_ratio": waited / seconds,
            **skipped(run, task, stream),
            **stream.report(),
            **collectives.memory(),
        }
        split = {"step_seconds": seconds, "data_seconds": waited, "communication_seconds": met}
        speed = split | {task.speed_name: task.units_per_step / seconds}
        speed |= {"mfu": run.at_peak / seconds} if run.at_peak else {}
        run.log.metrics(step + 1, "train", metrics | heard | speed | run.watchdog.phase_seconds())
    if (
        settings.checks.recompute_check_every
        and (step + 1) % settings.checks.recompute_check_every == 0
    ):
        check_recomputed_loss(run, task, engine, micro_batches[0], step + 1)
    return metrics["loss"]


def skipped(run: RunContext, task: Task, stream: Stream) -> dict[str, int]:
    """Clips replaced so far on all ranks, in all and by kind; what the stages of one pipeline read counts once."""
    mine = stream.bad_samples() if run.rank < task.reading.place.size else {}
    kinds = dict(
        zip(ALL_KINDS, collectives.all_reduce_sum([mine.get(kind, 0) for kind in ALL_KINDS]))
    )
    return {
        "bad_samples": sum(kinds.values()),
        **{f"bad_samples_{kind}": count for kind, count in kinds.items() if count},
    }


def evaluate(run: RunContext, task: Task, engine: ZeroEngine, step: int) -> dict[str, float]:
    """Average the metrics over the held-out batches and log them."""
    with run.watchdog.phase("eval"):
        seen = [engine.evaluate(batch) for batch in task.held_out()]
        judged = check_step(task, engine)
        write_reconstructions(run, task, engine, step)
    averages = {name: sum(s[name] for s in seen) / len(seen) for name in seen[0]} if seen else {}
    averages |= judged
    if averages:
        run.log.metrics(step, "held_out", averages)
    return averages


def check_step(task: Task, engine: ZeroEngine) -> dict[str, float]:
    """What the task's own judge says over the windows of all ranks: means, and half their 95 % intervals (`_ci`)."""
    if task.judge is None:
        return {}
    with engine.whole() as model:
        mine = {name: values.tolist() for name, values in task.judge(model).items()}
    found: dict[str, float] = {}
    for name in mine:
        values = np.array([value for part in collectives.all_gather(mine[name]) for value in part])
        if len(values) > 1:
            found |= {
                name: float(values.mean()),
                f"{name}_ci": float(1.96 * values.std(ddof=1) / len(values) ** 0.5),
            }
    return found


@contextmanager
def progress_bar(run: RunContext, first: int) -> Iterator[Callable[[float], None]]:
    """A bar on rank 0; what it yields is called with the loss of each step."""
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
    )
    with Progress(TextColumn("{task.description}"), *columns, disable=run.rank != 0) as bar:
        row = bar.add_task(
            run.folder.name, total=run.settings.steps, completed=first, loss=float("nan")
        )
        yield lambda loss: bar.update(row, advance=1, loss=loss)
