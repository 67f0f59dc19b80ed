"""Timers for both devices: CUDA events on a GPU, where the host runs ahead of it, and a clock on a CPU."""

import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from megajukebox.common.device import accelerator

Work = Callable[[], Any]
CLEAR_PEAK = Path("/proc/self/clear_refs")


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Work, device: torch.device) -> float:
    """Of one run of `work`, to its end on the device."""
    return median_seconds(work, device, repeats=1, warmup=0)


def median_seconds(work: Work, device: torch.device, repeats: int, warmup: int = 2) -> float:
    """Of one run of `work`: the median of `repeats`, after some that warm up."""
    for _ in range(warmup):
        work()
    if device.type != "cuda":
        return statistics.median(clocked(work) for _ in range(repeats))
    synchronize(device)
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        work()
        mark.record()
    synchronize(device)
    taken = [before.elapsed_time(mark) for before, mark in pairwise(marks)]
    return statistics.median(taken) / 1e3  # events count milliseconds


def clocked(work: Work) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def captured(work: Work, device: torch.device) -> Work:
    """What replays `work` as one CUDA graph, without the host between its kernels; on a CPU `work` itself."""
    if device.type != "cuda":
        return work
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def forget_peak() -> None:
    """Let `peak_gib` begin anew (on a CPU: Linux alone)."""
    if accelerator() == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif CLEAR_PEAK.exists():
        CLEAR_PEAK.write_text("5")


def peak_gib() -> float:
    """Of this process: on a GPU what tensors took there, else its resident memory."""
    if accelerator() == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(n for n in status if n.startswith("VmHWM")).split()[1]) / 2**20
