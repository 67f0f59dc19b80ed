"""Ratings of several recordings of one clip at once, after MUSHRA: the file, the listeners' checks, the intervals.

Means are over listeners, each of whom counts once however many clips they rated: ratings of one listener are not
independent. ITU-R BS.1534-3 (2015): scales, hidden reference, anchor, and the checks of listeners afterwards.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from megajukebox.common.errors import UserError
from megajukebox.explorer.server.votes import append_line, read_lines

ORIGINAL = "original"  # the hidden one
ANCHOR = "anchor"  # the original with its treble cut off
HIGH_SCORE = 90.0  # an original below it, or an anchor above it, counts against the listener
MAX_SHARE = 0.15  # of a listener's clips for which that may be so
CONFIDENCE = 0.95
HIGHEST = 100.0
Score = Annotated[float, Field(ge=0, le=HIGHEST, allow_inf_nan=False)]


class ClipRating(BaseModel):
    """One line of the file: what one listener gave every recording of one clip."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    clip: str  # key of the song
    listener: str
    scores: dict[str, Score]  # by condition
    order: tuple[str, ...]  # conditions as they were numbered for this listener
    time: float


@dataclass(frozen=True)
class MeanScore:
    """A mean and its 95 % interval; `low` and `high` are None where one value is all there is."""

    name: str
    mean: float
    low: float | None
    high: float | None
    listeners: int
    ratings: int


def append_rating(path: Path, rating: ClipRating) -> None:
    """Add one line; as `append_line`."""
    append_line(path, rating)


def read_ratings(path: Path) -> tuple[list[ClipRating], int]:
    """The ratings of a file, and how many of its lines are none; of one listener's ratings of a clip the last.

    Raises:
        UserError: it is a link, no regular file, or too large.
    """
    lines, skipped = read_lines(path, ClipRating)
    newest = {(rating.listener, rating.clip): rating for rating in lines}
    return list(newest.values()), skipped


def refused_listeners(ratings: Iterable[ClipRating]) -> dict[str, str]:
    """Listeners who did not hear what anybody should, with the reason (BS.1534-3, section 4.1.2)."""
    reasons = {}
    for listener, theirs in by_listener(ratings).items():
        limit = MAX_SHARE * len(theirs)
        low_originals = sum(one.scores.get(ORIGINAL, HIGHEST) < HIGH_SCORE for one in theirs)
        high_anchors = sum(one.scores.get(ANCHOR, 0.0) > HIGH_SCORE for one in theirs)
        if low_originals > limit:
            reasons[listener] = f"the original below 90 in {low_originals} of {len(theirs)} clips"
        elif high_anchors > limit:
            reasons[listener] = f"the anchor above 90 in {high_anchors} of {len(theirs)} clips"
    return reasons


def by_listener(ratings: Iterable[ClipRating]) -> dict[str, list[ClipRating]]:
    grouped: dict[str, list[ClipRating]] = {}
    for rating in ratings:
        grouped.setdefault(rating.listener, []).append(rating)
    return grouped


def mean_scores(ratings: Sequence[ClipRating]) -> list[MeanScore]:
    """Of every condition, the best first."""
    names = {name for rating in ratings for name in rating.scores}
    scores = []
    for name in sorted(names):
        values = [(one.listener, one.scores[name]) for one in ratings if name in one.scores]
        scores.append(mean_of(name, values, (0.0, HIGHEST)))
    return sorted(scores, key=lambda score: -score.mean)


def mean_differences(ratings: Sequence[ClipRating]) -> list[MeanScore]:
    """Of every two conditions that are neither original nor anchor: by how much the first was rated higher.

    Clip by clip, which is surer than a comparison of their means.
    """
    names = {name for rating in ratings for name in rating.scores} - {ORIGINAL, ANCHOR}
    differences = []
    for first, second in combinations(sorted(names), 2):
        values = []
        for rating in ratings:
            if first in rating.scores and second in rating.scores:
                values.append((rating.listener, rating.scores[first] - rating.scores[second]))
        if values:
            difference = mean_of(f"{first} − {second}", values, (-HIGHEST, HIGHEST))
            differences.append(difference)
    return differences


def mean_of(
    name: str, values: Sequence[tuple[str, float]], limits: tuple[float, float]
) -> MeanScore:
    """The mean of (listener, value) over listeners; of a single listener over their clips. Student's t."""
    of_listeners: dict[str, list[float]] = {}
    for listener, value in values:
        of_listeners.setdefault(listener, []).append(value)
    means = [statistics.fmean(theirs) for theirs in of_listeners.values()]
    if len(means) == 1:
        means = [value for _, value in values]
    mean = statistics.fmean(means)
    low = high = None
    if len(means) > 1:
        freedom = len(means) - 1
        reach = scipy_stats().t.ppf((1 + CONFIDENCE) / 2, freedom)
        reach = float(reach) * statistics.stdev(means) / len(means) ** 0.5
        low = max(limits[0], mean - reach)
        high = min(limits[1], mean + reach)
    return MeanScore(name, mean, low, high, len(of_listeners), len(values))


def scipy_stats() -> ModuleType:
    """`scipy.stats`, for the quantiles of Student's t.

    Raises:
        UserError: scipy is not installed.
    """
    try:
        from scipy import stats
    except ImportError:
        raise UserError("ratings need scipy; run pip install 'megajukebox[serve]'") from None
    return stats


def results(ratings: Sequence[ClipRating], skipped: int) -> Mapping[str, Any]:
    """What the page shows: the listeners who passed the checks, and apart from them those who did not."""
    reasons = refused_listeners(ratings)
    passed = [rating for rating in ratings if rating.listener not in reasons]
    apart = [rating for rating in ratings if rating.listener in reasons]
    return {
        "scores": [vars(score) for score in mean_scores(passed)],
        "differences": [vars(one) for one in mean_differences(passed)],
        "listeners": len(by_listener(passed)),
        "ratings": len(passed),
        "apart": [vars(score) for score in mean_scores(apart)],
        "reasons": sorted(reasons.values()),
        "skipped": skipped,
    }
