"""The one training loop: every stage is a task, every kind of parallelism an engine."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from megajukebox.common.files import write_atomic
from megajukebox.common.progress import ProgressReporter
from megajukebox.data.sample_errors import ALL_KINDS
from megajukebox.data.stream.sample_order import philox
from megajukebox.records.events import DataOpened, RunFinished, RunStopped
from megajukebox.resilience.exit_codes import TerminateRun
from megajukebox.resilience.handover import prepare_next
from megajukebox.resilience.signals import Request
from megajukebox.training.best_adapter import BestAdapter
from megajukebox.training.checkpointing.resume import resume
from megajukebox.training.checkpointing.saver import CheckpointSaver
from megajukebox.training.engines import collectives
from megajukebox.training.engines.zero import ZeroEngine
from megajukebox.training.evaluation import evaluate
from megajukebox.training.lr_schedule import lr_factor
from megajukebox.training.previews import PreviewSampler
from megajukebox.training.run_context import RunContext
from megajukebox.training.sdc import check_recomputed_loss, check_replicas
from megajukebox.training.spike_detection import data_step, rewind_lr_factor
from megajukebox.training.spike_recovery import handle_min_loss_scale, handle_skipped_step
from megajukebox.training.tasks import Stream, Task

PROGRESS_INTERVAL_SECONDS = 60.0  # between two log lines of progress: runs take days
SEEDS = 2**63  # torch takes seeds below it


@dataclass(frozen=True)
class FinishedStep:
    """A step that the hooks act on."""

    number: int  # 1-based: optimizer steps made by now
    loss: float
    micro_batches: list[dict]


@dataclass(frozen=True)
class TrainingParts:
    """What the loop and its hooks work with."""

    run: RunContext
    task: Task
    engine: ZeroEngine
    saver: CheckpointSaver
    previews: PreviewSampler
    last_step: int  # of this start; the run's own may be later
    best: BestAdapter | None = None  # where an adapter is trained


def train(run: RunContext, task: Task, engine: ZeroEngine) -> bool:
    """Train `task` to its last step, or until asked to stop. Returns whether it is finished.

    An adapter is finished when its held-out songs have gained nothing for long enough.

    Raises:
        TrainingDiverged: too many steps were skipped; the last checkpoint stays as it is.
        TerminateRun: a newer start took the run over, the run was rewound, a rank holds or computes something wrong,
            or the last checkpoint could not be saved.
    """
    first_step = resume(run, task, engine)
    parts = start(run, task, engine, first_step)
    stream = task.batches(data_step(first_step, run.rewinds))
    batches = iter(stream)
    done = first_step
    request: int = Request.NONE
    run.watchdog.enter_phase("step")
    with ProgressReporter(run.rank == 0, PROGRESS_INTERVAL_SECONDS) as progress:
        bar = run.folder.name
        progress.add(bar, total=run.settings.steps, completed=first_step)
        for step in range(first_step, parts.last_step):
            if parts.best and parts.best.is_final:
                break
            request = sync_requests(run, parts.saver)
            if request >= Request.STOP:
                break
            if request == Request.SAVE:  # somebody left the file SAVE
                parts.saver.begin(step, export=True)
                parts.saver.end()
                run.signals.saved(Request.SAVE)
            finished = train_one_step(run, task, engine, batches, stream, step)
            if step == first_step:  # not before: it would take the cores that this start needs
                prepare_next()
            done = finished.number
            progress.advance(bar, detail=f", loss {finished.loss:.3f}")
            for hook in HOOKS:
                hook(parts, finished)
    if request == Request.FENCED:
        number = run.fencing_token.number
        raise TerminateRun(
            "fenced", f"another start of {run.folder} has taken over from generation {number}"
        )
    return finish(parts, done)


def start(run: RunContext, task: Task, engine: ZeroEngine, first_step: int) -> TrainingParts:
    """What the loop works with, once the run is known to train from `first_step` on."""
    settings = run.settings
    if run.rank == 0 and first_step < settings.steps:
        # Of fewer steps than now: a run that trains on is not done.
        (run.folder / "DONE").unlink(missing_ok=True)
    saver = CheckpointSaver(run, task, engine, first_step)
    run.log.event(DataOpened(step=first_step, counts=task.corpus()))
    engine.masters.watched = settings.checks.replica_check_every > 0
    makes_previews = run.rank == 0 and task.kind == "prior"
    previews = PreviewSampler(
        run.folder, settings.previews, run.log, first_step, active=makes_previews
    )
    run.watchdog.step = first_step
    run.watchdog.stage = run.rank * engine.stages // run.ranks
    last_step = min(settings.steps, first_step + (run.stop_after or settings.steps))
    best = None
    if task.adapter:
        best = BestAdapter(run, task, engine, first_step)
        if first_step == 0:
            best.update(0, evaluate(run, task, engine, 0))  # the base alone
    return TrainingParts(run, task, engine, saver, previews, last_step, best)


def sync_requests(run: RunContext, saver: CheckpointSaver) -> int:
    """The strongest request that any rank knows of; every rank calls this before a step.

    A checkpoint that all ranks have written is committed here: it is the moment at which they meet anyway.
    """
    request, writing = collectives.all_reduce_max(run.signals.now(), saver.writing)
    if not writing and request != Request.FENCED:
        saver.end()
    return request


def train_one_step(
    run: RunContext,
    task: Task,
    engine: ZeroEngine,
    batches: Iterator[list[dict]],
    stream: Stream,
    step: int,
) -> FinishedStep:
    """Train step `step` (0-based), and log it if it is due.

    Raises:
        TrainingDiverged: too many steps were skipped, and no rewind is left.
        TerminateRun: the run was rewound.
    """
    settings = run.settings
    started = time.perf_counter()
    with run.watchdog.phase("data_wait"):
        micro_batches = next(batches)
    data_seconds = time.perf_counter() - started
    # A seed for each step makes every draw inside the model a function of (seed, rank, step): no generator is saved.
    torch.manual_seed(int(philox(settings.seed, f"model/{run.rank}", step).random_raw()) % SEEDS)
    rate = lr_factor(step, settings.steps, settings.schedule) * rewind_lr_factor(step, run.rewinds)
    try:
        metrics = engine.step(micro_batches, rate)
    except collectives.LossScaleAtMinimum as error:
        handle_min_loss_scale(run, engine, step, str(error))
    handle_skipped_step(run, task, engine, step, metrics)
    seconds = time.perf_counter() - started
    communication_seconds = engine.communication.seconds()
    run.watchdog.record_step(step + 1, seconds, communication_seconds)
    # The last one too: its loss is that of the final weights, and a finished run stands at 100 %.
    if (step + 1) % settings.log_every == 0 or step == 0 or step + 1 == settings.steps:
        metrics = metrics | {
            "audio_seconds_per_second": task.audio_seconds / seconds,
            "data_wait_ratio": data_seconds / seconds,
            **bad_samples(run, task, stream),
            **stream.report(),
            **collectives.memory(),
            "step_seconds": seconds,
            "data_seconds": data_seconds,
            "communication_seconds": communication_seconds,
            task.speed_name: task.units_per_step / seconds,
        }
        if run.seconds_at_peak:
            metrics["mfu"] = run.seconds_at_peak / seconds
        run.log.metrics(step + 1, "train", metrics | run.watchdog.phase_seconds())
    return FinishedStep(step + 1, metrics["loss"], micro_batches)


def bad_samples(run: RunContext, task: Task, stream: Stream) -> dict[str, int]:
    """Clips replaced so far on all ranks, in all and by kind; ranks of one pipeline read the same and count once."""
    own = stream.bad_samples() if run.rank < task.reading.world.size else {}
    counts = collectives.all_reduce_sum([own.get(kind, 0) for kind in ALL_KINDS])
    report = {"bad_samples": sum(counts)}
    for kind, count in zip(ALL_KINDS, counts):
        if count:
            report[f"bad_samples_{kind}"] = count
    return report


def finish(parts: TrainingParts, done: int) -> bool:
    """Save step `done`, wait for the last preview, and log how the run ends. Returns whether it is finished.

    Raises:
        TerminateRun: the checkpoint could not be saved.
    """
    run = parts.run
    finished = done == run.settings.steps or bool(parts.best and parts.best.is_final)
    parts.saver.begin(done, export=finished)
    if not parts.saver.end():
        raise TerminateRun(
            "storage",
            f"step {done} of {run.folder} could not be saved (events.jsonl says why); start again",
        )
    parts.previews.after_save(parts.saver.exported)
    with run.watchdog.phase("checkpoint_save"):
        parts.previews.end(wait=finished)
        collectives.barrier()
    if finished:
        run.log.event(RunFinished(step=done))
        if run.rank == 0:
            write_atomic(run.folder / "DONE", f"{done}\n".encode())
    else:
        other = "stop-after" if run.stop_after else "another rank was asked to"
        run.log.event(
            RunStopped(
                step=done,
                reason=run.signals.reason or other,
                signal=run.signals.signal,
                stop_after=run.stop_after,
            )
        )
    collectives.barrier()  # no rank leaves before all is written: launchers end the others when one has gone
    return finished


# ---- Hooks: called in this order after every step ---------------------------------------------------------------------


def check_computation(parts: TrainingParts, step: FinishedStep) -> None:
    """Raises TerminateRun, if a check is due, where ranks compute another loss than the others."""
    every = parts.run.settings.checks.recompute_check_every
    if every and step.number % every == 0:
        check_recomputed_loss(
            parts.run, parts.task, parts.engine, step.micro_batches[0], step.number
        )


def check_weights(parts: TrainingParts, step: FinishedStep) -> None:
    """Raises TerminateRun, if a check is due, where ranks hold other weights than they must."""
    every = parts.run.settings.checks.replica_check_every
    if every and step.number % every == 0:
        check_replicas(parts.run, parts.engine, step.number)


def evaluate_if_due(parts: TrainingParts, step: FinishedStep) -> None:
    settings = parts.run.settings
    if step.number % settings.evaluation.every == 0 or step.number == settings.steps:
        metrics = evaluate(parts.run, parts.task, parts.engine, step.number)
        if parts.best:
            parts.best.update(step.number, metrics)


def save_if_due(parts: TrainingParts, step: FinishedStep) -> None:
    """The last step of this start is saved by `finish`."""
    is_due = step.number % parts.run.settings.checkpointing.every == 0
    if is_due and step.number < parts.last_step:
        parts.saver.begin(step.number)


def preview_if_due(parts: TrainingParts, step: FinishedStep) -> None:
    parts.previews.after_save(parts.saver.exported)


Hook = Callable[[TrainingParts, FinishedStep], None]
HOOKS: tuple[Hook, ...] = (
    check_computation,
    check_weights,
    evaluate_if_due,
    save_if_due,
    preview_if_due,
)
