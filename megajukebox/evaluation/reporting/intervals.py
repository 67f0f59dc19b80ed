"""How sure a figure is: bootstrap intervals over songs, and Student's t for the gate's differences."""

import zlib
from functools import lru_cache
from statistics import NormalDist

import numpy as np

Array = np.ndarray
RESAMPLES = 2000


def bootstrap(
    values: Array, confidence: float = 0.95, seed: str = "", answers: bool = False
) -> tuple[float, float] | None:
    """An interval for the mean of `values` (one a song); None for fewer than two.

    The expanded percentile interval (Hesterberg 2015, section 5.3): the percentile bootstrap is too narrow for few
    songs, so its tails are moved out to where Student's t has them. Of the same values the same interval. Of
    `answers`, each 0 or 1, it is Wilson's: resampling cannot leave "all right".
    """
    n = len(values)
    if n < 2:
        return None
    if answers:
        return wilson(float(np.mean(values)), n, confidence)
    rng = np.random.default_rng(zlib.crc32(seed.encode()))
    means = np.asarray(values)[rng.integers(0, n, (RESAMPLES, n))].mean(axis=1)
    tail = NormalDist().cdf(-np.sqrt(n / (n - 1)) * student((1 + confidence) / 2, n - 1))
    return float(np.quantile(means, tail)), float(np.quantile(means, 1 - tail))


def wilson(share: float, n: int, confidence: float) -> tuple[float, float]:
    """An interval for a share of n yes-or-no answers (Wilson 1927)."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre, reach = (
        share + z * z / (2 * n),
        z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)),
    )
    scale = 1 + z * z / n
    return max(0.0, float((centre - reach) / scale)), min(1.0, float((centre + reach) / scale))


@lru_cache(maxsize=4096)
def student(share: float, freedom: float) -> float:
    """The quantile of Student's t with `freedom` degrees of freedom.

    t = sqrt(f) tan(angle), where the angle has a density proportional to cos^(f-1): integrated on a grid.
    """
    angle = np.linspace(-np.pi / 2, np.pi / 2, 200_001)[1:-1]
    density = np.cos(angle) ** (freedom - 1)
    below = np.cumsum((density[1:] + density[:-1]) / 2)
    return float(np.sqrt(freedom) * np.tan(np.interp(share, below / below[-1], angle[1:])))


def difference(
    new: dict[str, float], old: dict[str, float], confidence: float
) -> tuple[float, float, float, int]:
    """(new - old, its lowest, its highest, songs in both) at `confidence`.

    Song by song where at least two are in both reports; else of two independent sets (Welch). A bootstrap of six songs
    has no tails to speak of, so this is Student's t.
    """
    both = sorted(new.keys() & old.keys())
    if len(both) >= 2:
        change = np.array([new[key] - old[key] for key in both])
        mean, error = float(change.mean()), float(change.std(ddof=1) / np.sqrt(len(change)))
        freedom: float = len(change) - 1
    elif len(new) >= 2 and len(old) >= 2:
        mean, error, freedom = welch(np.array(list(new.values())), np.array(list(old.values())))
        both = []
    else:
        return float("nan"), float("-inf"), float("inf"), 0
    reach = student((1 + confidence) / 2, freedom) * error if error else 0.0
    return mean, mean - reach, mean + reach, len(both)


def welch(one: Array, other: Array) -> tuple[float, float, float]:
    """(difference of means, its standard error, degrees of freedom) of two independent samples."""
    a, b = one.var(ddof=1) / len(one), other.var(ddof=1) / len(other)
    freedom = (a + b) ** 2 / (a**2 / (len(one) - 1) + b**2 / (len(other) - 1)) if a + b else 1.0
    return float(one.mean() - other.mean()), float(np.sqrt(a + b)), float(freedom)
