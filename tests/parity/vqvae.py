"""Parity of the VQ-VAE: encoders, codes, audio, losses, a training step with its gradients, the codebooks' update."""

from typing import Any

import torch
from parity.report import GRADIENT, Case
from torch import Tensor

from megajukebox.common.model_files import fill
from megajukebox.interop.import_plan import Part
from megajukebox.models.losses import Bandwidth, distance, reconstruction, spectral_convergence
from megajukebox.models.vqvae import VQVAE, VQVAEConfig

WAVE_TERMS = ("l1", "l2", "linf")


def check_vqvae(case: Case, part: Part, stored: Any) -> None:
    config = part.config
    assert isinstance(config, VQVAEConfig)
    bandwidth = case.fact("bandwidth", {"l1": 1.0, "l2": 1.0, "spec": 1.0})
    scale = Bandwidth(l1=bandwidth["l1"], l2=bandwidth["l2"], spectral=bandwidth["spec"])
    model = VQVAE(config.model_copy(update={"bandwidth": scale}))
    fill(model, stored)
    case.same("step", part.checkpoint.step, case.fact("step", part.checkpoint.step))
    check_codes(case, model.eval())
    check_losses(case, model)
    check_training(case, model, part)
    check_single_losses(case, model)
    for name in ("hps", "code_margin_relative", "key_prefix", "half_precision_w"):
        case.fact(name)


@torch.no_grad()
def check_codes(case: Case, model: VQVAE) -> None:
    x = case.tensor("x")
    for i, (level, part) in enumerate(model.levels.items()):
        if case.has(f"enc{i}"):
            case.close(f"enc{i}", part.encoder(x.transpose(1, 2)))
        if case.has(f"z{i}"):
            case.same(f"z{i}", model.encode(x, level))
        if case.has(f"dec{i}"):
            case.close(f"dec{i}", model.decode(case.tensor(f"z{i}"), level))


@torch.no_grad()
def check_losses(case: Case, model: VQVAE) -> None:
    if case.has("eval_loss"):
        loss, ours = model.eval()({"audio": case.tensor("x")})
        case.close("eval_loss", loss, case.fact("eval_loss"))
        check_metrics(case, model, "eval_metrics", ours)


def check_metrics(case: Case, model: VQVAE, name: str, ours: dict[str, Tensor]) -> None:
    """The reference's metrics from ours; those it takes from the bottom level's sound are made anew from the codes."""
    theirs = case.fact(name, {})
    mine = {**sound_metrics(case, model), **codebook_metrics(model, ours)}
    for metric, value in theirs.items():
        if metric in mine:
            case.close(f"{name}.{metric}", mine[metric], value)
        else:
            case.fail(f"{name}.{metric}", "unknown metric")


@torch.no_grad()
def sound_metrics(case: Case, model: VQVAE) -> dict[str, Tensor]:
    loss, bandwidth, metrics = model.config.loss, model.config.bandwidth, {}
    x = case.tensor("x")
    waves = {
        level: model.decode(case.tensor(f"z{i}"), level)[..., 0]
        for i, level in enumerate(model.levels)
    }
    only_wave = loss.model_copy(update={"spectral": 0.0, "multispectral": 0.0})
    for i, y in enumerate(waves.values(), start=1):
        metrics[f"recons_loss_l{i}"] = reconstruction(only_wave, x[..., 0], y, bandwidth)
        for term in ("spectral", "multispectral"):
            metrics[f"{term}_loss_l{i}"] = distance(loss, term, x[..., 0], y, bandwidth)
    for term in ("recons", "spectral", "multispectral"):
        metrics[f"{term}_loss"] = sum(
            metrics[f"{term}_loss_l{i}"] for i in range(1, len(waves) + 1)
        )
    bottom = next(iter(waves.values()))
    metrics |= {
        f"{term}_loss": distance(loss, term, x[..., 0], bottom, bandwidth) for term in WAVE_TERMS
    }
    return metrics | {"spectral_convergence": spectral_convergence(loss.stft, x[..., 0], bottom)}


def codebook_metrics(model: VQVAE, ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Means over levels, and the sum of the commitment losses, under the reference's names."""
    names = {
        "fit": "fit",
        "pn": "prenorm",
        "entropy": "entropy",
        "used_curr": "used",
        "usage": "usage",
        "dk": "moved",
    }

    def of_levels(name: str) -> Tensor:
        return torch.stack([ours[f"{level}/{name}"] for level in model.levels])

    known = {
        theirs: mine
        for theirs, mine in names.items()
        if f"{next(iter(model.levels))}/{mine}" in ours
    }
    return {theirs: of_levels(mine).mean() for theirs, mine in known.items()} | {
        "commit_loss": of_levels("commit").sum()
    }


def check_training(case: Case, model: VQVAE, part: Part) -> None:
    """One training step as the reference takes it after restoring: counts from the clip length, given candidates."""
    if not case.has("train_loss"):
        return
    batch = {"audio": case.tensor("x")}
    restore = case.fact("train_restore_num_tokens")
    before = {level: codebook_state(model, level) for level in model.levels}
    for i, (level, inner) in enumerate(model.levels.items()):
        if restore is not None:
            inner.codebook.restore_counts(restore[i])
        if case.has(f"train_k_rand{i}"):
            batch[f"candidates_{level}"] = case.tensor(f"train_k_rand{i}")
    loss, ours = model.train()(batch)
    loss.backward()
    after = {level: codebook_state(model, level) for level in model.levels}
    restore_codebooks(model, before)
    case.close("train_loss", loss, case.fact("train_loss"))
    check_metrics(case, model, "train_metrics", ours)
    for i, level in enumerate(model.levels):
        for theirs, mine in (("k", "vectors"), ("ksum", "sums"), ("kelem", "counts")):
            if case.has(f"train_{theirs}_after{i}"):
                case.close(f"train_{theirs}_after{i}", after[level][mine])
    check_gradients(case, model, part)


def codebook_state(model: VQVAE, level: str) -> dict[str, Tensor]:
    return {
        name: value.clone() for name, value in model.levels[level].codebook.state_dict().items()
    }


def restore_codebooks(model: VQVAE, states: dict[str, dict[str, Tensor]]) -> None:
    for level, state in states.items():
        model.levels[level].codebook.load_state_dict(state)


def check_gradients(case: Case, model: Any, part: Part) -> None:
    """Norms of all gradients, whole gradients where given (`grad::<their name>`)."""
    parameters = dict(model.named_parameters())
    entries = {e.theirs: e for e in part.table if e.ours in parameters}
    gradients = {n: parameters[e.ours].grad for n, e in entries.items() if e.ours is not None}
    without = case.fact("params_without_grad", [])
    if case.has("grad_norms"):
        stack = f".0.{part.checkpoint.stack}."
        norms = {
            n.replace(".0.blocks.", stack): 0.0 if g is None else float(g.norm())
            for n, g in gradients.items()
            if n not in without
        }
        case.norms("grad_norms", norms)
    for name in case.names("grad::"):
        theirs = name.removeprefix("grad::").removeprefix("module.")
        ours, entry = gradients.get(theirs), entries.get(theirs)
        if ours is None or entry is None:
            case.fail(name, "no such gradient")
        else:
            case.close(name, ours.t() if entry.change == "transpose" else ours, tolerance=GRADIENT)


def check_single_losses(case: Case, model: VQVAE) -> None:
    """Each kind of loss between x and the reference's own reconstruction at the bottom level."""
    theirs = case.fact("single_losses_x_vs_dec0", {})
    if not theirs:
        return
    loss, bandwidth = model.config.loss, model.config.bandwidth
    x, y = case.tensor("x")[..., 0], case.tensor("dec0")[..., 0]
    pairs = [(a[None], b[None]) for a, b in zip(x, y)]
    ours: dict[str, Any] = {term: distance(loss, term, x, y, bandwidth) for term in WAVE_TERMS}
    mixed = loss.model_copy(update={"spectral": 0.0, "multispectral": 0.0})
    ours["lmix"] = reconstruction(mixed, x, y, bandwidth)
    for term in ("spectral", "multispectral"):
        ours[f"{term}_raw_per_item"] = torch.stack(
            [distance(loss, term, a, b, Bandwidth()) for a, b in pairs]
        )
    convergence = [spectral_convergence(loss.stft, a, b) for a, b in pairs]
    ours["spectral_convergence_per_item"] = torch.stack(convergence)
    for name, value in theirs.items():
        if name in ours:
            case.close(f"single_losses.{name}", ours[name], value)
        else:
            case.fail(f"single_losses.{name}", "unknown loss")
