"""Hyper-parameters under the reference's names, looked up in several sources; one error names all that are missing."""

from collections.abc import Mapping
from typing import Any

from megajukebox.common.errors import UserError

# A prior's file also has these, but with the reference's defaults: only the VQ-VAE's own file is right about them.
OF_THE_VQVAE = frozenset(
    (
        "levels",
        "downs_t",
        "strides_t",
        "hvqvae_multipliers",
        "emb_width",
        "l_bins",
        "width",
        "depth",
        "m_conv",
    )
)
# Settings that change no number of a trained model, with the reference's defaults.
HARMLESS = {
    "init_scale": 1.0,
    "zero_out": False,
    "prime_init_scale": 1.0,
    "prime_zero_out": False,
    "cond_zero_out": False,
    "prime_loss_fraction": 0.1,
    "m_attn": 0.25,
    "m_mlp": 1.0,
    "prime_m_attn": 0.25,
    "prime_m_mlp": 1.0,
    "cond_m_conv": 1.0,
    "m_conv": 1.0,
    "linf_k": 2048,
    "spectral": 0.0,
    "multispectral": 1.0,
    "lmix_l1": 0.0,
    "lmix_l2": 0.0,
    "lmix_linf": 0.0,
    "l_mu": 0.99,
    "revival_threshold": 1.0,
    "multispec_loss_n_fft": (2048, 1024, 512),
    "multispec_loss_hop_length": (240, 120, 50),
    "multispec_loss_window_size": (1200, 600, 240),
}


# What a prior's or a VQ-VAE's settings may be called beside those of the released models.
OTHER_NAMES = frozenset(
    (
        *(
            "level",
            "labels_v3",
            "cond_c_res",
            "cond_downs_t",
            "cond_strides_t",
            "prime_m_attn",
            "prime_m_mlp",
        ),
        *(
            "cond_dilation_growth_rate",
            "cond_dilation_cycle",
            "cond_res_scale",
            "max_bow_genre_size",
        ),
        *("c_res", "sample_length"),  # of OpenAI's own files of settings; no trained model has them
    )
)
# Settings that the shapes of tensors tell: another value than theirs would be without effect.
OF_SHAPES = frozenset(
    (
        *("levels", "width", "depth", "emb_width", "l_bins", "n_ctx", "y_bins", "t_bins"),
        *("prior_width", "prior_depth", "prime_width", "prime_depth", "cond_width", "cond_depth"),
    )
)


class Hps:
    """Looks a name up in `sources`, in this order, and in `HARMLESS` last. `where` names the file in errors."""

    def __init__(self, where: str, *sources: Mapping[str, Any]):
        self.where = where
        self._sources = (*sources, HARMLESS)

    def __contains__(self, name: str) -> bool:
        return any(name in source for source in self._sources)

    def __getitem__(self, name: str) -> Any:
        self.require([name])
        return self.get(name)

    def get(self, name: str, default: Any = None) -> Any:
        for source in self._sources:
            if name in source:
                return source[name]
        return default

    def require(self, names: list[str]) -> None:
        """Raise UserError with all of `names` that no source has."""
        missing = [name for name in names if name not in self]
        if missing:
            raise UserError(
                f"{self.where} does not say {', '.join(missing)}, and it has the shapes of no released model; "
                f"give them, as in --set {missing[0]}=VALUE"
            )


# Choices that some code of the reference knows and no model of it was released with; we have no layer for them.
UNSUPPORTED = {
    "y_cond_as_bias": False,
    "copy_input": False,
    "use_bottleneck": True,
    "prime_rel_attn": False,
}


def refuse_unsupported(given: Hps) -> None:
    """Raise UserError for a model with a part that megajukebox does not have."""
    for name, supported in UNSUPPORTED.items():
        if bool(given.get(name, supported)) != supported:
            raise UserError(
                f"{given.where} was made with {name} {given[name]}, which megajukebox does not have"
            )
