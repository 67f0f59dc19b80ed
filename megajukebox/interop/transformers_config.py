"""`config.json` of a Hugging Face folder, as transformers 4.x writes and reads it, beside our configs.

Defaults are those of transformers' JukeboxConfig (4.57): a key that a file leaves out has them there too. Levels count
from the top here: prior 0 is the top, whatever the number of levels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from megajukebox.common.errors import UserError
from megajukebox.common.untrusted_files import parse_json, read_inside
from megajukebox.interop.released_configs import VQVAE
from megajukebox.models.attention import schedule
from megajukebox.models.prior import PriorConfig
from megajukebox.models.transformer import TransformerConfig
from megajukebox.models.vqvae import VQVAEConfig

CONFIG = "config.json"
MAX_CONFIG_BYTES = 1 << 20  # transformers writes 10 kB for three priors
# What transformers calls our schedules. Its `full_dense_attention` cannot be built (KeyError, 4.57): it is only read.
SCHEDULE_OF_PATTERN = {
    "raw_column_previous_row_attention": "factored",
    "large_separated_enc_dec_w_lyrics": "lyrics_after_18",
    "enc_dec_with_lyrics": "prefix_dense_16",
}
ORDER_OF_PATTERN = {
    "full_dense_attention": 0,
    "raw_column_previous_row_attention": 2,
    "large_separated_enc_dec_w_lyrics": 10,
    "enc_dec_with_lyrics": 12,
}
# One value for all priors: JukeboxModel copies it over each prior's own.
SHARED = (
    "sampling_rate",
    "timing_dims",
    "min_duration",
    "max_duration",
    "max_nb_genres",
    "metadata_conditioning",
)
SAMPLE_SECONDS = (
    24  # that transformers' own sampler takes for a song; no number of a model depends on it
)
HOP_FRACTIONS = (0.125, 0.5, 0.5)  # of a window, by which its sampler goes on, from the top


# Bounds far beyond any model: what is computed from them before tensors are compared stays small.
Downs = list[Annotated[int, Field(ge=0, le=16)]]
Strides = list[Annotated[int, Field(ge=1, le=1 << 16)]]
Dilation = Annotated[int, Field(ge=1, le=64)]
Ratio = Annotated[float, Field(gt=0, le=64)]
WholeRatio = Annotated[int, Field(ge=1, le=64)]


class TransformersVQVAEConfig(BaseModel):
    """JukeboxVQVAEConfig: what of it fixes the numbers of a VQ-VAE, and what its sampler needs."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    model_type: Literal["jukebox_vqvae"] = "jukebox_vqvae"
    act_fn: Literal["relu"] = "relu"
    nb_discrete_codes: int = 2048
    commit: float = 0.02
    conv_input_shape: Literal[1] = 1
    conv_res_scale: Literal[False] | None = False
    embed_dim: int = 64
    hop_fraction: list[float] = list(HOP_FRACTIONS)
    levels: int = Field(3, ge=1, le=3)
    lmu: float = 0.99
    multipliers: list[WholeRatio] | None = [2, 1, 1]
    res_conv_depth: int = 4
    res_conv_width: int = 32
    res_convolution_multiplier: WholeRatio = 1
    res_dilation_cycle: Dilation | None = None
    res_dilation_growth_rate: Dilation = 3
    res_downs_t: Downs = [3, 2, 2]
    res_strides_t: Strides = [2, 2, 2]
    sample_length: int = 1058304

    @classmethod
    def of(cls, config: VQVAEConfig) -> "TransformersVQVAEConfig":
        """That of one of our VQ-VAEs."""
        longest = max(config.hops.values())
        return cls(
            nb_discrete_codes=config.codebook_size,
            commit=config.commit,
            embed_dim=config.code_width,
            hop_fraction=list(HOP_FRACTIONS[: len(config.levels)]),
            levels=len(config.levels),
            lmu=config.codebook_decay,
            multipliers=list(config.multipliers),
            res_conv_depth=config.depth,
            res_conv_width=config.width,
            res_convolution_multiplier=int(config.hidden_ratio),
            res_dilation_cycle=config.dilation_cycle,
            res_dilation_growth_rate=config.dilation_growth,
            res_downs_t=list(config.down),
            res_strides_t=list(config.stride),
            sample_length=SAMPLE_SECONDS * config.sample_rate // longest * longest,
        )

    def hps(self) -> dict[str, Any]:
        """The same under OpenAI's names. The losses, which transformers does not know, are those of OpenAI's VQ-VAE."""
        return {
            **{name: VQVAE[name] for name in ("loss_fn", "lmix_l1", "lmix_l2", "lmix_linf")},
            "levels": self.levels,
            "downs_t": tuple(self.res_downs_t),
            "strides_t": tuple(self.res_strides_t),
            "hvqvae_multipliers": None if self.multipliers is None else tuple(self.multipliers),
            "emb_width": self.embed_dim,
            "l_bins": self.nb_discrete_codes,
            "l_mu": self.lmu,
            "commit": self.commit,
            "width": self.res_conv_width,
            "depth": self.res_conv_depth,
            "m_conv": self.res_convolution_multiplier,
            "dilation_growth_rate": self.res_dilation_growth_rate,
            "dilation_cycle": self.res_dilation_cycle,
            "vqvae_reverse_decoder_dilation": True,  # transformers has no other decoder
        }


class TransformersPriorConfig(BaseModel):
    """JukeboxPriorConfig, of a prior or of its lyrics encoder: what of it fixes numbers."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    model_type: Literal["jukebox_prior"] = "jukebox_prior"
    act_fn: Literal["quick_gelu"] = "quick_gelu"
    level: int = Field(0, ge=0, le=2, description="from the top")
    alignment_head: int | None = 2
    alignment_layer: int | None = 68
    attention_multiplier: Ratio = 0.25
    attention_pattern: str = "enc_dec_with_lyrics"
    attn_res_scale: bool = False
    blocks: int | None = 64
    conv_res_scale: bool | None = None
    num_layers: int = 72
    encoder_config: "TransformersPriorConfig | None" = None
    encoder_loss_fraction: float = 0.4
    hidden_size: int = 2048
    init_scale: float = 0.2
    is_encoder_decoder: bool = True
    lyric_vocab_size: int = 80
    mask: bool = False
    max_duration: float = 600.0
    max_nb_genres: int = Field(1, ge=1, le=1000)
    merged_decoder: bool = True
    metadata_conditioning: bool = True
    metadata_dims: list[int] = [604, 7898]
    min_duration: float = 0.0
    mlp_multiplier: Ratio = 1.0
    music_vocab_size: int = 2048
    n_ctx: int = 6144
    n_heads: int = 2
    nb_relevant_lyric_tokens: int = 384
    res_conv_depth: int = 3
    res_conv_width: int = 128
    res_convolution_multiplier: WholeRatio = 1
    res_dilation_cycle: Dilation | None = None
    res_dilation_growth_rate: Dilation = 1
    res_downs_t: Downs = [3, 2, 2]
    res_strides_t: Strides = [2, 2, 2]
    sampling_rate: int = 44100
    spread: None = None
    timing_dims: int = 64
    zero_out: bool = False

    def hps(self) -> dict[str, Any]:
        """The same under OpenAI's names."""
        names: dict[str, Any] = {
            "sr": self.sampling_rate,
            "n_ctx": self.n_ctx,
            "l_bins": self.music_vocab_size,
            "levels": len(self.res_downs_t),
            "downs_t": tuple(self.res_downs_t),
            "strides_t": tuple(self.res_strides_t),
            "merged_decoder": self.merged_decoder,
            "max_bow_genre_size": self.max_nb_genres,
            "min_duration": self.min_duration,
            "max_duration": self.max_duration,
            "use_tokens": self.nb_relevant_lyric_tokens > 0,
            "single_enc_dec": self.is_encoder_decoder,
            "n_tokens": self.nb_relevant_lyric_tokens,
            "n_vocab": self.lyric_vocab_size,
            "prime_loss_fraction": self.encoder_loss_fraction,
            "cond_m_conv": self.res_convolution_multiplier,
            "cond_dilation_growth_rate": self.res_dilation_growth_rate,
            "cond_dilation_cycle": self.res_dilation_cycle,
            "cond_res_scale": bool(self.conv_res_scale),
            **self._transformer_hps(""),
        }
        if self.encoder_config:
            names |= self.encoder_config._transformer_hps("prime_")
        if self.alignment_layer is not None and self.alignment_head is not None:
            names["alignment_layer"] = self.alignment_layer
            names["alignment_head"] = self.alignment_head
        return names

    def _transformer_hps(self, prefix: str) -> dict[str, Any]:
        return {
            f"{prefix}heads": self.n_heads,
            f"{prefix}blocks": self.blocks,
            f"{prefix}attn_order": ORDER_OF_PATTERN.get(
                self.attention_pattern, self.attention_pattern
            ),
            f"{prefix}m_attn": self.attention_multiplier,
            f"{prefix}m_mlp": self.mlp_multiplier,
            f"{prefix}init_scale": self.init_scale,
            f"{prefix}res_scale": self.attn_res_scale,
            f"{prefix}zero_out": self.zero_out,
        }


class TransformersConfig(BaseModel):
    """JukeboxConfig: a VQ-VAE and its priors from the top, in either of the two ways in which files list them."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    model_type: Literal["jukebox"] = "jukebox"
    vqvae_config: TransformersVQVAEConfig | None = None
    prior_config_list: list[TransformersPriorConfig] | None = None
    nb_priors: int = Field(3, ge=0, le=3)
    sampling_rate: int = 44100
    timing_dims: int = 64
    min_duration: float = 0.0
    max_duration: float = 600.0
    max_nb_genres: int = Field(5, ge=1, le=1000)
    metadata_conditioning: bool = True

    def priors(self) -> list[TransformersPriorConfig]:
        """Every prior from the top, with what they share. Older files keep them as `prior_0`, `prior_1`, ..."""
        given = self.prior_config_list
        if given is None:
            extra = self.model_extra or {}
            given = []
            for number in range(self.nb_priors):
                given.append(
                    TransformersPriorConfig.model_validate(extra.get(f"prior_{number}", {}))
                )
        shared = {name: getattr(self, name) for name in SHARED}
        return [prior.model_copy(update=shared) for prior in given]


# ---- Reading --------------------------------------------------------------------------------------------------------

CONFIG_TYPES: dict[str, type[BaseModel]] = {
    "jukebox": TransformersConfig,
    "jukebox_vqvae": TransformersVQVAEConfig,
    "jukebox_prior": TransformersPriorConfig,
}


def read_config(folder: Path) -> BaseModel | None:
    """One of the three configs out of the folder's config.json; None if it has none.

    Raises:
        UserError: it is of another model, or a value of it is none that we have.
    """
    path = folder / CONFIG
    if not path.is_file():
        return None
    try:
        given = parse_json(read_inside(folder, CONFIG, MAX_CONFIG_BYTES))
        kind = given.get("model_type") if isinstance(given, dict) else None
        if not isinstance(kind, str) or kind not in CONFIG_TYPES:
            raise UserError(
                f"{path}: model_type {kind!r:.80} is none of {', '.join(CONFIG_TYPES)}; give the folder of a Jukebox"
            )
        config = CONFIG_TYPES[kind].model_validate(given)
        if isinstance(config, TransformersConfig):
            config.priors()
        return config
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{path}: {field} {first['input']!r:.80} cannot be imported ({first['msg']})"
        ) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path} {reason}; fetch it again, or take it away") from None


# ---- Writing --------------------------------------------------------------------------------------------------------


def attention_pattern(config: TransformerConfig) -> str | None:
    """What transformers calls the layers of this transformer; None if it cannot build them."""
    for pattern, name in SCHEDULE_OF_PATTERN.items():
        if schedule(name, config.depth) == config.patterns:
            return pattern
    return None


def prior_json(
    config: PriorConfig, from_top: int, vqvae: VQVAEConfig | None, alignment: tuple[int, int] | None
) -> dict[str, Any]:
    """The config of a prior that the layout can hold (`layout_limits`), as JSON."""
    settings = _transformer(config.transformer)
    downs, strides = _conditioner_lists(config, from_top, vqvae)
    settings |= {
        "level": from_top,
        "alignment_layer": alignment[0] if alignment else None,
        "alignment_head": alignment[1] if alignment else None,
        "is_encoder_decoder": bool(config.prefix_tokens),
        "nb_relevant_lyric_tokens": config.lyrics.tokens if config.lyrics else 0,
        "merged_decoder": config.separate_head,
        "metadata_conditioning": bool(config.conditions),
        "music_vocab_size": config.codebook_size,
        "n_ctx": config.window,
        "res_downs_t": downs,
        "res_strides_t": strides,
        "sampling_rate": config.sample_rate,
    }
    if config.lyrics:
        settings["lyric_vocab_size"] = config.lyrics.size
        settings["encoder_loss_fraction"] = config.lyrics.loss_weight
        if config.lyrics.encoder:
            encoder = _transformer(config.lyrics.encoder)
            encoder["nb_relevant_lyric_tokens"] = config.lyrics.tokens
            settings["encoder_config"] = TransformersPriorConfig(**encoder)
    if config.conditions:
        genres = config.conditions["genres"]
        settings["max_nb_genres"] = genres.max_values
        settings["metadata_dims"] = [
            genres.table_size,
            config.conditions["artist"].table_size,
        ]
    if config.timing:
        settings["timing_dims"] = config.timing.bins
        settings["min_duration"] = config.timing.min_seconds
        settings["max_duration"] = config.timing.max_seconds
    upper = config.upsampler_conditioner
    if upper:
        settings["res_conv_depth"] = upper.depth
        settings["res_conv_width"] = upper.width
        settings["res_convolution_multiplier"] = int(upper.hidden_ratio)
        settings["res_dilation_cycle"] = upper.dilation_cycle
        settings["res_dilation_growth_rate"] = upper.dilation_growth
        settings["conv_res_scale"] = upper.residual_scale
    return {
        "architectures": ["JukeboxPrior"],
        **TransformersPriorConfig(**settings).model_dump(mode="json"),
    }


def vqvae_json(config: VQVAEConfig) -> dict[str, Any]:
    """The config of a VQ-VAE as JSON."""
    return {
        "architectures": ["JukeboxVQVAE"],
        **TransformersVQVAEConfig.of(config).model_dump(mode="json"),
    }


def jukebox_json(vqvae: VQVAEConfig, priors: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The config of a VQ-VAE with its priors, from the top, each as `prior_json` gives it."""
    shared = {name: priors[0][name] for name in SHARED}
    # Genres that a prior has no room for are masked, so that the largest number fits all.
    shared["max_nb_genres"] = max(prior["max_nb_genres"] for prior in priors)
    return {
        "architectures": ["JukeboxModel"],
        "model_type": "jukebox",
        "nb_priors": len(priors),
        "hop_fraction": list(HOP_FRACTIONS[: len(vqvae.levels)]),
        **shared,
        "vqvae_config": vqvae_json(vqvae),
        "prior_config_list": list(priors),
    }


def _transformer(config: TransformerConfig) -> dict[str, Any]:
    return {
        # Without it transformers computes the training pass without a causal mask.
        "mask": True,
        "hidden_size": config.width,
        "num_layers": config.depth,
        "n_heads": config.heads,
        "blocks": config.blocks,
        "attention_pattern": attention_pattern(config),
        "attention_multiplier": config.attention_ratio,
        "mlp_multiplier": config.mlp_ratio,
        "init_scale": config.init_scale,
        "attn_res_scale": config.residual_scale,
        "zero_out": config.zero_out,
    }


def _conditioner_lists(
    config: PriorConfig, from_top: int, vqvae: VQVAEConfig | None
) -> tuple[list[int], list[int]]:
    """`res_downs_t` and `res_strides_t` of a prior.

    transformers takes entry `from_top` for the convolutions that lengthen the codes above, and the product of the first
    3 - from_top for the samples of a code. The VQ-VAE's lists do for both if its upper levels are alike; others are made.
    """
    upper = config.upsampler_conditioner
    if vqvae is not None:
        pairs = list(zip(vqvae.down, vqvae.stride))
        if upper is None or (
            len(pairs) == 3 and pairs[1] == pairs[2] == (upper.down, upper.stride)
        ):
            return list(vqvae.down), list(vqvae.stride)
    if upper is None:
        return [1, 1, 1], [config.hop, 1, 1]
    below = config.hop // upper.ratio if from_top == 1 else config.hop
    return [1, upper.down, upper.down], [below, upper.stride, upper.stride]
