"""Weights that do not learn, kept in fewer bits: bfloat16, 8 bits a row, or NF4 (4 bits in blocks).

The numbers are made again where they are needed, in the forward and in the backward pass; nothing else is kept. Plain
tensor operations: what runs on a CPU runs on a GPU, and a reader can follow it.
"""

# R rows (outputs)   I inputs   N values   B blocks
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

NF4_BLOCK = 64  # weights that share a scale (QLoRA, Dettmers et al. 2023, section 3)
# Where the quantiles of the normal distribution begin; it makes the end points 1 and -1 (QLoRA, section 3).
NF4_OFFSET = 0.9677083
INT8_LARGEST = 127
FORMATS = ("bfloat16", "int8", "nf4")
# Bits of a stored weight, its share of the scales included: int8 has one float32 a row of thousands.
STORED_BITS = {"float32": 32.0, "bfloat16": 16.0, "int8": 8.0, "nf4": 4 + 32 / NF4_BLOCK}


@cache
def nf4_values() -> Tensor:
    """The 16 values of NF4 [16] float32, ascending: quantiles of the normal distribution, scaled to -1..1; one is 0."""
    above = torch.special.ndtri(torch.linspace(NF4_OFFSET, 0.5, 9, dtype=torch.float64)[:-1])
    below = -torch.special.ndtri(torch.linspace(NF4_OFFSET, 0.5, 8, dtype=torch.float64)[:-1])
    values = torch.cat([below, torch.zeros(1, dtype=torch.float64), above.flip(0)])
    return (values / values.abs().max()).float()


class PackedWeight:
    """A matrix [R, I] in one of FORMATS. No parameter or buffer: no engine casts, clones, shares out or saves it."""

    def __init__(self, form: str, weight_RI: Tensor):
        self.form = form
        self.shape = tuple(weight_RI.shape)
        weight_RI = weight_RI.detach().float()
        if form == "bfloat16":
            self.codes = weight_RI.bfloat16()
            self.scales = None
        elif form == "int8":
            largest_R1 = weight_RI.abs().amax(1, keepdim=True).clamp(min=1e-30)
            self.scales = largest_R1 / INT8_LARGEST
            self.codes = (weight_RI / self.scales).round().to(torch.int8)
        else:
            self.codes, self.scales = pack_nf4(weight_RI)

    @property
    def bytes(self) -> int:
        """What it takes in memory."""
        scales = 0 if self.scales is None else self.scales.nbytes
        return self.codes.nbytes + scales

    def to(self, device: torch.device) -> None:
        """Move it; its precision stays."""
        self.codes = self.codes.to(device)
        self.scales = None if self.scales is None else self.scales.to(device)

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        """The matrix [R, I] that it stands for."""
        if self.scales is None:
            return self.codes.to(dtype)
        if self.form == "int8":
            return (self.codes * self.scales).to(dtype)
        return unpack_nf4(self.codes, self.scales, self.shape).to(dtype)


def pack_nf4(weight_RI: Tensor) -> tuple[Tensor, Tensor]:
    """Two values a byte [N / 2] uint8, the first in the high bits, and a scale a block [B, 1] float32."""
    flat_N = weight_RI.flatten()
    padded = F.pad(flat_N, (0, -len(flat_N) % NF4_BLOCK)).view(-1, NF4_BLOCK)
    scales_B1 = padded.abs().amax(1, keepdim=True)
    unit = padded / scales_B1.clamp(min=1e-30)
    values = nf4_values().to(weight_RI.device)
    middles = (values[1:] + values[:-1]) / 2  # the nearest value changes there
    nearest = torch.bucketize(unit, middles).to(torch.uint8).view(-1, 2)
    return (nearest[:, 0] << 4) | nearest[:, 1], scales_B1


def unpack_nf4(codes: Tensor, scales_B1: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `pack_nf4`, in float32."""
    pairs = torch.stack([codes >> 4, codes & 15], dim=1)
    values = nf4_values().to(codes.device).index_select(0, pairs.flatten().int())
    values = values.view(-1, NF4_BLOCK)
    count = torch.Size(shape).numel()
    return (values * scales_B1).flatten()[:count].view(shape)


class PackedLinear(torch.autograd.Function):
    """x W^T with a packed W: the backward pass unpacks it again instead of keeping it."""

    @staticmethod
    def forward(ctx: Any, x_BTI: Tensor, packed: PackedWeight) -> Tensor:
        ctx.packed = packed
        return F.linear(x_BTI, packed.unpacked(x_BTI.dtype))

    @staticmethod
    def backward(ctx: Any, gradient_BTR: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient_BTR @ ctx.packed.unpacked(gradient_BTR.dtype), None
