"""Is anything worse than before? Two reports, figure by figure and slice by slice, song by song where both have it.

Hundreds of slices are compared at once, and one in forty would seem worse at 95 % though nothing changed. So the gate
asks for 95 % over all of them together (Bonferroni): each is compared at 1 - 0.05 / n.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from megajukebox.evaluation.metrics import METRICS
from megajukebox.evaluation.reporting.intervals import difference
from megajukebox.evaluation.reporting.report import sliced

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Change:
    """How a figure, or a slice of it, changed."""

    name: str  # of the figure, and of the slice: "bits/top/bits_per_code artist=..."
    change: float  # for a pooled figure of its pseudo-values
    low: float
    high: float
    better: int
    songs: int  # in both reports; 0: compared as two independent sets
    matters: float

    @property
    def worse(self) -> bool:
        """Beyond its interval, and by as much as matters."""
        near = (
            self.low if self.better < 0 else -self.high
        )  # the end of the interval that is nearest to "no worse"
        return near > 0 and -self.change * self.better > self.matters


def check_comparable(new: Mapping[str, Any], old: Mapping[str, Any]) -> None:
    """ValueError, naming the two things that differ, unless both reports say the same of the same songs."""
    for name in ("kind", "level"):
        if new["subject"].get(name) != old["subject"].get(name):
            raise ValueError(
                f"the gate's report is of a {old['subject'].get(name)}, this one of a {new['subject'].get(name)}"
            )
    ours, theirs = (
        [source["fingerprint"] for source in report["against"]] for report in (new, old)
    )
    if ours != theirs:
        raise ValueError(
            f"the gate's report was made against other songs ({theirs} there, {ours} here); score both alike"
        )
    if new["settings"] != old["settings"]:
        raise ValueError(
            f"the gate's report was made with {old['settings']}, this one with {new['settings']}"
        )


def compare(
    new: Mapping[str, Any], old: Mapping[str, Any], confidence: float = CONFIDENCE
) -> list[Change]:
    """Every change of what has a better and a worse, at a confidence that holds for all of them together."""
    check_comparable(new, old)
    pairs = list(comparable(new, old))
    each = 1 - (1 - confidence) / max(len(pairs), 1)
    return [change_of(name, ours, theirs, each) for name, ours, theirs in pairs]


def change_of(name: str, new: dict[str, float], old: dict[str, float], confidence: float) -> Change:
    measure = METRICS[name.split(" ", 1)[0].rpartition("/")[2]]
    change, low, high, songs = difference(new, old, confidence)
    return Change(name, change, low, high, measure.better, songs, measure.min_effect)


def comparable(
    new: Mapping[str, Any], old: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, float], dict[str, float]]]:
    """(name, new items, old items) of figures and slices that both reports have; held-out songs' own figures are not
    the subject's doing and are left out.
    """
    for name, figure in new["figures"].items():
        before = old["figures"].get(name)
        if before is None or not figure["better"] or about_the_songs(name):
            continue
        ours, theirs = (known(f["items"]) for f in (figure, before))
        if len(ours) < 2 or len(theirs) < 2:
            continue
        yield name, ours, theirs
        groups = sliced(ours, new["songs"]) if figure["slices"] else {}
        for label, keys in groups.items():
            some, some_before = (
                {k: items[k] for k in keys if k in items} for items in (ours, theirs)
            )
            if len(some) >= 2 and len(some_before) >= 2:
                yield f"{name} {label}", some, some_before


def about_the_songs(name: str) -> bool:
    parts = name.split("/")
    return any(
        part in ("held_out", "original", "chance", "limit") or part.endswith("_held_out")
        for part in parts
    )


def known(items: Mapping[str, float | None]) -> dict[str, float]:
    return {key: value for key, value in items.items() if value is not None}
