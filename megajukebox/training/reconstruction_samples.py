"""What a VQ-VAE makes of held-out clips, as files in samples/step-*/: to be listened to along training."""

from pathlib import Path

import torch

from megajukebox.data.audio import write_wav
from megajukebox.models.vqvae import VQVAE
from megajukebox.training.engines.zero import ZeroEngine
from megajukebox.training.run_context import RunContext
from megajukebox.training.tasks import Task

SECONDS = 12.0  # of clips, one after the other
GROWTH = 1.25  # each is made this many times later than the last: some forty in a run of any length


def write_reconstructions(run: RunContext, task: Task, engine: ZeroEngine, step: int) -> None:
    """Write `original` and every level's reconstruction, on rank 0 alone: no other rank takes part.

    A prior makes codes, not audio: it is heard by hearing.py.
    """
    if (
        run.rank
        or not isinstance(engine.module, VQVAE)
        or engine.stage == 3
        or not is_due(run.folder, step)
    ):
        return
    batch = next(iter(task.held_out()), None)
    if batch is None:
        return
    waves = reconstructions(engine.module, batch["audio"])
    folder = run.folder / "samples" / f"step-{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    rate = engine.module.config.sample_rate
    for name, wave_BT in waves.items():
        write_wav(
            folder / f"{name}.wav",
            wave_BT.flatten()[: int(SECONDS * rate)].clamp(-1, 1).cpu().numpy(),
            rate,
        )


@torch.no_grad()
def reconstructions(model: VQVAE, audio_BT1: torch.Tensor) -> dict[str, torch.Tensor]:
    """The clips themselves, and through each level alone, [B, T] float32."""
    was_training, place = model.training, next(model.parameters())
    model.eval()
    x = audio_BT1.to(place.device, place.dtype)
    made = {level: model.decode(model.encode(x, level), level) for level in model.config.levels}
    model.train(was_training)
    return {
        "original": audio_BT1[:, :, 0].float(),
        **{level: y[:, :, 0].float() for level, y in made.items()},
    }


def is_due(run: Path, step: int) -> bool:
    made = [int(folder.name.removeprefix("step-")) for folder in run.glob("samples/step-????????")]
    return (
        step >= GROWTH * max((before for before in made if before < step), default=0)
        and step not in made
    )
