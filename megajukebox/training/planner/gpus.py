"""What a plan assumes of the machines: memory, peaks, networks, and the share of the peak that training reaches."""

import re
from typing import NamedTuple

GIB, MIB = 2**30, 2**20
GPUS_PER_NODE = 8


class GPU(NamedTuple):
    """One kind of device. Peaks are the makers' dense figures; a precision that is missing is not offered."""

    name: str
    memory: float  # GiB that its driver reports
    peak: dict[str, float]  # TFLOP/s by precision
    bandwidth: float  # TB/s of its memory
    network: float  # GB/s between two nodes, each way, all cards of a node together
    flash: bool = True  # fused attention for any size of head; V100s have it only for multiples of 8 (PyTorch's kernels)


V100 = {"float32": 15.7, "float16": 125.0}
A100 = {"float32": 19.5, "float16": 312.0, "bfloat16": 312.0}
HOPPER = {"float32": 67.0, "float16": 989.0, "bfloat16": 989.0}
GPUS = {
    gpu.name: gpu
    for gpu in (
        GPU(
            "v100-16gb", 15.7, V100, 0.9, 12.5, flash=False
        ),  # one EDR InfiniBand port of 100 Gbit/s
        GPU("v100-32gb", 31.7, V100, 0.9, 12.5, flash=False),
        GPU("a100-40gb", 39.4, A100, 1.56, 100.0),
        GPU("a100-80gb", 79.2, A100, 2.04, 100.0),
        GPU("h100-80gb", 79.1, HOPPER, 3.35, 400.0),  # eight NDR ports of 400 Gbit/s
        GPU("h200-141gb", 139.8, HOPPER, 4.8, 400.0),
    )
}
# What a driver calls cards that stand in a PCIe slot, whose clocks are lower than those of the boards above.
SLOTS = {
    r"V100-PCI": {"float32": 14.0, "float16": 112.0},
    r"V100S-PCI": {"float32": 16.4, "float16": 130.0},
    r"H100 PCIe": {"float32": 51.0, "float16": 756.0, "bfloat16": 756.0},
    r"H[12]00 NVL": {"float32": 60.0, "float16": 835.0, "bfloat16": 835.0},
}
BOARDS = {r"\bV100\b": V100, r"\bA100\b": A100, r"\bG?H[12]00\b": HOPPER}
# What CUDA, NCCL and the gaps between tensors take beside what we count. Not measured here: a margin.
OUTSIDE_GIB, FRAGMENTATION = 1.5, 0.04
# What a CPU process takes besides, in MiB: above all modules that DeepSpeed only imports when it makes an engine (831
# without ZeRO, 1421 with), and room in which convolutions work. Measured by training next to nothing
# (benchmarks/plan_memory.py).
PROCESS_MIB, PROCESS_ZERO_MIB, CONVOLUTIONS_MIB = 83, 121, 49

# Jukebox's own runs (Dhariwal et al. 2020): the default sizes, and where a V100's share of the peak is taken from:
# 3 x FLOPs of a forward pass x batch (256, 512, 192 samples) / (seconds of a step x GPUs x peak).
JUKEBOX_GPUS = {"vqvae": 256, "top_prior": 512, "middle_upsampler": 128, "bottom_upsampler": 128}
JUKEBOX_SHARE = {"top_prior": 0.25, "upsampler": 0.11}
TARGET_SHARE = {"top_prior": 0.45, "upsampler": 0.40}
JUKEBOX_VQVAE = 1.26  # TFLOP/s of its VQ-VAE in float32 on a V100: bound by the memory's bandwidth, not by arithmetic


def gpu_named(name: str) -> GPU:
    """Raises ValueError with the names that are known."""
    if name not in GPUS:
        raise ValueError(f"gpu {name!r} is unknown; choose one of {', '.join(GPUS)}")
    return GPUS[name]


def peaks_of(name: str) -> dict[str, float]:
    """TFLOP/s by precision of the card that its driver calls `name`; {} for one that is not in our tables."""
    found = (peaks for pattern, peaks in (SLOTS | BOARDS).items() if re.search(pattern, name))
    return next(found, {})


def share_of_peak(gpu: GPU, stage: str, precision: str) -> tuple[float, str]:
    """(model FLOPs over peak FLOPs that `plan` assumes, where it has that from)."""
    if stage == "vqvae":
        faster = gpu.bandwidth / 0.9 * (1 if precision == "float32" else 2)
        return JUKEBOX_VQVAE * faster / gpu.peak[
            precision
        ], "from Jukebox's own run, by bytes moved"
    kind = "top_prior" if stage == "top_prior" else "upsampler"
    if gpu.flash:
        return TARGET_SHARE[kind], "our target; not measured"
    return JUKEBOX_SHARE[kind], "what Jukebox's own run on V100s comes to"
