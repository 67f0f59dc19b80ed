"""x W^T + b for the few rows of a decoding step, which is bound by how fast weights are read; packed once a level.

    device, weights      one row                                 more rows
    CPU, float32         `embedding_bag`: a weighted sum of      oneDNN on reordered weights
                         the rows of W^T, read once, in order;
                         `mm` if those are long
    CPU, bfloat16        oneDNN on reordered weights             the same
    CPU, float16         the plain matrix product                the same
    CPU, int8            FBGEMM, inputs quantised on the fly     the same
    elsewhere            cuBLAS                                  the same
    elsewhere, int8      weights written out at each step, 2.5   the same
                         times the bytes of bfloat16: refused

MKL, which `F.linear` calls, reads weights at a third of the speed of memory here (docs/decisions/0023).
"""

# N rows   I inputs   O outputs
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Linear = Callable[[Tensor], Tensor]  # [N, I] -> [N, O]
PRECISIONS = ("float32", "bfloat16", "float16", "int8")
# Weights of models that stay in a cache of the core from one step to the next: any product will do.
CACHED_WEIGHTS = 1 << 15
# Outputs from which on the matrix product reads W^T at 22 GB/s, `embedding_bag` at 13 (docs/decisions/0023).
MM_MIN_OUTPUTS = 2048
MAX_PACKED_ROWS = (
    512  # beyond, the plain matrix product is as fast, and nothing is gained by packing
)
INT8_MAX = 127
MIN_WEIGHT = 1e-12  # of a row's greatest, so that a row of zeros has a scale


def pack_linear(layer: nn.Linear, int8: bool = False) -> Linear:
    """The fastest way known to apply `layer` to few rows on its device; `int8` rounds its weights to 8 bits."""
    # Its weight alone would be read here, and the rest left out: adapters are folded in before (data/adapters.py).
    assert not hasattr(layer, "lora_A"), "a layer with an adapter is not packed; fold it"
    weight = layer.weight.detach()
    bias = None if layer.bias is None else layer.bias.detach()
    if weight.device.type != "cpu":
        if not int8:
            return lambda x_NI: F.linear(x_NI, weight, bias)
        return _int8_elsewhere(weight, bias)
    if int8:
        return _int8_on_cpu(weight, bias)
    if weight.dtype == torch.float32:
        return _float32_on_cpu(layer, bias)
    return _reordered(weight, bias)


def _float32_on_cpu(layer: nn.Linear, bias: Tensor | None) -> Linear:
    # W^T in one piece; the layer goes on with a view of it, so the weights are in memory once. They stay as they are:
    # those that could be trained still can be after songs were sampled in inference mode.
    with torch.inference_mode(layer.weight.is_inference()), torch.no_grad():
        columns_IO = layer.weight.t().contiguous()
        if isinstance(layer, nn.Linear) and not layer.weight.t().is_contiguous():
            layer.weight.data = columns_IO.t()
    weight = layer.weight.detach()
    if columns_IO.numel() <= CACHED_WEIGHTS:
        return lambda x_NI: F.linear(x_NI, weight, bias)
    several_rows = _reordered(weight, bias)
    all_inputs = torch.arange(len(columns_IO))
    offset = torch.zeros(1, dtype=torch.long)
    many_outputs = columns_IO.shape[1] >= MM_MIN_OUTPUTS

    def apply(x_NI: Tensor) -> Tensor:
        if x_NI.shape[0] > 1:
            return several_rows(x_NI)
        if many_outputs:
            if bias is None:
                return torch.mm(x_NI, columns_IO)
            return torch.addmm(bias, x_NI, columns_IO)
        # F.embedding_bag without its checks, which take longer than the sum: mode 0 is "sum".
        y = torch.embedding_bag(columns_IO, all_inputs, offset, False, 0, False, x_NI[0])[0]
        return y if bias is None else y.add_(bias)

    return apply


class _Reordered:
    """Weights in oneDNN's own order, made at the first call with several rows; many rows take the plain product."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self.weight = weight
        self.bias = bias
        self.reordered: Tensor | None = None

    def __call__(self, x_NI: Tensor) -> Tensor:
        if len(x_NI) > MAX_PACKED_ROWS:
            return F.linear(x_NI, self.weight, self.bias)
        if self.reordered is None:
            self.reordered = torch.ops.mkldnn._reorder_linear_weight(self.weight.contiguous(), 16)
        return torch.ops.mkldnn._linear_pointwise(x_NI, self.reordered, self.bias, "none", [], "")


def _reordered(weight: Tensor, bias: Tensor | None) -> Linear:
    """Reordered where oneDNN packs weights of this type on this CPU, else the plain product."""
    operators = torch.ops.mkldnn
    available = torch.backends.mkldnn.is_available() and hasattr(operators, "_linear_pointwise")
    supported = available and weight.dtype == torch.float32  # float16: on the newest CPUs alone
    if available and weight.dtype == torch.bfloat16:  # needs AVX-512 or AVX-NE-CONVERT
        supported = bool(operators._is_mkldnn_bf16_supported())
    if supported:
        return _Reordered(weight, bias)
    return lambda x_NI: F.linear(x_NI, weight, bias)


def int8_scales(weight_OI: Tensor) -> Tensor:
    """What one step of int8 is worth in each output row, [O]."""
    return weight_OI.float().abs().amax(1).clamp(min=MIN_WEIGHT) / INT8_MAX


def _int8_elsewhere(weight_OI: Tensor, bias: Tensor | None) -> Linear:
    scale_O = int8_scales(weight_OI)
    rounded_OI = (weight_OI.float() / scale_O[:, None]).round().clamp(-INT8_MAX, INT8_MAX)
    rounded_OI = rounded_OI.to(torch.int8)
    scale_O = scale_O.to(weight_OI.dtype)

    def apply(x_NI: Tensor) -> Tensor:
        y_NO = F.linear(x_NI, rounded_OI.to(x_NI.dtype)) * scale_O
        return y_NO if bias is None else y_NO + bias

    return apply


def _int8_on_cpu(weight_OI: Tensor, bias: Tensor | None) -> Linear:
    zeros = torch.zeros(len(weight_OI), dtype=torch.long)
    scales = int8_scales(weight_OI)
    with (
        warnings.catch_warnings()
    ):  # torch will drop quantised tensors, and has no other way to FBGEMM yet
        warnings.simplefilter("ignore")
        rounded = torch.quantize_per_channel(
            weight_OI.float().contiguous(), scales, zeros, 0, torch.qint8
        )
    packed = torch.ops.quantized.linear_prepack(rounded, None if bias is None else bias.float())
    dtype = weight_OI.dtype
    # Without AVX-512 the sums of two 8-bit products overflow 16 bits: inputs then take 7 bits.
    narrow = not torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    if dtype == torch.float32:
        return lambda x_NI: torch.ops.quantized.linear_dynamic(x_NI, packed, narrow)
    return lambda x_NI: torch.ops.quantized.linear_dynamic(x_NI.float(), packed, narrow).to(dtype)
