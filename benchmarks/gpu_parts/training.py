"""Training steps of the released sizes on one GPU, beside what `plan` says of them; and every V100 profile in fp16."""

import statistics

from train_step import measured

from gpu_parts.figures import Figures
from gpu_parts.models import preset, release
from gpu_parts.planned import TOP, UPSAMPLER, V100, VQVAE, TrainingCase, planned
from megajukebox.training.engines import collectives

STEPS = 10  # measured: two halves
SMALL_DS_CONFIG = {"vqvae": "vqvae_cpu.json"}
SMALL_PRIOR_DS_CONFIG = "prior_zero3_cpu.json"


def training(figures: Figures) -> None:
    """The VQ-VAE, with its channels as they are laid out on a GPU and together; an upsampler of 1B."""
    step(figures, VQVAE)
    step(figures, VQVAE, channels_last=True)
    step(figures, UPSAMPLER)
    collectives.stop()


def training_5b(figures: Figures) -> None:
    """The top prior."""
    step(figures, TOP)
    collectives.stop()


def training_v100(figures: Figures) -> None:
    """A few steps in fp16 of each way that V100s train in."""
    for case in V100:
        step(figures, case)
    collectives.stop()


def step(figures: Figures, case: TrainingCase, channels_last: bool | None = None) -> None:
    """Seconds of a step, its share of a product's speed, and peak memory."""
    if figures.small:
        ds_config = SMALL_DS_CONFIG.get(case.stage, SMALL_PRIOR_DS_CONFIG)
        row = measured(preset(small=True), case.stage, ds_config, 2, 0.0, channels_last)
        wanted = None
    else:
        wanted = planned(case)
        row = measured(
            case.preset(), case.stage, case.ds_config, STEPS, wanted.flops, channels_last
        )
    name = f"{case.name}, channels last" if channels_last else case.name
    taken = row["every_step"]
    middle = len(taken) // 2
    halves = [statistics.median(half) for half in (taken[:middle], taken[middle:])]
    figures.add(f"{name}, step", "s", *halves, plan=wanted.seconds if wanted else None)
    figures.add(f"{name}, of a product's speed", "MFU", row["mfu"])
    figures.add(f"{name}, peak", "GiB", row["peak_gib"], plan=wanted.gib if wanted else None)
    figures.fact(name, {key: row[key] for key in ("units_per_second", "unit", "ours", "parts")})
    release()
