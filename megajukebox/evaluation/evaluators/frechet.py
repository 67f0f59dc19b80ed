"""Fréchet distance between two sets of songs: how far apart the Gaussians lie that fit their embeddings."""

# N vectors   D features
from collections.abc import Mapping

import numpy as np

from megajukebox.evaluation.metrics import MetricValue, sum_score

Array = np.ndarray


def moments(x_ND: Array) -> Array:
    """[D + 1, D + 1] the sum of [1, x]^T [1, x]: count, sums and products, so that sets add up."""
    with_one = np.concatenate([np.ones((len(x_ND), 1)), x_ND], axis=1)
    return with_one.T @ with_one


def gaussian(sums: Array) -> tuple[Array, Array]:
    """(mean [D], covariance [D, D]) of all that was added up."""
    count = max(sums[0, 0], 1.0)
    mean = sums[0, 1:] / count
    return mean, (sums[1:, 1:] - count * np.outer(mean, mean)) / max(count - 1, 1.0)


def frechet(mean: Array, covariance: Array, other_mean: Array, other_covariance: Array) -> float:
    """|m - n|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2), the squared 2-Wasserstein distance of two Gaussians."""
    root = square_root(covariance)
    cross = np.linalg.eigvalsh(root @ other_covariance @ root)
    apart = float((mean - other_mean) @ (mean - other_mean))
    spread = (
        np.trace(covariance) + np.trace(other_covariance) - 2 * np.sqrt(np.maximum(cross, 0)).sum()
    )
    return max(0.0, apart + float(spread))  # rounding can leave a little less than nothing


def square_root(symmetric: Array) -> Array:
    values, vectors = np.linalg.eigh(symmetric)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def frechet_score(songs: Mapping[str, Array], corpus: Mapping[str, Array]) -> MetricValue | None:
    """Of the embeddings [N, D] of some songs and of the corpus; None if either has fewer than two windows.

    Every feature is measured in its standard deviations over the corpus, so that none rules by its unit.
    """
    known = np.sum([moments(x) for x in corpus.values() if len(x)], axis=0)
    some = {name: moments(x) for name, x in songs.items() if len(x)}
    if (
        not some
        or np.ndim(known) == 0
        or known[0, 0] < 2
        or sum(m[0, 0] for m in some.values()) < 2
    ):
        return None
    mean, covariance = gaussian(known)
    unit = 1 / np.sqrt(np.maximum(np.diag(covariance), 1e-12))

    def distance(sums: Array) -> float:
        its_mean, its_covariance = gaussian(sums)
        scaled = unit[:, None] * unit
        return frechet(its_mean * unit, its_covariance * scaled, mean * unit, covariance * scaled)

    return sum_score("frechet", some, distance)
