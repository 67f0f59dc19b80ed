"""Reconstructions of held-out clips by a VQ-VAE or a refiner that trains, as files in samples/step-*/ to listen to."""

from pathlib import Path

import torch

from megajukebox.common.levels import REFINED_TRACKS
from megajukebox.data.audio import write_wav
from megajukebox.models.vqvae import VQVAE
from megajukebox.training.engines.zero import ZeroEngine
from megajukebox.training.refiner_training import RefinerTraining
from megajukebox.training.run_context import RunContext
from megajukebox.training.tasks import Task

MAX_SECONDS = 12.0  # of clips, one after the other
STEP_RATIO = 1.25  # of one set of files to the one before: some forty in a run of any length


def write_reconstructions(run: RunContext, task: Task, engine: ZeroEngine, step: int) -> None:
    """Write `original` and every level's reconstruction, on rank 0 alone: no other rank takes part.

    A prior generates codes, not audio: previews.py samples from it.
    """
    module = engine.module
    if run.rank or not isinstance(module, VQVAE | RefinerTraining) or engine.stage == 3:
        return
    if not is_due(run.folder, step):
        return
    batch = next(iter(task.held_out()), None)
    if batch is None:
        return
    rate = module.config.sample_rate
    folder = run.folder / "samples" / f"step-{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    for name, wave_BTA in reconstructions(module, batch["audio"]).items():
        wave_TA = wave_BTA.flatten(0, 1)[: int(MAX_SECONDS * rate)].clamp(-1, 1)
        write_wav(folder / f"{name}.wav", wave_TA.cpu().numpy(), rate)


@torch.no_grad()
def reconstructions(
    model: VQVAE | RefinerTraining, audio_BTA: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The clips themselves, and through each level alone, [B, T, A] float32; of a refiner its level, plain and refined."""
    was_training = model.training
    weight = next(model.parameters())
    model.eval()
    x_BTA = audio_BTA.to(weight.device, weight.dtype)
    waves = {"original": audio_BTA.float()}
    if isinstance(model, RefinerTraining):
        level = model.config.level
        decoded, codes_BN = model.decoded(x_BTA)
        refined = model.refine(decoded, codes_BN)
        for name, wave in ((level, decoded), (REFINED_TRACKS[level], refined)):
            waves[name] = wave.unflatten(0, (len(x_BTA), -1)).transpose(1, 2)
        model.train(was_training)
        return waves
    for level in model.config.levels:
        waves[level] = model.decode(model.encode(x_BTA, level), level).float()
    model.train(was_training)
    return waves


def is_due(run: Path, step: int) -> bool:
    """Whether there are none of this step, and this step is far enough from those before it."""
    steps = [int(folder.name.removeprefix("step-")) for folder in run.glob("samples/step-????????")]
    newest = max((written for written in steps if written < step), default=0)
    return step >= STEP_RATIO * newest and step not in steps
