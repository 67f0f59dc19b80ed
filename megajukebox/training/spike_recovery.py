"""Handle skipped steps: log each; after too many, rewind past the spike or stop as diverged."""

import math
import os
import shutil
from pathlib import Path
from typing import NoReturn

from megajukebox.common.files import write_atomic
from megajukebox.records.events import (
    MIN_LOSS_SCALE,
    AlertRaised,
    Diverged,
    Rewound,
    StepSkipped,
)
from megajukebox.records.rewinds import Rewind, write_rewinds
from megajukebox.resilience.exit_codes import TerminateRun
from megajukebox.training import checkpoint
from megajukebox.training.engines import collectives
from megajukebox.training.engines.zero import ZeroEngine
from megajukebox.training.run_context import RunContext
from megajukebox.training.spike_detection import data_step, plan_rewind, plan_rewind_lower_lr
from megajukebox.training.tasks import Task


def handle_skipped_step(
    run: RunContext, task: Task, engine: ZeroEngine, step: int, metrics: dict[str, float]
) -> None:
    """Take note of step `step` (0-based), and of why it was skipped, if it was.

    Raises:
        TrainingDiverged: more than `max_skipped_steps` within `skip_window`, and no rewind is left.
        TerminateRun: the run was rewound to an older checkpoint; restart it.
    """
    detector = engine.stability
    if engine.overflowed:  # DeepSpeed lowers its loss scale
        detector.note_not_taken(step)
        return
    detector.update(step, metrics["loss"], metrics["grad_norm"], engine.reason)
    if engine.reason is None:
        return
    log_skipped_step(run, task, engine, step)
    if not detector.has_diverged:
        return
    settings = run.settings.spikes
    first_skipped = detector.skipped_steps[0]
    reason = (
        f"{len(detector.skipped_steps)} of the last {settings.skip_window} steps were skipped,"
        f" the last one: {engine.reason}"
    )
    plan = plan_rewind(
        saved_steps(run), first_skipped, settings.rewind_steps, settings.rewind_skip_steps
    )
    past_spikes = [rewind for rewind in run.rewinds if rewind.rate == 1]
    if plan and len(past_spikes) < settings.max_rewinds:
        rewind_run(run, plan, first_skipped, reason)
        raise TerminateRun("rewind", f"{reason}; rewound, start again")
    give_up(run, step, reason)


def handle_min_loss_scale(run: RunContext, engine: ZeroEngine, step: int, reason: str) -> NoReturn:
    """At step `step` (0-based) fp16 overflowed at the minimum loss scale: such weights make no more progress.

    Raises:
        TerminateRun: the run was rewound, to continue at a smaller learning rate; restart it.
        TrainingDiverged: that has been tried as often as `min_scale_rewinds`.
    """
    settings = run.settings.spikes
    first_overflow = engine.stability.first_overflow_step
    if first_overflow is None:
        first_overflow = step
    plan = plan_rewind_lower_lr(
        saved_steps(run), first_overflow, settings.rewind_steps, settings.min_scale_lr_factor
    )
    to_lower_rates = [rewind for rewind in run.rewinds if rewind.rate < 1]
    if plan and len(to_lower_rates) < settings.min_scale_rewinds:
        reason = f"{reason}; went back to step {plan.step}, from there {plan.rate:g} times the learning rate"
        rewind_run(run, plan, first_overflow, reason)
        run.log.event(AlertRaised(kind=MIN_LOSS_SCALE, step=step + 1, reason=reason))
        raise TerminateRun("rewind", f"{reason}; start again")
    way_out = "train in float32" if engine.loss_scaler else "set fp16.min_loss_scale"
    give_up(run, step, f"{reason}; lower the learning rate, or {way_out}")


def give_up(run: RunContext, step: int, reason: str) -> NoReturn:
    """Log that the run diverged at step `step` (0-based), and end it for an operator.

    Raises:
        TrainingDiverged: always.
    """
    run.log.event(Diverged(step=step + 1, reason=reason))
    raise collectives.TrainingDiverged(
        f"{reason}, at step {step + 1} of {run.folder}; its last checkpoint is as it was"
    )


def log_skipped_step(run: RunContext, task: Task, engine: ZeroEngine, step: int) -> None:
    """Log which clips the skipped step had (a range of the global order), and which ranks got no finite loss."""
    losses = collectives.all_gather(engine.own_loss())
    ranks = []
    for rank, loss in enumerate(losses):
        if loss is not None and not math.isfinite(loss):
            ranks.append(rank)
    assert engine.reason is not None
    clips = task.reading.global_batch
    first_clip = data_step(step, run.rewinds) * clips
    run.log.event(
        StepSkipped(
            step=step + 1,
            kind=engine.reason.kind,
            reason=engine.reason.text,
            count=engine.stability.skip_count,
            sample_range=[first_clip, first_clip + clips],
            ranks=ranks,
            losses=list(map(str, losses)),
        )
    )


def saved_steps(run: RunContext) -> list[int]:
    """The steps of all checkpoints, as rank 0 sees them."""
    steps = list(checkpoint_folders(run.folder)) if run.rank == 0 else None
    return collectives.broadcast_from_rank_0(steps)


def checkpoint_folders(run: Path) -> dict[int, Path]:
    """The checkpoints of a run by step, newest first."""
    return {checkpoint.step_of(folder): folder for folder in checkpoint.candidates(run)}


def rewind_run(run: RunContext, plan: Rewind, first_skipped: int, reason: str) -> None:
    """Set checkpoints later than the rewind aside and record it; the next start reads both."""
    collectives.barrier()
    if run.rank == 0:
        run.fencing_token.check()
        write_rewinds(run.folder, [*run.rewinds, plan])
        folders = checkpoint_folders(run.folder)
        for step, folder in folders.items():
            if step > plan.step:
                aside = folder.with_suffix(".rewound")
                shutil.rmtree(aside, ignore_errors=True)
                os.replace(folder, aside)
        write_atomic(run.folder / "checkpoints" / "latest", folders[plan.step].name.encode())
    run.log.event(
        Rewound(
            step=first_skipped + 1,
            to_step=plan.step,
            skip_steps=plan.steps,
            lr_factor=plan.rate if plan.rate < 1 else None,
            reason=reason,
        )
    )
    collectives.barrier()
