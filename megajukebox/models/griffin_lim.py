"""A wave from magnitudes of its short-time spectra alone: the phases are found by projecting back and forth.

The initial phases are drawn from the number of the frame, not from a generator, and every iteration looks at the frames
that overlap a frame and no further. So a piece decoded with `reach` frames of context on both sides is the same as
that part of the whole, and one song always sounds the same.

Griffin and Lim 1984; momentum: Perraudin, Balazs and Sondergaard 2013, "A fast Griffin-Lim algorithm".
"""

# B batch   F frames   K frequency bins   W samples of a window   T samples = F * hop
import math

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from megajukebox.models.frames import SMALL, frame_spectra, overlap_add

HASH_FACTOR = 0x45D9F3B  # an odd number whose product mixes the bits of 32-bit counters
LOW_32_BITS = 0xFFFFFFFF


class GriffinLim(BaseModel):
    """How the phases are found."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    iterations: int = Field(default=32, ge=0)
    momentum: float = Field(default=0.99, ge=0, lt=1)

    def reach(self, window: int, hop: int) -> int:
        """Frames to either side that a sample depends on."""
        overlapping = -(-window // hop) - 1
        return (self.iterations + 1) * overlapping + 1


def first_phases(first: int, frames: int, bins: int, device: torch.device) -> Tensor:
    """Unit phasors [F, K] that depend on the number of the frame alone, counted from `first`."""
    counter = torch.arange(first * bins, (first + frames) * bins, device=device) + 1
    for _ in range(2):
        counter = ((counter ^ (counter >> 16)) * HASH_FACTOR) & LOW_32_BITS
    counter = counter ^ (counter >> 16)
    angles = counter.float() * (2 * math.pi / 2**32)
    return torch.polar(torch.ones_like(angles), angles).view(frames, bins)


@torch.no_grad()
def wave_of_magnitudes(
    magnitudes_BFK: Tensor, window: int, hop: int, config: GriffinLim, first: int = 0
) -> Tensor:
    """The wave [B, F * hop] of magnitudes scaled as those of `frame_spectra`; frame 0 is the song's frame `first`."""
    phasors = phases_of_magnitudes(magnitudes_BFK, window, hop, config, first)
    return overlap_add(magnitudes_BFK * phasors, window, hop)


@torch.no_grad()
def phases_of_magnitudes(
    magnitudes_BFK: Tensor, window: int, hop: int, config: GriffinLim, first: int = 0
) -> Tensor:
    """Unit phasors [B, F, K] with which overlapping frames of those magnitudes agree best."""
    _, frames, bins = magnitudes_BFK.shape
    phasors = first_phases(first, frames, bins, magnitudes_BFK.device).expand(magnitudes_BFK.shape)
    before = torch.zeros_like(phasors)
    inertia = config.momentum / (1 + config.momentum)
    for _ in range(config.iterations):
        wave = overlap_add(magnitudes_BFK * phasors, window, hop)
        now = frame_spectra(wave, window, hop)
        ahead = now - inertia * before
        phasors = ahead / (ahead.abs() + SMALL)
        before = now
    return phasors
