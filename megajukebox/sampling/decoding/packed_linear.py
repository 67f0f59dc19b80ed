"""x W^T + b for the few rows of a decoding step, which is bound by how fast weights are read; packed once a level.

    device, weights      one row                                 more rows
    CPU, float32         `embedding_bag`: a weighted sum of      oneDNN on reordered weights
                         the rows of W^T, read once, in order;
                         `mm` if those are long
    CPU, bfloat16        oneDNN on reordered weights             the same
    CPU, float16         the plain matrix product                the same
    CPU, int8            FBGEMM, inputs quantised on the fly     the same
    elsewhere            cuBLAS                                  the same

MKL, which `F.linear` calls, reads weights at a third of the speed of memory here (docs/decisions/0023).
"""

# N rows   I inputs   O outputs
import warnings
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Linear = Callable[[Tensor], Tensor]  # [N, I] -> [N, O]
PRECISIONS = ("float32", "bfloat16", "float16", "int8")
CACHED_WEIGHTS = (
    1 << 15
)  # weights of models that stay in a cache of the core from one step to the next: any product will do
MM_MIN_OUTPUTS = 2048  # outputs from which on the matrix product reads W^T at 22 GB/s, `embedding_bag` at 13 (docs/decisions/0023)
MAX_PACKED_ROWS = (
    512  # beyond, the plain matrix product is as fast, and nothing is gained by packing
)


def pack_linear(layer: nn.Linear, int8: bool = False) -> Linear:
    """The fastest way known to apply `layer` to few rows on its device; `int8` rounds its weights to 8 bits."""
    weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
    if weight.device.type != "cpu":
        return _int8_on_gpu(weight, bias) if int8 else lambda x_NI: F.linear(x_NI, weight, bias)
    if int8:
        return _int8_on_cpu(weight, bias)
    if weight.dtype == torch.float32:
        return _float32_on_cpu(layer, bias)
    return _reordered(weight, bias)


def _float32_on_cpu(layer: nn.Linear, bias: Tensor | None) -> Linear:
    columns_IO = transpose_in_place(layer)
    weight = layer.weight.detach()
    if columns_IO.numel() <= CACHED_WEIGHTS:
        return lambda x_NI: F.linear(x_NI, weight, bias)
    several, everything = _reordered(weight, bias), torch.arange(len(columns_IO))
    first, long = torch.zeros(1, dtype=torch.long), columns_IO.shape[1] >= MM_MIN_OUTPUTS

    def apply(x_NI: Tensor) -> Tensor:
        if x_NI.shape[0] > 1:
            return several(x_NI)
        if long:
            return (
                torch.mm(x_NI, columns_IO) if bias is None else torch.addmm(bias, x_NI, columns_IO)
            )
        # F.embedding_bag without its checks, which take longer than the sum: mode 0 is "sum".
        y = torch.embedding_bag(columns_IO, everything, first, False, 0, False, x_NI[0])[0]
        return y if bias is None else y.add_(bias)

    return apply


def transpose_in_place(layer: nn.Linear) -> Tensor:
    """W^T [I, O] in one piece. The layer goes on with a view of it, so the weights are in memory once."""
    # As the layer's weights are: those that could be trained still can be after songs were sampled in inference mode.
    with torch.inference_mode(layer.weight.is_inference()), torch.no_grad():
        columns_IO = layer.weight.t().contiguous()
        if not isinstance(layer, nn.Linear) or layer.weight.t().is_contiguous():
            return columns_IO
        layer.weight.data = columns_IO.t()
    return columns_IO


class _Reordered:
    """Weights in oneDNN's own order, made at the first call with several rows; many rows take the plain product."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self.weight, self.bias = weight, bias
        self.inner: Tensor | None = None

    def __call__(self, x_NI: Tensor) -> Tensor:
        if len(x_NI) > MAX_PACKED_ROWS:
            return F.linear(x_NI, self.weight, self.bias)
        if self.inner is None:
            self.inner = torch.ops.mkldnn._reorder_linear_weight(self.weight.contiguous(), 16)
        return torch.ops.mkldnn._linear_pointwise(x_NI, self.inner, self.bias, "none", [], "")


def _reordered(weight: Tensor, bias: Tensor | None) -> Linear:
    known = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    if not known or weight.dtype == torch.float16:  # which oneDNN reorders on the newest CPUs alone
        return lambda x_NI: F.linear(x_NI, weight, bias)
    return _Reordered(weight, bias)


def int8_scales(weight_OI: Tensor) -> Tensor:
    """What one step of int8 is worth in each output row, [O]."""
    return weight_OI.float().abs().amax(1).clamp(min=1e-12) / 127


def _int8_on_cpu(weight_OI: Tensor, bias: Tensor | None) -> Linear:
    zeros, whole = torch.zeros(len(weight_OI), dtype=torch.long), weight_OI.float().contiguous()
    with (
        warnings.catch_warnings()
    ):  # torch means to drop its quantised tensors, and has no other door to FBGEMM yet
        warnings.simplefilter("ignore")
        rounded = torch.quantize_per_channel(whole, int8_scales(weight_OI), zeros, 0, torch.qint8)
    inner, dtype = (
        torch.ops.quantized.linear_prepack(rounded, None if bias is None else bias.float()),
        weight_OI.dtype,
    )
    if dtype == torch.float32:
        return lambda x_NI: torch.ops.quantized.linear_dynamic(x_NI, inner, False)
    return lambda x_NI: torch.ops.quantized.linear_dynamic(x_NI.float(), inner, False).to(dtype)


def _int8_on_gpu(weight_OI: Tensor, bias: Tensor | None) -> Linear:
    """Weights only: read as int8, multiplied in the model's precision. Worth it where compiled into one kernel."""
    scale_O = int8_scales(weight_OI)
    steps_OI = (weight_OI.float() / scale_O[:, None]).round().clamp(-127, 127).to(torch.int8)
    scale_O = scale_O.to(weight_OI.dtype)
    return lambda x_NI: _compiled()(x_NI, steps_OI, scale_O, bias)


@cache
def _compiled() -> Callable[..., Tensor]:
    """Made when it is used: to import the compiler takes two seconds, of every start of every command that samples."""
    return torch.compile(_dequantised, dynamic=False)


def _dequantised(x_NI: Tensor, steps_OI: Tensor, scale_O: Tensor, bias: Tensor | None) -> Tensor:
    y_NO = F.linear(x_NI, steps_OI.to(x_NI.dtype)) * scale_O
    return y_NO if bias is None else y_NO + bias
