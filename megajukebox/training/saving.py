"""Saving and going on: every rank writes its part, all agree whether it is good, and only then is it a checkpoint.

A full disk costs this save, not the run: all ranks give it up together, say so, and train on.
"""

import os
import shutil
import time
from functools import partial
from pathlib import Path

from torch import Tensor

from megajukebox.data.weights import Pending, save_weights
from megajukebox.training import checkpoint
from megajukebox.training.engines import parallel
from megajukebox.training.engines.engine import Engine
from megajukebox.training.run import Run
from megajukebox.training.tasks import Task


def resume(run: Run, task: Task, engine: Engine) -> int:
    """Load the newest whole checkpoint, if the run has one; returns the first step to train (0-based).

    Raises ValueError where there are checkpoints and none is whole.
    """
    with run.pulse.section("load"):
        folder = newest(run)
        if folder is None:
            run.log.event("start", 0, ranks=run.ranks, generation=run.generation.number, **slurm_facts())
            return 0
        state = checkpoint.read_state(folder)
        task.check_state(state["stream"])
        engine.load(folder, run.pulse.progressed)
        engine.stability.restore(state.get("stability", {}))
        run.log.forget_after(state["step"])
        facts = {"ranks": run.ranks, "generation": run.generation.number, **slurm_facts()}
        run.log.event("resume", state["step"], checkpoint=folder.name, **facts)
    return state["step"]


def newest(run: Run) -> Path | None:
    """The newest whole checkpoint; the ranks share the reading of its files, and must all find them whole."""
    rejected: list[str] = []
    for folder in parallel.from_rank_0(checkpoint.candidates(run.folder)):
        found = parallel.gathered(checkpoint.flaws(folder, (run.rank, run.ranks)))
        wrong = next((flaw for flaw in found if flaw), None)
        if wrong is None:
            return folder
        rejected.append(f"{folder.name}: {wrong}")
        run.log.event("reject", reason=rejected[-1])
    try:
        checkpoint.refuse_zero(run.folder, rejected)
    except ValueError as error:
        run.end.kind = "no_checkpoint"
        run.log.event("alert", reason=str(error))
        raise
    return None


def slurm_facts() -> dict[str, str]:
    """The job and nodes of this start, where SLURM tells."""
    names = {"job": "SLURM_JOB_ID", "nodes": "SLURM_JOB_NODELIST", "restarts": "SLURM_RESTART_COUNT"}
    return {name: os.environ[variable] for name, variable in names.items() if variable in os.environ}


def save(run: Run, task: Task, engine: Engine, step: int) -> bool:
    """A checkpoint of everything, and the weights on their own for those who only read them. Whether it is there."""
    with run.pulse.section("save"):
        started = time.perf_counter()
        failure = write_checkpoint(run, task, engine, step) or export(run, task, engine, step)
        seconds = round(time.perf_counter() - started, 3)
        if failure:
            run.log.event("save_failed", step, reason=failure, seconds=seconds)
        else:
            run.log.event("save", step, seconds=seconds)
    return failure is None


def write_checkpoint(run: Run, task: Task, engine: Engine, step: int) -> str | None:
    """In two phases: all parts are written and found good, then one rank makes them final. Returns why not, if so."""
    written = checkpoint.partial(run.folder, step, run.generation.number)
    failure = agreed(prepare(run, written) if run.rank == 0 else None)
    if failure:
        return failure
    failure = agreed(engine.save(written))
    stored = {path: facts for part in parallel.gathered(engine.storage.stored) for path, facts in part.items()}
    if not failure:
        state = {"step": step, "stream": task.stream_state(run.data_step(step)), "ranks": run.ranks}
        state["stability"] = engine.stability.state()
        failure = agreed(sealed(run, written, step, state, stored) if run.rank == 0 else None)
    if failure and run.rank == 0:
        shutil.rmtree(written, ignore_errors=True)
    return failure


def agreed(failure: str | None) -> str | None:
    """The first failure that any rank met: all ranks act on the same."""
    return next((found for found in parallel.gathered(failure) if found), None)


def prepare(run: Run, written: Path) -> str | None:
    """An empty folder to write to, if there is room: what the newest checkpoint took, or what state must take."""
    try:
        for stale in written.parent.glob("*.partial"):
            shutil.rmtree(stale, ignore_errors=True)
        (written / "state").mkdir(parents=True)  # DeepSpeed would make it, and on a full disk raise
        before = checkpoint.candidates(run.folder)
        needed = checkpoint.size_of(before[0]) if before else 0
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"cannot prepare {written.name}: {error}"
    free = shutil.disk_usage(written).free
    if free < needed:
        return f"no room for a checkpoint: {free / 1e6:.1f} MB free, {needed / 1e6:.1f} MB needed"
    return None


def sealed(run: Run, written: Path, step: int, state: dict, stored: dict[str, checkpoint.Stored]) -> str | None:
    keep = checkpoint.Keep(run.settings.keep, run.settings.keep_every)
    try:
        checkpoint.seal(written, step, state, keep, stored, run.generation.check)
    except OSError as error:
        return f"cannot finish {written.name}: {error}"
    return None


def export(run: Run, task: Task, engine: Engine, step: int) -> str | None:
    """model.safetensors + model.json: rank 0 writes, the others only help to gather. Returns why it failed, if so."""
    waiting, failure = engine.weights(), None
    if run.rank == 0:
        weights = {name: Pending(w.dtype, w.shape, partial(taken, waiting, name)) for name, w in waiting.items()}
        try:
            save_weights(run.folder, task.kind, task.config, weights, step, **task.facts)
        except OSError as error:
            failure = f"cannot write the weights: {error}"
    for pending in waiting.values():  # to gather takes all ranks, also when the one that writes has given up
        pending.make()
    return agreed(failure)


def taken(waiting: dict[str, Pending], name: str) -> Tensor:
    """Make a tensor that is waiting, once."""
    return waiting.pop(name).make()
