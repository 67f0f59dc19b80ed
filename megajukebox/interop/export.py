"""Our run folders in OpenAI's and in Hugging Face's layout, without loss: the tables of the import read backwards."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megajukebox.common.errors import UserError
from megajukebox.common.files import atomic_open, make_folder
from megajukebox.common.levels import LEVELS, RUN_FOLDERS
from megajukebox.common.model_files import (
    FACTS,
    WEIGHTS,
    PendingTensor,
    StoredTensors,
    load_weights,
    read_facts,
    write_safetensors,
)
from megajukebox.common.untrusted_files import open_inside
from megajukebox.conditioning.tokenizers import LYRICS_MODEL
from megajukebox.interop.hugging_face import to_hugging_face
from megajukebox.interop.reference_config import reference_hps
from megajukebox.interop.tensor_names import TensorMapping, prior_table, vqvae_table
from megajukebox.models.prior import PriorConfig
from megajukebox.models.vqvae import VQVAEConfig

PLAIN = (WEIGHTS, "vocabularies.json", LYRICS_MODEL, FACTS)
COPY_BLOCK_BYTES = 4 << 20
TOP = 2  # Hugging Face counts the priors from the top


@dataclass(frozen=True)
class ExportedRun:
    """One exported model: its facts, its tensors on disk, and how the reference calls them."""

    folder: Path
    facts: dict[str, Any]
    stored: StoredTensors
    config: VQVAEConfig | PriorConfig
    level: int | None  # the reference's number

    def table(self, stack: str = "blocks") -> list[TensorMapping]:
        """Its tensors; `stack`: what an OpenAI file calls a conditioner's residual stacks, `blocks` or `model`."""
        if isinstance(self.config, VQVAEConfig):
            return vqvae_table(self.config)
        return prior_table(self.config, stack)

    def pending(self, entry: TensorMapping) -> PendingTensor:
        """One of their tensors. A mapping without a name of ours is the second reference to a tied embedding."""
        ours = entry.ours or "input.tokens.weight"
        tensor = self.stored[ours]
        if entry.change == "transpose":
            tensor = tensor.t()
        return PendingTensor(tensor.dtype, tuple(tensor.shape), lambda: tensor)


def open_runs(path: Path) -> list[ExportedRun]:
    """The models in a run folder, or in a folder of them.

    Raises:
        UserError: there are none, or one is neither a VQ-VAE nor a prior.
    """
    folders: list[Path] = []
    for folder in (path, *map(path.joinpath, RUN_FOLDERS.values())):
        if (folder / FACTS).is_file():
            folders.append(folder)
    if not folders:
        raise UserError(
            f"{path} holds no exported model; give a run folder, or a folder with"
            f" {', '.join(RUN_FOLDERS.values())}"
        )
    if folders[0] == path:
        folders = [path]
    levels: tuple[str, ...] = LEVELS[::-1]  # finest first, as in the reference
    for folder in folders:
        facts = read_facts(folder)
        if facts["kind"] == "vqvae":
            levels = VQVAEConfig(**facts["config"]).levels
    runs: list[ExportedRun] = []
    for folder in folders:
        facts, stored = load_weights(folder)
        if facts["kind"] == "vqvae":
            vqvae = VQVAEConfig(**facts["config"])
            runs.append(ExportedRun(folder, facts, stored, vqvae, None))
        elif facts["kind"] == "prior":
            prior = PriorConfig(**facts["config"])
            runs.append(ExportedRun(folder, facts, stored, prior, levels.index(prior.level)))
        else:
            raise UserError(
                f"{folder} holds a {facts['kind']}; the reference has only VQ-VAEs and priors"
            )
    return runs


def export_openai(path: Path, to: Path) -> list[Path]:
    """`vqvae.pth.tar` and `prior_level_<n>.pth.tar` of the models at `path`. One model is held in memory at a time."""
    make_folder(to)
    return [_openai(run, to) for run in open_runs(path)]


def _openai(run: ExportedRun, to: Path) -> Path:
    """Write one model as OpenAI's file; returns its path."""
    imported = run.facts.get("imported", {})
    hps = imported.get("hps") or reference_hps(run.config, run.level)
    if "grown_from" in run.facts:
        hps = {**hps, "y_bins": reference_hps(run.config, run.level)["y_bins"]}
    # JSON has no tuples, the reference has no lists.
    hps = {name: tuple(value) if isinstance(value, list) else value for name, value in hps.items()}
    model: dict[str, Tensor] = {}
    for entry in run.table(imported.get("stack", "blocks")):
        if entry.ours is None:  # tied: the reference's files name one piece of memory twice
            model[entry.theirs] = model["prior.x_emb.weight"]
        else:
            model[entry.theirs] = run.pending(entry).make().contiguous()
    content = {"hps": hps, "model": model, "opt": None, "step": run.facts["step"]}
    file = to / ("vqvae.pth.tar" if run.level is None else f"prior_level_{run.level}.pth.tar")
    with atomic_open(file) as out:
        torch.save(content, out)
    return file


def export_hugging_face(path: Path, to: Path) -> list[Path]:
    """One safetensors file with all models at `path`, under Hugging Face's names; one tensor is in memory at a time."""
    make_folder(to)
    tensors: dict[str, PendingTensor] = {}
    for run in open_runs(path):
        prefix = "vqvae" if run.level is None else f"priors.{TOP - run.level}"
        for entry in run.table():
            tensors[f"{prefix}.{to_hugging_face(entry.theirs)}"] = run.pending(entry)
    with atomic_open(to / WEIGHTS) as out:
        write_safetensors(out, tensors)
    return [to / WEIGHTS]


def export_plain(path: Path, to: Path) -> list[Path]:
    """Copies of model.safetensors and model.json, without checkpoints and logs."""
    copies = []
    for run in open_runs(path):
        folder = to / run.folder.name
        make_folder(folder)
        for name in PLAIN:
            source = run.folder / name
            if source.is_file():
                with open_inside(run.folder, name) as file, atomic_open(folder / name) as out:
                    shutil.copyfileobj(file, out, COPY_BLOCK_BYTES)
                copies.append(folder / name)
    return copies
