"""What fixes which clip comes when: saved with every checkpoint, compared when a run resumes
from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from megajukebox.common.errors import UserError

STATE_VERSION = 1
SHOWN_DIGITS = 12  # of a fingerprint, as `shards stats` begins it


@dataclass(frozen=True)
class StreamIdentity:
    """The order of an indexed set. It holds for any world size and number of workers."""

    seed: int
    block: int  # shards shuffled together
    clips: int  # of an epoch
    global_batch: int
    clips_per_song_visit: int = 1
    source: Mapping[str, object] = field(default_factory=dict)  # what fixes the samples

    def state(self, next_step: int) -> dict[str, object]:
        """All there is to save, as JSON."""
        return {"version": STATE_VERSION, "next_step": next_step, **self._facts()}

    def check(self, state: Mapping[str, object]) -> None:
        """Compare a saved state with this order.

        Raises:
            UserError: it belongs to another order; the message names the two values that differ.
        """
        ours = {"version": STATE_VERSION, **self._facts()}
        if state.get("sets") != ours.get("sets"):
            raise UserError(
                f"the checkpoint is of another blend: {differing_sets(state, ours)}; resume with the same --data, or"
                " start a new run from the checkpoint's weights"
            )
        for fact in {**ours, **state}:  # also a fact that is only written where it is unusual
            if fact != "next_step" and state.get(fact) != ours.get(fact):
                raise UserError(
                    f"the checkpoint's data state has {fact} {state.get(fact)!r} but this run has {ours.get(fact)!r}; "
                    f"resume with the same {fact}, or start a new run from the checkpoint's weights"
                )

    def _facts(self) -> dict[str, object]:
        facts: dict[str, object] = {
            "seed": self.seed,
            "block": self.block,
            "clips": self.clips,
            "global_batch": self.global_batch,
        }
        if self.clips_per_song_visit != 1:
            facts["visit"] = self.clips_per_song_visit  # under the name that checkpoints have
        return {**facts, **self.source}


def differing_sets(before: Mapping[str, object], now: Mapping[str, object]) -> str:
    """How two blends differ, in words; `sets` of each has the weights by fingerprint, a single set has none."""
    old, new = before.get("sets"), now.get("sets")
    if not isinstance(old, Mapping):
        return f"it was one set, and now {len(new) if isinstance(new, Mapping) else 1} are blended"
    if not isinstance(new, Mapping):
        return f"it was {len(old)} sets, and now it is one"
    differences = []
    for name in sorted({*old, *new}):
        shown = f"set {name[:SHOWN_DIGITS]}"
        if name not in new:
            differences.append(f"{shown} is gone")
        elif name not in old:
            differences.append(f"{shown} is new")
        elif old[name] != new[name]:
            differences.append(f"{shown} has weight {new[name]} instead of {old[name]}")
    return ", ".join(differences)


@dataclass(frozen=True)
class UnindexedStreamIdentity:
    """A stream of tars without an index: resuming it is statistical only."""

    urls: str

    def state(self, next_step: int) -> dict[str, object]:
        return {
            "mode": "stream",
            "resume": "statistical only",
            "urls": self.urls,
            "next_step": next_step,
        }

    def check(self, state: Mapping[str, object]) -> None:
        """Raises UserError if `state` is of an indexed set: its clips would come again."""
        if state.get("mode") != "stream":
            raise UserError(
                "the checkpoint is of an indexed set, whose order cannot be resumed without the index; "
                "give the set with its index.json"
            )
