"""Our run folders in OpenAI's and in Hugging Face's layout, without loss: the tables of the import read backwards."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megajukebox.common.errors import UserError
from megajukebox.common.files import atomic_open, make_folder, write_atomic
from megajukebox.common.levels import (
    ALIGNMENT_FILE,
    LEVELS,
    RUN_FOLDERS,
    STUDENT_FOLDERS,
    STUDENT_TABLE,
)
from megajukebox.common.model_files import (
    FACTS,
    WEIGHTS,
    PendingTensor,
    StoredTensors,
    load_weights,
    read_facts,
    write_safetensors,
)
from megajukebox.common.untrusted_files import parse_json, read_inside
from megajukebox.conditioning.jukebox_labels import Version
from megajukebox.conditioning.vocabulary import Vocabulary, read_vocabularies
from megajukebox.interop.export_record import KEPT_FACTS, ExportedPart, write_export_record
from megajukebox.interop.hugging_face import to_hugging_face
from megajukebox.interop.label_names import (
    NamedPriors,
    label_version,
    unlisted,
    write_openai_lists,
    write_tokenizer_files,
)
from megajukebox.interop.layout_limits import ModelToExport, refuse_inexpressible
from megajukebox.interop.reference_config import reference_hps
from megajukebox.interop.tensor_names import TensorMapping, prior_table, vqvae_table
from megajukebox.interop.transformers_config import CONFIG, jukebox_json, prior_json, vqvae_json
from megajukebox.models.prior import PriorConfig
from megajukebox.models.vqvae import VQVAEConfig


@dataclass(frozen=True)
class ExportedRun:
    """One exported model: its facts, its tensors on disk, and how the reference calls them."""

    folder: Path
    facts: dict[str, Any]
    stored: StoredTensors
    config: VQVAEConfig | PriorConfig
    level: int | None  # OpenAI's number, from the bottom
    from_top: int = 0  # Hugging Face's

    @property
    def to_check(self) -> ModelToExport:
        return ModelToExport(self.folder, self.config, self.facts)

    @property
    def alignment(self) -> dict[str, Any] | None:
        """What alignment.json says, if the prior has it."""
        try:
            return parse_json(read_inside(self.folder, ALIGNMENT_FILE))
        except FileNotFoundError:
            return None

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
            level = levels.index(prior.level)
            runs.append(ExportedRun(folder, facts, stored, prior, level, len(levels) - 1 - level))
        else:
            raise UserError(
                f"{folder} holds a {facts['kind']}; the layout has only VQ-VAEs and priors"
            )
    return runs


def export_openai(path: Path, to: Path) -> list[Path]:
    """Write the models at `path` as `vqvae.pth.tar` and `prior_level_<n>.pth.tar`, one in memory at a time.

    Raises:
        UserError: OpenAI's code would compute something else from these files; nothing is written then.
    """
    runs = open_runs(path)
    refuse_inexpressible([run.to_check for run in runs], "openai")
    make_folder(to)
    files = [_openai(run, to) for run in runs]
    return [*files, *write_openai_lists(to, named_priors(runs)), write_record(runs, to)]


def _openai(run: ExportedRun, to: Path) -> Path:
    """Write one model as OpenAI's file; returns its path."""
    imported = run.facts.get("imported", {})
    hps = reference_hps(run.config, run.level)
    if isinstance(run.config, PriorConfig) and run.config.conditions:
        hps["labels_v3"] = label_version(run.config, run.facts.get("names")) == "v3"
    if imported.get("layout") == "openai" and imported.get("hps"):
        table_sizes = {"y_bins": hps["y_bins"]} if "grown_from" in run.facts else {}
        hps = {**imported["hps"], **table_sizes}
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
    """Write the models at `path` as a folder for transformers' from_pretrained; one tensor is in memory at a time.

    A run alone becomes a JukeboxVQVAE or a JukeboxPrior, several a JukeboxModel.

    Raises:
        UserError: transformers would compute something else from this folder; nothing is written then.
    """
    runs = open_runs(path)
    refuse_inexpressible([run.to_check for run in runs], "hugging_face")
    make_folder(to)
    tensors: dict[str, PendingTensor] = {}
    for run in runs:
        for entry in run.table():
            name = to_hugging_face(entry.theirs)
            if len(runs) > 1:
                part = "vqvae" if run.level is None else f"priors.{run.from_top}"
                name = f"{part}.{name}"
            tensors[name] = run.pending(entry)
    with atomic_open(to / WEIGHTS) as out:
        write_safetensors(out, tensors)
    config = json.dumps(_config_json(runs), indent=2, ensure_ascii=False) + "\n"
    write_atomic(to / CONFIG, config.encode())
    lyrics = [run.config.lyrics for run in runs if isinstance(run.config, PriorConfig)]
    tokens = max((each.tokens for each in lyrics if each), default=0)
    names = write_tokenizer_files(to, named_priors(runs), tokens)
    return [to / WEIGHTS, to / CONFIG, *names, write_record(runs, to)]


def _config_json(runs: list[ExportedRun]) -> dict[str, Any]:
    """What config.json says of these runs."""
    vqvae: VQVAEConfig | None = None
    priors: dict[int, dict[str, Any]] = {}
    for run in runs:
        if isinstance(run.config, VQVAEConfig):
            vqvae = run.config
    for run in runs:
        if isinstance(run.config, PriorConfig):
            known = run.alignment or {}
            pair = (known["layer"], known["head"]) if known else None
            priors[run.from_top] = prior_json(run.config, run.from_top, vqvae, pair)
    if vqvae is None:
        return next(iter(priors.values()))
    if not priors:
        return vqvae_json(vqvae)
    return jukebox_json(vqvae, [priors[number] for number in sorted(priors)])


# ---- Beside the weights ---------------------------------------------------------------------------------------------


def named_priors(runs: list[ExportedRun]) -> NamedPriors:
    """The version of the labels and the names of their rows, of every prior with labels."""
    named: list[tuple[Version, dict[str, Vocabulary]]] = []
    for run in runs:
        if isinstance(run.config, PriorConfig) and run.config.conditions:
            version = label_version(run.config, run.facts.get("names"))
            named.append((version, read_vocabularies(run.folder)))
    return named


def write_record(runs: list[ExportedRun], to: Path) -> Path:
    """Write what the layout has no words for; returns the file."""
    parts: dict[str, ExportedPart] = {}
    for run in runs:
        name = "vqvae" if isinstance(run.config, VQVAEConfig) else run.config.level
        vocabularies = read_vocabularies(run.folder)
        parts[name] = ExportedPart(
            config=run.config.model_dump(mode="json"),
            step=run.facts["step"],
            facts={fact: run.facts.get(fact) for fact in KEPT_FACTS},
            vocabularies={name: list(words.names) for name, words in vocabularies.items()},
            alignment=run.alignment,
        )
    return write_export_record(to, parts)


def left_out(path: Path) -> list[str]:
    """A line for each thing at `path` that OpenAI's and Hugging Face's layouts are written without."""
    lines = unlisted(named_priors(open_runs(path)))
    students = [
        name for name in STUDENT_FOLDERS.values() if (path / name / STUDENT_TABLE).is_file()
    ]
    if students:
        lines.append(f"left out: {', '.join(students)}; --layout megajukebox takes students too")
    return lines
