"""After a step: a skipped one is told with what it was of; too many end the run, or take it back behind the spike."""

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
from megajukebox.training.spike_detection import plan_rewind, plan_rewind_lower_lr
from megajukebox.training.tasks import Task


def handle_skipped_step(
    run: RunContext, task: Task, engine: ZeroEngine, step: int, metrics: dict[str, float]
) -> None:
    """Take note of step `step` (0-based) and of why it was skipped, if it was.

    Raises TrainingDiverged when too many were, or Leave after the run was set back to an older checkpoint.
    """
    stability, settings = engine.stability, run.settings.spikes
    if engine.overflowed:  # DeepSpeed's loss scale heeds it
        stability.left_out(step)
        return
    stability.update(step, metrics["loss"], metrics["grad_norm"], engine.reason)
    if engine.reason is None:
        return
    tell(run, task, engine, step)
    if stability.has_diverged:
        last = f"{len(stability.bad)} of the last {stability.rules.skip_window} steps were bad, the last one: {engine.reason}"
        spiked = stability.bad[0]
        jump = plan_rewind(saved(run), spiked, settings.rewind_steps, settings.rewind_skip_steps)
        if jump and sum(before.rate == 1 for before in run.rewinds) < settings.max_rewinds:
            rewind(run, jump, spiked, last)
            raise TerminateRun("rewind", f"{last}; went back, start again")
        run.log.event(Diverged(step=step + 1, reason=last))
        raise collectives.TrainingDiverged(
            f"{last}, at step {step + 1} of {run.folder}; its last checkpoint is as it was"
        )


def handle_min_loss_scale(run: RunContext, engine: ZeroEngine, step: int, reason: str) -> NoReturn:
    """At step `step` (0-based) fp16 overflowed and its loss scale could fall no further: such weights learn no more.

    Raises Leave after the run was set back to train on at a smaller rate, TrainingDiverged where that has been tried.
    """
    settings, stuck = run.settings.spikes, engine.stability.first_overflow_step
    stuck = step if stuck is None else stuck
    jump = plan_rewind_lower_lr(
        saved(run), stuck, settings.rewind_steps, settings.min_scale_lr_factor
    )
    if jump and sum(before.rate < 1 for before in run.rewinds) < settings.min_scale_rewinds:
        told = f"{reason}; went back to step {jump.step}, from there {jump.rate:g} times the learning rate"
        rewind(run, jump, stuck, told)
        run.log.event(AlertRaised(kind=MIN_LOSS_SCALE, step=step + 1, reason=told))
        raise TerminateRun("rewind", f"{told}; start again")
    last = f"{reason}; lower the learning rate, or set fp16.min_loss_scale"
    run.log.event(Diverged(step=step + 1, reason=last))
    raise collectives.TrainingDiverged(
        f"{last}, at step {step + 1} of {run.folder}; its last checkpoint is as it was"
    )


def tell(run: RunContext, task: Task, engine: ZeroEngine, step: int) -> None:
    """Which clips the skipped step was of (positions in the global order), and which ranks saw no number."""
    batch, number = task.reading.global_batch, run.data_step(step)
    own = collectives.all_gather(engine.own_loss())
    ranks = [rank for rank, loss in enumerate(own) if loss is not None and not math.isfinite(loss)]
    assert engine.reason is not None
    event = StepSkipped(
        step=step + 1,
        kind=engine.reason.kind,
        reason=engine.reason.text,
        count=engine.stability.skipped,
        sample_range=[number * batch, (number + 1) * batch],
        ranks=ranks,
        losses=[str(loss) for loss in own],
    )
    run.log.event(event)


def saved(run: RunContext) -> list[int]:
    """The steps of all checkpoints, as rank 0 sees them."""
    return collectives.broadcast_from_rank_0(list(folders(run.folder)) if run.rank == 0 else None)


def folders(run: Path) -> dict[int, Path]:
    return {int(folder.name.split("-")[1]): folder for folder in checkpoint.candidates(run)}


def rewind(run: RunContext, jump: Rewind, began: int, reason: str) -> None:
    """Set checkpoints later than the jump aside and note it; a later start reads both. `began`: the first bad step."""
    collectives.barrier()
    if run.rank == 0:
        run.fencing_token.check()
        write_rewinds(run.folder, [*run.rewinds, jump])
        found = folders(run.folder)
        for number, folder in found.items():
            if number > jump.step:
                aside = folder.with_suffix(".rewound")
                shutil.rmtree(aside, ignore_errors=True)
                os.replace(folder, aside)
        write_atomic(run.folder / "checkpoints" / "latest", found[jump.step].name.encode())
    event = Rewound(
        step=began + 1,
        to_step=jump.step,
        skip_steps=jump.steps,
        lr_factor=jump.rate if jump.rate < 1 else None,
        reason=reason,
    )
    run.log.event(event)
    collectives.barrier()
