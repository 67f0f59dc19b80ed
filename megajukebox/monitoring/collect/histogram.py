"""Small statistics of what a run logs: histograms as Prometheus has them, percentiles, how far a loss stands out."""

import math
import statistics
from bisect import bisect_left
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

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
        """As Prometheus has it."""
        return list(zip([*map(str, BUCKETS), "+Inf"], map(float, accumulate(self.counts))))


def spike_score(losses: list[float]) -> float | None:
    before, last = losses[:-1], losses[-1:]
    if len(before) < 8:
        return None
    spread = max(statistics.pstdev(before), 1e-3 * abs(statistics.fmean(before)), 1e-9)
    return (last[0] - statistics.fmean(before)) / spread


def percentile(values: list[float], share: float) -> float | None:
    """The value that `share` of the values do not exceed."""
    return (
        sorted(values)[min(len(values) - 1, math.ceil(share * len(values)) - 1)] if values else None
    )


def skip_kind(event: dict[str, Any]) -> str:
    """Why a step was left out, in one word: nan, spike, overflow, or what the event says itself."""
    told = str(event.get("kind") or event.get("reason") or "").lower()
    for word, kind in (
        ("overflow", "overflow"),
        ("nan", "nan"),
        ("finite", "nan"),
        ("inf", "nan"),
        ("spike", "spike"),
    ):
        if word in told:
            return kind
    return "spike" if "deviation" in told or "σ" in told else "other"
