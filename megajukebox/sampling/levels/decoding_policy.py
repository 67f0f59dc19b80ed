"""Which way a level is sampled: what a user asked for, or the quickest that was measured."""

from dataclasses import dataclass
from typing import Any

from megajukebox.models.prior import Prior
from megajukebox.sampling.levels.autoregressive import WIDE_PRIOR

FEW = 8  # songs up to which the guesses of an int8 copy are quicker than all songs in lockstep
FEWER = 4  # songs up to which one after another by `fixed_point` is


@dataclass(frozen=True)
class DecodingPolicy:
    """How levels are sampled. `exact`: the codes are those of the plain sequential sampler, whatever way is taken."""

    exact: bool = True
    decoding: str = "auto"  # or one of autoregressive.WAYS, for every level
    int8: bool = False  # weights rounded to 8 bits: quicker, not exact

    def decoding_of(self, level: str, songs: int, prior: Prior | None) -> str:
        """The way measured to be the quickest for so many songs and a prior of that size (docs/decisions/0022)."""
        if self.decoding != "auto":
            return self.decoding
        if not self.exact and level != "top":
            return "windows"
        if prior is None or self.int8 or prior.head.weight.device.type != "cpu":
            return "sequential"
        if level != "top" and songs <= FEWER:  # the top's codes depend too much on each other
            return "fixed_point"
        return (
            "ahead"
            if prior.config.transformer.width >= WIDE_PRIOR and songs <= FEW
            else "sequential"
        )

    def facts(self) -> dict[str, Any]:
        """What decides about the codes: two engines of the same facts make the same songs."""
        exact = self.exact and not self.int8 and self.decoding != "windows"
        return (
            {"exact": True} if exact else {"exact": False, "way": self.decoding, "int8": self.int8}
        )


FASTEST = DecodingPolicy()
