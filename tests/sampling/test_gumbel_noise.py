"""Counter-based Gumbel noise: it is Gumbel, independent in every direction, and a function of its counters alone."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from megajukebox.sampling.decoding.gumbel_noise import GOLDEN, MULTIPLIERS, gumbel, mix, noise_keys

LEVELS = ("top", "middle", "bottom")
EULER = 0.5772156649015329


def drawn(seeds: list[int], positions: range, codes: int, level: str = "top") -> Tensor:
    """[seeds, positions, codes]"""
    key = noise_keys(seeds, level).repeat_interleave(len(positions))
    return gumbel(key, torch.tensor([*positions] * len(seeds)), codes).unflatten(
        0, (len(seeds), -1)
    )


@pytest.mark.parametrize("level", LEVELS)
def test_the_noise_is_gumbel(level: str) -> None:
    g = drawn(list(range(20)), range(100), 100, level).double().flatten()
    count = len(g)
    assert abs(g.mean() - EULER) < 4 * math.sqrt(math.pi**2 / 6 / count)
    # The fourth central moment of Gumbel is 27/5 of the squared variance.
    assert abs(g.var() - math.pi**2 / 6) < 4 * math.pi**2 / 6 * math.sqrt(4.4 / count)
    u = torch.exp(-torch.exp(-g)).sort().values
    steps = torch.arange(1, count + 1) / count
    distance = torch.maximum(
        (u - steps).abs(), (u - steps + 1 / count).abs()
    ).max()  # Kolmogorov and Smirnov
    assert distance < 1.95 / math.sqrt(count)  # passed by 99.9 % of true samples


def correlation(a: Tensor, b: Tensor) -> float:
    """Of ranks' stand-ins: Gumbel noise mapped back to uniform, in units of its standard error."""
    a, b = (torch.exp(-torch.exp(-x.double())).flatten() for x in (a, b))
    return abs(float(np.corrcoef(a, b)[0, 1])) * math.sqrt(len(a))


@pytest.mark.parametrize("distance", [1, 2, 3, 8, 64, 4096])
def test_neighbouring_seeds_positions_codes_and_levels_are_independent(distance: int) -> None:
    base = drawn([5], range(200), 100)
    assert correlation(base, drawn([5 + distance], range(200), 100)) < 4
    assert correlation(base, drawn([5], range(distance, 200 + distance), 100)) < 4
    wide = drawn([5], range(4), 20_000 + distance)
    assert correlation(wide[..., :20_000], wide[..., distance:]) < 4
    assert correlation(base, drawn([5], range(200), 100, "middle")) < 4


def test_bits_of_neighbouring_counters_differ_in_half_of_their_places() -> None:
    x = torch.arange(2000) * GOLDEN
    for bit in range(64):
        flipped = mix(x) ^ mix(x ^ torch.tensor((1 << bit) - (1 << 64 if bit == 63 else 0)))
        share = np.unpackbits(flipped.numpy().view(np.uint8)).mean()
        assert 0.49 < share < 0.51, bit


def test_noise_is_a_function_of_seed_level_and_position_alone() -> None:
    """The same song in any batch, at any row, one position at a time or many."""
    whole = drawn([3, 9, 12], range(50), 17)
    for row, seed in enumerate([3, 9, 12]):
        for position in (0, 7, 49):
            alone = gumbel(noise_keys([seed], "top"), torch.tensor([position]), 17)[0]
            assert torch.equal(alone, whole[row, position])
    mixed = gumbel(noise_keys([12, 3], "top"), torch.tensor([7, 49]), 17)
    assert torch.equal(mixed, torch.stack([whole[2, 7], whole[0, 49]]))
    assert torch.equal(gumbel(noise_keys([3], "top"), torch.tensor([0]), 5)[0], whole[0, 0, :5])


def test_any_integer_is_a_seed_of_its_own() -> None:
    seeds = [0, 1, -1, -7, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 2, -(2**62)]
    found = torch.cat([noise_keys(seeds, level) for level in LEVELS])
    assert len(set(found.tolist())) == len(found)
    assert drawn(seeds, range(3), 50).isfinite().all()
    assert torch.equal(noise_keys([2**64 + 5], "top"), noise_keys([5], "top")), (
        "seeds count modulo 2^64"
    )


def test_positions_of_hours_of_music_are_fine() -> None:
    g = gumbel(noise_keys([1], "bottom").repeat(3), torch.tensor([10**6, 10**9, 2**40]), 2048)
    assert g.isfinite().all() and (g[0] != g[1]).float().mean() > 0.99


def unmix(x: int) -> int:
    """The inverse of `mix` on unsigned integers."""
    for shift, multiplier in ((31, MULTIPLIERS[1]), (27, MULTIPLIERS[0]), (30, None)):
        back = x
        for _ in range(64 // shift):
            back = x ^ (back >> shift)
        x = back if multiplier is None else back * pow(multiplier, -1, 2**64) % 2**64
    return x


def signed(x: int) -> int:
    return x - 2**64 if x >= 2**63 else x


def test_mixing_can_be_undone_so_no_two_counters_collide() -> None:
    for x in (0, 1, 2**63, 2**64 - 1, 123456789123456789):
        assert unmix(int(mix(torch.tensor(signed(x)))) % 2**64) == x


@pytest.mark.parametrize("bits", [0, 2**64 - 1])
def test_the_greatest_and_the_smallest_noise_are_finite(bits: int) -> None:
    """The key whose first draw has no bit set, or all: u as near to 0 or 1 as it ever comes."""
    expected = -math.log(-math.log1p(-(2.0**-24))) if bits else -math.log(math.log(2.0**24))
    key = torch.tensor([signed(unmix(unmix(bits)))])
    noise = gumbel(key, torch.tensor([0]), 1)
    assert noise.item() == pytest.approx(expected, rel=1e-5)
