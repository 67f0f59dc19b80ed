"""Parity of whole songs: greedy sampling through all levels, from nothing and after an audio prompt."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fixtures.tiny_models import sample_level
from parity.priors import greedy, song_of, told
from parity.report import Case
from torch import Tensor

from megajukebox.common.levels import RUN_FOLDERS
from megajukebox.common.model_files import load_into, read_facts
from megajukebox.interop.jukebox_weights import import_weights
from megajukebox.models.prior import Prior, PriorConfig
from megajukebox.models.vqvae import VQVAE, VQVAEConfig
from megajukebox.sampling.levels.level_windows import window_starts

NOTES = (
    "min_top2_gap_over_all_steps",
    "prompt_code_margin_relative",
    "chunk_size",
    "max_batch_size",
)


def check_cascade(case: Case) -> None:
    files = {
        part: checkpoint_in(case.folder / folder) for part, folder in case.fact("uses").items()
    }
    unknown = [part for part in files if part != "vqvae" and not part.startswith("level")]
    if unknown:
        case.fail("uses", f"unknown parts {unknown}")
    with tempfile.TemporaryDirectory() as scratch:
        import_all(files, Path(scratch) / "runs")
        vqvae, priors = load_all(Path(scratch) / "runs")
    check_starts(case, vqvae, priors)
    check_mode(case, vqvae, priors, "ancestral", {})
    if case.has("prompt_x"):
        check_mode(case, vqvae, priors, "primed", check_prompt(case, vqvae))
    for name in NOTES:
        case.fact(name)


def checkpoint_in(folder: Path) -> Path:
    found = [
        path
        for path in sorted(folder.iterdir())
        if path.name not in ("io.npz", "meta.json", "README.md")
    ]
    if len(found) != 1:
        raise ValueError(f"{folder} holds {len(found)} checkpoints instead of one")
    return found[0]


def import_all(files: dict[str, Path], to: Path) -> None:
    """The VQ-VAE first: it tells the priors how many samples a code stands for."""
    import_weights([files["vqvae"]], to, reference_settings(files["vqvae"]))
    for part, file in files.items():
        if part != "vqvae":
            import_weights(
                [file], to, {**reference_settings(file), "level": int(part.removeprefix("level"))}
            )


def reference_settings(file: Path) -> dict[str, Any]:
    """What the case of a checkpoint tells of its model."""
    path = file.parent / "meta.json"
    told = json.loads(path.read_text()).get("hps", {}) if path.is_file() else {}
    return {name: value for name, value in told.items() if name != "base_hparams"}


def load_all(runs: Path) -> tuple[VQVAE, dict[str, Prior]]:
    vqvae = VQVAE(VQVAEConfig(**read_facts(runs / RUN_FOLDERS["vqvae"])["config"]))
    load_into(vqvae, runs / RUN_FOLDERS["vqvae"])
    priors = {}
    for level in vqvae.config.levels:
        priors[level] = Prior(PriorConfig(**read_facts(runs / RUN_FOLDERS[level])["config"])).eval()
        load_into(priors[level], runs / RUN_FOLDERS[level])
    return vqvae.eval(), priors


def check_starts(case: Case, vqvae: VQVAE, priors: dict[str, Prior]) -> None:
    fractions, length = case.fact("hop_fraction"), case.fact("sample_length")
    for i, level in enumerate(vqvae.config.levels):
        total, window = length // vqvae.config.hops[level], priors[level].config.window
        ours = window_starts(total, window, int(fractions[i] * window))
        theirs = case.fact("starts", {}).get(str(i))
        if theirs is not None:
            case.same(f"starts.{i}", ours, theirs)


@torch.no_grad()
def check_prompt(case: Case, vqvae: VQVAE) -> dict[str, Tensor]:
    """The prompt's codes at every level, checked and given back."""
    audio, codes = case.tensor("prompt_x"), {}
    for i, level in enumerate(vqvae.config.levels):
        codes[level] = vqvae.encode(audio, level)
        case.same(f"prompt_z{i}", codes[level])
    return codes


@torch.no_grad()
def check_mode(
    case: Case, vqvae: VQVAE, priors: dict[str, Prior], mode: str, prompt: dict[str, Tensor]
) -> None:
    """One cascade from the top down; each level reads our own codes of the level above, so that errors would add up."""
    upper: Tensor | None = None
    for i, level in reversed(list(enumerate(vqvae.config.levels))):
        upper = sample(case, priors[level], i, upper, prompt.get(level))
        if case.has(f"{mode}_z{i}"):
            case.same(f"{mode}_z{i}", upper)
        if case.has(f"{mode}_x{i}"):
            case.close(f"{mode}_x{i}", vqvae.decode(upper, level))


def sample(case: Case, prior: Prior, i: int, upper: Tensor | None, known: Tensor | None) -> Tensor:
    config, labels = prior.config, case.fact("labels")[i]
    y = torch.tensor(labels["y"])
    if y[:, 1].any() or (y[:, 0] != case.fact("total_length")).any():
        raise ValueError(
            f"labels of level {i} start at another place or have another length than the song"
        )
    total = case.fact("sample_length") // config.hop
    draw = greedy(len(y), case.fact("temp", 0.99), case.fact("top_k", 1))
    fraction = case.fact("hop_fraction")[i]
    return sample_level(
        prior, songs(labels, config), upper, total, int(y[0, 0]), draw, fraction, known
    )


def songs(labels: dict[str, Any], config: PriorConfig) -> list:
    conditions: dict[str, Tensor] = (
        told(torch.tensor(labels["y"]), config)["conditions"] if config.conditions else {}
    )
    arrays: dict[str, np.ndarray] = {name: values.numpy() for name, values in conditions.items()}
    return [
        song_of(config, ids, {name: values[n] for name, values in arrays.items()})
        for n, ids in enumerate(labels["full_tokens"])
    ]
