"""What sampling asks of a device: to be the current one, and to take tensors of the host without a wait."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def on_device(device: torch.device) -> AbstractContextManager:
    """Streams, graphs and kernels of Triton are of the current device, wherever their tensors lie."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def upload(value: Tensor, device: torch.device) -> Tensor:
    """`value` on `device`. From pinned memory the copy is queued: the host does not wait for the GPU's earlier work."""
    if device.type == "cuda" and value.device.type == "cpu":
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)


def indices_on(device: torch.device, numbers: list[int]) -> Tensor:
    """int64 numbers on `device`."""
    return upload(torch.tensor(numbers, dtype=torch.long), device)
