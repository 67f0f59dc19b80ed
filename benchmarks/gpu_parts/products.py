"""The kernels of a decoding step, one by one: products of few rows with each weight, and attention of one position."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from timing import captured, median_seconds
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpu_parts.figures import Figures

# Inputs and outputs of the products of a step of jukebox_5b_lyrics: its top, then an upsampler.
SHAPES = (
    (4800, 3600),
    (1200, 4800),
    (4800, 4800),
    (4800, 2048),
    (1920, 1440),
    (480, 1920),
    (1920, 1920),
)
ROWS = (1, 8, 41, 82)
# Weights that a graph reads one after another: more than any cache holds, as in a prior.
BYTES_IN_TURN = 2**30
SONGS = (1, 41)
# Size of a head and how many: the top, the same padded to a multiple of 8, an upsampler.
HEADS = ((150, 8), (160, 8), (480, 1))
KEYS = 128  # of a column: the rows of a window
CALLS = 50  # of attention in a graph
KERNELS = {
    "chosen": None,
    "flash": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "plain": SDPBackend.MATH,
}


@torch.inference_mode()
def products(figures: Figures) -> None:
    """GB/s of weights that products read, and microseconds of an attention step by kernel."""
    copy = figures.copy_bytes_per_second() / 1e9
    scale = 60 if figures.small else 1
    for inputs, outputs in SHAPES:
        for rows in ROWS[: 1 if figures.small else None]:
            figures.measure(
                f"{inputs} -> {outputs}, {rows} rows",
                "GB/s",
                product_speed(figures, inputs // scale, outputs // scale, rows),
                floor=copy,
                target=0.9 * copy,
            )
    for size, heads in HEADS:
        for songs in SONGS[: 1 if figures.small else None]:
            for kernel in KERNELS:
                attention(figures, kernel, songs, heads, size)


def product_speed(figures: Figures, inputs: int, outputs: int, rows: int) -> Callable[[], float]:
    """Returns what measures it: bytes of weights a second, in GB/s."""
    device = figures.device
    bytes_of_one = 2 * inputs * outputs
    copies = 4 if figures.small else -(-BYTES_IN_TURN // bytes_of_one)
    weights = torch.randn(copies, outputs, inputs, device=device, dtype=torch.bfloat16)
    x = torch.randn(rows, inputs, device=device, dtype=torch.bfloat16)

    def all_of_them() -> None:
        for weight in weights:
            F.linear(x, weight)

    replay = captured(all_of_them, device)
    return lambda: (
        copies * bytes_of_one / median_seconds(replay, device, 1 if figures.small else 5) / 1e9
    )


def attention(figures: Figures, kernel: str, songs: int, heads: int, size: int) -> None:
    device = figures.device
    q = torch.randn(songs, heads, 1, size, device=device, dtype=torch.bfloat16)
    memory = torch.randn(2, songs, heads, KEYS, size, device=device, dtype=torch.bfloat16)
    calls = 3 if figures.small else CALLS

    def attend() -> None:
        for _ in range(calls):
            F.scaled_dot_product_attention(q, memory[0], memory[1])

    name = f"attention {heads} x {size}, {songs} songs, {kernel}"
    bytes_read = 2 * memory.numel()
    floor = bytes_read / figures.copy_bytes_per_second() * 1e6
    backend = KERNELS[kernel]
    try:
        if backend is None:
            replay = captured(attend, device)
        else:
            with sdpa_kernel([backend]):
                attend()
                replay = captured(attend, device)
    except RuntimeError as error:  # no such kernel for this size, precision or device
        figures.fact(name, f"refused: {str(error).splitlines()[0]}")
        return

    def microseconds() -> float:
        return median_seconds(replay, device, 1 if figures.small else 5) / calls * 1e6

    if backend is None or device.type == "cuda":
        figures.measure(name, "us", microseconds, floor=floor)
        return
    with sdpa_kernel([backend]):  # on a CPU the replay chooses anew
        figures.measure(name, "us", microseconds, floor=floor)
