"""Which engine trains a model: what stands in its ds_config decides, and the loop cannot tell which
it got.
"""

import os
from collections.abc import Callable, Mapping

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from megajukebox.common.errors import UserError
from megajukebox.models.base_precision import FORMATS
from megajukebox.models.prior import PriorConfig
from megajukebox.training.adapter_task import (
    AdapterTask,
    check_engine,
    engine_dtype,
    with_learning_rate,
)
from megajukebox.training.engines import collectives
from megajukebox.training.engines.model_init import building, fill, load_frozen, zero_stage
from megajukebox.training.engines.pipeline import PipelineEngine
from megajukebox.training.engines.zero import ZeroEngine
from megajukebox.training.settings import TrainingSettings


def build_engine(
    config: BaseModel,
    build: Callable[[], nn.Module],
    ds_config: dict,
    settings: TrainingSettings,
    weights: Mapping[str, Tensor] | None = None,
    adapter: AdapterTask | None = None,
) -> ZeroEngine:
    """The engine for the model of `config`, its first weights drawn from the seed whatever the way
    of training.

    Those named in `weights` take their values instead. With an `adapter` nothing else is trained.

    Raises UserError for a pipeline of anything but a prior.
    """
    if settings.deterministic:
        make_deterministic()
    if "pipeline" in ds_config:
        if not isinstance(config, PriorConfig):
            raise UserError(
                "only priors train as a pipeline; choose a ds_config without `pipeline`"
            )
        if adapter:
            raise UserError(
                "a pipeline trains no adapter; choose a ds_config without `pipeline`, such as"
                " adapter@hopper.yaml"
            )
        if settings.freeze:
            raise UserError(
                "a pipeline trains all parts; leave freeze out, or choose a ds_config without `pipeline`"
            )
        return PipelineEngine(
            config, ds_config, settings.seed, weights, settings.spikes, settings.ema_decay
        )
    collectives.seed(settings.seed)
    if adapter:
        assert weights is not None, "an adapter has a base"
        return build_adapter_engine(build, ds_config, settings, weights, adapter)
    with building(ds_config):
        model = build()
    fill(dict(model.named_parameters()) | dict(model.named_buffers()), weights or {})
    freeze(model, settings.freeze)
    return ZeroEngine(model, ds_config, settings.spikes, settings.ema_decay)


def build_adapter_engine(
    build: Callable[[], nn.Module],
    ds_config: dict,
    settings: TrainingSettings,
    base: Mapping[str, Tensor],
    adapter: AdapterTask,
) -> ZeroEngine:
    """The engine of a frozen model and the adapter beside it.

    Without ZeRO-3 the model is built on the meta device and takes one weight after another from its file, each at once
    in the precision that it is kept in: no process holds it in float32.
    """
    stage = zero_stage(ds_config)
    check_engine(adapter.settings, stage)
    ds_config = with_learning_rate(ds_config, adapter.settings.learning_rate)
    weights = adapter.first_weights(base)
    if stage == 3:
        with building(ds_config):
            model = build()
            adapter.add_to(model)
        fill(dict(model.named_parameters()) | dict(model.named_buffers()), weights)
    else:
        with torch.device("meta"):
            model = build()
        adapter.add_to(model)
        form = adapter.settings.base
        load_frozen(model, weights, engine_dtype(ds_config), form if form in FORMATS else None)
    return ZeroEngine(model, ds_config, settings.spikes, settings.ema_decay, saves_frozen=False)


def make_deterministic() -> None:
    """From now on every operation of this process repeats to the last bit, or raises."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which torch asks for on GPUs
    # Filling fresh memory would cost time for nothing.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)


def freeze(model: nn.Module, parts: tuple[str, ...]) -> None:
    """Parameters of `parts`, such as `lyrics` or `blocks.3`, are no longer trained. ValueError for
    an unknown part.
    """
    for part in parts:
        is_frozen = False
        for name, parameter in model.named_parameters():
            if name == part or name.startswith(f"{part}."):
                parameter.requires_grad_(False)
                is_frozen = True
        if not is_frozen:
            known = dict.fromkeys(name.split(".")[0] for name, _ in model.named_parameters())
            raise UserError(
                f"freeze: the model has no part {part!r}; it has {', '.join(known)}, and parts of those"
            )
    if not any(p.requires_grad for p in model.parameters()):
        raise UserError("freeze leaves nothing to train; name fewer parts")
