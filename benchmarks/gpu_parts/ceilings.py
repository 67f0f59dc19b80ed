"""What the machine can do at best, and what a kernel costs that does nothing: the constants of every other part."""

import platform
import sys
from typing import Any

import torch
from timing import captured, median_seconds

from gpu_parts.figures import COPY_GB_PER_SECOND, Figures

TINY_KERNELS = 2000  # of one graph
GRAPH_NODE_US, LAUNCH_US = 2.0, 4.0  # as the model of decoding assumes (docs/performance.md)


@torch.inference_mode()
def ceilings(figures: Figures) -> None:
    """Copies, products, and kernels of no size, launched one by one and replayed."""
    figures.fact("versions", versions(figures.device))
    copies(figures)
    products(figures, 256 if figures.small else 8192)
    launches(figures)


def copies(figures: Figures) -> None:
    """Of memory to memory, bytes read and written."""
    device = figures.device
    size = 2**22 if figures.small else 2**31
    source = torch.randn(size, device=device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    moved = 2 * source.numel() * source.element_size()

    def gigabytes_per_second() -> float:
        return moved / median_seconds(lambda: target.copy_(source), device, 10) / 1e9

    plan = COPY_GB_PER_SECOND["cuda"] if device.type == "cuda" else None
    figures.measure("copy", "GB/s", gigabytes_per_second, plan=plan)


def versions(device: torch.device) -> dict[str, Any]:
    found: dict[str, Any] = {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "machine": platform.machine(),
    }
    if device.type != "cuda":
        return found
    properties = torch.cuda.get_device_properties(device)
    return found | {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": properties.total_memory / 2**30,
        "built_for": torch.cuda.get_arch_list(),
        "cudnn": torch.backends.cudnn.version(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
    }


def products(figures: Figures, side: int) -> None:
    for dtype, plan in ((torch.bfloat16, 790.0), (torch.float32, None)):
        a, b = (torch.randn(side, side, device=figures.device, dtype=dtype) for _ in range(2))

        def speed(a: torch.Tensor = a, b: torch.Tensor = b) -> float:
            return 2 * side**3 / median_seconds(lambda: a @ b, figures.device, 5) / 1e12

        expected = plan if figures.device.type == "cuda" else None
        name = f"product {side}, {str(dtype).removeprefix('torch.')}"
        figures.measure(name, "TFLOP/s", speed, plan=expected)


def launches(figures: Figures) -> None:
    """Microseconds of a kernel that adds 64 numbers."""
    device = figures.device
    number = 50 if figures.small else TINY_KERNELS
    x = torch.randn(64, device=device)

    def tiny_kernels() -> None:
        for _ in range(number):
            x.add_(1.0)

    def microseconds(work: Any) -> float:
        return median_seconds(work, device, 5) / number * 1e6

    on_gpu = device.type == "cuda"
    figures.measure(
        "launch, eager",
        "us",
        lambda: microseconds(tiny_kernels),
        plan=LAUNCH_US if on_gpu else None,
    )
    replay = captured(tiny_kernels, device)
    figures.measure(
        "node of a graph",
        "us",
        lambda: microseconds(replay),
        plan=GRAPH_NODE_US if on_gpu else None,
        note="" if on_gpu else "no graph on a CPU",
    )
