"""How much of a codebook the songs use: usage, perplexity, the entropy that a prior has to beat; and how often a code
follows itself."""

# K codes of a codebook
from collections.abc import Iterator, Mapping

import numpy as np

from megajukebox.evaluation.metrics import MetricValue, mean_metric, set_metric, sum_metric

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


def repeat_metrics(
    codes: Mapping[str, Array], real: Mapping[str, Array] | None = None
) -> Iterator[MetricValue]:
    """How often a code [T] equals the one before, by song; and how far that is from `real` songs.

    Codes of spectra stand still while a note does. Sampled too cold, a song stops on one chord: all of it repeats.
    """
    shares = {}
    for key, codes_T in codes.items():
        if len(codes_T) > 1:
            shares[key] = repeat_share(codes_T)
    if not shares:
        return
    yield mean_metric("repeat_share", shares)
    known = [repeat_share(codes_T) for codes_T in (real or {}).values() if len(codes_T) > 1]
    if known:
        middle = float(np.mean(known))
        yield set_metric(
            "repeat_difference", shares, lambda some: abs(float(np.mean(some)) - middle)
        )


def repeat_share(codes_T: Array) -> float:
    """Share of the codes [T], T > 1, that equal the one before."""
    return float((codes_T[1:] == codes_T[:-1]).mean())
