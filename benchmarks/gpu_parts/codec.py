"""The VQ-VAE of the released size over whole songs: how much faster than real time, and what precision changes."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
from timing import median_seconds
from torch import Tensor

from gpu_parts.figures import Figures
from gpu_parts.models import random_vqvae
from megajukebox.models.chunked_codec import decode_long, encode_long
from megajukebox.models.vqvae import VQVAE

SONG_SECONDS = 60


@contextmanager
def computing_in(precision: str, device: torch.device) -> Iterator[None]:
    """float32 as encode and decode keep it; without that, in which cuDNN takes TF32; or bfloat16."""
    with ExitStack() as stack:
        if precision == "tf32":
            for method in ("encode", "decode"):
                unguarded = getattr(VQVAE, method).__wrapped__
                stack.enter_context(patch.object(VQVAE, method, unguarded))
        if precision == "bfloat16":
            stack.enter_context(torch.autocast(device.type, torch.bfloat16))
        yield


@torch.inference_mode()
def codec(figures: Figures) -> None:
    """Encode and decode every level in float32, TF32 and bfloat16."""
    device = figures.device
    model = random_vqvae(figures.small, device)
    rate = model.config.sample_rate
    length = 4 if figures.small else SONG_SECONDS
    t = torch.arange(length * rate, device=device) / rate
    audio = 0.1 * torch.randn_like(t)
    for hertz in (220.0, 550.0, 1210.0):
        audio += 0.2 * torch.sin(2 * torch.pi * hertz * t)

    def times_real_time(work: Callable[[], Tensor]) -> float:
        return length / median_seconds(work, device, 3, warmup=1)

    for level in model.config.levels:
        exact: dict[str, Tensor] = {}
        for precision in ("float32", "tf32", "bfloat16"):
            with computing_in(precision, device):
                codes = encode_long(model, audio, level)
                exact.setdefault("codes", codes)
                sound = decode_long(model, exact["codes"], level).float()
                exact.setdefault("sound", sound)
                figures.measure(
                    f"encode {level}, {precision}",
                    "x real time",
                    lambda: times_real_time(lambda: encode_long(model, audio, level)),  # noqa: B023
                )
                figures.measure(
                    f"decode {level}, {precision}",
                    "x real time",
                    lambda: times_real_time(lambda: decode_long(model, exact["codes"], level)),  # noqa: B023
                )
            if precision != "float32":
                other = (codes != exact["codes"]).float().mean().item()
                figures.add(f"encode {level}, {precision}, other codes", "of all", other)
                noise = (sound - exact["sound"]).norm() / exact["sound"].norm()
                decibel = 20 * torch.log10(noise.clamp(min=1e-9)).item()
                figures.add(f"decode {level}, {precision}, noise", "dB", decibel)
