"""Where time goes: kernels of a code sampled eagerly and by a graph, and of a training step; traces beside gpu_day.json."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timing import synchronize
from torch.autograd.profiler_util import EventList
from torch.profiler import ProfilerActivity, profile

from gpu_parts.figures import Figures
from gpu_parts.models import WindowFactory, preset, prior_config, random_prior, release
from gpu_parts.planned import UPSAMPLER, VQVAE
from megajukebox.models.prior import Prior
from megajukebox.models.vqvae import VQVAE as CodecModel
from megajukebox.sampling.levels.autoregressive import build_level_sampler
from megajukebox.training.planner.dummy_batches import clips, windows

TOP_KERNELS = 20
LARGEST_TRACE = 15 * 2**20  # bytes of a file
EAGER_CODES = 4


def profiles(figures: Figures) -> None:
    """Profile sampling with an upsampler of 1B, and its training step and the VQ-VAE's."""
    config = prior_config("middle", figures.small)
    prior = random_prior(config, figures.device, torch.bfloat16)
    row = config.length // config.transformer.blocks
    sampled(figures, prior, "sequential", EAGER_CODES)
    sampled(figures, prior, "cuda_graph", row)
    del prior
    release()
    prior = Prior(config).to(figures.device)
    trained(figures, f"training step of {UPSAMPLER.stage}", prior, windows(config, 1))
    del prior
    release()
    codec = CodecModel(preset(figures.small).vqvae).to(figures.device)
    audio = clips(1, 2048 if figures.small else 393216)
    trained(figures, f"training step of {VQVAE.stage}", codec, audio)


@torch.inference_mode()
def sampled(figures: Figures, prior: Prior, decoding: str, codes: int) -> None:
    """The first codes of a window: nothing is known, so nothing is taken in."""
    sampler = build_level_sampler(prior, decoding)
    make = WindowFactory(prior, 1)
    work = sampler.window_sampler()
    work(sampler.packed, make.window(0, codes))
    window = make.window(0, codes)
    profiled(figures, f"{codes} codes, {decoding}", lambda: work(sampler.packed, window))


def trained(figures: Figures, name: str, model: torch.nn.Module, batch: dict) -> None:
    """Forward and backward in bfloat16, without an optimizer."""
    device = figures.device
    on_device = {}
    for key, value in batch.items():
        if isinstance(value, dict):
            on_device[key] = {inner: x.to(device) for inner, x in value.items()}
        else:
            on_device[key] = value.to(device)

    def forward_backward() -> None:
        model.zero_grad()
        with torch.autocast(device.type, torch.bfloat16):
            loss = model.train()(on_device)[0]
        loss.backward()

    forward_backward()
    profiled(figures, name, forward_backward)


def profiled(figures: Figures, name: str, work: Callable[[], Any]) -> None:
    """Store the kernels that took most, and a trace unless it is too large to be carried home."""
    activities = [ProfilerActivity.CPU]
    if figures.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        work()
        synchronize(figures.device)
    figures.fact(name, top_kernels(profiler.key_averages(), figures.device))
    trace = figures.folder / f"trace_{name.replace(' ', '_').replace(',', '')}.json.gz"
    profiler.export_chrome_trace(str(trace))
    drop_if_large(figures, trace)


def top_kernels(events: EventList, device: torch.device) -> list[dict[str, Any]]:
    """Name, calls and microseconds of the kernels (on a CPU: operations) that took most."""
    attribute = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    ranked = sorted(events, key=lambda event: getattr(event, attribute), reverse=True)
    kernels = []
    for event in ranked[:TOP_KERNELS]:
        taken = round(getattr(event, attribute), 1)
        kernels.append({"kernel": event.key[:120], "calls": event.count, "us": taken})
    return kernels


def drop_if_large(figures: Figures, trace: Path) -> None:
    size = trace.stat().st_size
    if size > LARGEST_TRACE:
        trace.unlink()
        figures.fact(trace.name, f"dropped: {size / 2**20:.0f} MiB")
