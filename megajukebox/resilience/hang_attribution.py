"""Who is to blame for a hang, by what the ranks last told: one that fell silent, else the minority."""

import json
from collections import Counter
from pathlib import Path
from typing import NamedTuple


def read_heartbeats(run: Path, generation: int | None = None) -> list[dict]:
    """The last heartbeats of all ranks, of one generation if it is given; unreadable ones are left out."""
    beats = []
    for path in sorted((run / "heartbeats").glob("rank-*.json")):
        try:
            told = json.loads(path.read_bytes())
        except (OSError, ValueError):
            continue
        if generation is None or told.get("generation") == generation:
            beats.append(told)
    return beats


class HangSuspect(NamedTuple):
    rank: int
    host: str
    words: str


def attribute_hang(beats: list[dict], now: float, stale: float) -> list[HangSuspect]:
    """Ranks whose heartbeat is older than `stale` seconds; if there are none, those that are not where most ranks are,
    by (step, section); of two equal camps the one that is behind.

    All ranks in one place: none, the hang is in the network or the storage.
    """
    silent = [beat for beat in beats if now - beat["time"] > stale]
    if silent:
        return [suspect(b, f"silent for {now - b['time']:.0f} s in {b['section']}") for b in silent]
    places = Counter((beat["step"], beat["section"]) for beat in beats)
    if len(places) < 2:
        return []
    # In a step the others wait for the suspect, so of two equal camps the one that is not in a step is to blame.
    crowd = max(places, key=lambda place: (places[place], place[0], place[1] == "step"))
    apart = [beat for beat in beats if (beat["step"], beat["section"]) != crowd]
    return [suspect(b, f"in {b['section']} of step {b['step'] + 1}") for b in apart]


def suspect(beat: dict, why: str) -> HangSuspect:
    return HangSuspect(beat["rank"], beat["host"], f"rank {beat['rank']} on {beat['host']} ({why})")
