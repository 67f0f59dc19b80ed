"""How each level is decoded: as the user asked, or by the decoding that was measured to be the fastest."""

from dataclasses import dataclass
from typing import Any

import torch

from megajukebox.common.errors import UserError
from megajukebox.models.prior import PriorConfig
from megajukebox.records.sample_record import current_decoding
from megajukebox.sampling.levels.autoregressive import DECODINGS, WIDE_PRIOR

AUTO = "auto"
# Measured on CPUs (docs/decisions/0022):
MAX_SPECULATIVE_SONGS = 8  # up to here an int8 draft is faster than all songs in lockstep
MAX_JACOBI_SONGS = 4  # up to here one song after another by `jacobi` is
INT8_DRAFTS = ("speculative",)  # decodings whose draft is a copy of the prior in 8 bits


@dataclass(frozen=True)
class DecodingPolicy:
    """How levels are sampled; `decoding` is "auto" or a name of DECODINGS for every level (0.1's are accepted).

    Raises:
        UserError: no such decoding, or `exact=False` beside one that is exact.
    """

    exact: bool = True  # the codes are those of sequential decoding
    decoding: str = AUTO
    int8: bool = False  # weights rounded to 8 bits: faster, not exact

    def __post_init__(self) -> None:
        name = current_decoding(self.decoding)
        object.__setattr__(self, "decoding", name)  # the dataclass is frozen
        if name not in (AUTO, *DECODINGS):
            raise UserError(
                f"decoding {name!r} is unknown; choose auto or one of {', '.join(DECODINGS)}"
            )
        if not self.exact and name != AUTO and DECODINGS[name].exact:
            raise UserError(
                f"--no-exact decodes by parallel_windows, not {name}; leave one of the two out"
            )

    def check_device(self, device: torch.device) -> None:
        """Raises UserError where what was asked for is slower on `device` than what it is to be faster than."""
        asked = "--int8" if self.int8 else f"--decoding {self.decoding}"
        if device.type == "cuda" and (self.int8 or self.decoding in INT8_DRAFTS):
            raise UserError(
                f"{asked} reads weights of 8 bits, which is faster on CPUs alone;"
                " on a GPU leave it out, and take --precision bfloat16 (V100: float16)"
            )

    def decoding_of(self, level: str, songs: int, config: PriorConfig, device: torch.device) -> str:
        """The decoding of a level: what was asked for, or the fastest for so many songs and a prior of that size."""
        if self.decoding != AUTO:
            if not DECODINGS[self.decoding].exact and "memory" in config.aligned:
                raise UserError(
                    f"--decoding {self.decoding} samples all windows at once, and the {level} prior remembers"
                    " earlier ones; choose --no-exact, which does so below the top alone"
                )
            return self.decoding
        if not self.exact and level != "top":
            return "parallel_windows"
        if device.type == "cuda":
            return "cuda_graph"
        if self.int8:
            return "sequential"
        if (
            level != "top" and songs <= MAX_JACOBI_SONGS
        ):  # the top's codes depend too much on each other
            return "jacobi"
        if config.transformer.width >= WIDE_PRIOR and songs <= MAX_SPECULATIVE_SONGS:
            return "speculative"
        return "sequential"

    def facts(self) -> dict[str, Any]:
        """What decides about the codes: two policies of the same facts give the same songs."""
        decoding_is_exact = self.decoding == AUTO or DECODINGS[self.decoding].exact
        if self.exact and not self.int8 and decoding_is_exact:
            return {"exact": True}
        return {"exact": False, "decoding": self.decoding, "int8": self.int8}


FASTEST = DecodingPolicy()
