"""The three-level VQ-VAE: audio [B, T, 1] to codes [B, T/hop] and back, each level a model of its own."""

# B batch   T samples   C channels inside   D width of a code vector
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from megajukebox.common.device import without_tf32
from megajukebox.common.errors import UserError
from megajukebox.common.levels import LEVELS
from megajukebox.common.model_files import load_into, read_facts
from megajukebox.common.renamed_keys import accept_old_keys
from megajukebox.models.codebook import Codebook
from megajukebox.models.convnet import Decoder, Encoder
from megajukebox.models.losses import (
    Bandwidth,
    ReconstructionLoss,
    distance,
    reconstruction,
    spectral_convergence,
)


class VQVAEConfig(BaseModel):
    """Shapes of the VQ-VAE. `down` and `stride` have one entry a level, finest first: hop = product of stride^down."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    _old_keys = accept_old_keys(codes="codebook_size")

    sample_rate: int = Field(gt=0)
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
    commit: float = Field(0.02, ge=0)
    loss: ReconstructionLoss = ReconstructionLoss()
    bandwidth: Bandwidth = Bandwidth()

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
        return self

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
        self.encoder = Encoder(1, code_width, width, stages, **stack)
        self.decoder = Decoder(
            code_width, 1, width, stages, reverse=config.reverse_decoder_dilation, **stack
        )
        self.codebook = Codebook(
            config.codebook_size,
            code_width,
            config.codebook_decay,
            config.codebook_threshold,
            config.fresh_restarts,
        )

    def encode(self, audio_BT1: Tensor) -> Tensor:
        x_BDT = self.encoder(audio_BT1.transpose(1, 2))
        codes, _ = self.codebook.nearest(x_BDT.transpose(1, 2).flatten(0, 1))
        return codes.unflatten(0, (len(x_BDT), -1))

    def decode(self, codes_BT: Tensor) -> Tensor:
        return self.decoder(self.codebook.lookup(codes_BT).transpose(1, 2)).transpose(1, 2)

    def forward(
        self, audio_BT1: Tensor, candidates: Tensor | None = None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Reconstruction [B, T, 1], commitment loss [] and facts about the codebook, which learns while in training."""
        x_BDT = self.encoder(audio_BT1.transpose(1, 2))
        x_ND = x_BDT.transpose(1, 2).flatten(0, 1)
        if self.training:
            self.codebook.start(x_ND.detach())
        codes, fit = self.codebook.nearest(x_ND.detach())
        q_ND = self.codebook.lookup(codes)
        commit = (q_ND - x_ND).square().mean()
        straight_BDT = (
            (x_ND + (q_ND - x_ND).detach()).unflatten(0, (len(x_BDT), -1)).transpose(1, 2)
        )
        facts = {
            "fit": fit.mean(),
            "prenorm": (x_ND.detach() - x_ND.detach().mean()).square().mean().sqrt(),
        }
        if self.training:
            facts |= self.codebook.update(x_ND.detach(), codes, candidates)
        return self.decoder(straight_BDT).transpose(1, 2), commit, facts


class VQVAE(nn.Module):
    """All levels, trained together on the same audio; they share nothing (Dhariwal et al. 2020, section 3.1)."""

    def __init__(self, config: VQVAEConfig):
        super().__init__()
        self.config = config
        self.levels = nn.ModuleDict()
        for i, level in enumerate(config.levels):
            self.levels[level] = VQVAELevel(config, i)

    def level(self, name: str) -> VQVAELevel:
        model = self.levels[name]
        assert isinstance(model, VQVAELevel)
        return model

    @without_tf32()
    def encode(self, audio_BT1: Tensor, level: str) -> Tensor:
        """Codes [B, T/hop] of one level. T must be a multiple of the level's hop."""
        hop = self.config.hops[level]
        length = audio_BT1.shape[1]
        if length % hop:
            raise ValueError(
                f"audio of {length} samples is not a whole number of {level} codes (hop {hop}); cut it first"
            )
        return self.level(level).encode(audio_BT1)

    @without_tf32()
    def decode(self, codes_BT: Tensor, level: str) -> Tensor:
        """Audio [B, T*hop, 1] from the codes of one level alone."""
        return self.level(level).decode(codes_BT)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss [] and metrics of `batch["audio"]` [B, T, 1]. Each term is summed over levels, as in Jukebox."""
        audio = batch["audio"]
        x_BT = audio.squeeze(-1)
        total = x_BT.new_zeros(())
        metrics: dict[str, Tensor] = {}
        for level, model in self.levels.items():
            y, commit, facts = model(audio, batch.get(f"candidates_{level}"))
            y = y.float()  # spectra are of float32 also where the layers are not
            loss = reconstruction(self.config.loss, x_BT, y.squeeze(-1), self.config.bandwidth)
            total = total + loss + self.config.commit * commit
            metrics |= {
                f"{level}/reconstruction": loss.detach(),
                f"{level}/commit": commit.detach(),
            }
            for name, value in facts.items():
                metrics[f"{level}/{name}"] = value
            if not self.training:
                metrics |= self._judge(level, x_BT, y.squeeze(-1))
        return total, metrics

    @torch.no_grad()
    def _judge(self, level: str, x_BT: Tensor, y_BT: Tensor) -> dict[str, Tensor]:
        """What people read: the terms of the loss one by one, signal-to-noise ratio and spectral convergence in dB."""
        loss = self.config.loss
        bandwidth = self.config.bandwidth
        judged = {}
        for term in ("l1", "l2", "linf", "spectral", "multispectral"):
            judged[f"{level}/{term}"] = distance(loss, term, x_BT, y_BT, bandwidth)
        convergence = spectral_convergence(loss.stft, x_BT, y_BT)
        noise = (x_BT - y_BT).square().sum(1).clamp(min=1e-9)
        snr = 10 * torch.log10(x_BT.square().sum(1).clamp(min=1e-9) / noise)
        return judged | {
            f"{level}/spectral_convergence": convergence,
            f"{level}/spectral_convergence_db": 20 * torch.log10(convergence.clamp(min=1e-9)),
            f"{level}/snr_db": snr.mean(),
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
