"""If time is left: a whole jukebox against the CPU's codes, a resume in each way of training, and int8."""

import tempfile
from pathlib import Path

import numpy as np
import torch
from fixtures.tiny_jukebox import write_runs
from timing import seconds

from gpu_parts.figures import Figures
from gpu_parts.models import WindowFactory, prior_config, random_prior, release
from gpu_parts.planned import V100, VQVAE, TrainingCase
from gpu_parts.sampler import late, report, row_length, window_seconds
from megajukebox.common.errors import UserError
from megajukebox.sampling.jukebox import Jukebox
from megajukebox.sampling.levels.autoregressive import build_level_sampler
from megajukebox.sampling.songs.requests import SongRequest
from megajukebox.training.config import load_preset
from megajukebox.training.engines import collectives
from megajukebox.training.engines.factory import build_engine
from megajukebox.training.settings import TrainingSettings
from megajukebox.training.stages import workload_of

SONGS = 3
INT8_CODES = 24


def extras(figures: Figures) -> None:
    whole_jukebox(figures)
    for case in (VQVAE, *reversed(V100))[: 2 if figures.small else None]:
        resume(figures, case)
    collectives.stop()
    release()
    int8(figures)


def whole_jukebox(figures: Figures) -> None:
    """Little songs through all levels in float32, on this device and on the CPU."""
    length = 0.3 if figures.small else 1.0
    requests = []
    for n in range(SONGS):
        requests.append(SongRequest(id=f"song{n}", artist="ilune", seconds=length, seed=n))
    with tempfile.TemporaryDirectory() as folder:
        runs = write_runs(Path(folder))
        songs = Jukebox(runs, device=figures.device.type).sample(requests)
        on_cpu = Jukebox(runs, device="cpu").sample(requests)
    equal = []
    for song, other in zip(songs, on_cpu):
        for level, codes in other.codes.items():
            equal.append(np.mean(song.codes[level] == codes))
    name = "jukebox, codes as the CPU's"
    figures.add(name, "of all codes", float(np.mean(equal)), target=1.0)


def resume(figures: Figures, case: TrainingCase) -> None:
    """Seconds to save and to load, and whether the step after is that of the run that went on."""
    chosen = load_preset("tests/fixtures/files/mini.yaml")
    ds_config = collectives.read_ds_config(case.ds_config)
    if figures.small:
        ds_config = collectives.read_ds_config(
            "vqvae_cpu.json" if case is VQVAE else "prior_zero3_cpu.json"
        )
    workload = workload_of(chosen, case.stage)
    collectives.start()
    settings = TrainingSettings(ds_config="", steps=1)
    batch = workload.batch(2)

    def engine():
        return build_engine(workload.model_config, workload.build, ds_config, settings)

    going_on = engine()
    going_on.step([batch], rate=1.0)
    with tempfile.TemporaryDirectory() as folder:
        saving = seconds(lambda: going_on.save(Path(folder)), going_on.device)
        torch.manual_seed(1)
        expected = going_on.step([batch], rate=1.0)["loss"]
        resumed = engine()
        loading = seconds(lambda: resumed.load(Path(folder)), resumed.device)
    torch.manual_seed(1)
    loss = resumed.step([batch], rate=1.0)["loss"]
    name = f"resume, {case.ds_config.removesuffix('.json')}"
    figures.add(f"{name}, difference of the next loss", "relative", abs(loss / expected - 1))
    figures.fact(name, {"save_seconds": saving, "load_seconds": loading})


@torch.inference_mode()
def int8(figures: Figures) -> None:
    """Milliseconds a code with rounded weights, where the sampler has a kernel for them on this device."""
    prior = random_prior(prior_config("middle", figures.small), figures.device, torch.bfloat16)
    try:
        sampler = build_level_sampler(prior, "sequential", int8=True)
    except UserError as error:
        figures.fact("int8", f"refused: {error}")
        return
    make = WindowFactory(prior, 1)
    codes = 4 if figures.small else INT8_CODES
    known = late(prior, rows=-(-codes // row_length(prior)))
    window_seconds(sampler, make, known, codes)

    def milliseconds() -> float:
        taken = [window_seconds(sampler, make, known, new) for new in (codes // 2, codes)]
        return (taken[1] - taken[0]) / (codes - codes // 2) * 1e3

    report(figures, prior, 1, "int8", milliseconds)
