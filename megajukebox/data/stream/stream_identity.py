"""What fixes which clip comes when: saved with every checkpoint, compared when a run resumes
from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from megajukebox.common.errors import UserError

STATE_VERSION = 1


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
