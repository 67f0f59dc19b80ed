"""A refiner: takes noise away from what the frozen decoder of a VQ-VAE makes of the codes of one level.

    codes -> decoder -> STFT X -> [ln |X|, phase advance, codes] -> ConvNeXt -> gain g, rest r
    refined = decoded + inverse STFT((e^g - 1) X + r)

The last layer starts at zero, so a new refiner is the decoder itself, to the last bit. Spectra are measured against the
loudness of their surroundings, so that a quiet song is refined as a loud one is. Decoders that are trained after the
codes are frozen, with an inverse STFT at their end: Siuzdak 2023 (Vocos).
"""

# B batch   T samples   F frames   K frequency bins   N codes   D width of a code vector   C channels inside
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from megajukebox.common.device import without_tf32
from megajukebox.common.errors import UserError
from megajukebox.common.model_files import load_into, read_facts
from megajukebox.models.convnext import KERNEL, ConvNeXtBlock
from megajukebox.models.frames import frame_spectra, overlap_add

LOWEST_GAIN, HIGHEST_GAIN = (
    -6.0,
    3.0,
)  # nepers: a bin is lowered by 52 dB or raised by 26 dB at most
LEVEL_FRAMES = 16  # to either side, over which loudness is measured: 0.19 s
SILENCE = 1e-4  # -80 dB of full scale; what is quieter is not taken for louder than that
LOG_FLOOR = 1e-3  # of magnitudes over the loudness around them: 60 dB of features
LOG_SCALE, LOG_SHIFT = 0.5, 1.0  # bring ln |X| of music near mean 0 and spread 1
ENTER_KERNEL = 3  # frames


class RefinerConfig(BaseModel):
    """Shapes of a refiner of one level of one VQ-VAE. `window` and `frame_hop` are of its spectra, in samples."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    level: str
    sample_rate: int = Field(gt=0)
    hop: int = Field(gt=0, description="samples a code")
    codebook_size: int = Field(gt=1)
    code_width: int = Field(gt=0)
    window: int = Field(gt=1)
    frame_hop: int = Field(gt=0)
    width: int = Field(gt=0)
    dilations: tuple[int, ...]
    hidden_ratio: float = Field(gt=0)

    @model_validator(mode="after")
    def _check(self) -> "RefinerConfig":
        if self.frame_hop % self.hop and self.hop % self.frame_hop:
            raise ValueError(
                f"refiner.frame_hop {self.frame_hop} and the {self.level} hop {self.hop} are no multiples"
                f" of each other; set refiner.frame_hop to one of {self.hop}"
            )
        if self.window % 2 or self.window < 2 * self.frame_hop:
            raise ValueError(
                f"refiner.window {self.window} is odd, or less than two frames of {self.frame_hop};"
                f" set it to {4 * self.frame_hop}"
            )
        return self

    @property
    def unit(self) -> int:
        """Samples that are whole frames and whole codes: pieces of songs begin at multiples of it."""
        return max(self.hop, self.frame_hop)

    @property
    def reach(self) -> int:
        """Samples to either side that a refined sample depends on, in decoded audio and codes."""
        frames = KERNEL // 2 * sum(self.dilations) + ENTER_KERNEL // 2 + 1 + LEVEL_FRAMES
        return frames * self.frame_hop + self.window


class Refiner(nn.Module):
    """Decoded audio [B, T] and the codes [B, T / hop] that it was decoded from, to refined audio [B, T]."""

    def __init__(self, config: RefinerConfig):
        super().__init__()
        self.config = config
        bins = config.window // 2 + 1
        codes_per_frame = max(1, config.frame_hop // config.hop)
        hidden = int(config.hidden_ratio * config.width)
        self.code_vectors = nn.Embedding(config.codebook_size, config.code_width)
        self.code_input = nn.Linear(codes_per_frame * config.code_width, config.width)
        self.spectrum_input = nn.Conv1d(
            3 * bins, config.width, ENTER_KERNEL, padding=ENTER_KERNEL // 2
        )
        self.blocks = nn.ModuleList(
            ConvNeXtBlock(config.width, hidden, dilation) for dilation in config.dilations
        )
        self.output = nn.Linear(config.width, 3 * bins)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    @without_tf32()
    def refine(self, decoded_BT: Tensor, codes_BN: Tensor) -> Tensor:
        """Refined audio [B, T] float32; what is no whole frame at the end is refined as if silence followed."""
        hop = self.config.frame_hop
        decoded_BT = decoded_BT.float()
        padded_BT = F.pad(decoded_BT, (0, -decoded_BT.shape[1] % hop))
        frames = padded_BT.shape[1] // hop
        # Its gradient is that of float32 also where the layers are not: spectra span 100 dB.
        x_BFK = frame_spectra(padded_BT, self.config.window, hop)
        level_BF1 = loudness(x_BFK)
        x_BFK = x_BFK / level_BF1
        inputs_BFK = spectrum_features(x_BFK)
        h_BCF = self.spectrum_input(inputs_BFK.transpose(1, 2))
        h_BCF = h_BCF + self._code_features(codes_BN, frames)
        for block in self.blocks:
            h_BCF = block(h_BCF)
        gain_BFK, real_BFK, imaginary_BFK = self.output(h_BCF.transpose(1, 2)).float().chunk(3, -1)
        gain_BFK = torch.expm1(gain_BFK.clamp(LOWEST_GAIN, HIGHEST_GAIN))
        change_BFK = x_BFK * gain_BFK + torch.complex(real_BFK, imaginary_BFK)
        change_BT = overlap_add(change_BFK * level_BF1, self.config.window, hop)
        return decoded_BT + change_BT[:, : decoded_BT.shape[1]]

    def _code_features(self, codes_BN: Tensor, frames: int) -> Tensor:
        """[B, C, F] of the codes under each frame; a code longer than a frame is under several."""
        config = self.config
        if config.hop > config.frame_hop:
            codes_BN = codes_BN.repeat_interleave(config.hop // config.frame_hop, dim=1)[:, :frames]
        vectors_BND = self.code_vectors(codes_BN)
        codes_per_frame = max(1, config.frame_hop // config.hop)
        missing = frames * codes_per_frame - vectors_BND.shape[1]
        vectors_BND = F.pad(vectors_BND, (0, 0, 0, missing))
        by_frame = vectors_BND.unflatten(1, (frames, codes_per_frame)).flatten(2)
        return self.code_input(by_frame).transpose(1, 2)


def loudness(x_BFK: Tensor) -> Tensor:
    """[B, F, 1] root mean square of a frame's bins, over LEVEL_FRAMES to either side."""
    power_BF = (x_BFK.real.square() + x_BFK.imag.square()).mean(dim=-1)
    smoothed_BF = F.avg_pool1d(
        power_BF, 2 * LEVEL_FRAMES + 1, stride=1, padding=LEVEL_FRAMES, count_include_pad=False
    )
    bins = x_BFK.shape[-1]
    return (smoothed_BF + SILENCE**2 / bins).sqrt().unsqueeze(-1)


def spectrum_features(x_BFK: Tensor) -> Tensor:
    """[B, F, 3 K] ln |X|, and cosine and sine of each bin's phase advance since the frame before."""
    magnitude_BFK = x_BFK.abs()
    logs_BFK = torch.log(magnitude_BFK + LOG_FLOOR) * LOG_SCALE + LOG_SHIFT
    before_BFK = F.pad(torch.view_as_real(x_BFK), (0, 0, 0, 0, 1, 0))[:, :-1]
    turn_BFK = x_BFK * torch.view_as_complex(before_BFK).conj()
    turn_BFK = turn_BFK / (turn_BFK.abs() + LOG_FLOOR**2)
    return torch.cat([logs_BFK, turn_BFK.real, turn_BFK.imag], dim=-1)


# ---- From a run folder ------------------------------------------------------------------------------------------------


def load_refiner(
    run: Path, vqvae: Mapping[str, Any], device: torch.device | str = "cpu"
) -> tuple[Refiner, dict[str, Any]]:
    """The refiner in `run` and its facts; `vqvae` are the facts of the VQ-VAE whose audio it shall refine.

    Raises:
        UserError: `run` holds none, or one that was trained with another VQ-VAE.
    """
    facts = read_facts(run)
    if facts["kind"] != "refiner":
        raise UserError(f"{run} holds a {facts['kind']}, not a refiner")
    if facts.get("vqvae") != vqvae["fingerprint"]:
        raise UserError(
            f"{run} refines another VQ-VAE ({str(facts.get('vqvae'))[:12]}, here"
            f" {vqvae['fingerprint'][:12]}); use that VQ-VAE, train another refiner, or leave it out"
        )
    refiner = Refiner(RefinerConfig(**facts["config"]))
    load_into(refiner, run, device=device)
    return refiner.to(device).eval(), facts


def window_size(seconds: float, sample_rate: int) -> int:
    """The power of two nearest (in octaves) to so many seconds, in samples."""
    return int(2 ** round(math.log2(seconds * sample_rate)))
