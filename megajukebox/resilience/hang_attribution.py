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
    silent = [beat for beat in beats if now - beat.time > stale]
    if silent:
        return [
            HangSuspect(b.rank, b.host, f"silent for {now - b.time:.0f} s in {b.phase}")
            for b in silent
        ]
    camps = Counter((beat.step, beat.phase) for beat in beats)
    if len(camps) < 2:
        return []
    # In a step the others wait for the suspect, so of two equal camps the one that is not in a step is to blame.
    majority = max(camps, key=lambda camp: (camps[camp], camp[0], camp[1] == STEP))
    apart = [beat for beat in beats if (beat.step, beat.phase) != majority]
    return [HangSuspect(b.rank, b.host, f"in {b.phase} of step {b.step + 1}") for b in apart]
