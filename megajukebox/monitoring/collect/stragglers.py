"""Which process of a run holds up the others, by the heartbeats of all."""

import statistics
from collections import defaultdict
from collections.abc import Iterable

from megajukebox.records.heartbeat import Heartbeat

MIN_STEP_SHARE = 0.1  # of a step that is left without the slowest rank's excess, at least


def slowdowns(beats: Iterable[Heartbeat]) -> dict[int, float]:
    """How many times as long a step takes with each rank as with the median one in its place.

    All ranks take the same time for a step, since they wait for the slowest; what a rank does itself (all but its
    collectives) tells them apart. Stages of a pipeline have unequal work, so each rank is compared with those of its
    own stage; one alone in it cannot be compared.
    """
    stages: dict[int, list[Heartbeat]] = defaultdict(list)
    for beat in beats:
        if beat.own_seconds is not None and (beat.step_seconds or 0.0) > 0:
            stages[beat.stage].append(beat)
    ratios: dict[int, float] = {}
    for equals in stages.values():
        if len(equals) < 2:
            continue
        own = {beat.rank: beat.own_seconds or 0.0 for beat in equals}
        step = statistics.median(beat.step_seconds or 0.0 for beat in equals)
        median = statistics.median_low(own.values())
        # Without the slowest rank's excess; where communication hides behind computing, own time alone would say
        # too much.
        excess = max(own.values()) - median
        without = max(step - excess, median, MIN_STEP_SHARE * step)
        for rank, seconds in own.items():
            ratios[rank] = 1 + (seconds - median) / without
    return ratios
