"""How much of what the devices could compute a run uses: MFU, the FLOPs of the model over those of
the peak.

FLOPs are counted as `plan` counts them: the real model forward on the meta device, every product
and convolution, three times that for a step. For a prior this is 6 x weights x tokens, and
attention. Activations that are computed again do not count: that is work, but no progress.
"""

import torch
from pydantic import BaseModel

from megajukebox.common.device import accelerator
from megajukebox.models.prior import PriorConfig
from megajukebox.models.student import StudentConfig
from megajukebox.models.vqvae import VQVAEConfig
from megajukebox.training.planner.activation_trace import forward_flops
from megajukebox.training.planner.profiles import peak_of_device
from megajukebox.training.planner.workload import AudioWorkload, CodeWorkload, Workload

FORWARD_AND_BACKWARD = 3  # times the FLOPs of a forward pass


def step_flops(config: BaseModel, clip: int) -> int:
    """Of forward and backward of one sample; `clip` is the audio samples of one, for a VQ-VAE."""
    workload: Workload
    if isinstance(config, VQVAEConfig):
        workload = AudioWorkload(config.model_dump_json(), clip)
    else:  # a student is its teacher's layers under another order; what it has beside them is looked up in tables
        prior = config.prior if isinstance(config, StudentConfig) else config
        assert isinstance(prior, PriorConfig)
        workload = CodeWorkload(prior.model_dump_json())
    return FORWARD_AND_BACKWARD * forward_flops(workload.build, lambda: workload.batch(1))


def peak(precision: str, peak_tflops: float | None) -> float | None:
    """FLOP/s of one device at most: `peak_tflops` if given, else those of a known GPU; None where
    neither is known.
    """
    if peak_tflops is None and accelerator() == "cuda":
        peak_tflops = peak_of_device(torch.cuda.get_device_name()).get(precision)
    return peak_tflops * 1e12 if peak_tflops else None


def seconds_at_peak(flops: float, devices: int, peak: float) -> float:
    """What a step of `flops` would take if every device did nothing but products; MFU is this over
    what it takes.
    """
    return flops / (devices * peak)
