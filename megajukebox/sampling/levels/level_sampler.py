"""The interface of a level sampler: it turns one level of some songs, partly known, into all of its codes.

    class MySampler:                                    # made once for a loaded prior
        def sample(self, job: LevelJob, progress: Progress) -> None:
            ...                                         # writes job.codes where job.known is False, then sets it

Whatever is known stays: a prompt, the codes around a range that is sampled again, and those of an interrupted attempt.
The codes that come out must not depend on how many of them were known before.
"""

# B songs of equal length   T codes of the whole level   U codes of the level above
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from megajukebox.conditioning.schema import SongConditioning
from megajukebox.models.prior import PriorConfig
from megajukebox.sampling.decoding.cuda_device import indices_on
from megajukebox.sampling.decoding.token_sampling import TokenSampler

# Called with the number of new codes, over all songs; job.codes and job.known hold them already.
Progress = Callable[[int], None]

# Share of a window by which the next one moves on. The top moves little: it has no level above to hold it together.
DEFAULT_HOP_FRACTIONS = {"top": 0.125, "middle": 0.5, "bottom": 0.5}


@dataclass
class LevelJob:
    """One level of B songs."""

    conditioning: list[SongConditioning]
    codes_BT: Tensor  # int64; where known they stay, elsewhere they are written
    known_BT: Tensor  # bool: in the prompt, or sampled since
    upper_BU: Tensor | None  # codes of the level above for at least the same time
    samples: int  # length of the songs in audio samples that timing is conditioned on; the level may end earlier
    token_sampler: TokenSampler
    guidance: list[float]  # a strength a song; 1 is off
    hop_fraction: float
    prompt_BT: Tensor = field(default=None)  # type: ignore[assignment]  # bool: known before any sampling

    def __post_init__(self) -> None:
        if self.prompt_BT is None:
            self.prompt_BT = self.known_BT.clone()

    @property
    def total(self) -> int:
        return self.codes_BT.shape[1]

    def for_song(self, song: int) -> "LevelJob":
        """The job of that song alone: its codes and what is known are written to the same memory."""
        one = slice(song, song + 1)
        index = indices_on(self.codes_BT.device, [song])
        return replace(
            self,
            conditioning=self.conditioning[one],
            codes_BT=self.codes_BT[one],
            known_BT=self.known_BT[one],
            upper_BU=None if self.upper_BU is None else self.upper_BU[one],
            token_sampler=self.token_sampler.select(index),
            guidance=self.guidance[one],
            prompt_BT=self.prompt_BT[one],
        )

    def write(self, songs: Any, start: int, codes_NT: Tensor) -> Tensor:
        """Write codes of `songs` (an index of the first axis) from `start` on where nothing is known.

        Returns how many are new, [] on the device: only a sum over all songs is worth a wait.
        """
        end = start + codes_NT.shape[-1]
        known = self.known_BT[songs, start:end]
        new = (~known).sum()
        self.codes_BT[songs, start:end] = torch.where(
            known, self.codes_BT[songs, start:end], codes_NT
        )
        self.known_BT[songs, start:end] = True
        return new


class LevelSampler(Protocol):
    """Made for one loaded prior; `exact` says whether its codes are those of the plain sequential sampler."""

    exact: bool

    def sample(self, job: LevelJob, progress: Progress) -> None: ...


def new_job(
    conditioning: list[SongConditioning],
    total: int,
    samples: int,
    token_sampler: TokenSampler,
    hop_fraction: float,
    upper_BU: Tensor | None = None,
    guidance: list[float] | None = None,
    known_BK: Tensor | None = None,
) -> LevelJob:
    """A job of which at most a prefix [B, K] is known."""
    device = token_sampler.keys_B.device
    codes = torch.zeros(len(conditioning), total, dtype=torch.long, device=device)
    known = torch.zeros(len(conditioning), total, dtype=torch.bool, device=device)
    if known_BK is not None:
        length = min(total, known_BK.shape[1])
        codes[:, :length] = known_BK[:, :length]
        known[:, :length] = True
    return LevelJob(
        conditioning,
        codes,
        known,
        upper_BU,
        samples,
        token_sampler,
        guidance or [1.0] * len(conditioning),
        hop_fraction,
    )


def window_hop(config: PriorConfig, fraction: float) -> int:
    """Codes by which windows move on: whole codes of the level above, or those would be of another time."""
    ratio = config.upsampler_conditioner.ratio if config.upsampler_conditioner else 1
    return max(1, int(fraction * config.window) // ratio) * ratio
