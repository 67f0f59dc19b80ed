"""The device that this process computes on: one answer for every verb, and the one place that sets it.

| DS_ACCELERATOR | GPUs visible | device |
| --- | --- | --- |
| not set | none | cpu |
| not set, or cuda | all of the node | cuda:<local rank> |
| not set, or cuda | one to each task | cuda:0 |
| cuda (GPU profiles export it) | none | refused |
| cpu | any | cpu, and CUDA is never asked |

DeepSpeed reads the same variable, so that both always agree.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from megajukebox.common.errors import UserError

VARIABLE = "DS_ACCELERATOR"
KINDS = ("cpu", "cuda")
BFLOAT16_CAPABILITY = (8, 0)  # before it torch emulates, and is_bf16_supported() says True
Capability = tuple[int, int]


def accelerator() -> str:
    """`cpu` or `cuda`: what this process computes on unless a user names another."""
    if os.environ.get(VARIABLE) == "cpu":
        return "cpu"
    return "cuda" if torch.cuda.is_available() else "cpu"


def required_accelerator() -> str:
    """As `accelerator`.

    Raises:
        UserError: DS_ACCELERATOR asks for what is not there, or is not known here.
    """
    asked = os.environ.get(VARIABLE)
    if asked not in (None, *KINDS):
        raise UserError(f"{VARIABLE} {asked!r} is neither cpu nor cuda; set it to one, or unset it")
    kind = accelerator()
    if asked == "cuda" and kind == "cpu":
        raise UserError(f"{VARIABLE} is cuda, and {why_no_cuda()}; or set {VARIABLE}=cpu")
    return kind


def why_no_cuda() -> str:
    """Why torch sees no GPU, and what to do about it."""
    if torch.version.cuda is None and torch.version.hip is None:
        return (
            f"torch {torch.__version__} is built for CPUs; install the build for this GPU:"
            " TORCH_BACKEND=cu130 make install (V100s: cu126), in a new .venv"
        )
    return f"torch {torch.__version__} finds no GPU; look at nvidia-smi and at the job's --gres"


def choose_device(local_rank: int = 0, asked: str | None = None) -> torch.device:
    """This process's device, which becomes torch's current one: streams and graphs are made on that.

    Args:
        local_rank: number of this process on its machine.
        asked: cpu, cuda or cuda:3 where a user names it.

    Raises:
        UserError: there is no such device, or torch has no kernels for it.
    """
    kind = required_accelerator() if asked is None else asked_kind(asked)
    if kind == "cpu":
        return torch.device("cpu")
    index = torch.device(asked).index if asked else None
    count = torch.cuda.device_count()
    if index is None:
        index = local_rank % count  # one visible GPU a task: it is number 0 to each
    elif index >= count:
        raise UserError(f"device {asked} is not there; this process sees {count} GPUs, from cuda:0")
    device = torch.device("cuda", index)
    check_kernels(device)
    torch.cuda.set_device(device)
    return device


def asked_kind(asked: str) -> str:
    """The kind of a device that a user named. Raises UserError if it is not to be had."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", asked):
        raise UserError(f"device {asked!r} is not one of cpu, cuda, cuda:<number>")
    kind = asked.partition(":")[0]
    if kind == "cuda" and os.environ.get(VARIABLE) == "cpu":
        raise UserError(f"device {asked} contradicts {VARIABLE}=cpu; leave one of them out")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {asked} is not to be had: {why_no_cuda()}")
    return kind


def check_kernels(device: torch.device) -> None:
    """Raise UserError if this build of torch cannot run on `device`: its first kernel would fail."""
    if torch.version.hip is not None:  # its architectures have other names
        return
    capability = torch.cuda.get_device_capability(device)
    built_for = torch.cuda.get_arch_list()
    if has_kernels(capability, built_for):
        return
    name = torch.cuda.get_device_name(device)
    backend = "cu126" if capability < (7, 5) else "cu130"
    raise UserError(
        f"torch {torch.__version__} has no kernels for {name} (compute capability"
        f" {capability[0]}.{capability[1]}; it has {' '.join(built_for)});"
        f" TORCH_BACKEND={backend} make install, in a new .venv"
    )


def has_kernels(capability: Capability, built_for: list[str]) -> bool:
    """Whether code built for these architectures runs on a GPU of this compute capability.

    Args:
        built_for: as `torch.cuda.get_arch_list()` gives it. `sm_86` is machine code, which runs on the same
            major number from that minor one on; `compute_86` is PTX, which every later GPU compiles; with `a`
            at its end either runs on exactly that GPU, with `f` on its major number.
    """
    for architecture in built_for:
        matched = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", architecture)
        if not matched:
            continue
        built = (int(matched[2]), int(matched[3]))
        is_exact = matched[4] == "a"
        same_major = built[0] == capability[0] and built <= capability
        is_later = matched[1] == "compute" and not matched[4] and built <= capability
        if built == capability or (not is_exact and (same_major or is_later)):
            return True
    return False


def check_precision(device: torch.device, precision: str | torch.dtype) -> None:
    """Raise UserError if `device` computes in `precision` (float32, float16, bfloat16) by emulation alone."""
    if device.type != "cuda" or str(precision).removeprefix("torch.") != "bfloat16":
        return
    if torch.version.hip is not None:
        return
    capability = torch.cuda.get_device_capability(device)
    if capability < BFLOAT16_CAPABILITY:
        raise UserError(
            f"precision bfloat16: {torch.cuda.get_device_name(device)} (compute capability"
            f" {capability[0]}.{capability[1]}) has none before 8.0; choose float16 (PROFILE=v100)"
        )


def device_name(device: torch.device) -> str:
    """The kind of a device: `cpu`, or what the driver calls the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@contextmanager
def without_tf32() -> Iterator[None]:
    """Convolutions in float32 are computed in float32 inside; from A100s on cuDNN would take TF32, of 10 bits.

    The codes of a song would then depend on the kind of GPU that encoded it.
    """
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
