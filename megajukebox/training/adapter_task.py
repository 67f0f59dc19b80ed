"""An adapter as a task: which prior it is trained beside, its new names, and what its record says."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from megajukebox.common.errors import UserError
from megajukebox.conditioning.jukebox_labels import as_written
from megajukebox.conditioning.vocabulary import Vocabulary, normalised
from megajukebox.data.adapters import rows_name
from megajukebox.models.adapters import add_adapters
from megajukebox.models.prior import Prior, PriorConfig
from megajukebox.records.adapters import AdapterRecord
from megajukebox.training.settings import AdapterSettings

if TYPE_CHECKING:
    from megajukebox.training.finetune import PretrainedModel


@dataclass(frozen=True)
class AdapterTask:
    """What is trained beside the frozen weights of a prior."""

    settings: AdapterSettings
    seed: int
    known: dict[str, int] = field(default_factory=dict)  # condition -> names of the base
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)  # condition -> new names
    record: AdapterRecord = field(
        default_factory=AdapterRecord
    )  # what is known of it before it is trained

    def add_to(self, prior: nn.Module) -> None:
        """Freeze a prior and put the adapter beside its layers."""
        assert isinstance(prior, Prior)
        new_names = {name: (self.known[name], len(new)) for name, new in self.names.items()}
        config = self.settings.config
        add_adapters(prior, config, new_names, self.settings.dropout, self.seed)

    def first_weights(self, base: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The base's weights, and the first rows of new names: each the mean of the known ones."""
        rows: dict[str, Tensor] = {}
        for condition, new in self.names.items():
            table_VW = base[f"labels.tables.{condition}.weight"].float()
            known = self.known[condition]
            mean_W = table_VW[1:known].double().mean(0).float() if known > 1 else table_VW[0]
            rows[rows_name(condition)] = mean_W.expand(len(new), -1)
        return ChainMap(rows, base)  # type: ignore[arg-type]


def adapter_task(
    settings: AdapterSettings,
    seed: int,
    level: str,
    base: PretrainedModel | None,
    corpus: Mapping[str, Any],
) -> AdapterTask:
    """The adapter that `settings` describe, beside the prior `base`.

    Args:
        corpus: songs, hours and the VQ-VAE of the codes, for the record.

    Raises:
        UserError: there is no base, or it is not conditioned on one of the names.
    """
    if base is None:
        raise UserError("an adapter is trained beside a trained prior; give it: --from RUN")
    config = base.config
    assert isinstance(config, PriorConfig)
    asked: dict[str, list[str]] = {name: list(new) for name, new in settings.names.items()}
    for condition, name in settings.labels.items():
        asked.setdefault(condition, []).append(name)
    known: dict[str, int] = {}
    new: dict[str, tuple[str, ...]] = {}
    for condition, names in asked.items():
        if condition not in config.conditions or condition == "year":
            possible = ", ".join(name for name in config.conditions if name != "year") or "nothing"
            raise UserError(
                f"{base.folder} takes no new names of {condition!r}; it takes them of {possible}"
            )
        vocabulary = base.vocabularies.get(condition, Vocabulary())
        added = new_names(vocabulary, base.facts.get("names"), condition, names)
        if added:
            known[condition] = len(vocabulary)
            new[condition] = added
    record = AdapterRecord(
        level=level,
        base=base.facts["fingerprint"],
        config=settings.config.model_dump(mode="json"),
        names={condition: list(names) for condition, names in new.items()},
        labels=dict(settings.labels),
        base_precision=settings.base,
        licence=base.facts.get("licence"),
        **corpus,
    )
    return AdapterTask(settings, seed, known, new, record)


def new_names(
    vocabulary: Vocabulary, spelling: str | None, condition: str, names: list[str]
) -> tuple[str, ...]:
    """Those of `names`, as the vocabulary spells them, that it does not know."""
    new: dict[str, None] = {}
    for name in names:
        if not normalised(name):
            raise UserError(f"{name!r} is no {condition}; give a name")
        for word in as_written(spelling, condition, name):
            if not vocabulary.id(word):
                new[normalised(word)] = None
    return tuple(new)


def check_engine(settings: AdapterSettings, zero_stage: int) -> None:
    """Raise UserError where the frozen weights cannot be kept as asked under that ZeRO stage."""
    if settings.base != "as_trained" and zero_stage == 3:
        raise UserError(
            f"adapter.base {settings.base} is not shared out by ZeRO-3; choose a ds_config of"
            " ZeRO-0 or 1, such as adapter@hopper.yaml, or leave adapter.base out"
        )


def with_learning_rate(ds_config: dict[str, Any], rate: float) -> dict[str, Any]:
    """A ds_config whose optimizer has this peak learning rate."""
    optimizer = ds_config["optimizer"]
    params = {**optimizer.get("params", {}), "lr": rate}
    return {**ds_config, "optimizer": {**optimizer, "params": params}}


def engine_dtype(ds_config: Mapping[str, Any]) -> torch.dtype:
    """The type that DeepSpeed will cast the weights to."""
    for key, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        if ds_config.get(key, {}).get("enabled"):
            return dtype
    return torch.float32
