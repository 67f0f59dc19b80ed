"""What a plan assumes of the machines: cards and their nodes from the profiles, and what Jukebox's
own runs reached.
"""

from typing import NamedTuple

from megajukebox.common.errors import UserError
from megajukebox.training.planner.profiles import GPUProfile, MFUSettings, shipped_profiles

GIB = 2**30
MIB = 2**20
GPUS_PER_NODE = 8  # of Jukebox's own runs, and of every node that a profile does not describe

# What CUDA, NCCL and the gaps between tensors take beside what we count. Not measured here: a
# margin.
OUTSIDE_GIB = 1.5
FRAGMENTATION = 0.04
# What a CPU process takes besides, in MiB: above all modules that DeepSpeed only imports when it
# makes an engine (831 without ZeRO, 1421 with), and buffers in which convolutions work. Measured by
# training next to nothing (benchmarks/plan_memory.py).
PROCESS_MIB = 83
PROCESS_ZERO_MIB = 121
CONVOLUTIONS_MIB = 49

# Jukebox's own runs (Dhariwal et al. 2020): the default sizes, and where a V100's share of the peak
# is taken from: 3 x FLOPs of a forward pass x batch (256, 512, 192 samples) / (seconds of a step x
# GPUs x peak).
# TFLOP/s of its VQ-VAE in float32 on a V100: bound by the memory's bandwidth, not by arithmetic.
JUKEBOX_VQVAE_TFLOPS = 1.26
V100_BANDWIDTH = 0.9  # TB/s, at which that was reached


class GPU(NamedTuple):
    """One card, as a plan sees it. Peaks are the makers' dense figures."""

    name: str
    memory: float  # GiB that its driver reports
    peak: dict[str, float]  # TFLOP/s by precision
    bandwidth: float  # TB/s of its memory
    network: float  # GB/s between two nodes, each way, all cards of a node together
    flash: bool = True  # fused attention for any size of head
    gpus_per_node: int = GPUS_PER_NODE
    mfu: MFUSettings | None = None
    profile: GPUProfile | None = None


def gpu_of_profile(profile: GPUProfile, card: str | None = None) -> GPU:
    """`card` of a profile (its default card if None). Raises UserError for a profile without GPUs."""
    name = card or profile.default_card
    if name is None:
        raise UserError(f"profile {profile.name} has no GPU to plan for; choose another --profile")
    if name not in profile.cards:
        known = ", ".join(profile.cards)
        raise UserError(f"gpu {name!r} is none of profile {profile.name}; choose one of {known}")
    settings = profile.cards[name]
    return GPU(
        name,
        settings.memory_gib,
        settings.peak_tflops or profile.peak_tflops,
        settings.bandwidth_tb_per_second,
        profile.node.network_gb_per_second,
        profile.flash_attention,
        profile.node.gpus,
        profile.mfu,
        profile,
    )


def known_gpus() -> dict[str, GPU]:
    """Every card of the profiles that come with the package, by name."""
    gpus = {}
    for profile in shipped_profiles():
        for card in profile.cards:
            gpus[card] = gpu_of_profile(profile, card)
    return gpus


def gpu_named(name: str) -> GPU:
    """Raises UserError with the names that are known."""
    gpus = known_gpus()
    if name not in gpus:
        raise UserError(f"gpu {name!r} is unknown; choose one of {', '.join(gpus)}")
    return gpus[name]


def mfu_assumed(gpu: GPU, stage: str, precision: str, bandwidth_bound: bool) -> tuple[float, str]:
    """(model FLOPs over peak FLOPs that `plan` assumes, where it has that from)."""
    if bandwidth_bound:
        bytes_moved = 1 if precision == "float32" else 0.5
        tflops = JUKEBOX_VQVAE_TFLOPS * (gpu.bandwidth / V100_BANDWIDTH) / bytes_moved
        return tflops / gpu.peak[precision], "from Jukebox's own run, by bytes moved"
    assert gpu.mfu is not None
    assumed = gpu.mfu.top_prior if stage == "top_prior" else gpu.mfu.other_stages
    return assumed, gpu.mfu.source
