"""After a step: a skipped one is told with what it was of; too many end the run, or take it back behind the spike."""

import json
import math
import os
import shutil
from dataclasses import asdict
from pathlib import Path

from megajukebox.data.files import write_whole
from megajukebox.training import checkpoint
from megajukebox.training.copies import odd_ranks
from megajukebox.training.engines import parallel
from megajukebox.training.engines.engine import Engine
from megajukebox.training.launch import host
from megajukebox.training.run import Run
from megajukebox.training.stability import going_back
from megajukebox.training.survival.exits import Leave
from megajukebox.training.tasks import Task


def heed(run: Run, task: Task, engine: Engine, step: int, metrics: dict[str, float]) -> None:
    """Take note of step `step` (0-based) and of why it was skipped, if it was.

    Raises TrainingDiverged when too many were, or Leave after the run was set back to an older checkpoint.
    """
    if engine.overflowed:  # DeepSpeed's loss scale heeds it
        return
    stability = engine.stability
    stability.note(step, metrics["loss"], metrics["gradient_norm"], engine.reason)
    if engine.reason is None:
        return
    tell(run, task, engine, step)
    if stability.hopeless:
        last = (
            f"{len(stability.bad)} of the last {stability.rules.within} steps were bad, the last one: {engine.reason}"
        )
        spiked = stability.bad[0]
        if len(run.jumps) < run.settings.rewinds and go_back(run, spiked, last):
            raise Leave("rewind", f"{last}; went back, start again")
        run.log.event("diverged", step + 1, reason=last)
        raise parallel.TrainingDiverged(f"{last}, at step {step + 1} of {run.folder}; its last checkpoint is as it was")


def check_copies(run: Run, engine: Engine, step: int) -> None:
    """Raises Leave, naming them, if ranks that must hold the same weights do not (silent corruption)."""
    odd = odd_ranks(parallel.gathered(engine.replicated_hash()), engine.stages)
    if odd:
        hosts = sorted({where for rank, where in enumerate(parallel.gathered(host())) if rank in odd})
        reason = f"weights of ranks {odd} on {', '.join(hosts)} are not those of the other ranks (silent corruption)"
        run.log.event("alert", step, reason=reason, hosts=hosts)
        raise Leave("corrupt", f"{reason}; start again from the last checkpoint, without those machines")


def tell(run: Run, task: Task, engine: Engine, step: int) -> None:
    """Which clips the skipped step was of (positions in the global order), and which ranks saw no number."""
    batch, number = task.reading.global_batch, run.data_step(step)
    own = parallel.gathered(engine.own_loss())
    ranks = [rank for rank, loss in enumerate(own) if loss is not None and not math.isfinite(loss)]
    facts = {"positions": [number * batch, (number + 1) * batch], "ranks": ranks, "losses": [str(loss) for loss in own]}
    run.log.event("skip_step", step + 1, reason=engine.reason, count=engine.stability.skipped, **facts)


def go_back(run: Run, spiked: int, reason: str) -> bool:
    """Set later checkpoints aside and note the jump over the data; a later start reads both. False if there is none."""
    folders = {int(folder.name.split("-")[1]): folder for folder in checkpoint.candidates(run.folder)}
    jump = going_back(list(folders), spiked, run.settings.rewind_steps, run.settings.rewind_jump)
    if jump is None:
        return False
    parallel.barrier()
    if run.rank == 0:
        run.generation.check()
        write_jumps(run.folder, [*run.jumps, jump])
        for number, folder in folders.items():
            if number > jump.step:
                aside = folder.with_suffix(".rewound")
                shutil.rmtree(aside, ignore_errors=True)
                os.replace(folder, aside)
        write_whole(run.folder / "checkpoints" / "latest", folders[jump.step].name.encode())
    run.log.event("rewind", spiked + 1, to=jump.step, jump=jump.steps, reason=reason)
    parallel.barrier()
    return True


def write_jumps(run: Path, jumps: list) -> None:
    write_whole(run / "jumps.json", json.dumps([asdict(jump) for jump in jumps]).encode())
