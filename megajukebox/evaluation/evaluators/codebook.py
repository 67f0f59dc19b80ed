"""How much of a codebook the songs use: usage, perplexity, and the entropy that a prior has to beat."""

# K codes of a codebook
from collections.abc import Iterator, Mapping

import numpy as np

from megajukebox.evaluation.metrics import MetricValue, sum_metric

Array = np.ndarray


def histogram(codes: Array, size: int) -> Array:
    """[K] how often each code is used."""
    return np.bincount(codes.ravel(), minlength=size).astype(np.float64)


def codebook_metrics(counts: Mapping[str, Array]) -> Iterator[MetricValue]:
    """Metrics of the songs' histograms [K], all songs together."""
    if counts:
        yield sum_metric("usage", counts, lambda total: float((total > 0).mean()))
        yield sum_metric("perplexity", counts, lambda total: 2 ** entropy(total))
        yield sum_metric("entropy_bits", counts, entropy)


def entropy(counts_K: Array) -> float:
    """Entropy of a histogram in bits."""
    ratio = counts_K[counts_K > 0] / counts_K.sum()
    return float(-(ratio * np.log2(ratio)).sum())
