"""Our configs under the reference's names: what an exported checkpoint carries as `hps`."""

from typing import Any

from megajukebox.common.errors import UserError
from megajukebox.interop.tensor_names import LABEL_TABLES, ORDER_OF_SCHEDULE
from megajukebox.models.prior import PriorConfig
from megajukebox.models.transformer import TransformerConfig
from megajukebox.models.vqvae import VQVAEConfig


def reference_hps(config: VQVAEConfig | PriorConfig, level: int | None = None) -> dict[str, Any]:
    """The hyper-parameters of one of our models; `level` is the reference's number of a prior's level.

    Raises:
        UserError: the prior has parts that the reference does not have.
    """
    if isinstance(config, VQVAEConfig):
        return _vqvae(config)
    assert level is not None
    return _prior(config, level)


def _vqvae(config: VQVAEConfig) -> dict[str, Any]:
    loss = config.loss
    fft_sizes: list[int] = []
    hops: list[int] = []
    windows: list[int] = []
    for stft in loss.stfts:
        fft_sizes.append(stft.fft)
        hops.append(stft.hop)
        windows.append(stft.window)
    return {
        "sr": config.sample_rate,
        "levels": len(config.down),
        "downs_t": config.down,
        "strides_t": config.stride,
        "hvqvae_multipliers": config.multipliers,
        "emb_width": config.code_width,
        "l_bins": config.codebook_size,
        "l_mu": config.codebook_decay,
        "commit": config.commit,
        "width": config.width,
        "depth": config.depth,
        "m_conv": config.hidden_ratio,
        "dilation_growth_rate": config.dilation_growth,
        "dilation_cycle": config.dilation_cycle,
        "vqvae_reverse_decoder_dilation": config.reverse_decoder_dilation,
        "revival_threshold": config.codebook_threshold,
        "use_bottleneck": True,
        "loss_fn": "lmix",
        "lmix_l1": loss.l1,
        "lmix_l2": loss.l2,
        "lmix_linf": loss.linf,
        "linf_k": loss.linf_samples,
        "spectral": loss.spectral,
        "multispectral": loss.multispectral,
        "multispec_loss_n_fft": tuple(fft_sizes),
        "multispec_loss_hop_length": tuple(hops),
        "multispec_loss_window_size": tuple(windows),
    }


def _prior(config: PriorConfig, level: int) -> dict[str, Any]:
    if config.conditions and set(config.conditions) != set(LABEL_TABLES):
        raise UserError(
            f"labels {', '.join(config.conditions)} cannot be exported; the reference has artist and genres"
        )
    hps: dict[str, Any] = {
        "sr": config.sample_rate,
        "level": level,
        "n_ctx": config.window,
        "l_bins": config.codebook_size,
        "merged_decoder": config.separate_head,
        "labels": bool(config.conditions),
        "y_bins": 0,
        "use_tokens": False,
        "single_enc_dec": bool(config.prefix_tokens),
        "n_tokens": 0,
        "n_vocab": 0,
        "prime_loss_fraction": 0.0,
        **_transformer(config.transformer, "", "prior_"),
    }
    if config.conditions:
        genres = config.conditions["genres"]
        hps["y_bins"] = (genres.table_size, config.conditions["artist"].table_size)
        hps["max_bow_genre_size"] = genres.max_values
        hps["labels_v3"] = genres.max_values == 1
    if config.timing:
        hps["t_bins"] = config.timing.bins
        hps["min_duration"] = config.timing.min_seconds
        hps["max_duration"] = config.timing.max_seconds
    hps |= _upper(config)
    if config.lyrics:
        hps["use_tokens"] = True
        hps["n_tokens"] = config.lyrics.tokens
        hps["n_vocab"] = config.lyrics.size
        hps["prime_loss_fraction"] = config.lyrics.loss_weight
        if config.lyrics.encoder:
            hps |= _transformer(config.lyrics.encoder, "prime_", "prime_")
    return hps


def _transformer(config: TransformerConfig, prefix: str, shape_prefix: str) -> dict[str, Any]:
    if config.schedule not in ORDER_OF_SCHEDULE:
        raise UserError(
            f"schedule {config.schedule} is not one of the reference's: {', '.join(ORDER_OF_SCHEDULE)}"
        )
    return {
        f"{shape_prefix}width": config.width,
        f"{shape_prefix}depth": config.depth,
        f"{prefix}heads": config.heads,
        f"{prefix}blocks": config.blocks,
        f"{prefix}attn_order": ORDER_OF_SCHEDULE[config.schedule],
        f"{prefix}m_attn": config.attention_ratio,
        f"{prefix}m_mlp": config.mlp_ratio,
        f"{prefix}init_scale": config.init_scale,
        f"{prefix}res_scale": config.residual_scale,
        f"{prefix}zero_out": config.zero_out,
    }


def _upper(config: PriorConfig) -> dict[str, Any]:
    if config.upsampler_conditioner is None:
        return {}
    upper = config.upsampler_conditioner
    if upper.codebook_size is not None:
        raise UserError(
            f"upsampler_conditioner.codebook_size {upper.codebook_size}: the reference has one size of codebook"
            " for all levels; export with --layout megajukebox"
        )
    return {
        "cond_width": upper.width,
        "cond_depth": upper.depth,
        "cond_m_conv": upper.hidden_ratio,
        "cond_dilation_growth_rate": upper.dilation_growth,
        "cond_dilation_cycle": upper.dilation_cycle,
        "cond_res_scale": upper.residual_scale,
        "cond_zero_out": upper.zero_out,
        "cond_c_res": 1,
    }
