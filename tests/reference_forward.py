"""The reference's forward passes, plainly, from a checkpoint's own tensors: the twin of the import and the models.

Written from the description of the reference: every attention is a full score matrix and a mask. Slow, small, on CPU.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from reference_shapes import FUNCS
from torch import Tensor

State = dict[str, Tensor]


def mask(func: int, n: int, blocks: int, prime: int) -> Tensor:
    i, j, size = torch.arange(n)[:, None], torch.arange(n)[None], n // blocks
    causal = j <= i
    if func == 1:
        return causal & (i // size == j // size)
    if func == 2:
        return causal & (i % size == j % size)
    if func == 3:
        return j // size == i // size - 1
    if func == 7:
        return causal & (j < (prime // blocks + 1) * blocks)
    return causal


def attention(s: State, name: str, h: Tensor, encoder: Tensor | None, heads: int, allowed: Tensor | None) -> Tensor:
    q = h @ s[f"{name}.c_attn.w"].float() + s[f"{name}.c_attn.b"]
    if encoder is not None:
        k, v = (encoder @ s[f"{name}.c_enc_kv.w"].float() + s[f"{name}.c_enc_kv.b"]).chunk(2, -1)
    else:
        q, k, v = q.chunk(3, -1)
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    out = scores.softmax(-1).nan_to_num(0.0) @ v
    return out.transpose(1, 2).flatten(2) @ s[f"{name}.c_proj.w"].float() + s[f"{name}.c_proj.b"]


def transformer(s: State, h: dict, prefix: str, model: str, x: Tensor, encoder: Tensor | None, prime: int) -> Tensor:
    width, depth = x.shape[-1], h["prior_depth"] if model == "prior" else h["prime_depth"]
    funcs, heads = FUNCS[h[f"{prefix}attn_order"]], h[f"{prefix}heads"]
    for d in range(depth):
        name, func = f"{model}.transformer._attn_mods.{d}", funcs[d % len(funcs)]
        allowed = None if func == 6 else mask(func, x.shape[1], h[f"{prefix}blocks"] or 1, prime)
        normed = F.layer_norm(x, (width,), s[f"{name}.ln_0.weight"], s[f"{name}.ln_0.bias"])
        a = attention(s, f"{name}.attn", normed, encoder if func == 6 else None, heads, allowed)
        normed = F.layer_norm(x + a, (width,), s[f"{name}.ln_1.weight"], s[f"{name}.ln_1.bias"])
        m = normed @ s[f"{name}.mlp.c_fc.w"].float() + s[f"{name}.mlp.c_fc.b"]
        m = (m * torch.sigmoid(1.702 * m)) @ s[f"{name}.mlp.c_proj.w"].float() + s[f"{name}.mlp.c_proj.b"]
        x = x + (a + m) * (1 / depth if h[f"{prefix}res_scale"] else 1.0)
    return x


def unit(s: State, name: str, x: Tensor, dilation: int, scale: float = 1.0) -> Tensor:
    y = F.conv1d(x.relu(), s[f"{name}.1.weight"], s[f"{name}.1.bias"], padding=dilation, dilation=dilation)
    return x + scale * F.conv1d(y.relu(), s[f"{name}.3.weight"], s[f"{name}.3.bias"])


def dilations(depth: int, growth: int, cycle: int | None) -> list[int]:
    return [growth ** (d % cycle if cycle else d) for d in range(depth)]


def conv(s: State, name: str, x: Tensor, stride: int = 1, padding: int = 1) -> Tensor:
    return F.conv1d(x, s[f"{name}.weight"], s[f"{name}.bias"], stride=stride, padding=padding)


def longer(s: State, name: str, x: Tensor, stride: int) -> Tensor:
    return F.conv_transpose1d(x, s[f"{name}.weight"], s[f"{name}.bias"], stride=stride, padding=stride // 2)


def conditioner(s: State, h: dict[str, Any], codes: Tensor) -> Tensor:
    name, stack = "conditioner_blocks.0", "model" if h.get("cond_c_res") == 0 else "blocks"
    x = conv(s, f"{name}.cond.model.0", s[f"{name}.x_emb.weight"][codes].transpose(1, 2))
    scale = h["cond_depth"] ** -0.5 if h["cond_res_scale"] else 1.0
    for j in range(1, h.get("cond_downs_t", 2) + 1):
        for d, dilation in enumerate(
            dilations(h["cond_depth"], h["cond_dilation_growth_rate"], h["cond_dilation_cycle"])
        ):
            x = unit(s, f"{name}.cond.model.{j}.0.{stack}.{d}.model", x, dilation, scale)
        x = longer(s, f"{name}.cond.model.{j}.1", x, h.get("cond_strides_t", 2))
    x = x.transpose(1, 2)
    return F.layer_norm(x, x.shape[-1:], s[f"{name}.ln.weight"], s[f"{name}.ln.bias"])


def timing(s: State, h: dict[str, Any], y: Tensor) -> Tensor:
    total, start, length = (y[:, i : i + 1].float() for i in range(3))
    n, bins, end = h["n_ctx"], h["t_bins"], start + length
    steps = torch.arange(n, dtype=torch.float32)[None] / n

    def embed(name: str, value: Tensor, low: float, high: float) -> Tensor:
        return s[f"y_emb.{name}_emb.emb.weight"][
            (bins * (value - low) / (high - low)).floor().long().clamp(0, bins - 1)
        ]

    low, high = h["min_duration"] * h["sr"], h["max_duration"] * h["sr"]
    relative = start / total + ((end / total).clamp(0, 1) - start / total) * steps
    return (
        embed("total_length", total, low, high)
        + embed("absolute_pos", start + (end - start) * steps, 0.0, high)
        + embed("relative_pos", relative, 0.0, 1.0)
    )


def shifted(s: State, model: str, tokens: Tensor, start: Tensor) -> Tensor:
    x = torch.cat([start, s[f"{model}.x_emb.weight"][tokens[:, :-1]]], dim=1)
    return x + s[f"{model}.pos_emb.pos_emb"]


def prior_logits(
    s: State, h: dict[str, Any], codes: Tensor, y: Tensor, upper: Tensor | None, lyrics: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Logits of all positions, and the loss. `y`: total, offset, length, artist, genres (-1 = empty)."""
    tokens, prime, encoder, prime_loss = codes, 0, None, torch.zeros(())
    start = s["prior.start_token"][None].expand(len(codes), -1, -1) if not h["labels"] else None
    if start is None:
        genres = s["y_emb.bow_genre_emb.emb.weight"][y[:, 4:].clamp(min=0)] * (y[:, 4:] >= 0)[..., None]
        start = s["y_emb.artist_emb.emb.weight"][y[:, 3:4]] + genres.sum(1, keepdim=True)
    added = conditioner(s, h, upper) if upper is not None else torch.zeros(1, 1, h["prior_width"])
    if h["labels"] and "t_bins" in h:
        added = timing(s, h, y)
    if lyrics is not None and h["single_enc_dec"]:
        prime = lyrics.shape[1]
        tokens = torch.cat([lyrics, codes + h["n_vocab"]], dim=1)
        added = torch.cat([torch.zeros(len(codes), prime, h["prior_width"]), added], dim=1)
    elif lyrics is not None:
        first = s["prime_prior.start_token"][None].expand(len(codes), -1, -1)
        states = transformer(s, h, "prime_", "prime_prior", shifted(s, "prime_prior", lyrics, first), None, 0)
        encoder = states @ s["prime_state_proj.w"].float() + s["prime_state_proj.b"]
        encoder = F.layer_norm(encoder, encoder.shape[-1:], s["prime_state_ln.weight"], s["prime_state_ln.bias"])
        prime_loss = bits(encoder @ s["prime_x_out.weight"].t(), lyrics)
    x = transformer(s, h, "", "prior", shifted(s, "prior", tokens, start) + added, encoder, prime)
    logits = (x if h["merged_decoder"] else x + added) @ s["prior.x_out.weight"].t()
    gen_loss = bits(logits[:, prime:], tokens[:, prime:])
    if prime:
        prime_loss = bits(logits[:, :prime], tokens[:, :prime])
    p, g = (0 if lyrics is None else lyrics.shape[1]), codes.shape[1]
    return logits, h["prime_loss_fraction"] * prime_loss * p / (p + g) + gen_loss * g / (p + g)


def bits(logits: Tensor, tokens: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), tokens.flatten()) / math.log(2)


def encode(s: State, h: dict[str, Any], level: int, audio: Tensor) -> Tensor:
    """Codes [N, T] of one level from audio [N, L]."""
    x, m = audio[:, None], (h["hvqvae_multipliers"] or [1] * h["levels"])[level]
    spread = dilations(h["depth"] * m, h["dilation_growth_rate"], h["dilation_cycle"])
    for i in range(level + 1):
        name, stride = f"encoders.{level}.level_blocks.{i}.model", h["strides_t"][i]
        for j in range(h["downs_t"][i]):
            x = conv(s, f"{name}.{j}.0", x, stride, stride // 2)
            for d, dilation in enumerate(spread):
                x = unit(s, f"{name}.{j}.1.model.{d}.model", x, dilation)
        x = conv(s, f"{name}.{h['downs_t'][i]}", x)
    return torch.cdist(x.transpose(1, 2), s[f"bottleneck.level_blocks.{level}.k"][None]).argmin(-1)


def decode(s: State, h: dict[str, Any], level: int, codes: Tensor) -> Tensor:
    """Audio [N, L] from the codes of one level."""
    x = s[f"bottleneck.level_blocks.{level}.k"][codes].transpose(1, 2)
    m = (h["hvqvae_multipliers"] or [1] * h["levels"])[level]
    spread = dilations(h["depth"] * m, h["dilation_growth_rate"], h["dilation_cycle"])
    if h["vqvae_reverse_decoder_dilation"]:
        spread = spread[::-1]
    for i in reversed(range(level + 1)):
        name = f"decoders.{level}.level_blocks.{i}.model"
        x = conv(s, f"{name}.0", x)
        for j in range(1, h["downs_t"][i] + 1):
            for d, dilation in enumerate(spread):
                x = unit(s, f"{name}.{j}.0.model.{d}.model", x, dilation)
            x = longer(s, f"{name}.{j}.1", x, h["strides_t"][i])
    return conv(s, f"decoders.{level}.out", x)[:, 0]
