"""The reference's tensors by name and shape, written from its description: the independent twin of our tables.

`checkpoint` makes a random file of any shape; on the meta device it costs nothing.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megajukebox.interop.released import PRIORS, VQVAE

Shapes = dict[str, tuple[int, ...]]

FUNCS = {
    0: [0], 1: [1, 2], 2: [1, 2, 3], 6: [1, 2, 3, 6], 7: [1, 2, 3] * 5 + [6], 8: [1, 2, 3] * 3 + [6], 9: [1, 2, 3, 0],
    10: [1, 2, 3] * 3 + ([1, 2, 3] * 3 + [6]) * 7,
    11: [[6, 6, 0][d % 3] if d % 16 == 15 else [1, 2, 3][d % 3] for d in range(48)],
    12: [[7, 7, 0][d % 3] if d % 16 == 15 else [1, 2, 3][d % 3] for d in range(48)],
}  # fmt: skip


def vqvae_shapes(h: dict[str, Any]) -> Shapes:
    shapes: Shapes = {}
    emb, levels = h["emb_width"], h["levels"]
    for level in range(levels):
        m = (h.get("hvqvae_multipliers") or [1] * levels)[level]
        w, depth = h["width"] * m, h["depth"] * m
        hidden = int(h["m_conv"] * w)
        for i in range(level + 1):
            down, stride = h["downs_t"][i], h["strides_t"][i]
            block = f"encoders.{level}.level_blocks.{i}.model"
            for j in range(down):
                channels = w if j else (emb if i else 1)
                conv(shapes, f"{block}.{j}.0", (w, channels, 2 * stride), w)
                for d in range(depth):
                    unit(shapes, f"{block}.{j}.1.model.{d}", w, hidden)
            conv(shapes, f"{block}.{down}", (emb, w, 3), emb)
            block = f"decoders.{level}.level_blocks.{i}.model"
            conv(shapes, f"{block}.0", (w, emb, 3), w)
            for j in range(1, down + 1):
                for d in range(depth):
                    unit(shapes, f"{block}.{j}.0.model.{d}", w, hidden)
                outputs = emb if j == down else w
                conv(shapes, f"{block}.{j}.1", (w, outputs, 2 * stride), outputs)
        conv(shapes, f"decoders.{level}.out", (1, emb, 3), 1)
        shapes[f"bottleneck.level_blocks.{level}.k"] = (h["l_bins"], emb)
    return shapes


def conv(shapes: Shapes, name: str, weight: tuple[int, ...], bias: int) -> None:
    shapes[f"{name}.weight"], shapes[f"{name}.bias"] = weight, (bias,)


def unit(shapes: Shapes, name: str, width: int, hidden: int) -> None:
    conv(shapes, f"{name}.model.1", (hidden, width, 3), hidden)
    conv(shapes, f"{name}.model.3", (width, hidden, 1), width)


def dense(shapes: Shapes, name: str, inputs: int, outputs: int) -> None:
    shapes[f"{name}.w"], shapes[f"{name}.b"] = (inputs, outputs), (outputs,)


def prior_shapes(h: dict[str, Any]) -> Shapes:
    shapes: Shapes = {}
    w, joint = h["prior_width"], h["single_enc_dec"]
    bins = h["l_bins"] + (h["n_vocab"] if joint else 0)
    length = h["n_ctx"] + (h["n_tokens"] if joint else 0)
    shapes["prior.x_emb.weight"] = shapes["prior.x_out.weight"] = (bins, w)
    shapes["prior.pos_emb.pos_emb"] = (length, w)
    layers(shapes, "prior", w, h["prior_depth"], h["attn_order"], h["m_attn"], h["m_mlp"])
    if h["labels"]:
        shapes["y_emb.bow_genre_emb.emb.weight"] = (h["y_bins"][0], w)
        shapes["y_emb.artist_emb.emb.weight"] = (h["y_bins"][1], w)
        for name in ("total_length", "absolute_pos", "relative_pos") if "t_bins" in h else ():
            shapes[f"y_emb.{name}_emb.emb.weight"] = (h["t_bins"], w)
    else:
        shapes["prior.start_token"] = (1, w)
    if "cond_width" in h:
        conditioner(shapes, h, w)
    if h["use_tokens"] and not joint:
        p = h["prime_width"]
        shapes["prime_prior.start_token"], shapes["prime_prior.x_emb.weight"] = (1, p), (h["n_vocab"], p)
        shapes["prime_prior.pos_emb.pos_emb"] = (h["n_tokens"], p)
        order = h["prime_attn_order"]
        layers(shapes, "prime_prior", p, h["prime_depth"], order, h["prime_m_attn"], h["prime_m_mlp"])
        dense(shapes, "prime_state_proj", p, w)
        shapes["prime_state_ln.weight"] = shapes["prime_state_ln.bias"] = (w,)
        shapes["prime_x_out.weight"] = (h["n_vocab"], w)
    return shapes


def layers(shapes: Shapes, model: str, w: int, depth: int, order: int, m_attn: float, m_mlp: float) -> None:
    state, hidden = int(m_attn * w), int(m_mlp * w)
    for d in range(depth):
        name = f"{model}.transformer._attn_mods.{d}"
        reads = FUNCS[order][d % len(FUNCS[order])] == 6
        dense(shapes, f"{name}.attn.c_attn", w, state if reads else 3 * state)
        if reads:
            dense(shapes, f"{name}.attn.c_enc_kv", w, 2 * state)
        dense(shapes, f"{name}.attn.c_proj", state, w)
        dense(shapes, f"{name}.mlp.c_fc", w, hidden)
        dense(shapes, f"{name}.mlp.c_proj", hidden, w)
        for norm in ("ln_0", "ln_1"):
            shapes[f"{name}.{norm}.weight"] = shapes[f"{name}.{norm}.bias"] = (w,)


def conditioner(shapes: Shapes, h: dict[str, Any], w: int) -> None:
    name, c, down, stride = (
        "conditioner_blocks.0",
        h["cond_width"],
        h.get("cond_downs_t", 2),
        h.get("cond_strides_t", 2),
    )
    shapes[f"{name}.x_emb.weight"] = (h["l_bins"], w)
    conv(shapes, f"{name}.cond.model.0", (c, w, 3), c)
    for j in range(1, down + 1):
        for d in range(h["cond_depth"]):
            stack = "model" if h.get("cond_c_res") == 0 else "blocks"
            unit(shapes, f"{name}.cond.model.{j}.0.{stack}.{d}", c, int(h.get("cond_m_conv", 1.0) * c))
        outputs = w if j == down else c
        conv(shapes, f"{name}.cond.model.{j}.1", (c, outputs, 2 * stride), outputs)
    conv(shapes, f"{name}.ln", (w,), w)


def tensors(shapes: Shapes, h: dict[str, Any], device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
    """Random tensors of these shapes: `.w` in half if fp16_params, the output matrix tied unless merged_decoder."""
    generator = None if device == "meta" else torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        half = h.get("fp16_params") and name.endswith(".w")
        tensor = torch.empty(shape, dtype=torch.float16 if half else torch.float32, device=device)
        state[name] = tensor if generator is None else tensor.normal_(0, 0.1, generator=generator)
    if "prior.x_out.weight" in state and not h.get("merged_decoder"):
        state["prior.x_out.weight"] = state["prior.x_emb.weight"]
    return state


def shapes_of(h: dict[str, Any]) -> Shapes:
    return prior_shapes(h) if "prior_width" in h else vqvae_shapes(h)


def checkpoint(h: dict[str, Any], prefix: str = "", device: str = "cpu", seed: int = 0) -> dict[str, Any]:
    """What the reference would have saved for a model with hyper-parameters `h`."""
    model = {prefix + name: tensor for name, tensor in tensors(shapes_of(h), h, device, seed).items()}
    hps = {name: value for name, value in h.items() if name not in ("cond_downs_t", "cond_strides_t")}
    return {"hps": hps, "model": model, "opt": None, "step": 7}


TINY_VQVAE = {**VQVAE, "width": 4, "depth": 2, "emb_width": 8, "l_bins": 32, "multispec_loss_n_fft": (256, 128, 64)}
_TINY = {"l_bins": 32, "n_ctx": 64, "prior_width": 16, "prior_depth": 4, "heads": 1, "blocks": 8, "y_bins": (5, 9)}
_TINY_COND = {"cond_width": 6, "cond_depth": 3, "cond_dilation_cycle": 2}
_TINY_LYRICS = {"n_tokens": 16, "prime_width": 8, "prime_depth": 3, "prime_heads": 1, "prime_blocks": 4}
TINY: dict[str, dict[str, Any]] = {
    "vqvae": TINY_VQVAE,
    "upsampler_level_0": {**PRIORS["upsampler_level_0"], **_TINY, **_TINY_COND},
    "upsampler_level_1": {**PRIORS["upsampler_level_1"], **_TINY, **_TINY_COND, "cond_c_res": 0},
    "prior_5b": {**PRIORS["prior_5b"], **_TINY},
    "prior_5b_lyrics": {**PRIORS["prior_5b_lyrics"], **_TINY, **_TINY_LYRICS, "prior_depth": 20},
    "prior_1b_lyrics": {**PRIORS["prior_1b_lyrics"], **_TINY, "n_tokens": 16, "prior_depth": 17},
    "no_labels": {
        **PRIORS["prior_5b"],
        **_TINY,
        "labels": False,
        "merged_decoder": False,
        "attn_order": 0,
        "blocks": None,
    },
}
for _name in ("t_bins", "min_duration", "max_duration", "y_bins"):
    TINY["no_labels"].pop(_name)
TINY["no_labels"]["blocks"] = None


def written(folder: Path, names: Sequence[str], **changes: Any) -> list[Path]:
    """Checkpoints of these tiny models as files."""
    files = []
    for name in names:
        h = TINY[name] | changes
        files.append(folder / ("vqvae.pth.tar" if name == "vqvae" else f"prior_level_{h['level']}.pth.tar"))
        torch.save(checkpoint(h, seed=len(files)), files[-1])
    return files
