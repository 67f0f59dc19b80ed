"""The adapter that a run leaves: as it was at the best evaluation so far; and when no better one is to be expected."""

import logging
from collections.abc import Mapping
from dataclasses import replace

from megajukebox.common.model_files import PendingTensor
from megajukebox.data.adapters import save_adapter
from megajukebox.models.adapters import is_adapted
from megajukebox.records.jsonl_tail import read_lines
from megajukebox.records.metrics import HELD_OUT, upgrade_row
from megajukebox.records.run_log import METRICS_FILE
from megajukebox.resilience.exit_codes import TerminateRun
from megajukebox.training.checkpointing.saver import write_gathered
from megajukebox.training.engines import collectives
from megajukebox.training.engines.zero import ZeroEngine
from megajukebox.training.run_context import RunContext
from megajukebox.training.tasks import Task

log = logging.getLogger(__name__)

METRIC = "bits_per_code"  # of the held-out songs: by which evaluations are compared


class BestAdapter:
    """Writes adapter.safetensors and adapter.json at each evaluation that is better than all before. A collective."""

    def __init__(
        self,
        run: RunContext,
        task: Task,
        engine: ZeroEngine,
        first_step: int,
    ):
        assert task.adapter is not None
        self.run = run
        self.task = task
        self.adapter = task.adapter
        self.engine = engine
        rows: list[list[float]] = []
        if run.rank == 0 and first_step:
            rows = held_out_bits(run, first_step)
        shared = collectives.broadcast_from_rank_0(rows)
        self.bits = {int(step): bits for step, bits in shared}  # by step; 0 is the base alone

    @property
    def best_step(self) -> int | None:
        """The first of the best steps; None where nothing is held out."""
        return min(self.bits, key=lambda step: (self.bits[step], step)) if self.bits else None

    @property
    def is_final(self) -> bool:
        """Whether the last `patience` evaluations have gained nothing."""
        patience = self.adapter.settings.patience
        if not patience or self.best_step is None:
            return False
        return sum(step > self.best_step for step in self.bits) >= patience

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take in an evaluation, and export the adapter if it is the best, or if nothing is held out.

        Raises:
            TerminateRun: it could not be written.
        """
        if METRIC in metrics:
            self.bits[step] = metrics[METRIC]
        if self.best_step not in (step, None):
            if self.is_final and self.run.rank == 0:
                count = self.adapter.settings.patience
                log.info("no gain in %d evaluations: step %d stays", count, self.best_step)
            return
        tensors = {
            name: tensor for name, tensor in self.engine.weights().items() if is_adapted(name)
        }
        corpus = self.task.corpus()
        window_seconds = self.task.audio_seconds / self.task.reading.global_batch
        record = replace(
            self.adapter.record,
            step=step,
            songs=corpus.get("train_songs", 0),
            held_out_songs=corpus.get("held_out_songs", 0),
            hours=round(corpus.get("train_clips", 0) * window_seconds / 3600, 3),
            bits_before=self.bits.get(0),
            bits_after=self.bits.get(step),
        )

        def write(weights: Mapping[str, PendingTensor]) -> None:
            save_adapter(self.run.folder, record, weights)

        failure = write_gathered(self.run.rank == 0, tensors, write)
        if failure:
            raise TerminateRun("storage", f"adapter of step {step}: {failure}; start again")


def held_out_bits(run: RunContext, last_step: int) -> list[list[float]]:
    """[step, bits per code] of the evaluations up to `last_step`, as the run logged them."""
    rows = []
    for row in map(upgrade_row, read_lines(run.folder / METRICS_FILE)):
        if row.get("split") == HELD_OUT and METRIC in row and row["step"] <= last_step:
            rows.append([row["step"], row[METRIC]])
    return rows
