"""Confidence intervals: a bootstrap over songs for each metric, Student's t for the differences of the regression gate."""

import zlib
from functools import lru_cache
from statistics import NormalDist
from types import ModuleType

import numpy as np

from megajukebox.common.errors import UserError

Array = np.ndarray
RESAMPLES = 2000  # the ends of a 95 % interval move by about 1 % of its width from seed to seed


def scipy_stats() -> ModuleType:
    """`scipy.stats`, which only evaluation needs.

    Raises:
        UserError: scipy is not installed.
    """
    try:
        from scipy import stats
    except ImportError:
        raise UserError("evaluation needs scipy; run pip install 'megajukebox[evaluate]'") from None
    return stats


def bootstrap(
    values: Array, confidence: float = 0.95, seed: str = "", binary: bool = False
) -> tuple[float, float] | None:
    """Compute an interval for the mean of `values` [songs]; None for fewer than two songs.

    The expanded percentile interval (Hesterberg 2015, section 5.3): the percentile bootstrap is too
    narrow for few songs, so its tails are moved out to where Student's t has them. scipy.stats.bootstrap
    has no such interval. The same values and seed give the same interval.

    `binary` values are 0 or 1 and get Wilson's interval: resampling cannot leave "all of them".
    """
    n = len(values)
    if n < 2:
        return None
    if binary:
        return wilson(float(np.mean(values)), n, confidence)
    rng = np.random.default_rng(zlib.crc32(seed.encode()))
    means = np.asarray(values)[rng.integers(0, n, (RESAMPLES, n))].mean(axis=1)
    tail = NormalDist().cdf(-np.sqrt(n / (n - 1)) * t_quantile((1 + confidence) / 2, n - 1))
    return float(np.quantile(means, tail)), float(np.quantile(means, 1 - tail))


def wilson(ratio: float, n: int, confidence: float) -> tuple[float, float]:
    """Compute an interval for the `ratio` of successes of `n` trials (Wilson 1927)."""
    successes = round(ratio * n)
    interval = scipy_stats().binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


@lru_cache(maxsize=4096)
def t_quantile(probability: float, degrees_of_freedom: float) -> float:
    """Look up a quantile of Student's t distribution; a gate asks for the same one hundreds of times."""
    return float(scipy_stats().t.ppf(probability, degrees_of_freedom))


def difference(
    new: dict[str, float], old: dict[str, float], confidence: float
) -> tuple[float, float, float, int]:
    """Compare two reports' values by song: (new - old, lowest, highest, songs in both).

    Song by song where at least two songs are in both reports, else as two independent sets (Welch).
    A bootstrap of six songs has no tails to speak of, so this is Student's t.
    """
    both = sorted(new.keys() & old.keys())
    degrees_of_freedom: float
    if len(both) >= 2:
        change = np.array([new[key] - old[key] for key in both])
        mean = float(change.mean())
        error = float(change.std(ddof=1) / np.sqrt(len(change)))
        degrees_of_freedom = len(change) - 1
        pairs = len(both)
    elif len(new) >= 2 and len(old) >= 2:
        ours = np.array(list(new.values()))
        theirs = np.array(list(old.values()))
        mean = float(ours.mean() - theirs.mean())
        a = ours.var(ddof=1) / len(ours)
        b = theirs.var(ddof=1) / len(theirs)
        error = float(np.sqrt(a + b))
        degrees_of_freedom = 1.0
        if error:
            spread = a**2 / (len(ours) - 1) + b**2 / (len(theirs) - 1)
            degrees_of_freedom = float((a + b) ** 2 / spread)
        pairs = 0
    else:
        return float("nan"), float("-inf"), float("inf"), 0
    reach = t_quantile((1 + confidence) / 2, degrees_of_freedom) * error if error else 0.0
    return mean, mean - reach, mean + reach, pairs
