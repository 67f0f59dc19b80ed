"""Histograms as Prometheus has them, and percentiles."""

import math
from bisect import bisect_left
from dataclasses import dataclass, field
from itertools import accumulate

BUCKETS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)  # seconds


@dataclass
class Histogram:
    """How many values fell at or under each of BUCKETS, and above them all."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))
    total: float = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(BUCKETS, value)] += 1
        self.total += value

    def cumulative(self) -> list[tuple[str, float]]:
        """As Prometheus has it: (upper bound, values at or under it)."""
        return list(zip([*map(str, BUCKETS), "+Inf"], map(float, accumulate(self.counts))))


def percentile(values: list[float], share: float) -> float | None:
    """The value that `share` of the values do not exceed."""
    if not values:
        return None
    index = math.ceil(share * len(values)) - 1
    return sorted(values)[min(len(values) - 1, index)]
