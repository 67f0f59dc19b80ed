"""The settings `refiner` of a preset, and the refiner that they give for a level of a VQ-VAE."""

from pydantic import Field

from megajukebox.common.errors import UserError
from megajukebox.models.refiner import RefinerConfig, window_size
from megajukebox.models.vqvae import VQVAEConfig
from megajukebox.training.refiner_critics import AdversarialSettings
from megajukebox.training.settings import StrictSettings

WINDOW_SECONDS = 0.046  # 512 samples at 11,025 Hz, 2048 at 44,100 Hz
FRAMES_PER_WINDOW = 4


class RefinerLossSettings(StrictSettings):
    """What a refiner is trained by, and how its clips are varied."""

    window_seconds: tuple[float, ...] = Field(
        default=(0.186, 0.093, 0.046, 0.023),
        min_length=1,
        description="of the spectra that are compared: 2048 to 256 samples at 11,025 Hz",
    )
    log_spectral: float = Field(default=1.0, ge=0, description="weight of log magnitudes")
    convergence: float = Field(default=1.0, ge=0, description="weight of spectral convergence")
    wave: float = Field(
        default=0.3, ge=0, description="weight of the relative squared error of the wave"
    )
    gain_db: float = Field(
        default=20.0, ge=0, le=60, description="clips are made quieter by up to this much"
    )
    code_noise: float = Field(
        default=0.05, ge=0, lt=1, description="share of codes replaced by one of their 8 nearest"
    )


class RefinerSettings(StrictSettings):
    """Which level is refined, and by how large a network."""

    level: str = "bottom"
    window: int | None = Field(
        default=None, gt=1, description="samples of its spectra; 46 ms if left out"
    )
    frame_hop: int | None = Field(
        default=None,
        gt=0,
        description="samples between frames; a quarter of the window if left out",
    )
    width: int = Field(default=160, gt=0)
    dilations: tuple[int, ...] = Field(default=(1, 2, 4, 1, 2), min_length=1)
    hidden_ratio: float = Field(default=2.0, gt=0)
    loss: RefinerLossSettings = RefinerLossSettings()
    adversarial: AdversarialSettings = AdversarialSettings()


def refiner_config(settings: RefinerSettings, vqvae: VQVAEConfig) -> RefinerConfig:
    """The shapes of a refiner of one level of `vqvae`.

    Raises:
        UserError: it has no such level.
        ValidationError: the sizes do not fit the level's codes.
    """
    level = settings.level
    if level not in vqvae.levels:
        raise UserError(
            f"refiner.level {level!r} is no level of the VQ-VAE; it has {', '.join(vqvae.levels)}"
        )
    code_width = vqvae.code_width
    if vqvae.spectrum and level in vqvae.spectrum_levels:
        code_width = vqvae.spectrum.code_width
    window = settings.window or window_size(WINDOW_SECONDS, vqvae.sample_rate)
    return RefinerConfig(
        level=level,
        sample_rate=vqvae.sample_rate,
        hop=vqvae.hops[level],
        codebook_size=vqvae.codebook_sizes[level],
        code_width=code_width,
        window=window,
        frame_hop=settings.frame_hop or window // FRAMES_PER_WINDOW,
        width=settings.width,
        dilations=settings.dilations,
        hidden_ratio=settings.hidden_ratio,
    )
