"""Which engine trains a model: what stands in its ds_config decides, and the loop cannot tell which it got."""

from collections.abc import Callable, Mapping

from pydantic import BaseModel
from torch import Tensor, nn

from megajukebox.models.prior import PriorConfig
from megajukebox.training import parallel
from megajukebox.training.pipeline import PipelineEngine


def engine_of(
    config: BaseModel,
    build: Callable[[], nn.Module],
    ds_config: dict,
    seed: int,
    weights: Mapping[str, Tensor] | None = None,
) -> parallel.Engine:
    """The engine for the model of `config`, its first weights drawn from `seed` whatever the way of training.

    Those named in `weights` take their values instead.

    Raises ValueError for a pipeline of anything but a prior.
    """
    if "pipeline" in ds_config:
        if not isinstance(config, PriorConfig):
            raise ValueError("only priors train as a pipeline; choose a ds_config without `pipeline`")
        return PipelineEngine(config, ds_config, seed, weights)
    parallel.seed(seed)
    with parallel.building(ds_config):
        model = build()
    parallel.fill(dict(model.named_parameters()) | dict(model.named_buffers()), weights or {})
    return parallel.Engine(model, ds_config)
