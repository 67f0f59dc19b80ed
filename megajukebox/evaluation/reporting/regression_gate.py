"""Is anything worse than before? Two reports, metric by metric and slice by slice, song by song where both have it.

Hundreds of slices are compared at once, and one in forty would seem worse at 95 % though nothing changed. So the
gate asks for 95 % over all of them together (Bonferroni): each is compared at 1 - 0.05 / n.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from megajukebox.common.errors import UserError
from megajukebox.evaluation.metrics import METRICS
from megajukebox.evaluation.reporting.intervals import difference
from megajukebox.evaluation.reporting.report import slice_songs

CONFIDENCE = 0.95
REFERENCE_COLUMNS = {"held_out", "original", "chance", "limit"}  # of real songs, not of the target

Items = dict[str, float]  # a metric's value by song


@dataclass(frozen=True)
class Change:
    """How a metric, or a slice of it, changed."""

    name: str  # of the metric, and of the slice: "bits/top/bits_per_code artist=..."
    change: float  # for a pooled metric of its pseudo-values
    low: float
    high: float
    better: int
    songs: int  # in both reports; 0: compared as two independent sets
    min_effect: float

    @property
    def worse(self) -> bool:
        """Worse beyond the interval, and by more than the minimum effect."""
        nearest_to_no_change = self.low if self.better < 0 else -self.high
        return nearest_to_no_change > 0 and -self.change * self.better > self.min_effect


def compare(
    new: Mapping[str, Any], old: Mapping[str, Any], confidence: float = CONFIDENCE
) -> list[Change]:
    """Every change of what has a better and a worse, at a confidence that holds for all of them together.

    Raises:
        UserError: the reports are of different kinds of target, references or settings.
    """
    check_comparable(new, old)
    pairs = list(comparable_items(new, old))
    each = 1 - (1 - confidence) / max(len(pairs), 1)
    changes = []
    for name, new_items, old_items in pairs:
        definition = METRICS[name.split(" ", 1)[0].rpartition("/")[2]]
        change, low, high, songs = difference(new_items, old_items, each)
        changes.append(
            Change(name, change, low, high, definition.better, songs, definition.min_effect)
        )
    return changes


def check_comparable(new: Mapping[str, Any], old: Mapping[str, Any]) -> None:
    """Raise a UserError that names the difference unless both reports measure the same of the same songs."""
    for name in ("kind", "level"):
        ours = new["target"].get(name)
        theirs = old["target"].get(name)
        if ours != theirs:
            raise UserError(f"the gate's report is of a {theirs}, this one of a {ours}")
    rates = [report["target"].get("sample_rate") for report in (new, old)]
    if None not in rates and rates[0] != rates[1]:  # reports of before do not say theirs
        raise UserError(
            f"the gate's report is of samples at {rates[1]} Hz, this one of samples at {rates[0]} Hz;"
            " sample both at one rate"
        )
    ours = [reference["fingerprint"] for reference in new["references"]]
    theirs = [reference["fingerprint"] for reference in old["references"]]
    if ours != theirs:
        raise UserError(
            f"the gate's report was made against other songs (it: {theirs}, this one: {ours});"
            " evaluate both against the same"
        )
    if new["settings"] != old["settings"]:
        raise UserError(
            f"the gate's report was made with {old['settings']}, this one with {new['settings']}"
        )


def comparable_items(
    new: Mapping[str, Any], old: Mapping[str, Any]
) -> Iterator[tuple[str, Items, Items]]:
    """(name, new items, old items) of metrics and slices that both reports have for two songs or more.

    Metrics of the reference songs themselves are left out: the target does not change them.
    """
    for name, metric in new["metrics"].items():
        before = old["metrics"].get(name)
        of_reference = "_held_out/" in name or not REFERENCE_COLUMNS.isdisjoint(name.split("/"))
        if before is None or not metric["better"] or of_reference:
            continue
        ours = known_items(metric["items"])
        theirs = known_items(before["items"])
        if len(ours) < 2 or len(theirs) < 2:
            continue
        yield name, ours, theirs
        slices = slice_songs(ours, new["songs"]) if metric["slices"] else {}
        for label, keys in slices.items():
            sliced_before = {key: theirs[key] for key in keys if key in theirs}
            if len(sliced_before) >= 2:
                yield f"{name} {label}", {key: ours[key] for key in keys}, sliced_before


def known_items(items: Mapping[str, float | None]) -> Items:
    """Those of the songs that have a value."""
    return {key: value for key, value in items.items() if value is not None}
