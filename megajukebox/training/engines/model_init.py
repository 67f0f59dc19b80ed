"""Before an engine: a model is built (shared out under ZeRO-3), given weights, told to recompute
activations.
"""

import contextlib
from collections.abc import Mapping
from functools import partial
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from megajukebox.common.errors import UserError
from megajukebox.common.model_files import assign, names_by_tensor
from megajukebox.models.adapters import AdaptedDense, is_adapted


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


def load_frozen(
    model: nn.Module, weights: Mapping[str, Tensor], dtype: torch.dtype, form: str | None
) -> None:
    """Fill a model that lies on the meta device but for its adapters, one weight at a time.

    Args:
        form: how the dense layers with an adapter keep theirs (base_precision.py); None: in `dtype`, as the rest.
    """
    for name, module in model.named_modules():
        if form and isinstance(module, AdaptedDense):
            module.pack(form, weights[f"{name}.weight"])
    for names in names_by_tensor(model):
        stored = next(name for name in names if name in weights or is_adapted(name))
        if stored in weights:
            assign(model, names, weights[stored], dtype)


def parameter_groups(model: nn.Module, ds_config: dict) -> list[Any]:
    """The parameters to train; those with a learning rate of their own (`lr_scales` of the model) as groups.

    Raises:
        UserError: the model has such rates, and the ds_config names none to scale.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    scales_of = getattr(model, "lr_scales", None)
    scales: dict[str, float] = scales_of() if callable(scales_of) else {}
    if not scales:
        return [p for _, p in trained]
    rate = ds_config.get("optimizer", {}).get("params", {}).get("lr")
    if rate is None:
        raise UserError(
            "lr_scale needs the learning rate that it scales; set optimizer.params.lr in the ds_config"
        )
    groups: dict[float, list[nn.Parameter]] = {}
    for name, p in trained:
        matching = [scale for start, scale in scales.items() if name.startswith(start)]
        groups.setdefault(matching[0] if matching else 1.0, []).append(p)
    return [{"params": parameters, "lr": rate * scale} for scale, parameters in groups.items()]
