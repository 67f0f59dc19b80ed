"""Which ranks are to blame for a hang, by their last heartbeats: one that fell silent, else the minority."""

from collections import Counter
from typing import NamedTuple

from megajukebox.records.heartbeat import Heartbeat
from megajukebox.records.phases import STEP


class HangSuspect(NamedTuple):
    rank: int
    host: str
    evidence: str

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host} ({self.evidence})"


def attribute_hang(beats: list[Heartbeat], now: float, stale: float) -> list[HangSuspect]:
    """Ranks whose heartbeat is older than `stale` seconds; if there are none, those that are not where most ranks are,
    by (step, phase); of two equal camps the one that is behind.

    All ranks in the same phase of a step: none, the hang is in the network or the storage.
    """
    silent = []
    for beat in beats:
        age = now - beat.time
        if age > stale:
            evidence = f"silent for {age:.0f} s in {beat.phase}"
            silent.append(HangSuspect(beat.rank, beat.host, evidence))
    if silent:
        return silent
    camps = Counter((beat.step, beat.phase) for beat in beats)
    if len(camps) < 2:
        return []
    # In a step the others wait for the suspect, so of two equal camps the one that is not in a step is to blame.
    majority = max(camps, key=lambda camp: (camps[camp], camp[0], camp[1] == STEP))
    apart = []
    for beat in beats:
        if (beat.step, beat.phase) != majority:
            evidence = f"in {beat.phase} of step {beat.step + 1}"
            apart.append(HangSuspect(beat.rank, beat.host, evidence))
    return apart
