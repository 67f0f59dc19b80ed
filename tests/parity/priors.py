"""Parity of the priors: conditioning, layers, logits, losses, gradients, optimiser steps, greedy windows, alignment."""

import copy
from typing import Any

import numpy as np
import torch
from fixtures.tiny_models import window_task
from parity.report import Case
from parity.vqvae import check_gradients
from torch import Tensor

from megajukebox.common.model_files import fill
from megajukebox.conditioning.lyric_windows import linear_centre_float32, lyric_window
from megajukebox.conditioning.schema import SongConditioning
from megajukebox.conditioning.tokenizers import JukeboxCharacters, TokenizedLyrics
from megajukebox.interop.import_plan import Part
from megajukebox.interop.tensor_names import ORDER_OF_SCHEDULE
from megajukebox.models.lyric_attention import lyric_attention
from megajukebox.models.prior import Prior, PriorConfig
from megajukebox.sampling.decoding.decoder import PackedPrior
from megajukebox.sampling.decoding.token_sampling import TokenSampler
from megajukebox.sampling.decoding.window_sampler import sample_window
from megajukebox.sampling.lyrics.alignment import align
from megajukebox.training.engines.jukebox_adam import JukeboxAdam

FUNCS = {"dense": 0, "row": 1, "column": 2, "previous_row": 3, "lyrics": 6, "prefix": 7}
NOTES = ("hps", "chunk_size", "greedy_min_top2_gap", "greedy_unique", "z_shapes")


def check_prior(case: Case, part: Part, stored: Any) -> None:
    config = part.config
    assert isinstance(config, PriorConfig)
    prior = Prior(config)
    fill(prior, stored)
    check_facts(case, part)
    batch = reference_batch(case, config)
    check_layers(case, prior.eval(), batch)
    check_lyric_window(case, config)
    if case.has("attn_w"):
        layer = case.meta["hps"]["alignment_layer"]
        case.close("attn_w", lyric_attention(prior, batch, [layer])[layer])
    if case.has("align_z"):
        check_alignment(case, prior)
    check_greedy(case, prior, batch)
    check_loss(case, prior, batch, part)
    if case.has("optimiser"):
        check_optimiser(case, copy.deepcopy(prior), batch, part)
    for name in NOTES:
        case.fact(name)


def check_facts(case: Case, part: Part) -> None:
    """What meta.json says of the file and the model, beside numbers."""
    config, checkpoint = part.config, part.checkpoint
    assert isinstance(config, PriorConfig)
    if case.has("step"):
        case.same("step", checkpoint.step, case.fact("step"))
    if case.has("raw_to_tokens"):
        case.same("raw_to_tokens", config.hop, case.fact("raw_to_tokens"))
    if case.has("sample_length"):
        case.same("sample_length", config.window * config.hop, case.fact("sample_length"))
    if case.has("attn_funcs"):
        case.same(
            "attn_funcs", [FUNCS[p] for p in config.transformer.patterns], case.fact("attn_funcs")
        )
    if case.has("half_precision_w"):
        dense = [t.dtype for name, t in checkpoint.tensors.items() if name.endswith(".w")]
        case.same(
            "half_precision_w",
            all(d == torch.float16 for d in dense),
            case.fact("half_precision_w"),
        )
    if case.has("state_dict_keys"):
        stack = f".0.{checkpoint.stack}."
        keys = sorted(name.replace(".0.blocks.", stack) for name in checkpoint.tensors)
        case.same(
            "state_dict_keys",
            keys,
            sorted(n.removeprefix("module.") for n in case.fact("state_dict_keys")),
        )
    case.fact("key_prefix")
    assert config.transformer.schedule in ORDER_OF_SCHEDULE


def reference_batch(case: Case, config: PriorConfig) -> dict:
    """The reference's `z`, `z_cond0` and `y` (total, offset, length, artist, genres, lyrics) as a batch of ours."""
    batch: dict[str, Any] = {"codes": case.tensor("z")}
    if case.has("z_cond0"):
        batch["upper_codes"] = case.tensor("z_cond0")
    if case.has("y"):
        batch |= told(case.tensor("y"), config)
    return batch


def told(y: Tensor, config: PriorConfig) -> dict:
    slots = config.conditions["genres"].max_values if "genres" in config.conditions else 0
    batch: dict[str, Any] = {
        "timing": y[:, :3],
        "conditions": {"artist": y[:, 3:4], "genres": y[:, 4 : 4 + slots]},
    }
    if config.lyrics:
        batch["lyrics"] = y[:, 4 + slots :]
        assert batch["lyrics"].shape[1] == config.lyrics.tokens
    return batch


@torch.no_grad()
def check_layers(case: Case, prior: Prior, batch: dict) -> None:
    given, tokens = prior.conditioning(batch), prior.tokens(batch)
    prefix = prior.config.prefix_tokens
    if case.has("x_cond"):
        added = (
            given.added[:, prefix:]
            if given.added is not None
            else torch.zeros_like(case.tensor("x_cond"))
        )
        case.close("x_cond", added)
    if case.has("y_cond"):
        case.close("y_cond", given.start)
    if case.has("y_pos") and prior.timing is not None:
        case.close("y_pos", prior.timing(batch["timing"], prior.config.window))
    if case.has("encoder_kv"):
        case.close("encoder_kv", given.lyrics)
    h = prior.input(tokens, given.start, given.added)
    for d, block in enumerate(prior.blocks):
        h = block(h, given.lyrics)
        if case.has(f"hidden_after_layer{d}"):
            case.close(f"hidden_after_layer{d}", h)
    if case.has("logits"):
        case.close("logits", prior.logits(tokens, given))


def check_loss(case: Case, prior: Prior, batch: dict, part: Part) -> None:
    """Loss and metrics, then the gradients of the loss in training."""
    loss, ours = prior.train()(batch)
    metrics = {"bpd": ours["bits_per_code"], "gen_loss": ours["bits_per_code"]}
    metrics["prime_loss"] = ours.get("bits_per_lyric", torch.zeros(()))
    for name in ("loss", "train_mode_loss"):
        if case.has(name):
            case.close(name, loss, case.fact(name))
    for name, value in case.fact("metrics", {}).items():
        if name in metrics:
            case.close(f"metrics.{name}", metrics[name], value)
        else:
            case.fail(f"metrics.{name}", "unknown metric")
    prior.zero_grad()
    loss.backward()
    if case.has("total_grad_norm"):
        case.close(
            "total_grad_norm", gradient_norm(prior), case.fact("total_grad_norm"), tolerance=1e-3
        )
    check_gradients(case, prior, part)


def gradient_norm(prior: Prior) -> Tensor:
    return torch.stack([p.grad.norm() for p in prior.parameters() if p.grad is not None]).norm()


# ---- The optimiser --------------------------------------------------------------------------------------------------


def check_optimiser(case: Case, prior: Prior, batch: dict, part: Part) -> None:
    """Some steps of the reference's Adam with its clipping, schedule and moving average of weights."""
    facts = case.fact("optimiser")
    settings = facts["settings"]
    betas = (settings["beta1"], settings["beta2"])
    optimiser = JukeboxAdam(
        prior.parameters(), settings["lr"], betas, settings["eps"], settings["weight_decay"]
    )
    average = {name: p.detach().clone() for name, p in prior.named_parameters()}
    prior.train()
    for i, step in enumerate(facts["steps"]):
        ours = (
            optimiser_step(prior, batch, optimiser, settings, i, average) if "loss" in step else {}
        )
        if "loss_after" in step:
            ours["loss_after"] = float(prior(batch)[0].detach())
        for name, value in step.items():
            if name in ours:
                case.close(
                    f"optimiser.step{i}.{name}",
                    ours[name],
                    value,
                    tolerance=1e-3 if "norm" in name else 1e-4,
                )
            else:
                case.fail(f"optimiser.step{i}.{name}", "unknown quantity of a step")
    after = {"opt_after::": dict(prior.named_parameters()), "ema_after::": average}
    entries = {entry.theirs: entry for entry in part.table}
    for prefix, tensors in after.items():
        for name in case.names(prefix):
            entry = entries[name.removeprefix(prefix).removeprefix("module.")]
            case.close(
                name,
                tensors[str(entry.ours)].t()
                if entry.change == "transpose"
                else tensors[str(entry.ours)],
            )


def optimiser_step(
    prior: Prior,
    batch: dict,
    optimiser: JukeboxAdam,
    settings: dict,
    step: int,
    average: dict[str, Tensor],
) -> dict[str, float]:
    loss, _ = prior(batch)
    optimiser.zero_grad()
    loss.backward()
    norm = float(gradient_norm(prior))
    for parameter in prior.parameters():
        if parameter.grad is not None:
            parameter.grad.div_(max(1.0, norm / settings["clip"]))
    rate = reference_rate(settings, step)
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.step()
    mu = settings["ema_mu"]
    with torch.no_grad():
        for name, parameter in prior.named_parameters():
            average[name].mul_(mu).add_(parameter, alpha=1 - mu)
    return {"loss": float(loss.detach()), "grad_norm": norm, "lr_used": rate}


def reference_rate(settings: dict, step: int) -> float:
    """The reference's learning rate at a 0-based step: the first is 0 where there is a warm-up."""
    rate = (
        settings["lr"]
        * settings["lr_scale"]
        * min(1.0, step / settings["lr_warmup"] if settings["lr_warmup"] else 1.0)
    )
    if settings["lr_use_linear_decay"]:
        past = max(0.0, step - settings.get("lr_start_linear_decay", 0)) / settings["lr_decay"]
        return rate * max(0.0, 1.0 - past)
    return rate * settings["lr_gamma"] ** (step // settings["lr_decay"])


# ---- Sampling and alignment -----------------------------------------------------------------------------------------


def greedy(songs: int, temperature: float = 0.99, top_k: int = 1) -> TokenSampler:
    """The most likely code, always: with one code left the noise decides nothing."""
    keys = torch.arange(songs, dtype=torch.int64)
    filters = {"top_k": torch.full((songs,), top_k)}
    return TokenSampler(keys, torch.full((songs,), temperature), filters)


def check_greedy(case: Case, prior: Prior, batch: dict) -> None:
    """A whole window, from nothing and after the first codes of `z`, through the cached decoder."""
    known = case.fact("greedy_primed_prefix", 0)
    for name, codes in (("greedy_from_scratch", 0), ("greedy_primed", known)):
        if case.has(name):
            case.same(name, greedy_window(prior, batch, codes))


@torch.inference_mode()
def greedy_window(prior: Prior, batch: dict, known: int) -> Tensor:
    config, prefix = prior.config, prior.config.prefix_tokens
    window = window_task(prior, batch, greedy(len(batch["codes"])), prefix + known, config.length)
    tokens = sample_window(PackedPrior(prior), window)
    return (tokens[:, prefix:] - config.shift).clamp(min=0)


def check_lyric_window(case: Case, config: PriorConfig) -> None:
    """The labels as the reference refreshed them for this window: lyric text to tokens, tokens to the window's."""
    labels = case.fact("labels")
    if labels is None:
        return
    unknown = set(labels) - {"y_before_get_y", "full_tokens", "lyrics", "start"}
    if unknown:
        case.fail("labels", f"unknown entries {sorted(unknown)}")
    if config.lyrics is None:
        return
    newer = case.fact("hps").get("labels_v3", config.lyrics.size == 79)
    text = JukeboxCharacters("v3" if newer else "v2")
    full = labels["full_tokens"]
    wrong = [
        lyrics for lyrics, ids in zip(labels["lyrics"], full) if text.encode(lyrics).ids != ids
    ]
    case.same("labels.full_tokens", wrong, np.zeros(0))
    ours = []
    for (song, offset, clip, *_), ids in zip(labels["y_before_get_y"], full):
        centre = linear_centre_float32(len(ids), song, offset + labels["start"] * config.hop, clip)
        ours.append(lyric_window(ids, centre, config.lyrics.tokens).ids)
    case.same("labels.y", np.stack(ours), case.tensor("y")[:, -config.lyrics.tokens :])


def song_of(config: PriorConfig, ids: list[int], labels: dict) -> SongConditioning:
    tokens = TokenizedLyrics(ids, [(i, i + 1) for i in range(len(ids))])
    return SongConditioning.of(config, labels, tokens)


def check_alignment(case: Case, prior: Prior) -> None:
    labels, hps = case.meta["labels"], case.meta["hps"]
    y, codes = case.tensor("y"), case.tensor("align_z")
    batch = told(y, prior.config)["conditions"]
    songs = [
        song_of(prior.config, ids, {name: values[i].numpy() for name, values in batch.items()})
        for i, ids in enumerate(labels["full_tokens"])
    ]
    pair, fraction = (
        (hps["alignment_layer"], hps["alignment_head"]),
        case.fact("alignment_hop_fraction"),
    )
    for i, song in enumerate(songs):
        length, offset = int(y[i, 0]), int(y[i, 1])
        ours = align(prior, [song], codes[i : i + 1], length, [pair], fraction, offset)[pair][0]
        case.close(f"alignment{i}", ours)
