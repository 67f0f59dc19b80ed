"""A refiner while it is trained: what a frozen VQ-VAE makes of clips of songs, refined, against the clips themselves."""

# B batch, of stereo every channel of it   T samples   A channels   N codes   K codes of the codebook
import torch
from torch import Tensor

from megajukebox.models.losses import STFT, log_spectral, spectral_convergence
from megajukebox.models.refiner import Refiner, RefinerConfig, window_size
from megajukebox.models.vqvae import VQVAE
from megajukebox.training.refiner_critics import (
    AdversarialSettings,
    Critics,
    critics_loss,
    fooling_loss,
)
from megajukebox.training.refiner_settings import RefinerLossSettings

NEIGHBOURS = 8  # nearest codes, of which one replaces a code now and then
SILENT_POWER = (
    1e-4  # of a clip, -40 dB of full scale: quieter ones do not count for more in the wave
)
DECIBELS_OF_NEPER = 8.685889638


class RefinerTraining(Refiner):
    """The refiner, and beside it, no part of it, the VQ-VAE: never trained, saved or moved by the optimizer.

    A sampled code is not always one that an encoder would choose. So some codes are replaced in training, and what is
    decoded from them has to become the same clip.
    """

    def __init__(
        self,
        config: RefinerConfig,
        loss: RefinerLossSettings,
        vqvae: VQVAE,
        adversarial: AdversarialSettings | None = None,
    ):
        super().__init__(config)
        self.loss = loss
        self.adversarial = adversarial or AdversarialSettings()
        if self.adversarial.weight:
            self.critics = Critics(self.adversarial, config.sample_rate)
        # In a tuple, torch does not find it: it is no submodule.
        self._frozen = (vqvae.eval().requires_grad_(False),)
        vectors_KD = vqvae.level(config.level).codebook.vectors
        if not vectors_KD.is_meta:
            with torch.no_grad():
                spread = vectors_KD.float().std().clamp(min=1e-8)
                self.code_vectors.weight.copy_(vectors_KD.float() / spread)
        self.stfts: list[STFT] = []
        for seconds in loss.window_seconds:
            window = window_size(seconds, config.sample_rate)
            self.stfts.append(STFT(fft=window, hop=window // 4, window=window))

    def vqvae_on(self, device: torch.device) -> VQVAE:
        """The VQ-VAE, where the batch is."""
        vqvae = self._frozen[0]
        if next(vqvae.parameters()).device != device:
            vqvae.to(device)
        return vqvae

    @torch.no_grad()
    def decoded(self, audio_BTA: Tensor) -> tuple[Tensor, Tensor]:
        """What the frozen decoder makes of clips, [B, T], and the codes [B, N] that it was given.

        Of stereo both have a row for each channel of each clip: a refiner is of mono.
        """
        vqvae = self.vqvae_on(audio_BTA.device)
        level = self.config.level
        # As it is decoded when songs are sampled: the refiner learns that decoder's noise, not another precision's.
        device = "cuda" if audio_BTA.is_cuda else "cpu"
        with torch.autocast(device, enabled=False):
            codes_BN = vqvae.encode(audio_BTA.float(), level)
            if self.training and self.loss.code_noise:
                vectors_KD = vqvae.level(level).codebook.vectors
                codes_BN = with_neighbours(codes_BN, vectors_KD, self.loss.code_noise)
            decoded_BTA = vqvae.decode(codes_BN, level)
        return by_channel(decoded_BTA).float(), codes_BN.repeat_interleave(
            decoded_BTA.shape[-1], dim=0
        )

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss [] and metrics of `batch["audio"]` [B, T, A]."""
        audio_BTA = batch["audio"].float()
        if self.training and self.loss.gain_db:
            quieter_db = torch.rand(len(audio_BTA), 1, 1, device=audio_BTA.device)
            audio_BTA = audio_BTA * 10 ** (-self.loss.gain_db / 20 * quieter_db)
        x_BT = by_channel(audio_BTA)
        decoded_BT, codes_BN = self.decoded(audio_BTA)
        refined_BT = self.refine(decoded_BT, codes_BN)
        loss, metrics = self._distances(x_BT, refined_BT)
        level = self.config.level
        if self.adversarial.weight:
            loss, own = self._with_critics(loss, x_BT, refined_BT)
            metrics |= own
        report = {f"{level}/{name}": value.detach() for name, value in metrics.items()}
        if not self.training:
            with torch.no_grad():
                _, before = self._distances(x_BT, decoded_BT)
            report |= {f"{level}_decoder/{name}": value for name, value in before.items()}
        return loss, report

    def _with_critics(
        self, loss: Tensor, x_BT: Tensor, refined_BT: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The refiner's loss and the discriminators' in one sum [], neither of which reaches the other's weights.

        So one engine trains both: its checkpoints, resume and checks hold for the discriminators as well.
        """
        settings = self.adversarial
        fooling = fooling_loss(
            self.critics.frozen(x_BT), self.critics.frozen(refined_BT), settings.feature_matching
        )
        judging = critics_loss(self.critics(x_BT), self.critics(refined_BT.detach()))
        total = loss + settings.weight * fooling + judging
        return total, {"fooling": fooling, "critics": judging}

    def _distances(self, x_BT: Tensor, y_BT: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss [] of y, and what people read of it."""
        logs = torch.stack([log_spectral(stft, x_BT, y_BT) for stft in self.stfts]).mean()
        norms = torch.stack([spectral_convergence(stft, x_BT, y_BT) for stft in self.stfts])
        convergence = norms.mean()
        error = (y_BT - x_BT).square().mean(dim=1)
        power = x_BT.square().mean(dim=1)
        wave = (error / (power + SILENT_POWER)).mean()
        weights = self.loss
        loss = weights.log_spectral * logs + weights.convergence * convergence + weights.wave * wave
        snr = 10 * torch.log10(power.clamp(min=1e-9) / error.clamp(min=1e-9))
        return loss, {
            "log_magnitude_db": DECIBELS_OF_NEPER * logs,
            "spectral_convergence_db": 20 * torch.log10(convergence.clamp(min=1e-9)),
            "snr_db": snr.mean(),
        }


def by_channel(audio_BTA: Tensor) -> Tensor:
    """[B * A, T]."""
    return audio_BTA.transpose(1, 2).flatten(0, 1)


def with_neighbours(codes_BN: Tensor, vectors_KD: Tensor, share: float) -> Tensor:
    """`codes` with a share of them replaced by one of the NEIGHBOURS codes nearest to each."""
    count = min(NEIGHBOURS, len(vectors_KD) - 1)
    distance_KK = torch.cdist(vectors_KD.float(), vectors_KD.float())
    distance_KK.fill_diagonal_(torch.inf)  # a code is no neighbour of its own
    nearest_KM = distance_KK.topk(count, largest=False).indices
    chosen_BN = torch.randint(count, codes_BN.shape, device=codes_BN.device)
    replaced_BN = torch.rand(codes_BN.shape, device=codes_BN.device) < share
    return torch.where(replaced_BN, nearest_KM[codes_BN, chosen_BN], codes_BN)
