"""What OpenAI released, under the reference's names: for what weights alone cannot tell (heads, rows, times)."""

from typing import Any

Shapes = dict[str, tuple[int, ...]]

VQVAE: dict[str, Any] = {
    "sr": 44100,
    "levels": 3,
    "downs_t": (3, 2, 2),
    "strides_t": (2, 2, 2),
    "emb_width": 64,
    "l_bins": 2048,
    "l_mu": 0.99,
    "commit": 0.02,
    "spectral": 0.0,
    "multispectral": 1.0,
    "loss_fn": "lmix",
    "lmix_l1": 0.0,
    "lmix_l2": 1.0,
    "lmix_linf": 0.02,
    "linf_k": 2048,
    "width": 32,
    "depth": 4,
    "hvqvae_multipliers": (2, 1, 1),
    "m_conv": 1.0,
    "dilation_growth_rate": 3,
    "dilation_cycle": None,
    "vqvae_reverse_decoder_dilation": True,
    "revival_threshold": 1.0,
    "multispec_loss_n_fft": (2048, 1024, 512),
    "multispec_loss_hop_length": (240, 120, 50),
    "multispec_loss_window_size": (1200, 600, 240),
}
HOPS = (8, 32, 128)

_COMMON: dict[str, Any] = {
    "sr": 44100,
    "l_bins": 2048,
    "n_ctx": 8192,
    "m_attn": 0.25,
    "m_mlp": 1.0,
    "res_scale": False,
    "zero_out": False,
    "attn_order": 2,
    "blocks": 128,
    "labels": True,
    "y_bins": (120, 4111),
    "max_bow_genre_size": 5,
    "single_enc_dec": False,
    "merged_decoder": False,
    "fp16_params": False,
    "use_tokens": False,
    "n_tokens": 0,
    "n_vocab": 0,
    "prime_loss_fraction": 0.0,
}
_UPSAMPLER = {
    **_COMMON,
    "prior_width": 1920,
    "prior_depth": 72,
    "heads": 1,
    "init_scale": 0.4,
    "cond_width": 1024,
    "cond_depth": 16,
    "cond_dilation_growth_rate": 3,
    "cond_dilation_cycle": 8,
    "cond_m_conv": 1.0,
    "cond_zero_out": False,
    "cond_downs_t": 2,
    "cond_strides_t": 2,
}
_PRIOR_5B = {
    **_COMMON,
    "level": 2,
    "prior_width": 4800,
    "prior_depth": 72,
    "heads": 8,
    "init_scale": 0.1,
    "merged_decoder": True,
    "t_bins": 128,
    "min_duration": 60.0,
    "max_duration": 600.0,
    "fp16_params": True,
}
PRIORS: dict[str, dict[str, Any]] = {
    "upsampler_level_0": {**_UPSAMPLER, "level": 0, "cond_res_scale": False},
    "upsampler_level_1": {**_UPSAMPLER, "level": 1, "cond_res_scale": True},
    "prior_5b": _PRIOR_5B,
    "prior_5b_lyrics": {
        **_PRIOR_5B,
        "prior_depth": 79,
        "attn_order": 10,
        "min_duration": 23.8,
        "use_tokens": True,
        "n_tokens": 512,
        "n_vocab": 80,
        "prime_loss_fraction": 0.4,
        "prime_width": 1280,
        "prime_depth": 18,
        "prime_heads": 4,
        "prime_attn_order": 2,
        "prime_blocks": 32,
        "prime_init_scale": 0.7,
        "prime_m_attn": 0.25,
        "prime_m_mlp": 1.0,
        "prime_res_scale": False,
        "prime_zero_out": False,
        "alignment_layer": 68,
        "alignment_head": 2,
    },
    "prior_1b_lyrics": {
        **_COMMON,
        "level": 2,
        "n_ctx": 6144,
        "prior_width": 2048,
        "prior_depth": 72,
        "heads": 2,
        "attn_order": 12,
        "blocks": 64,
        "init_scale": 0.2,
        "single_enc_dec": True,
        "y_bins": (604, 7898),
        "max_bow_genre_size": 1,
        "t_bins": 64,
        "min_duration": 17.84,
        "max_duration": 600.0,
        "use_tokens": True,
        "n_tokens": 384,
        "n_vocab": 79,
        "prime_loss_fraction": 0.4,
        "labels_v3": True,
        "alignment_layer": 63,
        "alignment_head": 0,
    },
}


def like_released_vqvae(shapes: Shapes) -> dict[str, Any]:
    """The hyper-parameters of the released VQ-VAE if these are its shapes, else {}."""
    expected: dict[str, tuple[int, ...] | None] = {
        "bottleneck.level_blocks.2.k": (2048, 64),
        "encoders.0.level_blocks.0.model.0.0.weight": (64, 1, 4),
        "encoders.0.level_blocks.0.model.0.1.model.7.model.1.weight": (64, 64, 3),
        "encoders.2.level_blocks.2.model.1.1.model.3.model.1.weight": (32, 32, 3),
    }
    return VQVAE if _have(shapes, expected) else {}


def like_released_prior(shapes: Shapes, level: int | None) -> dict[str, Any]:
    """The hyper-parameters of the released prior of these shapes, else {}. Upsamplers differ in their level alone."""
    for preset in PRIORS.values():
        if level not in (None, preset["level"]) or not _have(shapes, _distinctive_shapes(preset)):
            continue
        is_upsampler = "cond_width" in preset
        return {} if level is None and is_upsampler else preset
    return {}


def _have(shapes: Shapes, expected: dict[str, tuple[int, ...] | None]) -> bool:
    """Whether all expected shapes are there; None stands for a tensor that must not be."""
    return all(shapes.get(name) == shape for name, shape in expected.items())


def _distinctive_shapes(hps: dict[str, Any]) -> dict[str, tuple[int, ...] | None]:
    """The few shapes in which the released priors differ; None for a tensor that the model does not have."""
    width = hps["prior_width"]
    tokens = hps["l_bins"]
    positions = hps["n_ctx"]
    if hps["single_enc_dec"]:  # lyrics and music in one sequence, with one vocabulary
        tokens += hps["n_vocab"]
        positions += hps["n_tokens"]
    layer = "prior.transformer._attn_mods.{}.ln_0.bias"
    shapes: dict[str, tuple[int, ...] | None] = {
        "prior.x_emb.weight": (tokens, width),
        "prior.pos_emb.pos_emb": (positions, width),
        layer.format(hps["prior_depth"] - 1): (width,),
        layer.format(hps["prior_depth"]): None,
        "y_emb.artist_emb.emb.weight": (hps["y_bins"][1], width),
        "y_emb.bow_genre_emb.emb.weight": (hps["y_bins"][0], width),
        "y_emb.total_length_emb.emb.weight": None,
        "conditioner_blocks.0.ln.bias": None,
        "prime_prior.pos_emb.pos_emb": None,
    }
    if "t_bins" in hps:
        shapes["y_emb.total_length_emb.emb.weight"] = (hps["t_bins"], width)
    if "cond_width" in hps:
        shapes["conditioner_blocks.0.ln.bias"] = (width,)
    if "prime_width" in hps:
        shapes["prime_prior.pos_emb.pos_emb"] = (hps["n_tokens"], hps["prime_width"])
    return shapes
