"""Discriminators for a refiner's second stage: of short-time spectra at several windows, and of waves folded at periods.

Multi-scale STFT: Defossez et al. 2022 (EnCodec); multi-period: Kong et al. 2020 (HiFi-GAN). They are trained with the
refiner in one step and are no part of what it exports.
"""

# B batch   T samples   F frames   K frequency bins   P samples of a period   C channels
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import weight_norm

from megajukebox.models.frames import frame_spectra
from megajukebox.models.refiner import window_size
from megajukebox.training.settings import StrictSettings

SLOPE = 0.1  # of the leaky rectifiers; as in HiFi-GAN
COMPRESSION = 0.3  # of magnitudes that discriminators see: hiss lies 40 dB below tones
SMALL = 1e-7


class AdversarialSettings(StrictSettings):
    """The second stage of a refiner, off while `weight` is 0; start it --from a run of the first."""

    weight: float = Field(default=0.0, ge=0, description="weight of being taken for real; 0: off")
    feature_matching: float = Field(
        default=2.0, ge=0, description="weight of the features' distance, times `weight`"
    )
    window_seconds: tuple[float, ...] = Field(
        default=(0.093, 0.046, 0.023), description="of the spectra that discriminators see"
    )
    periods: tuple[int, ...] = Field(
        default=(2, 3, 5, 7, 11), description="samples at which others fold the wave"
    )
    channels: int = Field(default=16, gt=0, description="of their first layer")


class CriticVerdict(NamedTuple):
    """What one discriminator finds in a batch."""

    score: Tensor  # above 0 for real
    features: list[Tensor]  # of its layers


class ConvCritic(nn.Module):
    """Convolutions over a picture [B, C, H, W], to a score at every place."""

    def __init__(
        self, inputs: int, channels: int, kernel: tuple[int, int], stride: tuple[int, int]
    ):
        super().__init__()
        widths = (inputs, channels, 2 * channels, 2 * channels)
        padding = (kernel[0] // 2, kernel[1] // 2)
        layers = []
        for before, after in pairwise(widths):
            layers.append(weight_norm(nn.Conv2d(before, after, kernel, stride, padding)))
        self.layers = nn.ModuleList(layers)
        self.last = weight_norm(nn.Conv2d(widths[-1], 1, 3, padding=1))

    def forward(self, picture: Tensor) -> CriticVerdict:
        features = []
        for layer in self.layers:
            picture = F.leaky_relu(layer(picture), SLOPE)
            features.append(picture)
        return CriticVerdict(self.last(picture), features)


class Critics(nn.Module):
    """All discriminators of a stage; waves are [B, T]."""

    def __init__(self, settings: AdversarialSettings, sample_rate: int):
        super().__init__()
        self.windows = [window_size(seconds, sample_rate) for seconds in settings.window_seconds]
        self.periods = settings.periods
        spectral = [ConvCritic(2, settings.channels, (7, 3), (3, 1)) for _ in self.windows]
        periodic = [ConvCritic(1, settings.channels, (5, 1), (3, 1)) for _ in self.periods]
        self.spectral = nn.ModuleList(spectral)
        self.periodic = nn.ModuleList(periodic)

    def forward(self, wave_BT: Tensor) -> list[CriticVerdict]:
        verdicts = []
        for window, critic in zip(self.windows, self.spectral):
            verdicts.append(critic(compressed_spectrum(wave_BT, window)))
        for period, critic in zip(self.periods, self.periodic):
            folded = F.pad(wave_BT, (0, -wave_BT.shape[1] % period)).unflatten(1, (-1, period))
            verdicts.append(critic(folded.unsqueeze(1)))
        return verdicts

    def frozen(self, wave_BT: Tensor) -> list[CriticVerdict]:
        """What they find, with no gradient to their weights: the refiner's loss must not train them."""
        weights = {name: value.detach() for name, value in self.named_parameters()}
        return functional_call(self, weights, (wave_BT,))


def compressed_spectrum(wave_BT: Tensor, window: int) -> Tensor:
    """[B, 2, K, F] real and imaginary part, magnitudes raised to COMPRESSION."""
    hop = window // 4
    padded_BT = F.pad(wave_BT, (0, -wave_BT.shape[1] % hop))
    x_BFK = frame_spectra(padded_BT, window, hop)
    # Not of the magnitude itself, whose gradient at silence is none.
    magnitude_BFK = (x_BFK.real.square() + x_BFK.imag.square() + SMALL).sqrt()
    gain_BFK = magnitude_BFK.pow(COMPRESSION - 1)
    parts = torch.stack([x_BFK.real * gain_BFK, x_BFK.imag * gain_BFK], dim=1)
    return parts.transpose(2, 3)


def critics_loss(real: Sequence[CriticVerdict], fake: Sequence[CriticVerdict]) -> Tensor:
    """Hinge loss [] of the discriminators: real above 1, fake below -1 (Lim and Ye 2017)."""
    terms = []
    for one, other in zip(real, fake):
        terms.append(F.relu(1 - one.score).mean() + F.relu(1 + other.score).mean())
    return torch.stack(terms).mean()


def fooling_loss(
    real: Sequence[CriticVerdict], fake: Sequence[CriticVerdict], feature_matching: float
) -> Tensor:
    """Loss [] of the refiner: not being taken for real, and features unlike those of the original."""
    terms = []
    for one, other in zip(real, fake):
        distances = []
        for ours, theirs in zip(other.features, one.features):
            scale = theirs.detach().abs().mean() + SMALL
            distances.append((ours - theirs.detach()).abs().mean() / scale)
        terms.append(feature_matching * torch.stack(distances).mean() - other.score.mean())
    return torch.stack(terms).mean()
