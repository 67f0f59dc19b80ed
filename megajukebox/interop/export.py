"""Our run folders in OpenAI's and in Hugging Face's layout, without loss: the tables of the import read backwards."""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megajukebox.common.files import atomic_open, make_folder
from megajukebox.common.levels import LEVELS, RUN_FOLDERS
from megajukebox.common.model_files import (
    FACTS,
    WEIGHTS,
    PendingTensor,
    StoredTensors,
    load_weights,
    write_safetensors,
)
from megajukebox.conditioning.tokenizers import LYRICS_MODEL
from megajukebox.interop.hugging_face import to_hugging_face
from megajukebox.interop.reference_config import reference_hps
from megajukebox.interop.tensor_names import TensorMapping, prior_table, vqvae_table
from megajukebox.models.prior import PriorConfig
from megajukebox.models.vqvae import VQVAEConfig

PLAIN = (WEIGHTS, "vocabularies.json", LYRICS_MODEL, FACTS)
TOP = 2  # Hugging Face counts the priors from the top


@dataclass(frozen=True)
class ExportedRun:
    """One exported model: its facts, its tensors on disk, and how the reference calls them."""

    folder: Path
    facts: dict[str, Any]
    stored: StoredTensors
    config: VQVAEConfig | PriorConfig
    level: int | None  # the reference's number

    @property
    def table(self) -> list[TensorMapping]:
        if isinstance(self.config, VQVAEConfig):
            return vqvae_table(self.config)
        return prior_table(self.config, self.facts.get("imported", {}).get("stack", "blocks"))

    def pending(self, entry: TensorMapping) -> PendingTensor:
        """One of their tensors; what is left out on purpose is the tied second reference to the embedding."""
        ours = entry.ours or "input.tokens.weight"
        slice_ = self.stored[ours]
        changed = slice_.t() if entry.change == "transpose" else slice_
        return PendingTensor(changed.dtype, tuple(changed.shape), lambda: changed)


def open_runs(path: Path) -> list[ExportedRun]:
    """The models in a run folder, or in a folder of them. ValueError if there are none."""
    folders = [path] if (path / FACTS).is_file() else [path / name for name in RUN_FOLDERS.values()]
    folders = [folder for folder in folders if (folder / FACTS).is_file()]
    if not folders:
        raise ValueError(
            f"{path} holds no exported model; give a run folder, or a folder with {', '.join(RUN_FOLDERS.values())}"
        )
    vqvae = next((run for run in map(_open, folders) if isinstance(run.config, VQVAEConfig)), None)
    levels = (
        vqvae.config.levels if vqvae and isinstance(vqvae.config, VQVAEConfig) else LEVELS[::-1]
    )
    return [_open(folder, levels) for folder in folders]


def _open(folder: Path, levels: tuple[str, ...] = LEVELS[::-1]) -> ExportedRun:
    facts, stored = load_weights(folder)
    if facts["kind"] not in ("vqvae", "prior"):
        raise ValueError(
            f"{folder} holds a {facts['kind']}; the reference has only VQ-VAEs and priors"
        )
    if facts["kind"] == "vqvae":
        return ExportedRun(folder, facts, stored, VQVAEConfig(**facts["config"]), None)
    config = PriorConfig(**facts["config"])
    return ExportedRun(folder, facts, stored, config, levels.index(config.level))


def export_openai(path: Path, to: Path) -> list[Path]:
    """`vqvae.pth.tar` and `prior_level_<n>.pth.tar` of the models at `path`. One model is held in memory at a time."""
    make_folder(to)
    return [_openai(run, to) for run in open_runs(path)]


def _openai(run: ExportedRun, to: Path) -> Path:
    hps = run.facts.get("imported", {}).get("hps") or reference_hps(run.config, run.level)
    if "grown_from" in run.facts:
        hps = {**hps, "y_bins": reference_hps(run.config, run.level)["y_bins"]}
    model: dict[str, Tensor] = {}
    for entry in run.table:
        tied = entry.ours is None  # the reference's files name one piece of memory twice
        model[entry.theirs] = (
            model["prior.x_emb.weight"] if tied else run.pending(entry).make().contiguous()
        )
    file = to / ("vqvae.pth.tar" if run.level is None else f"prior_level_{run.level}.pth.tar")
    with atomic_open(file) as out:
        torch.save(
            {"hps": as_tuples(hps), "model": model, "opt": None, "step": run.facts["step"]}, out
        )
    return file


def as_tuples(hps: Mapping[str, Any]) -> dict[str, Any]:
    """JSON knows no tuples; the reference has no lists."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in hps.items()}


def export_hugging_face(path: Path, to: Path) -> list[Path]:
    """One safetensors file with all models at `path`, under Hugging Face's names; one tensor is in memory at a time."""
    make_folder(to)
    tensors = {name: pending for run in open_runs(path) for name, pending in _hugging_face(run)}
    with atomic_open(to / WEIGHTS) as out:
        write_safetensors(out, tensors)
    return [to / WEIGHTS]


def _hugging_face(run: ExportedRun) -> Iterator[tuple[str, PendingTensor]]:
    prefix = "vqvae" if run.level is None else f"priors.{TOP - run.level}"
    table = (
        vqvae_table(run.config) if isinstance(run.config, VQVAEConfig) else prior_table(run.config)
    )
    for entry in table:
        yield f"{prefix}.{to_hugging_face(entry.theirs)}", run.pending(entry)


def export_plain(path: Path, to: Path) -> list[Path]:
    """Copies of model.safetensors and model.json, without checkpoints and logs."""
    copies = []
    for run in open_runs(path):
        folder = to / run.folder.name
        make_folder(folder)
        for source in (run.folder / name for name in PLAIN if (run.folder / name).is_file()):
            with open(source, "rb") as file, atomic_open(folder / source.name) as out:
                shutil.copyfileobj(file, out, 1 << 22)
            copies.append(folder / source.name)
    return copies
