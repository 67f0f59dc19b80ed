"""The processes of a run, as their heartbeats tell of them, and which of them holds up the others."""

import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from megajukebox.records.productive_time import number


@dataclass(frozen=True)
class RankHealth:
    """The heartbeat of one process."""

    rank: int
    host: str
    time: float
    step: float
    section: str
    section_since: float
    step_seconds: float | None = None
    generation: float | None = None
    own_seconds: float | None = None  # of a step, without the time spent waiting for other ranks
    communication_seconds: float | None = (
        None  # of a step, in collectives, waits for others included
    )
    stage: int = 0  # of a pipeline


def rank_of(beat: dict[str, Any]) -> RankHealth | None:
    rank, when = number(beat.get("rank")), number(beat.get("time"))
    if rank is None or when is None:
        return None
    return RankHealth(
        rank=int(rank), host=str(beat.get("host", "")), time=when, step=number(beat.get("step")) or 0.0,
        section=str(beat.get("section", "")), section_since=number(beat.get("section_since")) or 0.0,
        step_seconds=number(beat.get("step_seconds")), generation=number(beat.get("generation")),
        own_seconds=number(beat.get("own_seconds")), communication_seconds=number(beat.get("communication_seconds")),
        stage=int(number(beat.get("stage")) or 0),
    )  # fmt: skip


def slowdowns(ranks: Iterable[RankHealth]) -> dict[int, float]:
    """How many times as long a step takes with each rank as with the median one in its place.

    All ranks take the same time for a step, since they wait for the slowest; what a rank does itself (all but its
    collectives) tells them apart. Stages of a pipeline have unequal work, so each rank is compared with those of its
    own stage; one alone in it has nobody to be compared with.
    """
    stages: dict[int, list[RankHealth]] = defaultdict(list)
    for rank in ranks:
        if rank.own_seconds is not None and (rank.step_seconds or 0.0) > 0:
            stages[rank.stage].append(rank)
    return {
        rank: ratio
        for equals in stages.values()
        if len(equals) > 1
        for rank, ratio in _compared(equals).items()
    }


def _compared(equals: list[RankHealth]) -> dict[int, float]:
    own = {rank.rank: rank.own_seconds or 0.0 for rank in equals}
    step, middle = (
        statistics.median(rank.step_seconds or 0.0 for rank in equals),
        statistics.median_low(own.values()),
    )
    # Without the slowest rank's excess; where communication hides behind computing, own time alone would say too much.
    without = max(step - (max(own.values()) - middle), middle, 0.1 * step)
    return {rank: 1 + (seconds - middle) / without for rank, seconds in own.items()}
