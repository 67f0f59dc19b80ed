"""Going on where a run stopped: the newest checkpoint that all ranks find whole, loaded."""

import os
from pathlib import Path
from typing import Any

from megajukebox.records.events import (
    NO_CHECKPOINT,
    AlertRaised,
    CheckpointRejected,
    RunResumed,
    RunStarted,
)
from megajukebox.training import checkpoint
from megajukebox.training.engines import collectives
from megajukebox.training.engines.zero import ZeroEngine
from megajukebox.training.run_context import RunContext
from megajukebox.training.tasks import Task


def resume(run: RunContext, task: Task, engine: ZeroEngine) -> int:
    """Load the newest whole checkpoint, if the run has one; returns the first step to train (0-based).

    Raises ValueError where there are checkpoints and none is whole.
    """
    with run.watchdog.phase("checkpoint_load"):
        folder = newest(run)
        if folder is None:
            run.log.event(RunStarted(step=0, **start_facts(run)))
            return 0
        state = checkpoint.read_state(folder)
        task.check_state(state["stream"])
        engine.load(folder, run.watchdog.keep_alive)
        engine.stability.restore(state.get("stability", {}))
        run.log.forget_after(state["step"])
        resumed = RunResumed(step=state["step"], checkpoint=folder.name, **start_facts(run))
        run.log.event(resumed)
    return state["step"]


def newest(run: RunContext) -> Path | None:
    """The newest whole checkpoint; the ranks share the reading of its files, and must all find them whole."""
    rejected: list[str] = []
    for folder in collectives.broadcast_from_rank_0(checkpoint.candidates(run.folder)):
        found = collectives.all_gather(checkpoint.verify(folder, (run.rank, run.ranks)))
        wrong = next((flaw for flaw in found if flaw), None)
        if wrong is None:
            return folder
        rejected.append(f"{folder.name}: {wrong}")
        run.log.event(CheckpointRejected(reason=rejected[-1]))
    try:
        checkpoint.refuse_restart_from_scratch(run.folder, rejected)
    except ValueError as error:
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
    }
