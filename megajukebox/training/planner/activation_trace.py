"""What a training pass needs, found by running the real model on the meta device: every tensor
counted, none made.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from megajukebox.models import convnet
from megajukebox.models.codebook import Codebook

# A fused attention that knows the meta device.
FUSED_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
AUTOCAST_OPERATIONS = ("linear", "conv1d", "conv2d", "conv_transpose2d")  # of torch.nn.functional


class TracedPass(NamedTuple):
    """Forward and backward of one micro-batch, weights left out. Bytes."""

    activations: int  # alive when the backward pass begins
    peak: int  # the most alive at any moment
    flops: int  # of the forward pass; a step costs three times this (and recomputing once more)
    frozen_flops: int = 0  # of these, those without gradients: a step costs them once


class AllocationLedger(TorchDispatchMode):
    """Inside it, every new storage is counted until it is freed, and every matrix product and
    convolution.
    """

    def __init__(self, known: list[Tensor]):
        super().__init__()
        self.live = 0
        self.peak = 0
        self.flops = 0
        self.frozen_flops = 0
        self.sizes = {t.untyped_storage()._cdata: 0 for t in known}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self.sizes:
                self.sizes[key] = storage.nbytes()
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._free, key)
        packet = func._overloadpacket
        flops = 0
        if packet is FUSED_ATTENTION:
            flops = sdpa_flop_count(*(tensor.shape for tensor in args[:3]))
        elif packet in flop_registry:
            flops = flop_registry[packet](*args, **(kwargs or {}), out_val=out)
        self.flops += flops
        if not torch.is_grad_enabled():
            self.frozen_flops += flops
        return out

    def _free(self, key: int) -> None:
        self.live -= self.sizes.pop(key)


@contextmanager
def fused_attention(on: bool) -> Iterator[None]:
    """Attention as one operation that keeps no scores, as flash kernels do; otherwise PyTorch's
    plain formula.
    """
    if not on:
        yield
        return

    def attend(
        q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        return FUSED_ATTENTION(q, k, v, 0.0, is_causal, attn_mask=attn_mask)[0]

    with patch.object(F, "scaled_dot_product_attention", attend):
        yield


class TraceSetting(NamedTuple):
    """How a pass is run."""

    weights: str  # their precision
    precision: str  # of products and convolutions; another than the weights' under autocast
    recompute: bool  # activation checkpointing
    fused: bool  # attention that keeps no scores
    cpu: bool  # layers are laid out as CPUs like it
    gradients: bool  # they stay, rather than go away as soon as they are made


@contextmanager
def autocast(how: TraceSetting) -> Iterator[None]:
    """What torch.autocast does to products and convolutions; the meta device has none of its own."""
    if how.weights == how.precision:
        yield
        return
    low = getattr(torch, how.precision)

    def rounded(
        operation: Callable[..., Tensor],
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *rest: Any,
    ) -> Tensor:
        low_bias = None if bias is None else bias.to(low)
        return operation(x.to(low), weight.to(low), low_bias, *rest)

    with ExitStack() as patches:
        for name in AUTOCAST_OPERATIONS:
            operation = getattr(F, name)
            patches.enter_context(patch.object(F, name, partial(rounded, operation)))
        yield


def training_pass(
    build: Callable[[], nn.Module], batch: Callable[[int], dict], size: int, how: TraceSetting
) -> TracedPass:
    """Of `size` samples made by `batch`, through the model of `build`; nothing is allocated."""
    with torch.device("meta"):
        model = build().to(getattr(torch, how.weights)).train()
        samples = batch(size)
        prepare(model, how.recompute)
        if not how.gradients:
            for parameter in model.parameters():
                parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
        ledger = AllocationLedger([*model.parameters(), *model.buffers()])
        with (
            ledger,
            fused_attention(how.fused),
            autocast(how),
            patch.object(convnet, "on_cpu", lambda x: how.cpu),
        ):
            loss = model(samples)[0]
            activations = ledger.live
            flops = ledger.flops
            frozen_flops = ledger.frozen_flops
            loss.backward()
    return TracedPass(activations, ledger.peak, flops, frozen_flops)


def forward_flops(build: Callable[[], nn.Module], batch: Callable[[], dict]) -> int:
    """Of every product and convolution of the model's forward pass over a batch; nothing is
    allocated.
    """
    with torch.device("meta"):
        model = build().train()
        samples = batch()
        prepare(model, recompute=False)
        with AllocationLedger([]) as ledger:
            model(samples)
    return ledger.flops


def prepare(model: nn.Module, recompute: bool) -> None:
    """Take out what the meta device cannot do (codebooks learn by counting), and recompute
    activations if asked.
    """
    for module in model.modules():
        if isinstance(module, Codebook):
            module.started = torch.tensor(True, device="cpu")
            module.update = lambda *unused: {}  # type: ignore[method-assign]
    layers = getattr(model, "blocks", None)
    if recompute and isinstance(layers, nn.ModuleList):
        for layer in layers:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
