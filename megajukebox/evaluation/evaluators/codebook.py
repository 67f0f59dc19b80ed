"""How much of a codebook the songs use: usage, perplexity, and the entropy that a prior has to beat."""

# K codes of a codebook
from collections.abc import Iterator, Mapping

import numpy as np

from megajukebox.evaluation.metrics import MetricValue, sum_score

Array = np.ndarray


def histogram(codes: Array, size: int) -> Array:
    """[K] how often each code is used."""
    return np.bincount(codes.ravel(), minlength=size).astype(np.float64)


def codebook(counts: Mapping[str, Array]) -> Iterator[MetricValue]:
    """Scores of the histograms [K] of some songs, all together."""
    if counts:
        yield sum_score("usage", counts, lambda total: float((total > 0).mean()))
        yield sum_score("perplexity", counts, lambda total: 2 ** entropy(total))
        yield sum_score("entropy_bits", counts, entropy)


def entropy(counts_K: Array) -> float:
    """Bits."""
    share = counts_K[counts_K > 0] / counts_K.sum()
    return float(-(share * np.log2(share)).sum())
