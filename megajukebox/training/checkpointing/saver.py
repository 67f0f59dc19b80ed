"""Saving: every rank writes its part, all agree whether it is good, and only then is it a checkpoint.

A full disk costs this save, not the run: all ranks give it up together, log it, and train on. They also train on while
the files are being written in the background: the ranks meet before every step anyway, and the step before which all
have written is the one at which the checkpoint is committed.
"""

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from megajukebox.common.model_files import (
    FACTS,
    WEIGHTS,
    PendingTensor,
    read_facts,
    save_weights,
)
from megajukebox.records.events import CheckpointSaved, SaveFailed
from megajukebox.training import checkpoint
from megajukebox.training.engines import collectives
from megajukebox.training.engines.zero import ZeroEngine
from megajukebox.training.run_context import RunContext
from megajukebox.training.spike_detection import data_step
from megajukebox.training.tasks import Task


@dataclass
class PendingSave:
    """A save that is not yet committed."""

    step: int
    folder: Path | None = None  # written to; None if there was nothing to write, or no disk space
    state: dict = field(default_factory=dict)
    failure: str | None = None
    started: float = field(default_factory=time.perf_counter)
    stall_seconds: float = 0.0  # for which training stood still


class CheckpointSaver:
    """Checkpoints of everything, and the weights on their own for those who only read them. Methods are collectives."""

    def __init__(self, run: RunContext, task: Task, engine: ZeroEngine, first_step: int) -> None:
        self.run = run
        self.task = task
        self.engine = engine
        self.saved = first_step  # the step of the newest checkpoint
        facts = run.folder / FACTS
        exported = read_facts(run.folder)["step"] if facts.is_file() else -1
        # The step of the newest exported weights; -1: none.
        self.exported = min(first_step, collectives.broadcast_from_rank_0(exported))
        self.pending: PendingSave | None = None

    @property
    def writing(self) -> bool:
        """Whether this rank's part of a checkpoint is still being written to the disk."""
        return self.pending is not None and self.engine.storage.busy

    def begin(self, step: int, export: bool = False) -> None:
        """Begin to save `step`, the present one, unless that has been done; `end` commits it.

        Weights are exported when it is their turn, or with `export` at once.
        """
        self.end()
        every = self.run.settings.checkpointing.export_every
        is_due = export or self.exported < 0 or step // every > self.exported // every
        # An adapter is exported by training/best_adapter.py, and its frozen base never.
        export = step > self.exported and is_due and self.task.adapter is None
        if step <= self.saved and not export:
            return
        with self.run.watchdog.phase("checkpoint_save"):
            pending = PendingSave(step)
            self.pending = pending
            if step > self.saved:
                self._write(pending, export)
            if export and not pending.failure:
                pending.failure = self._export(step)
            pending.stall_seconds = time.perf_counter() - pending.started

    def end(self) -> bool:
        """Wait until all ranks have written the pending save, and commit it. Returns whether all of it is there."""
        pending = self.pending
        if pending is None:
            return True
        self.pending = None
        waiting_since = time.perf_counter()
        with self.run.watchdog.phase("checkpoint_save"):
            if pending.folder:
                pending.failure = self._commit(pending, pending.folder) or pending.failure
        now = time.perf_counter()
        event = CheckpointSaved(
            step=pending.step,
            seconds=round(now - pending.started, 3),
            stall_seconds=round(pending.stall_seconds + now - waiting_since, 3),
            exported=self.exported,
        )
        if pending.failure:
            self.run.log.event(SaveFailed(**vars(event) | {"reason": pending.failure}))
            return False
        self.run.log.event(event)
        self.saved = pending.step
        return True

    def _write(self, pending: PendingSave, export: bool) -> None:
        """Write every rank's part, or begin to."""
        run = self.run
        folder = checkpoint.partial(run.folder, pending.step, run.fencing_token.number)
        failure = prepare_folder(run, folder, export) if run.rank == 0 else None
        pending.failure = first_failure(failure)
        if pending.failure:
            return
        pending.folder = folder
        pending.state = {
            "step": pending.step,
            "stream": self.task.stream_state(data_step(pending.step, run.rewinds)),
            "ranks": run.ranks,
            **self.engine.step_state(),
        }
        self.engine.save(folder, run.settings.checkpointing.in_background)

    def _commit(self, pending: PendingSave, folder: Path) -> str | None:
        """Once all parts are written and good, rank 0 makes them the newest checkpoint. Returns why not, if so."""
        failure = first_failure(self.engine.storage.finish())
        stored: dict[str, checkpoint.StoredFile] = {}
        own = {path: list(file) for path, file in self.engine.storage.stored.items()}
        for files in collectives.all_gather(own):
            for path, file in files.items():
                stored[path] = checkpoint.StoredFile(*file)
        if not failure:
            if self.run.rank == 0:
                settings = self.run.settings.checkpointing
                stuck = pending.state["stability"]["stuck"]
                keep = checkpoint.RetentionPolicy(settings.keep_last, settings.keep_every, stuck)
                check = self.run.fencing_token.check
                try:
                    checkpoint.commit(folder, pending.step, pending.state, keep, stored, check)
                except OSError as error:
                    failure = f"cannot finish {folder.name}: {error}"
            failure = first_failure(failure)
        if failure and self.run.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
        return failure

    def _export(self, step: int) -> str | None:
        """model.safetensors + model.json: rank 0 writes, the others only help to gather. Returns why not, if so."""
        tensors = self.engine.weights()
        if self.task.unexported:
            kept = [name for name in tensors if not name.startswith(self.task.unexported)]
            tensors = {name: tensors[name] for name in kept}

        def write(weights: Mapping[str, PendingTensor]) -> None:
            task = self.task
            save_weights(self.run.folder, task.kind, task.config, weights, step, **task.facts)

        failure = write_gathered(self.run.rank == 0, tensors, write)
        if not failure:
            self.exported = step
        return failure


def write_gathered(
    writes: bool,
    tensors: dict[str, PendingTensor],
    write: Callable[[Mapping[str, PendingTensor]], None],
) -> str | None:
    """Let one rank write tensors that all ranks help to gather: a collective. Returns why it could not, if so."""
    failure = None
    if writes:
        weights: dict[str, PendingTensor] = {}
        for name, tensor in tensors.items():
            # Made once: the second time, below, it is no longer among them.
            make = partial(lambda name: tensors.pop(name).make(), name)
            weights[name] = PendingTensor(tensor.dtype, tensor.shape, make)
        try:
            write(weights)
        except OSError as error:
            failure = f"cannot write the weights: {error}"
    # Gathering takes all ranks, also when the one that writes has given up.
    for tensor in tensors.values():
        tensor.make()
    return first_failure(failure)


def first_failure(failure: str | None) -> str | None:
    """The first failure of all ranks, so that all act on the same: a collective."""
    failures: list[str | None] = collectives.all_gather(failure)
    return next(filter(None, failures), None)


def prepare_folder(run: RunContext, folder: Path, export: bool) -> str | None:
    """Make the empty folder to write to. Returns why not, such as too little space on the disk.

    The new checkpoint is expected to take what the newest one took; so are the exported weights.

    Raises:
        TerminateRun: another start took the run over; what is written there is no longer ours to remove.
    """
    run.fencing_token.check()
    try:
        for stale in folder.parent.glob("*.partial"):
            shutil.rmtree(stale, ignore_errors=True)
        (folder / "state").mkdir(parents=True)  # DeepSpeed would make it, and on a full disk raise
        before = checkpoint.candidates(run.folder)
        needed = checkpoint.size_of(before[0]) if before else 0
        if export and (run.folder / WEIGHTS).is_file():
            needed += (run.folder / WEIGHTS).stat().st_size
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"cannot prepare {folder.name}: {error}"
    free = shutil.disk_usage(folder).free
    if free < needed:
        return f"no room for a checkpoint: {free / 1e6:.1f} MB free, {needed / 1e6:.1f} MB needed"
    return None
