"""Saving: every rank writes its part, all agree whether it is good, and only then is it a checkpoint.

A full disk costs this save, not the run: all ranks give it up together, say so, and train on. So may they while the
files are being written, in the background: the ranks meet before every step anyway, and the step before which all have
written is the one at which the checkpoint is made final.
"""

import json
import shutil
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from torch import Tensor

from megajukebox.common.model_files import FACTS, WEIGHTS, PendingTensor, save_weights
from megajukebox.records.events import CheckpointSaved, SaveFailed
from megajukebox.training import checkpoint
from megajukebox.training.engines import collectives
from megajukebox.training.engines.zero import ZeroEngine
from megajukebox.training.run_context import RunContext
from megajukebox.training.tasks import Task


@dataclass
class PendingSave:
    """A save that is not yet final."""

    step: int
    written: Path | None = None  # the folder; None if there was nothing to write, or no room
    state: dict = field(default_factory=dict)
    failure: str | None = None
    started: float = field(default_factory=time.perf_counter)
    stall: float = 0.0  # seconds that training stood still for it


class CheckpointSaver:
    """Checkpoints of everything, and the weights on their own for those who only read them. Methods are collectives."""

    def __init__(self, run: RunContext, task: Task, engine: ZeroEngine, first: int) -> None:
        self.run, self.task, self.engine = run, task, engine
        self.saved = first  # the step of the newest checkpoint
        self.exported = min(
            first, collectives.broadcast_from_rank_0(exported(run.folder))
        )  # and of the newest weights; -1: none
        self.begun: PendingSave | None = None

    @property
    def writing(self) -> bool:
        """Whether this rank's part of a checkpoint is still on its way to the disk."""
        return self.begun is not None and self.engine.storage.busy

    def begin(self, step: int, export: bool = False) -> None:
        """Save `step`, the present one, as far as that has not been done; `end` makes it final.

        Weights are exported when it is their turn, or with `export` at once.
        """
        self.end()
        export = step > self.exported and (export or self._export_is_due(step))
        if step <= self.saved and not export:
            return
        with self.run.watchdog.phase("checkpoint_save"):
            begun = self.begun = PendingSave(step)
            if step > self.saved:
                self._write(begun, export)
            if export and not begun.failure:
                begun.failure = self._export(step)
            begun.stall = time.perf_counter() - begun.started

    def end(self) -> bool:
        """Wait until all ranks have written what was begun, and make it a checkpoint. Whether all of it is there."""
        if self.begun is None:
            return True
        begun, self.begun, again = self.begun, None, time.perf_counter()
        with self.run.watchdog.phase("checkpoint_save"):
            failure = (self._seal(begun, begun.written) if begun.written else None) or begun.failure
        now = time.perf_counter()
        event = CheckpointSaved(
            step=begun.step,
            seconds=round(now - begun.started, 3),
            stall_seconds=round(begun.stall + now - again, 3),
            exported=self.exported,
        )
        if failure:
            self.run.log.event(SaveFailed(**vars(event) | {"reason": failure}))
            return False
        self.run.log.event(event)
        self.saved = begun.step
        return True

    def _export_is_due(self, step: int) -> bool:
        every = self.run.settings.checkpointing.export_every
        return self.exported < 0 or step // every > self.exported // every

    def _write(self, begun: PendingSave, export: bool) -> None:
        """Every rank's part, or the beginning of it."""
        run, step = self.run, begun.step
        written = checkpoint.partial(run.folder, step, run.fencing_token.number)
        begun.failure = agreed(prepare(run, written, export) if run.rank == 0 else None)
        if begun.failure:
            return
        begun.written = written
        begun.state = {
            "step": step,
            "stream": self.task.stream_state(run.data_step(step)),
            "ranks": run.ranks,
        }
        begun.state["stability"] = self.engine.stability.state()
        self.engine.save(written, run.settings.checkpointing.in_background)

    def _seal(self, begun: PendingSave, written: Path) -> str | None:
        """All parts were written and found good, then one rank makes them final. Returns why not, if so."""
        failure = agreed(self.engine.storage.finish())
        stored = {
            path: facts
            for part in collectives.all_gather(self.engine.storage.stored)
            for path, facts in part.items()
        }
        if not failure:
            failure = agreed(
                sealed(self.run, written, begun, stored) if self.run.rank == 0 else None
            )
        if failure and self.run.rank == 0:
            shutil.rmtree(written, ignore_errors=True)
        return failure

    def _export(self, step: int) -> str | None:
        """model.safetensors + model.json: rank 0 writes, the others only help to gather. Returns why not, if so."""
        waiting, failure = self.engine.weights(), None
        if self.run.rank == 0:
            weights = {
                name: PendingTensor(w.dtype, w.shape, partial(taken, waiting, name))
                for name, w in waiting.items()
            }
            try:
                save_weights(
                    self.run.folder,
                    self.task.kind,
                    self.task.config,
                    weights,
                    step,
                    **self.task.facts,
                )
            except OSError as error:
                failure = f"cannot write the weights: {error}"
        for pending in (
            waiting.values()
        ):  # to gather takes all ranks, also when the one that writes has given up
            pending.make()
        failure = agreed(failure)
        self.exported = self.exported if failure else step
        return failure


def exported(run: Path) -> int:
    """The step of the weights that a run has exported; -1 if there are none."""
    path = run / FACTS
    return json.loads(path.read_text())["step"] if path.is_file() else -1


def agreed(failure: str | None) -> str | None:
    """The first failure that any rank met: all ranks act on the same."""
    return next((found for found in collectives.all_gather(failure) if found), None)


def prepare(run: RunContext, written: Path, export: bool) -> str | None:
    """An empty folder to write to, if there is room for what the newest checkpoint took (and the exported weights).

    Raises Leave if another start has taken the run: what is being written there is no longer ours to clear away.
    """
    run.fencing_token.check()
    try:
        for stale in written.parent.glob("*.partial"):
            shutil.rmtree(stale, ignore_errors=True)
        (written / "state").mkdir(parents=True)  # DeepSpeed would make it, and on a full disk raise
        before = checkpoint.candidates(run.folder)
        needed = checkpoint.size_of(before[0]) if before else 0
        if export and (run.folder / WEIGHTS).is_file():
            needed += (run.folder / WEIGHTS).stat().st_size
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"cannot prepare {written.name}: {error}"
    free = shutil.disk_usage(written).free
    if free < needed:
        return f"no room for a checkpoint: {free / 1e6:.1f} MB free, {needed / 1e6:.1f} MB needed"
    return None


def sealed(
    run: RunContext, written: Path, begun: PendingSave, stored: dict[str, checkpoint.StoredFile]
) -> str | None:
    keep = checkpoint.RetentionPolicy(
        run.settings.checkpointing.keep_last,
        run.settings.checkpointing.keep_every,
        begun.state["stability"]["stuck"],
    )
    try:
        checkpoint.commit(written, begun.step, begun.state, keep, stored, run.fencing_token.check)
    except OSError as error:
        return f"cannot finish {written.name}: {error}"
    return None


def taken(waiting: dict[str, PendingTensor], name: str) -> Tensor:
    """Make a tensor that is waiting, once."""
    return waiting.pop(name).make()
