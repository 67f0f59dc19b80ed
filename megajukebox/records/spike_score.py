"""How far a loss stands above those before it: one rule for the trainer, which skips spikes, and for `watch`."""

import math
from collections.abc import Sequence

# The least spread that counts, as a share of the mean: on a plateau six standard deviations can be next to nothing.
# With a tenth of it, as `watch` once had, a loss of 4.05 on a plateau at 4.0 was an alert, which the trainer took.
MIN_SPREAD_SHARE = 0.01
MIN_HISTORY = 8  # values before the one that is judged


def mean_and_spread(history: Sequence[float]) -> tuple[float, float]:
    """Mean of the values, and their standard deviation, but not less than MIN_SPREAD_SHARE of the mean."""
    mean = sum(history) / len(history)
    spread = math.sqrt(sum((value - mean) ** 2 for value in history) / len(history))
    return mean, max(spread, MIN_SPREAD_SHARE * abs(mean))


def spike_score(losses: Sequence[float]) -> float | None:
    """Standard deviations of the last loss above those before it; None with fewer than MIN_HISTORY before it."""
    before = losses[:-1]
    if len(before) < MIN_HISTORY:
        return None
    mean, spread = mean_and_spread(before)
    return (losses[-1] - mean) / spread if spread else None
