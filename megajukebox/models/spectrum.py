"""A level of the VQ-VAE without phase: log-magnitude spectra [B, F, K] to one code a frame and back, to a wave at last.

    |STFT| -> ln -> ConvNeXt -> nearest of the codebook -> ConvNeXt -> ln |STFT| -> Griffin-Lim -> wave

Of stereo the spectra of left and right lie side by side, and one phase serves both: where a sound is, is how much
louder it is on one side (intensity stereo, as in the joint coding of MPEG-1 Audio).

The codes of a wave level at a few hundred bits a second go into the phase of its bass (docs/decisions); here all of
them go into what is heard. ConvNeXt over time: Siuzdak 2023 (Vocos), after Liu et al. 2022.
"""

# B batch   T samples   A channels of the audio   F frames, one a code   K frequency bins   C channels inside
# D width of a code vector
from functools import lru_cache

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from megajukebox.models.codebook import Codebook, quantise
from megajukebox.models.convnext import KERNEL, ConvNeXtBlock
from megajukebox.models.frames import frame_spectra, overlap_add
from megajukebox.models.griffin_lim import GriffinLim, phases_of_magnitudes

ENTRY_KERNEL = 3  # frames, of the encoder's first layer: it reads hundreds of bins
DILATIONS = (1, 2)  # of the blocks in turn
LOWEST_MEL_HERTZ = 40.0
LOG_SHIFT = 7.5  # nepers: with it and LOG_SCALE the features of music have a mean near 0
LOG_SCALE = 0.5  # and a spread near 1


class SpectrumConfig(BaseModel):
    """Shapes and loss of the levels whose target is `spectrum`. Windows are in audio samples."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    window: int = Field(default=1024, gt=1, description="of the spectra that are coded")
    output_window: int = Field(
        default=1024, gt=1, description="of the spectra that become the wave"
    )
    width: int = Field(default=160, gt=0)
    encoder_blocks: int = Field(default=2, ge=0)
    decoder_blocks: int = Field(default=4, ge=0)
    hidden_ratio: float = Field(default=2.0, gt=0)
    code_width: int = Field(default=32, gt=0)
    codebook_size: int = Field(default=512, gt=1, le=65536)
    codebook_decay: float = Field(default=0.95, gt=0, lt=1)
    codebook_threshold: float = Field(default=0.3, ge=0)
    kmeans_iterations: int = Field(
        default=10, ge=0, description="of Lloyd's algorithm at the start"
    )
    commit: float = Field(default=0.1, ge=0)
    floor: float = Field(
        default=4e-5, gt=0, description="of magnitudes, before the logarithm: -88 dB of full scale"
    )
    l1: float = Field(default=1.0, ge=0, description="weight of the mean difference, in features")
    l2: float = Field(default=0.3, ge=0, description="weight of the mean squared difference")
    mel: float = Field(default=1.0, ge=0, description="weight of the mean difference in mel bands")
    mel_bands: int = Field(default=64, gt=0)
    lr_scale: float = Field(
        default=1.0, gt=0, description="learning rate over that of the wave levels"
    )
    phase: GriffinLim = GriffinLim()

    @model_validator(mode="after")
    def _check(self) -> "SpectrumConfig":
        for name in ("window", "output_window"):
            if getattr(self, name) % 2:
                raise ValueError(f"spectrum.{name} {getattr(self, name)} is odd; make it even")
        return self


class FrameNet(nn.Module):
    """[B, F, inputs] -> [B, F, outputs]: a convolution over time, ConvNeXt blocks, a linear layer."""

    def __init__(self, inputs: int, outputs: int, kernel: int, config: SpectrumConfig, blocks: int):
        super().__init__()
        width = config.width
        self.enter = nn.Conv1d(inputs, width, kernel, padding=kernel // 2)
        hidden = int(config.hidden_ratio * width)
        layers = []
        for index in range(blocks):
            layers.append(ConvNeXtBlock(width, hidden, DILATIONS[index % len(DILATIONS)]))
        self.blocks = nn.Sequential(*layers)
        self.leave = nn.Linear(width, outputs)

    def forward(self, x_BFC: Tensor) -> Tensor:
        h_BCF = self.blocks(self.enter(x_BFC.transpose(1, 2)))
        return self.leave(h_BCF.transpose(1, 2))

    def reach(self) -> int:
        """Frames to either side that a frame of the output depends on."""
        frames = 0
        for layer in self.modules():
            if isinstance(layer, nn.Conv1d):
                frames += layer.kernel_size[0] // 2 * layer.dilation[0]
        return frames


class SpectrumLevel(nn.Module):
    """Encoder, codebook and decoder of one level whose target is `spectrum`."""

    def __init__(self, config: SpectrumConfig, hop: int, sample_rate: int, channels: int = 1):
        super().__init__()
        self.config = config
        self.channels = channels
        self.hop = hop
        self.sample_rate = sample_rate
        input_bins = channels * (config.window // 2 + 1)
        output_bins = channels * (config.output_window // 2 + 1)
        self.encoder = FrameNet(
            input_bins, config.code_width, ENTRY_KERNEL, config, config.encoder_blocks
        )
        self.decoder = FrameNet(
            config.code_width, output_bins, KERNEL, config, config.decoder_blocks
        )
        # Without it the encoder could shrink the commitment loss by shrinking its vectors.
        self.norm = nn.LayerNorm(config.code_width, elementwise_affine=False)
        self.codebook = Codebook(
            config.codebook_size,
            config.code_width,
            config.codebook_decay,
            config.codebook_threshold,
            kmeans_iterations=config.kmeans_iterations,
        )

    # ---- Coding -----------------------------------------------------------------------------------------------------

    def features(self, audio_BTA: Tensor, window: int) -> Tensor:
        """Scaled log magnitudes [B, F, A * K]."""
        waves = audio_BTA.transpose(1, 2).flatten(0, 1)
        magnitudes = frame_spectra(waves, window, self.hop).abs()
        features = (torch.log(magnitudes + self.config.floor) + LOG_SHIFT) * LOG_SCALE
        return features.unflatten(0, (-1, self.channels)).transpose(1, 2).flatten(2)

    def magnitudes(self, features_BFK: Tensor) -> Tensor:
        """The inverse of the logarithm of `features`."""
        logs = features_BFK.float() / LOG_SCALE - LOG_SHIFT
        return (torch.exp(logs) - self.config.floor).clamp(min=0)

    def encode(self, audio_BTA: Tensor) -> Tensor:
        x_BFD = self.vectors(audio_BTA)
        codes, _ = self.codebook.nearest(x_BFD.flatten(0, 1))
        return codes.unflatten(0, (len(x_BFD), -1))

    def decode(self, codes_BF: Tensor, first: int = 0) -> Tensor:
        """Audio [B, T, A]; code 0 is the song's code `first`, on which the initial phases depend."""
        vectors = self.codebook.lookup(codes_BF)
        features_BFK = self.decoder(vectors.to(self.decoder.leave.weight.dtype))
        config = self.config
        window = config.output_window
        magnitudes_BFAK = self.by_channel(self.magnitudes(features_BFK))
        phasors_BFK = phases_of_magnitudes(
            magnitudes_BFAK.mean(dim=2), window, self.hop, config.phase, first
        )
        waves = [
            overlap_add(magnitudes_BFK * phasors_BFK, window, self.hop)
            for magnitudes_BFK in magnitudes_BFAK.unbind(dim=2)
        ]
        return torch.stack(waves, dim=-1)

    def by_channel(self, x_BFK: Tensor) -> Tensor:
        """[B, F, A, K] of features or magnitudes that lie side by side."""
        return x_BFK.unflatten(2, (self.channels, -1))

    def encoder_reach(self) -> int:
        """Samples to either side that a code depends on."""
        return self.encoder.reach() * self.hop + (self.config.window - self.hop) // 2

    def decoder_reach(self) -> int:
        """Codes to either side that a sample depends on."""
        phase = self.config.phase.reach(self.config.output_window, self.hop)
        return self.decoder.reach() + phase

    def vectors(self, audio_BTA: Tensor) -> Tensor:
        """What the codebook rounds, [B, F, D]."""
        return self._vectors_of(self.features(audio_BTA, self.config.window))

    def _vectors_of(self, features_BFK: Tensor) -> Tensor:
        return self.norm(self.encoder(features_BFK.to(self.encoder.leave.weight.dtype)))

    # ---- Training ---------------------------------------------------------------------------------------------------

    def forward(
        self, audio_BTA: Tensor, candidates: Tensor | None = None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Loss [], commitment loss [] and facts; the codebook learns while in training."""
        config = self.config
        with torch.no_grad():
            features_BFK = self.features(audio_BTA, config.window)
            target_BFK = features_BFK
            if config.output_window != config.window:
                target_BFK = self.features(audio_BTA, config.output_window)
        x_BFD = self._vectors_of(features_BFK)
        q_ND, commit, facts = quantise(self.codebook, x_BFD.flatten(0, 1), candidates)
        q_BFD = q_ND.view_as(x_BFD).to(x_BFD.dtype)
        y_BFK = self.decoder(q_BFD).float()
        difference = y_BFK - target_BFK
        l1 = difference.abs().mean()
        l2 = difference.square().mean()
        mel = (self._mel(y_BFK) - self._mel(target_BFK)).abs().mean()
        loss = config.l1 * l1 + config.l2 * l2 + config.mel * mel
        decibels = 20 / np.log(10) / LOG_SCALE
        facts |= {
            "log_magnitude_db": decibels * l1.detach(),
            "mel_distance_db": decibels * mel.detach(),
        }
        return loss, commit, facts

    def _mel(self, features_BFK: Tensor) -> Tensor:
        """Features of the mel bands [B, F, A, M]."""
        window = self.config.output_window
        filters_KM = mel_filters(
            window, self.sample_rate, self.config.mel_bands, features_BFK.device
        )
        logs_BFAK = self.by_channel(features_BFK) / LOG_SCALE - LOG_SHIFT
        power = torch.exp(logs_BFAK).square() @ filters_KM
        return (0.5 * torch.log(power) + LOG_SHIFT) * LOG_SCALE


@lru_cache(maxsize=8)
def mel_filters(window: int, sample_rate: int, bands: int, device: torch.device) -> Tensor:
    """Triangles [K, M] from LOWEST_MEL_HERTZ to half the sample rate, each at least as wide as a bin; they sum to 1."""
    hertz_K = np.fft.rfftfreq(window, 1 / sample_rate)
    lowest = np.log1p(LOWEST_MEL_HERTZ / 700)
    highest = np.log1p(sample_rate / 2 / 700)
    edges = 700 * np.expm1(np.linspace(lowest, highest, bands + 2))  # O'Shaughnessy 1987
    widths = np.maximum(np.diff(edges), hertz_K[1])
    rising = 1 - np.maximum(edges[1:-1] - hertz_K[:, None], 0) / widths[:-1]
    falling = 1 - np.maximum(hertz_K[:, None] - edges[1:-1], 0) / widths[1:]
    triangles = np.maximum(np.minimum(rising, falling), 0)
    return torch.from_numpy((triangles / triangles.sum(0)).astype(np.float32)).to(device)
