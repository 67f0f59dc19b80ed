"""The three-level VQ-VAE: audio [B, T, A] to codes [B, T/hop] and back, each level a model of its own."""

# B batch   T samples   A channels of the audio   C channels inside   D width of a code vector
from math import ceil
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from megajukebox.common.device import without_tf32
from megajukebox.common.errors import UserError
from megajukebox.common.levels import LEVELS
from megajukebox.common.model_files import load_into, read_facts
from megajukebox.common.renamed_keys import accept_old_keys
from megajukebox.models.codebook import Codebook, quantise
from megajukebox.models.convnet import Decoder, Encoder, reach
from megajukebox.models.losses import (
    Bandwidth,
    ReconstructionLoss,
    distance,
    reconstruction,
    spectral_convergence,
)
from megajukebox.models.spectrum import SpectrumConfig, SpectrumLevel


class VQVAEConfig(BaseModel):
    """Shapes of the VQ-VAE. `down` and `stride` have one entry a level, finest first: hop = product of stride^down."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    _old_keys = accept_old_keys(codes="codebook_size")

    sample_rate: int = Field(gt=0)
    channels: Literal[1, 2] = Field(default=1, description="of the audio: mono, or left and right")
    down: tuple[int, ...] = (3, 2, 2)
    stride: tuple[int, ...] = (2, 2, 2)
    multipliers: tuple[int, ...] = (2, 1, 1)
    width: int = Field(32, gt=0)
    depth: int = Field(4, gt=0)
    hidden_ratio: float = 1.0
    dilation_growth: int = 3
    dilation_cycle: int | None = None
    reverse_decoder_dilation: bool = True
    code_width: int = Field(64, gt=0)
    codebook_size: int = Field(2048, gt=1, le=65536)
    codebook_decay: float = Field(0.99, gt=0, lt=1)
    codebook_threshold: float = Field(1.0, ge=0)
    fresh_restarts: bool = True
    kmeans_iterations: int = Field(
        0, ge=0, description="of Lloyd's algorithm that settle a wave level's first codes"
    )
    codebook_warmup: int = Field(
        0, ge=0, description="passes in which a wave level is a plain autoencoder, before its codes"
    )
    commit: float = Field(0.02, ge=0)
    loss: ReconstructionLoss = ReconstructionLoss()
    bandwidth: Bandwidth = Bandwidth()
    targets: dict[str, Literal["wave", "spectrum"]] = Field(
        default={}, description="what a level's codes describe; `wave` where a level is not named"
    )
    spectrum: SpectrumConfig | None = Field(
        default=None, description="of the levels whose target is `spectrum`"
    )
    wave_batch_ratio: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="share of a batch's clips that the wave levels train on",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_spectrum(cls, data: Any) -> Any:
        """A level with target `spectrum` and no settings has the defaults."""
        if not isinstance(data, dict) or not isinstance(data.get("targets"), dict):
            return data
        if "spectrum" in data["targets"].values() and data.get("spectrum") is None:
            return {**data, "spectrum": {}}
        return data

    @model_validator(mode="after")
    def _check(self) -> "VQVAEConfig":
        if not len(self.down) == len(self.stride) == len(self.multipliers) or not 1 <= len(
            self.down
        ) <= len(LEVELS):
            raise ValueError(
                f"down {self.down}, stride {self.stride} and multipliers {self.multipliers}"
                " must have one entry a level, at most 3"
            )
        if any(stride % 2 for stride in self.stride):
            raise ValueError(
                f"stride {self.stride} has an odd entry; only even strides keep lengths exact"
            )
        for level in self.targets:
            if level not in self.levels:
                raise ValueError(f"targets names {level!r}; levels are {', '.join(self.levels)}")
        if self.spectrum and not self.spectrum_levels:
            raise ValueError("spectrum is given, but no level has it: set targets {top: spectrum}")
        for level in self.spectrum_levels:
            self._check_windows(level)
        return self

    def _check_windows(self, level: str) -> None:
        assert self.spectrum is not None
        hop = self.hops[level]
        for name in ("window", "output_window"):
            size = getattr(self.spectrum, name)
            if size < 2 * hop:
                raise ValueError(
                    f"spectrum.{name} {size} is less than two hops of the {level} level ({hop});"
                    " widen it, or lower down"
                )

    @property
    def spectrum_levels(self) -> tuple[str, ...]:
        """Levels whose target is `spectrum`, finest first."""
        return tuple(level for level in self.levels if self.targets.get(level) == "spectrum")

    @property
    def codebook_sizes(self) -> dict[str, int]:
        """Codes of each level."""
        sizes = dict.fromkeys(self.levels, self.codebook_size)
        for level in self.spectrum_levels:
            assert self.spectrum is not None
            sizes[level] = self.spectrum.codebook_size
        return sizes

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the levels, finest first; two levels are bottom and top."""
        return {1: ("top",), 2: ("bottom", "top"), 3: LEVELS[::-1]}[len(self.down)]

    @property
    def hops(self) -> dict[str, int]:
        """Audio samples per code of each level."""
        hops: dict[str, int] = {}
        hop = 1
        for level, stride, down in zip(self.levels, self.stride, self.down):
            hop *= stride**down
            hops[level] = hop
        return hops


class VQVAELevel(nn.Module):
    """Encoder, codebook and decoder of one level."""

    def __init__(self, config: VQVAEConfig, index: int):
        super().__init__()
        stages = list(zip(config.down, config.stride))[: index + 1]
        multiplier = config.multipliers[index]
        stack = {
            "depth": config.depth * multiplier,
            "growth": config.dilation_growth,
            "cycle": config.dilation_cycle,
            "hidden_ratio": config.hidden_ratio,
        }
        width = config.width * multiplier
        code_width = config.code_width
        self.encoder = Encoder(config.channels, code_width, width, stages, **stack)
        self.decoder = Decoder(
            code_width,
            config.channels,
            width,
            stages,
            reverse=config.reverse_decoder_dilation,
            **stack,
        )
        self.codebook = Codebook(
            config.codebook_size,
            code_width,
            config.codebook_decay,
            config.codebook_threshold,
            config.fresh_restarts,
            config.kmeans_iterations,
            config.codebook_warmup,
        )

    def encoder_reach(self) -> int:
        """Samples to either side that a code depends on."""
        return reach(self.encoder)

    def decoder_reach(self) -> int:
        """Codes to either side that a sample depends on."""
        return reach(self.decoder)

    def encode(self, audio_BTA: Tensor) -> Tensor:
        x_BDT = self.encoder(audio_BTA.transpose(1, 2))
        codes, _ = self.codebook.nearest(x_BDT.transpose(1, 2).flatten(0, 1))
        return codes.unflatten(0, (len(x_BDT), -1))

    def decode(self, codes_BT: Tensor, first: int = 0) -> Tensor:
        """Audio [B, T, A], the same wherever in the song the codes are from (`first`)."""
        return self.decoder(self.codebook.lookup(codes_BT).transpose(1, 2)).transpose(1, 2)

    def forward(
        self, audio_BTA: Tensor, candidates: Tensor | None = None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Reconstruction [B, T, A], commitment loss [] and facts about the codebook, which learns while in training."""
        x_BDT = self.encoder(audio_BTA.transpose(1, 2))
        x_ND = x_BDT.transpose(1, 2).flatten(0, 1)
        straight_ND, commit, facts = quantise(self.codebook, x_ND, candidates)
        straight_BDT = straight_ND.unflatten(0, (len(x_BDT), -1)).transpose(1, 2)
        return self.decoder(straight_BDT).transpose(1, 2), commit, facts


class VQVAE(nn.Module):
    """All levels, trained together on the same audio; they share nothing (Dhariwal et al. 2020, section 3.1)."""

    def __init__(self, config: VQVAEConfig):
        super().__init__()
        self.config = config
        self.levels = nn.ModuleDict()
        for i, level in enumerate(config.levels):
            if level in config.spectrum_levels:
                assert config.spectrum is not None
                hop = config.hops[level]
                self.levels[level] = SpectrumLevel(
                    config.spectrum, hop, config.sample_rate, config.channels
                )
            else:
                self.levels[level] = VQVAELevel(config, i)

    def level(self, name: str) -> VQVAELevel | SpectrumLevel:
        model = self.levels[name]
        assert isinstance(model, VQVAELevel | SpectrumLevel)
        return model

    def lr_scales(self) -> dict[str, float]:
        """Learning rates by the start of parameters' names, relative to that of all others."""
        scales = {}
        for level in self.config.spectrum_levels:
            assert self.config.spectrum is not None
            if self.config.spectrum.lr_scale != 1:
                scales[f"levels.{level}."] = self.config.spectrum.lr_scale
        return scales

    @without_tf32()
    def encode(self, audio_BTA: Tensor, level: str) -> Tensor:
        """Codes [B, T/hop] of one level. T must be a multiple of the level's hop."""
        hop = self.config.hops[level]
        length = audio_BTA.shape[1]
        if length % hop:
            raise ValueError(
                f"audio of {length} samples is not a whole number of {level} codes (hop {hop}); cut it first"
            )
        return self.level(level).encode(audio_BTA)

    @without_tf32()
    def decode(self, codes_BT: Tensor, level: str, first: int = 0) -> Tensor:
        """Audio [B, T*hop, A] from the codes of one level alone; the first is the song's code `first`."""
        return self.level(level).decode(codes_BT, first)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss [] and metrics of `batch["audio"]` [B, T, A]. Each term is summed over levels, as in Jukebox."""
        audio = batch["audio"]
        total = audio.new_zeros(())
        metrics: dict[str, Tensor] = {}
        for level, model in self.levels.items():
            candidates = batch.get(f"candidates_{level}")
            if isinstance(model, SpectrumLevel):
                loss, commit, facts = model(audio, candidates)
                weight = model.config.commit
            else:
                loss, commit, facts = self._wave_loss(level, model, audio, candidates)
                weight = self.config.commit
            total = total + loss + weight * commit
            metrics |= {
                f"{level}/reconstruction": loss.detach(),
                f"{level}/commit": commit.detach(),
            }
            for name, value in facts.items():
                metrics[f"{level}/{name}"] = value
        return total, metrics

    def _wave_loss(
        self, level: str, model: nn.Module, audio_BTA: Tensor, candidates: Tensor | None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Loss [], commitment loss [] and facts of a level whose target is `wave`."""
        if self.training and self.config.wave_batch_ratio < 1:
            audio_BTA = audio_BTA[: ceil(self.config.wave_batch_ratio * len(audio_BTA))]
        y_BTA, commit, facts = model(audio_BTA, candidates)
        x_BT = audio_BTA.transpose(1, 2).flatten(0, 1)  # a channel counts as a clip of its own
        # Spectra are of float32 also where the layers are not.
        y_BT = y_BTA.float().transpose(1, 2).flatten(0, 1)
        loss = reconstruction(self.config.loss, x_BT, y_BT, self.config.bandwidth)
        if not self.training:
            facts |= self._judge(x_BT, y_BT)
        return loss, commit, facts

    @torch.no_grad()
    def _judge(self, x_BT: Tensor, y_BT: Tensor) -> dict[str, Tensor]:
        """What people read: the terms of the loss one by one, signal-to-noise ratio and spectral convergence in dB."""
        loss = self.config.loss
        bandwidth = self.config.bandwidth
        judged = {}
        for term in ("l1", "l2", "linf", "spectral", "multispectral"):
            judged[term] = distance(loss, term, x_BT, y_BT, bandwidth)
        convergence = spectral_convergence(loss.stft, x_BT, y_BT)
        noise = (x_BT - y_BT).square().sum(1).clamp(min=1e-9)
        snr = 10 * torch.log10(x_BT.square().sum(1).clamp(min=1e-9) / noise)
        return judged | {
            "spectral_convergence": convergence,
            "spectral_convergence_db": 20 * torch.log10(convergence.clamp(min=1e-9)),
            "snr_db": snr.mean(),
        }


def load_vqvae(
    run: Path, sample_rate: int, device: torch.device | str = "cpu"
) -> tuple[VQVAE, dict[str, Any]]:
    """The VQ-VAE in `run` and its facts. UserError if it holds none, or one for another sample rate (Hz)."""
    facts = read_facts(run)
    if facts["kind"] != "vqvae":
        raise UserError(f"{run} holds a {facts['kind']}, not a VQ-VAE")
    vqvae = VQVAE(VQVAEConfig(**facts["config"]))
    if vqvae.config.sample_rate != sample_rate:
        raise UserError(
            f"{run} is for {vqvae.config.sample_rate} Hz, the songs have {sample_rate} Hz"
        )
    load_into(vqvae, run, device=device)
    return vqvae.to(device).eval(), facts
