"""What OpenAI's and Hugging Face's layouts cannot say of our models: every reason, before a file is written."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from megajukebox.common.errors import UserError
from megajukebox.interop.label_names import label_version
from megajukebox.interop.tensor_names import LABEL_TABLES, ORDER_OF_SCHEDULE
from megajukebox.interop.transformers_config import SCHEDULE_OF_PATTERN, attention_pattern
from megajukebox.models.prior import PriorConfig
from megajukebox.models.transformer import TransformerConfig
from megajukebox.models.vqvae import VQVAEConfig

LAYOUT_NAMES = {"openai": "OpenAI's", "hugging_face": "Hugging Face's"}
CHARACTER_TOKENIZERS = {80: "jukebox_v2", 79: "jukebox_v3"}  # by the entries of their vocabulary
MAX_REASONS = 6  # of one model in an error


class ModelToExport(NamedTuple):
    """One model as the checks see it."""

    folder: Path
    config: VQVAEConfig | PriorConfig
    facts: Mapping[str, Any]


def refuse_inexpressible(models: Sequence[ModelToExport], layout: str) -> None:
    """Raise UserError if `layout`, a name in LAYOUT_NAMES, has no words for a part of one of the models."""
    vqvaes = [model.config for model in models if isinstance(model.config, VQVAEConfig)]
    vqvae = vqvaes[0] if vqvaes else None
    refused: list[str] = []
    for model in models:
        reasons = list(_reasons(model, vqvae, layout))
        if reasons:
            more = f" and {len(reasons) - MAX_REASONS} more" if len(reasons) > MAX_REASONS else ""
            refused.append(f"{model.folder}: {'; '.join(reasons[:MAX_REASONS])}{more}")
    if layout == "hugging_face" and not refused:
        refused += _reasons_of_set(models)
    if refused:
        raise UserError(
            f"{LAYOUT_NAMES[layout]} layout would hold another model, so nothing was written:"
            f" {'. '.join(refused)}. --layout megajukebox holds it all"
        )


def _reasons(model: ModelToExport, vqvae: VQVAEConfig | None, layout: str) -> Iterator[str]:
    config = model.config
    if isinstance(config, VQVAEConfig):
        if layout == "hugging_face":
            yield from _transformers_vqvae(config)
        return
    yield from _conditions(config)
    yield from _place(config, vqvae, layout)
    yield from _lyrics(config, model.facts)
    transformers = {"schedule": config.transformer}
    if config.lyrics and config.lyrics.encoder:
        transformers["lyrics.encoder.schedule"] = config.lyrics.encoder
    for field, shape in transformers.items():
        yield from _schedule(field, shape, layout)
    upper = config.upsampler_conditioner
    if upper and layout == "hugging_face" and upper.hidden_ratio % 1:
        yield f"upsampler_conditioner.hidden_ratio {upper.hidden_ratio:g} (transformers has whole ones)"


def _conditions(config: PriorConfig) -> Iterator[str]:
    """Both of theirs sum one artist and a bag of genres, before the first position only."""
    others = sorted(config.conditions.keys() - LABEL_TABLES.keys())
    if others:
        yield f"conditions {', '.join(others)} (the layout has artist and genres)"
    missing = sorted(LABEL_TABLES.keys() - config.conditions.keys())
    if config.conditions and missing:
        yield f"conditions without {', '.join(missing)} (the layout has both or neither)"
    artist = config.conditions.get("artist")
    if artist and artist.max_values != 1:
        yield f"conditions.artist.max_values {artist.max_values} (the layout has one artist)"
    if config.conditions and config.conditions_at_every_position:
        yield "conditions_at_every_position (the layout adds them before the first position only)"
    if config.aligned:
        yield f"aligned conditions {', '.join(sorted(config.aligned))}"


def _place(config: PriorConfig, vqvae: VQVAEConfig | None, layout: str) -> Iterator[str]:
    """Theirs has timing where it has labels and reads no level above; all levels but the top read the one above."""
    upper = config.upsampler_conditioner
    if (upper is None) != (config.level == "top"):
        reads = (
            "reads no codes of a level above" if upper is None else "reads codes of a level above"
        )
        yield f"the {config.level} prior {reads} (in the layout all but the top do)"
    if config.timing and upper:
        yield "timing beside the codes of a level above (the layout has timing at the top only)"
    elif config.timing and not config.conditions:
        yield "timing without labels (the layout has both or neither at the top)"
    elif config.conditions and not config.timing and not upper:
        yield "labels without timing (the layout has both or neither at the top)"
    if upper and vqvae and layout == "openai" and config.level in vqvae.levels[:-1]:
        above = vqvae.levels.index(config.level) + 1
        theirs = (vqvae.down[above], vqvae.stride[above])
        if theirs != (upper.down, upper.stride):
            yield (
                f"upsampler_conditioner of {upper.down} convolutions of stride {upper.stride}"
                f" (in the layout those of the VQ-VAE, {theirs[0]} of {theirs[1]})"
            )


def _lyrics(config: PriorConfig, facts: Mapping[str, Any]) -> Iterator[str]:
    if not config.lyrics:
        return
    tokenizer = facts.get("tokenizer")
    if tokenizer != CHARACTER_TOKENIZERS.get(config.lyrics.size):
        yield (
            f"a tokenizer of {config.lyrics.size} pieces of its own"
            " (the layout has OpenAI's characters, jukebox_v2 or jukebox_v3)"
        )
    elif config.conditions.keys() >= LABEL_TABLES.keys():
        version = label_version(config, facts.get("names"))
        if tokenizer != f"jukebox_{version}":
            yield f"{tokenizer} lyrics beside {version} labels (the layout has one version for both)"


def _schedule(field: str, config: TransformerConfig, layout: str) -> Iterator[str]:
    if layout == "hugging_face" and attention_pattern(config) is None:
        known = ", ".join(SCHEDULE_OF_PATTERN.values())
        yield f"{field} {config.schedule} (transformers has {known})"
    if layout == "openai" and config.schedule not in ORDER_OF_SCHEDULE:
        yield f"{field} {config.schedule} (OpenAI's code has {', '.join(ORDER_OF_SCHEDULE)})"


def _transformers_vqvae(config: VQVAEConfig) -> Iterator[str]:
    if not config.reverse_decoder_dilation:
        yield "reverse_decoder_dilation false (transformers always reverses)"
    if config.hidden_ratio % 1:
        yield f"hidden_ratio {config.hidden_ratio:g} (transformers has whole ones)"


def _reasons_of_set(models: Sequence[ModelToExport]) -> Iterator[str]:
    """transformers numbers priors from the top without gaps, and has one flag for the labels of all."""
    priors = [model.config for model in models if isinstance(model.config, PriorConfig)]
    if len(priors) == len(models) == 1:
        return  # saved alone
    vqvaes = [model.config for model in models if isinstance(model.config, VQVAEConfig)]
    if priors and not vqvaes:
        yield "priors without their VQ-VAE (export each alone, or add the vqvae run)"
        return
    from_top = list(reversed(vqvaes[0].levels))
    given = [prior.level for prior in priors]
    numbered = from_top[: len(given)]
    if set(given) != set(numbered):
        missing = [level for level in numbered if level not in given]
        yield (
            f"the priors are {', '.join(given)}, but the layout counts them from the top"
            f" (add the {', '.join(missing)} prior, or export each alone)"
        )
    labelled = [prior.level for prior in priors if prior.conditions]
    if labelled and len(labelled) < len(priors):
        yield f"labels at {', '.join(labelled)} only (the layout has them at all levels or none)"
