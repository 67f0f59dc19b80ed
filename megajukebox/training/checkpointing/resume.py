"""Resuming: load the newest checkpoint that all ranks find valid."""

import os
from pathlib import Path
from typing import Any

from megajukebox.common.errors import UserError
from megajukebox.records.events import (
    NO_CHECKPOINT,
    AlertRaised,
    CheckpointRejected,
    RunResumed,
    RunStarted,
)
from megajukebox.resilience.handover import STARTED
from megajukebox.training import checkpoint
from megajukebox.training.engines import collectives
from megajukebox.training.engines.zero import ZeroEngine
from megajukebox.training.run_context import RunContext
from megajukebox.training.tasks import Task


def resume(run: RunContext, task: Task, engine: ZeroEngine) -> int:
    """Load the newest valid checkpoint, if the run has one. Returns the first step to train (0-based).

    Raises:
        UserError: there are checkpoints, but none is valid or of the present data order.
    """
    with run.watchdog.phase("checkpoint_load"):
        folder = newest_valid(run)
        if folder is None:
            run.log.event(RunStarted(step=0, **start_facts(run)))
            return 0
        state = checkpoint.read_state(folder)
        task.identity().check(state.get("stream", {}))
        engine.load(folder, run.watchdog.keep_alive)
        try:
            engine.restore_step_state(state)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{folder / checkpoint.STATE} holds no state of a run ({error!r});"
                " choose another checkpoint"
            ) from error
        run.log.forget_after(state["step"])
        resumed = RunResumed(step=state["step"], checkpoint=folder.name, **start_facts(run))
        run.log.event(resumed)
    return state["step"]


def newest_valid(run: RunContext) -> Path | None:
    """The newest valid checkpoint, None if the run never saved; each rank verifies its share of the files.

    Raises:
        UserError: there are checkpoints, and none is valid.
    """
    rejected: list[str] = []
    steps = list(map(checkpoint.step_of, checkpoint.candidates(run.folder)))
    for step in collectives.broadcast_from_rank_0(steps):
        folder = checkpoint.folder_of(run.folder, step)
        flaws: list[str | None] = collectives.all_gather(
            checkpoint.verify(folder, (run.rank, run.ranks))
        )
        flaw = next(filter(None, flaws), None)
        if flaw is None:
            return folder
        rejected.append(f"{folder.name}: {flaw}")
        run.log.event(CheckpointRejected(reason=rejected[-1]))
    try:
        checkpoint.refuse_restart_from_scratch(run.folder, rejected)
    except UserError as error:
        run.end.exit_class = "no_checkpoint"
        run.log.event(AlertRaised(kind=NO_CHECKPOINT, reason=str(error)))
        raise
    return None


def start_facts(run: RunContext) -> dict[str, Any]:
    """Fields of AttemptStarted: ranks and generation; job and nodes only under SLURM."""
    return {
        "ranks": run.ranks,
        "generation": run.fencing_token.number,
        "job": os.environ.get("SLURM_JOB_ID"),
        "nodes": os.environ.get("SLURM_STEP_NODELIST"),
        "restarts": os.environ.get("SLURM_RESTART_COUNT"),
        "standby": os.environ.get(STARTED),
    }
