"""Counter-based Gumbel noise: a hash of (seed, level, absolute position, code), so that one seed is one song.

A sample is argmax(log p + noise): it does not depend on batch-mates, windows, ranks, or where it was interrupted.
"""

# V codes
import torch
from torch import Tensor

from megajukebox.common.levels import COMPOSER_FOLDER, LEVELS

# Odd multipliers of the 64-bit finaliser of Stafford (variant 13 of "Better Bit Mixing"), as signed integers.
MULTIPLIERS = (-4658895280553007687, -7723592293110705685)
NOISE_STREAMS = (*LEVELS, COMPOSER_FOLDER)  # a new one goes to the end
GOLDEN = -7046029254386353131  # 2^64 / golden ratio, the step of SplitMix64 (Steele et al. 2014)


def mix(x: Tensor) -> Tensor:
    """A bijection of int64 in which every bit of the input moves every bit of the output."""
    x = (x ^ _shift(x, 30)) * MULTIPLIERS[0]
    x = (x ^ _shift(x, 27)) * MULTIPLIERS[1]
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical shift right of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def noise_keys(seeds: list[int], level: str) -> Tensor:
    """One int64 key [B] for each song's seed at `level`."""
    seed = torch.tensor([_signed(seed * GOLDEN + 1) for seed in seeds], dtype=torch.int64)
    return mix(mix(seed) + _signed(NOISE_STREAMS.index(level) * GOLDEN))


def _signed(x: int) -> int:
    """The low 64 bits of any integer, as int64."""
    return (x + 2**63) % 2**64 - 2**63


def gumbel(key: Tensor, position: Tensor, codes: int) -> Tensor:
    """Standard Gumbel noise [..., V] for keys and absolute positions (codes since the song's start) of one shape."""
    counter = (
        mix(key + position * GOLDEN)[..., None] + torch.arange(codes, device=key.device) * GOLDEN
    )
    # 23 bits and a half are exact in float32; one bit more would round to u = 1 and infinite noise.
    u = (_shift(mix(counter), 41).to(torch.float32) + 0.5) * 2.0**-23
    return u.log_().neg_().log_().neg_()
