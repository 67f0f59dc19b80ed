"""Silent corruption: which ranks do not hold, or do not compute, what the others do. Pure rules."""

import math
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

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


def odd_ranks(hashes: list[int], stages: int) -> list[int]:
    """The ranks whose weights are not those of most ranks of their stage; all of a stage where there is no majority."""
    odd, beside = [], len(hashes) // stages
    for first in range(0, len(hashes), beside):
        ranks = range(first, first + beside)
        [(most, times)] = Counter(hashes[rank] for rank in ranks).most_common(1)
        known = times * 2 > beside
        odd += [rank for rank in ranks if not known or hashes[rank] != most]
    return odd


class Result(NamedTuple):
    """The loss of a micro-batch that all had, computed twice, on a device of some kind, and how exact that kind is."""

    first: float
    again: float
    kind: str
    tolerance: float  # relative; 0: to the last bit


def odd_results(results: list[Result]) -> list[int]:
    """Whose numbers are not to be trusted: two at once where there should be one, or not that of most others of a kind
    (all of the kind, where there is no majority).
    """
    odd = [n for n, result in enumerate(results) if not alike(result.first, result.again, result.tolerance)]
    steady = [n for n in range(len(results)) if n not in odd]
    for kind in {result.kind for result in results}:
        beside = [n for n in steady if results[n].kind == kind]
        near = {
            n: {m for m in beside if alike(results[n].first, results[m].first, results[n].tolerance)} for n in beside
        }
        most = max(near.values(), key=len, default=set())
        odd += [n for n in beside if n not in most or len(most) * 2 <= len(beside)]
    return sorted(odd)


def doubtful(results: list[Result], odd: list[int]) -> bool:
    """Whether it is rather the rule than the machines that is wrong: more than half of those that should be exact are
    `odd` (of two that disagree, each with itself). Then some kernel does not repeat to the last bit.
    """
    exact = [n for n in odd if results[n].tolerance == 0]
    if len(results) == 2:
        exact = [n for n in exact if not alike(results[n].first, results[n].again, 0)]
    return len(exact) * 2 > len(results)


def alike(a: float, b: float, tolerance: float) -> bool:
    return math.isclose(a, b, rel_tol=tolerance, abs_tol=0.0) or (math.isnan(a) and math.isnan(b))
