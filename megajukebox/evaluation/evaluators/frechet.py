"""Fréchet distance between two sets of songs: how far apart the Gaussians lie that fit their embeddings."""

# N vectors   D features
from collections.abc import Mapping

import numpy as np

from megajukebox.evaluation.metrics import MetricValue, sum_metric

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
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.linalg.eigvalsh(root @ other_covariance @ root)
    means = float((mean - other_mean) @ (mean - other_mean))
    traces = np.trace(covariance) + np.trace(other_covariance)
    spread = float(traces - 2 * np.sqrt(np.maximum(cross, 0)).sum())
    return max(0.0, means + spread)  # rounding can leave a little less than nothing


def frechet_metric(songs: Mapping[str, Array], corpus: Mapping[str, Array]) -> list[MetricValue]:
    """Compare the embeddings [N, D] of some songs with the corpus's; nothing if either has fewer than two windows.

    Every feature is measured in its standard deviations over the corpus, so that no unit dominates.
    """
    corpus_moments = [moments(x_ND) for x_ND in corpus.values() if len(x_ND)]
    song_moments = {}
    for name, x_ND in songs.items():
        if len(x_ND):
            song_moments[name] = moments(x_ND)
    if not corpus_moments or not song_moments:
        return []
    corpus_sums = np.sum(corpus_moments, axis=0)
    windows = sum(sums[0, 0] for sums in song_moments.values())
    if corpus_sums[0, 0] < 2 or windows < 2:
        return []
    mean, covariance = gaussian(corpus_sums)
    unit = 1 / np.sqrt(np.maximum(np.diag(covariance), 1e-12))

    def distance(sums: Array) -> float:
        its_mean, its_covariance = gaussian(sums)
        scaled = unit[:, None] * unit
        return frechet(its_mean * unit, its_covariance * scaled, mean * unit, covariance * scaled)

    return [sum_metric("frechet", song_moments, distance)]
