"""What every evaluator is given beside its target: references, budget, embedder, device; and where it leaves notes."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.stream.song_dataset import held_out_share, split
from megajukebox.evaluation.evaluators.embedding import Embedder
from megajukebox.evaluation.inputs import (
    EvalSongs,
    References,
    evenly_spaced,
    labels_of,
    select_rows,
)


@dataclass(frozen=True)
class EvalBudget:
    """How much is evaluated; the defaults suit two CPU cores and a tiny model."""

    songs: int = 64  # held-out songs, at most
    seconds: float = 120.0  # of each song
    corpus: int = 256  # training songs that samples are compared with
    windows: int = 32  # of codes, of each song at each level


@dataclass
class EvalContext:
    """Shared by the evaluators of all targets of one report."""

    references: References
    budget: EvalBudget
    held_out: float | None  # fraction of the songs; None: that of the run
    embedder: Embedder
    device: torch.device
    refiners: list[Path] = field(default_factory=list)  # runs; none: those beside the VQ-VAE
    notes: list[str] = field(default_factory=list)  # what could not be done, and why
    jsb: Path | None = None  # the published chorales, Jsb16thSeparated.json
    refused: dict[str, str] = field(default_factory=dict)  # songs that cannot be read: the reason
    requested: dict[str, dict[str, str]] = field(default_factory=dict)  # labels of samples by key

    def settings(self) -> dict[str, Any]:
        """What changes metrics beside the target and the references."""
        return {**asdict(self.budget), "held_out": self.held_out, "embedder": self.embedder.name}

    def held_out_fraction(self, run: Path) -> float:
        """The fraction of songs that the run kept out of its training."""
        return held_out_share(run) if self.held_out is None else self.held_out

    def songs(self, shards: ShardSet, rows: list[int], channels: int = 1) -> EvalSongs:
        return EvalSongs(shards, rows, self.budget.seconds, self.refused, channels)

    def rows(self, shards: ShardSet, run: Path, held_out: bool) -> list[int]:
        """The songs of a set that `run` kept out of its training, or the others, as many as the budget allows."""
        limit = self.budget.songs if held_out else self.budget.corpus
        return select_rows(shards, held_out, self.held_out_fraction(run), limit)

    def evaluated_rows(self, shards: ShardSet, run: Path) -> list[int]:
        """The songs that a run is evaluated on: held-out ones, or all where none is held out, which is noted."""
        fraction = self.held_out_fraction(run)
        if split(shards.songs["key"], fraction).any():
            return self.rows(shards, run, held_out=True)
        self.notes.append(
            f"{run}: none of {len(shards)} songs is held out; all were evaluated, trained on or not"
        )
        return evenly_spaced(np.arange(len(shards)), self.budget.songs).tolist()

    def labels(self, keys: set[str]) -> dict[str, dict[str, str]]:
        """Labels of the songs that were evaluated; those of samples are what was requested."""
        labels: dict[str, dict[str, str]] = {}
        for shards in self.references.shard_sets:
            missing = np.array(sorted(keys - labels.keys()), dtype=shards.songs["key"].dtype)
            for row in np.flatnonzero(np.isin(shards.songs["key"], missing)).tolist():
                labels[shards.key(row)] = labels_of(shards.read_facts(row))
        return labels | {key: self.requested[key] for key in self.requested if key in keys}
