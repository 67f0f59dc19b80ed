"""A sum over the bytes of tensors that one flipped bit changes: how replicas on different ranks are
compared.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

BYTES_AT_ONCE = 1 << 22  # that are summed at a time: each takes 24 bytes then
BITS = 63  # of the sum: it is exchanged as a signed number


def hashed(tensors: Iterable[Tensor]) -> int:
    """A sum of all of them; one flipped bit changes it.

    Every byte of a tensor, as a whole number, times an odd number of its own, modulo 2^64.
    """
    sums = []
    for tensor in tensors:
        total = torch.zeros((), dtype=torch.int64, device=tensor.device)
        first = 0
        for part in tensor.detach().contiguous().view(-1).view(torch.uint8).split(BYTES_AT_ONCE):
            odd = torch.arange(2 * first + 1, 2 * (first + len(part)), 2, device=tensor.device)
            total += (part.to(torch.int64) * odd).sum()
            first += len(part)
        sums.append(int(total))
    return sum(sums) % 2**BITS
