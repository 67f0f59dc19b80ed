"""Our configs from the names and shapes of a checkpoint, and from its hyper-parameters where shapes cannot tell."""

import re
from collections.abc import Mapping
from math import gcd
from operator import truediv
from typing import Any

from megajukebox.common.errors import UserError
from megajukebox.interop.hps import Hps
from megajukebox.interop.tensor_names import SCHEDULE_OF_ORDER
from megajukebox.models.attention import schedule
from megajukebox.models.conditioners import (
    LabelConfig,
    LyricsConfig,
    TimingConfig,
    UpsamplerConditionerConfig,
)
from megajukebox.models.losses import STFT, ReconstructionLoss
from megajukebox.models.prior import PriorConfig
from megajukebox.models.transformer import TransformerConfig
from megajukebox.models.vqvae import VQVAEConfig

Shapes = Mapping[str, tuple[int, ...]]


def vqvae_config(shapes: Shapes, given: Hps) -> VQVAEConfig:
    """The config of a VQ-VAE."""
    given.require(
        [
            "sr",
            "dilation_growth_rate",
            "dilation_cycle",
            "vqvae_reverse_decoder_dilation",
            "commit",
            "loss_fn",
        ]
    )
    levels = count(shapes, r"bottleneck\.level_blocks\.(\d+)\.k")
    codes, code_width = look(shapes, "bottleneck.level_blocks.0.k", given.where)
    widths: list[int] = []
    depths: list[int] = []
    downs: list[int] = []
    strides: list[int] = []
    for level in range(levels):
        first = f"encoders.{level}.level_blocks.0.model.0."
        widths.append(look(shapes, f"{first}0.weight", given.where)[0])
        depths.append(count(shapes, re.escape(first) + r"1\.model\.(\d+)\."))
        # The coarsest encoder has a stage for every level.
        stage = f"encoders.{levels - 1}.level_blocks.{level}.model."
        downs.append(count(shapes, re.escape(stage) + r"(\d+)\.0\."))
        strides.append(look(shapes, f"{stage}0.0.weight", given.where)[2] // 2)
    multipliers = _multipliers(widths, depths, given.get("hvqvae_multipliers"))
    hidden_name = "encoders.0.level_blocks.0.model.0.1.model.0.model.1.weight"
    hidden = look(shapes, hidden_name, given.where)[0]
    return VQVAEConfig(
        sample_rate=given["sr"],
        down=tuple(downs),
        stride=tuple(strides),
        multipliers=multipliers,
        width=widths[0] // multipliers[0],
        depth=depths[0] // multipliers[0],
        hidden_ratio=ratio(hidden, widths[0], given["m_conv"]),
        dilation_growth=given["dilation_growth_rate"],
        dilation_cycle=given["dilation_cycle"],
        reverse_decoder_dilation=given["vqvae_reverse_decoder_dilation"],
        code_width=code_width,
        codebook_size=codes,
        codebook_decay=given["l_mu"],
        codebook_threshold=given["revival_threshold"],
        fresh_restarts=False,
        kmeans_iterations=0,
        codebook_warmup=0,
        commit=given["commit"],
        loss=loss_config(given),
    )


def loss_config(given: Hps) -> ReconstructionLoss:
    """The reference's `loss_fn` and weights as weights of our terms."""
    kind = given["loss_fn"]
    if kind not in ("l1", "l2", "linf", "lmix"):
        raise UserError(
            f"{given.where}: loss_fn {kind!r} is unknown; it is one of l1, l2, linf, lmix"
        )
    weights: dict[str, Any] = {}
    for term in ("l1", "l2", "linf"):
        weights[term] = given[f"lmix_{term}"] if kind == "lmix" else float(kind == term)
    stfts: list[STFT] = []
    for fft, hop, window in zip(
        given["multispec_loss_n_fft"],
        given["multispec_loss_hop_length"],
        given["multispec_loss_window_size"],
    ):
        stfts.append(STFT(fft=fft, hop=hop, window=window))
    return ReconstructionLoss(
        **weights,
        linf_samples=given["linf_k"],
        spectral=given["spectral"],
        multispectral=given["multispectral"],
        stfts=tuple(stfts),
    )


def _multipliers(widths: list[int], depths: list[int], given: Any) -> tuple[int, ...]:
    """What every level multiplies the basic width and depth by: as given if that fits, else by the smallest numbers."""
    given = tuple(given or ())
    if len(given) == len(widths) and _are_equal(widths, given) and _are_equal(depths, given):
        return given
    for base in range(min(widths), 0, -1):
        multipliers = tuple(width // base for width in widths)
        are_whole = gcd(base, *widths) == base
        if are_whole and _are_equal(depths, multipliers):
            return multipliers
    raise UserError(
        f"widths {widths} and depths {depths} of the levels are no multiples of one width and depth"
    )


def _are_equal(numbers: list[int], multipliers: tuple[int, ...]) -> bool:
    """Whether all numbers are the same after division by their multipliers."""
    return len(set(map(truediv, numbers, multipliers))) == 1


def prior_config(shapes: Shapes, given: Hps, level: str, hop: int) -> PriorConfig:
    """The config of a prior. `level`: our name of it; `hop`: audio samples per code, from the VQ-VAE's file."""
    positions, width = look(shapes, "prior.pos_emb.pos_emb", given.where)
    tokens = look(shapes, "prior.x_emb.weight", given.where)[0]
    given.require(["sr"])
    joint = bool(given.get("single_enc_dec", False))
    lyrics = _lyrics(shapes, given, joint)
    if joint and lyrics:  # one sequence and one vocabulary for lyrics and music
        positions -= lyrics.tokens
        tokens -= lyrics.size
    transformer = _transformer(shapes, given, "prior", width)
    separate_head = bool(given["merged_decoder"])
    conditions: dict[str, LabelConfig] = {}
    if "y_emb.artist_emb.emb.weight" in shapes:
        given.require(["max_bow_genre_size"])
        artists = shapes["y_emb.artist_emb.emb.weight"][0]
        genres = look(shapes, "y_emb.bow_genre_emb.emb.weight", given.where)[0]
        slots = given["max_bow_genre_size"]
        conditions["artist"] = LabelConfig(max_values=1, table_size=artists)
        conditions["genres"] = LabelConfig(max_values=slots, table_size=genres)
    timing: TimingConfig | None = None
    if "y_emb.total_length_emb.emb.weight" in shapes:
        given.require(["min_duration", "max_duration"])
        timing = TimingConfig(
            bins=shapes["y_emb.total_length_emb.emb.weight"][0],
            min_seconds=given["min_duration"],
            max_seconds=given["max_duration"],
        )
    return PriorConfig(
        level=level,
        sample_rate=given["sr"],
        hop=hop,
        codebook_size=tokens,
        window=positions,
        transformer=transformer,
        separate_head=separate_head,
        conditions=conditions,
        timing=timing,
        upsampler_conditioner=_upper(shapes, given, width),
        lyrics=lyrics,
    )


def _transformer(shapes: Shapes, given: Hps, model: str, width: int) -> TransformerConfig:
    theirs = "prime_" if model == "prime_prior" else ""
    needed = [f"{theirs}heads", f"{theirs}blocks", f"{theirs}attn_order", f"{theirs}res_scale"]
    given.require(needed)
    layers = f"{model}.transformer._attn_mods"
    depth = count(shapes, re.escape(layers) + r"\.(\d+)\.")
    order = given[f"{theirs}attn_order"]
    if order not in SCHEDULE_OF_ORDER:
        raise UserError(
            f"{given.where}: {theirs}attn_order {order} cannot be sampled from; known are {list(SCHEDULE_OF_ORDER)}"
        )
    _check_order(shapes, given.where, layers, order, depth)
    state = look(shapes, f"{layers}.0.attn.c_proj.w", given.where)[0]
    hidden = look(shapes, f"{layers}.0.mlp.c_fc.w", given.where)[1]
    return TransformerConfig(
        width=width,
        depth=depth,
        heads=given[f"{theirs}heads"],
        blocks=given[f"{theirs}blocks"] or 1,
        schedule=SCHEDULE_OF_ORDER[order],
        attention_ratio=ratio(state, width, given[f"{theirs}m_attn"]),
        mlp_ratio=ratio(hidden, width, given[f"{theirs}m_mlp"]),
        init_scale=given[f"{theirs}init_scale"],
        residual_scale=given[f"{theirs}res_scale"],
        zero_out=given[f"{theirs}zero_out"],
    )


def _check_order(shapes: Shapes, where: str, layers: str, order: int, depth: int) -> None:
    """Compare the layers that read lyrics by the order with those that have weights for it."""
    by_order: list[int] = []
    by_tensors: list[int] = []
    for layer, pattern in enumerate(schedule(SCHEDULE_OF_ORDER[order], depth)):
        if pattern == "lyrics":
            by_order.append(layer)
        if f"{layers}.{layer}.attn.c_enc_kv.w" in shapes:
            by_tensors.append(layer)
    if by_order != by_tensors:
        raise UserError(
            f"{where}: by attn_order {order} layers {by_order} read lyrics,"
            f" by its tensors {by_tensors}"
        )


def _upper(shapes: Shapes, given: Hps, width: int) -> UpsamplerConditionerConfig | None:
    if "conditioner_blocks.0.x_emb.weight" not in shapes:
        return None
    given.require(["cond_dilation_growth_rate", "cond_dilation_cycle", "cond_res_scale"])
    model = "conditioner_blocks.0.cond.model"
    inside = look(shapes, f"{model}.0.weight", given.where)[0]
    hidden = look(shapes, f"{model}.1.0.blocks.0.model.1.weight", given.where)[0]
    return UpsamplerConditionerConfig(
        width=inside,
        depth=count(shapes, re.escape(f"{model}.1.0.blocks.") + r"(\d+)\."),
        down=count(shapes, re.escape(f"{model}.") + r"(\d+)\.1\.weight"),
        stride=look(shapes, f"{model}.1.1.weight", given.where)[2] // 2,
        dilation_growth=given["cond_dilation_growth_rate"],
        dilation_cycle=given["cond_dilation_cycle"],
        hidden_ratio=ratio(hidden, inside, given["cond_m_conv"]),
        residual_scale=given["cond_res_scale"],
        zero_out=given["cond_zero_out"],
    )


def _lyrics(shapes: Shapes, given: Hps, joint: bool) -> LyricsConfig | None:
    weight = given["prime_loss_fraction"]
    if joint:
        given.require(["n_tokens", "n_vocab"])
        return LyricsConfig(
            mode="prefix", tokens=given["n_tokens"], size=given["n_vocab"], loss_weight=weight
        )
    if "prime_prior.x_emb.weight" not in shapes:
        return None
    size, width = shapes["prime_prior.x_emb.weight"]
    tokens = look(shapes, "prime_prior.pos_emb.pos_emb", given.where)[0]
    encoder = _transformer(shapes, given, "prime_prior", width)
    return LyricsConfig(
        mode="encoder", tokens=tokens, size=size, loss_weight=weight, encoder=encoder
    )


def hops(downs: Any, strides: Any) -> tuple[int, ...]:
    """Audio samples per code of each level, finest first."""
    hop = 1
    hop_of_level = []
    for down, stride in zip(downs, strides):
        hop *= stride**down
        hop_of_level.append(hop)
    return tuple(hop_of_level)


def count(shapes: Shapes, pattern: str) -> int:
    """How many different numbers the group of `pattern` matches among the names."""
    numbers = set()
    for name in shapes:
        match = re.match(pattern, name)
        if match:
            numbers.add(match[1])
    return len(numbers)


def look(shapes: Shapes, name: str, where: str) -> tuple[int, ...]:
    """The shape of a tensor; UserError if the checkpoint `where` does not have it."""
    if name not in shapes:
        raise UserError(f"{where} lacks {name}; it is not whole, or not a model of Jukebox")
    return shapes[name]


def ratio(part: int, whole: int, likely: float) -> float:
    """A number r with int(r * whole) == part: the likely one if it fits."""
    for candidate in (likely, part / whole, (part + 0.5) / whole):
        if int(candidate * whole) == part:
            return candidate
    raise AssertionError(f"no ratio gives {part} of {whole}")
