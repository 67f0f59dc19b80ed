"""Operations of a decoding step that a GPU does in one kernel each (triton_kernels.py), and their plain twins.

    decode_attention    stores a position's key and value, and attends         else 5 to 14 kernels
    add_norm            a sum and its layer norm                               else 2 (float32), 4 in 16 bits
    quick_gelu_         x sigmoid(1.702 x), in place                           else 3

They are operators of torch with an implementation by device, so that whoever watches operations sees one each. On a CPU
the implementation is the twin; decoding on a CPU does not use them.
"""

# B songs   H heads   D size of a head   S positions of a cache   M rows   W width
import importlib.util
import logging
from functools import cache
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from megajukebox.sampling.decoding.cuda_device import on_device

log = logging.getLogger(__name__)

# Volta is out of Triton's support, but these kernels compile for it (tests/gpu/test_triton_kernels.py).
MIN_CAPABILITY = (7, 0)
QUICK_GELU = 1.702
# Of kernels compared with their twins: a few roundings. What is wrong is off by about 1.
CHECK_TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}

torch.library.define(
    "megajukebox::decode_attention",
    "(Tensor qkv_BPHD, Tensor(a!) memory, Tensor index, Tensor? previous) -> Tensor",
)
torch.library.define(
    "megajukebox::add_norm",
    "(Tensor base, Tensor update, Tensor weight, Tensor bias, float scale, float eps)"
    " -> (Tensor, Tensor)",
)
torch.library.define("megajukebox::quick_gelu_", "(Tensor(a!) x) -> ()")

# [B, P, H, D] of a position, memory [2, B, H, S, padded D], index [1] int64, None or keys and values to read instead of
# `memory` -> the attention output [B, H D]. P = 3: query, key, value; the two are stored at `index` if it is < S, and
# the query sees the keys up to `index`, or all that are read instead. P = 1: a query that sees all S keys.
decode_attention = torch.ops.megajukebox.decode_attention
# Sum base + scale * update [M, W] as it is stored, and its layer norm [M, W] in float32 inside.
add_norm = torch.ops.megajukebox.add_norm
quick_gelu_ = torch.ops.megajukebox.quick_gelu_


def plain_decode_attention(
    qkv_BPHD: Tensor, memory: Tensor, index: Tensor, previous: Tensor | None
) -> Tensor:
    """The twin of the kernel."""
    size = qkv_BPHD.shape[-1]
    keys, values = (memory if previous is None else previous)[..., :size]
    seen = keys.shape[2]
    if qkv_BPHD.shape[1] == 3:
        position = int(index)
        if position < memory.shape[3]:
            memory[..., position, :size] = qkv_BPHD[:, 1:].transpose(0, 1)
        if previous is None:
            seen = min(position + 1, seen)
    query_BH1D = qkv_BPHD[:, 0, :, None]
    read = F.scaled_dot_product_attention(query_BH1D, keys[:, :, :seen], values[:, :, :seen])
    return read.flatten(1)


def plain_add_norm(
    base_MW: Tensor, update_MW: Tensor, weight: Tensor, bias: Tensor, scale: float, eps: float
) -> tuple[Tensor, Tensor]:
    """The twin of the kernel."""
    total_MW = base_MW + (update_MW if scale == 1.0 else scale * update_MW)
    wide_MW = F.layer_norm(total_MW.float(), weight.shape, weight.float(), bias.float(), eps)
    return total_MW, wide_MW.to(total_MW.dtype)


def plain_quick_gelu_(x_MW: Tensor) -> None:
    """The twin of the kernel."""
    x_MW.copy_(x_MW * torch.sigmoid(QUICK_GELU * x_MW))


@cache
def _kernels() -> ModuleType:
    """Triton takes seconds to import, and is not everywhere."""
    from megajukebox.sampling.decoding import triton_kernels

    return triton_kernels


for _name, _twin in (
    ("decode_attention", plain_decode_attention),
    ("add_norm", plain_add_norm),
    ("quick_gelu_", plain_quick_gelu_),
):
    torch.library.impl(f"megajukebox::{_name}", "cpu", _twin)

torch.library.impl(
    "megajukebox::decode_attention", "cuda", lambda *args: _kernels().decode_attention(*args)
)
torch.library.impl("megajukebox::add_norm", "cuda", lambda *args: _kernels().add_norm(*args))
torch.library.impl("megajukebox::quick_gelu_", "cuda", lambda x: _kernels().quick_gelu_(x))


def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def fused_steps(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether steps on this device are done by these operations: a GPU runs them, and they were seen to be right there."""
    if device.type != "cuda" or not has_triton():
        return False
    if torch.cuda.get_device_capability(device) < MIN_CAPABILITY:
        return False
    return _kernels_agree(device, dtype)


@cache
def _kernels_agree(device: torch.device, dtype: torch.dtype) -> bool:
    """Compile the kernels, and compare them with their twins; a line is logged where they fail."""
    try:
        with on_device(device):
            error = _error_of_kernels(device, dtype)
    except Exception as failure:  # of a compiler or a driver: whatever it is, the plain way is left
        log.warning("decoding by plain operations: Triton failed on %s: %s", device, failure)
        return False
    if error > CHECK_TOLERANCE[dtype]:
        log.warning("decoding by plain operations: kernels on %s are off by %.2g", device, error)
        return False
    return True


def _error_of_kernels(device: torch.device, dtype: torch.dtype) -> float:
    """The greatest difference of the kernels on the device from their twins on the host, relative to 1 + its value."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    songs, heads, size, padded, keys = 2, 3, 150, 160, 40
    pairs = []
    for parts in (1, 3):
        qkv_BPHD = normal(songs, parts, heads, size)
        memory = F.pad(normal(2, songs, heads, keys, size), (0, padded - size))
        index = torch.tensor([9])
        there = memory.to(device)
        read = decode_attention(qkv_BPHD.to(device), there, index.to(device), None)
        pairs.append((read, plain_decode_attention(qkv_BPHD, memory, index, None)))
        pairs.append((there, memory))
    base, update, weight, bias = (normal(songs, 300), normal(songs, 300), normal(300), normal(300))
    inputs = [x.to(device) for x in (base, update, weight, bias)]
    pairs += zip(
        add_norm(*inputs, 0.5, 1e-5), plain_add_norm(base, update, weight, bias, 0.5, 1e-5)
    )
    quick_gelu_(inputs[0])
    plain_quick_gelu_(base)
    pairs.append((inputs[0], base))
    errors = []
    for got, expected in pairs:
        difference = (got.cpu().float() - expected.float()).abs() / (1 + expected.float().abs())
        errors.append(difference.nan_to_num(torch.inf).max())
    return float(torch.stack(errors).max())
