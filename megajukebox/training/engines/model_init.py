"""Before an engine: a model is built (shared out under ZeRO-3), given weights, told to recompute
activations.
"""

import contextlib
from collections.abc import Mapping
from functools import partial

import deepspeed
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def building(ds_config: dict) -> contextlib.AbstractContextManager:
    """Build a model inside this: under ZeRO-3 no process ever holds the whole of it."""
    if zero_stage(ds_config) == 3:
        return deepspeed.zero.Init(config_dict_or_path=ds_config)
    return contextlib.nullcontext()


def zero_stage(ds_config: dict) -> int:
    """0 to 3; 0 shares nothing out."""
    return ds_config.get("zero_optimization", {}).get("stage", 0)


def recompute_activations(layers: nn.ModuleList) -> None:
    """Forget each layer's activations in the forward pass and compute them again in the backward
    pass.
    """
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def fill(parameters: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Give `parameters` (by name; shared out under ZeRO-3) the values in `weights`. Names and
    shapes must have been compared before; a tied name that `weights` lacks has its values under the
    other.
    """
    for name, parameter in parameters.items():
        if name not in weights:
            continue
        shared = hasattr(parameter, "ds_id")
        writer = 0 if shared else None
        gathered = deepspeed.zero.GatheredParameters(
            [parameter], modifier_rank=writer, enabled=shared
        )
        with gathered:
            if not shared or dist.get_rank() == 0:
                parameter.data.copy_(weights[name])
