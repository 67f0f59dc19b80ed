"""The stage `refiner`: a refiner of one level of a finished VQ-VAE, on clips of songs."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from megajukebox.common.errors import UserError
from megajukebox.common.model_files import FACTS
from megajukebox.common.provenance import made_by
from megajukebox.common.validation_errors import mistakes
from megajukebox.models.refiner import RefinerConfig, window_size
from megajukebox.models.vqvae import VQVAE, load_vqvae
from megajukebox.training.config import Preset
from megajukebox.training.refiner_settings import refiner_config
from megajukebox.training.refiner_training import RefinerTraining
from megajukebox.training.tasks import ReaderShare, Task, TaskRequest
from megajukebox.training.vqvae_task import open_clips


def refiner_task(request: TaskRequest, reading: ReaderShare) -> Task:
    """The refiner of `preset.refiner.level` of the VQ-VAE in `request.vqvae`.

    Raises:
        UserError: there is no VQ-VAE, or songs, settings or weights to start from do not fit it.
    """
    preset = request.preset
    settings = request.settings
    vqvae, vqvae_facts = read_vqvae(request)
    config = config_of(preset, vqvae, request.vqvae)
    check_base(request, config, vqvae_facts["fingerprint"])
    clips, songs = open_clips(
        request, "refiner", "frame of the refiner", config.unit, vqvae.config.channels
    )
    check_clip(clips.clip, preset)
    seconds = reading.global_batch * clips.clip / config.sample_rate
    facts: dict[str, Any] = {
        "level": config.level,
        "sample_rate": config.sample_rate,
        "preset": preset.name,
        **songs,
        "made_by": made_by(),
        "vqvae": vqvae_facts["fingerprint"],
    }
    if "licence" in vqvae_facts:  # what is trained on a model's codes is derived from it
        facts["licence"] = vqvae_facts["licence"]
    loss = preset.refiner.loss
    adversarial = preset.refiner.adversarial
    return Task(
        kind="refiner",
        config=config,
        build=lambda: RefinerTraining(config, loss, vqvae, adversarial),
        unexported="critics.",
        source=clips,
        settings=settings,
        reading=reading,
        units_per_step=seconds,
        audio_seconds=seconds,
        speed_name="audio_seconds_per_second",
        facts=facts,
    )


def read_vqvae(request: TaskRequest) -> tuple[VQVAE, dict[str, Any]]:
    """The VQ-VAE to refine, and its facts.

    Raises:
        UserError: none is given, or it is for another sample rate than the preset's songs.
    """
    if request.vqvae is None or not (request.vqvae / FACTS).is_file():
        raise UserError(
            f"there is no VQ-VAE in {request.vqvae}; give the run that is to be refined: --vqvae RUN"
        )
    rate = request.preset.audio.sample_rate
    vqvae, facts = load_vqvae(request.vqvae, rate)
    return vqvae, facts


def config_of(preset: Preset, vqvae: VQVAE, run: Path | None) -> RefinerConfig:
    """Raises UserError where the preset's refiner does not fit the VQ-VAE."""
    try:
        return refiner_config(preset.refiner, vqvae.config)
    except ValidationError as error:
        raise UserError(f"{run}: {'; '.join(mistakes(error, RefinerConfig))}") from None


def check_clip(clip: int, preset: Preset) -> None:
    """Raise UserError unless a clip is as long as the longest spectrum that the loss compares."""
    longest = max(preset.refiner.loss.window_seconds)
    window = window_size(longest, preset.audio.sample_rate)
    if clip < window:
        raise UserError(
            f"training.refiner.clip {clip} is shorter than a spectrum of {longest:g} s ({window} samples);"
            " lengthen it, or shorten refiner.loss.window_seconds"
        )


def check_base(request: TaskRequest, config: RefinerConfig, fingerprint: str) -> None:
    """Raise UserError unless the weights to start from are a refiner of the same shape, of the same VQ-VAE."""
    base = request.base
    if base is None:
        return
    if base.facts["kind"] != "refiner" or base.config != config:
        raise UserError(
            f"--from {base.folder} holds no refiner of this shape; give a run of train refiner"
            " with the same settings"
        )
    if base.facts.get("vqvae") != fingerprint:
        raise UserError(
            f"--from {base.folder} refines another VQ-VAE; use the one that it was trained with"
        )
