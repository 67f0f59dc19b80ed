"""A sum over the bytes of tensors that one flipped bit changes: how replicas on different ranks are compared."""

from collections.abc import Iterable

import torch
from torch import Tensor

AT_ONCE = 1 << 22  # bytes that are summed at a time: each takes 24 then


def hashed(tensors: Iterable[Tensor]) -> int:
    """A 64-bit sum of all of them; one flipped bit changes it."""
    return sum(_hashed(tensor.detach()) for tensor in tensors) % 2**63


def _hashed(tensor: Tensor) -> int:
    """Every byte, as a whole number, times an odd number of its own, summed modulo 2^64."""
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    first = 0
    for part in tensor.contiguous().view(-1).view(torch.uint8).split(AT_ONCE):
        odd = torch.arange(2 * first + 1, 2 * (first + len(part)), 2, device=tensor.device)
        total += (part.to(torch.int64) * odd).sum()
        first += len(part)
    return int(total)
