"""This machine: its GPUs by NVML (through nvidia-smi, its own command), its memory, the file system of a folder."""

import os
import shutil
import socket
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import psutil


@dataclass(frozen=True)
class GpuFigure:
    """A figure of a GPU: its name here, in nvidia-smi's unit, and what one of those units is in ours."""

    name: str
    query: str
    unit: float
    help: str


GPU_FIGURES = (
    GpuFigure(
        "utilization_ratio",
        "utilization.gpu",
        0.01,
        "Share of the time in which the GPU ran a kernel.",
    ),
    GpuFigure("memory_used_bytes", "memory.used", 2.0**20, "Memory in use on the GPU."),
    GpuFigure("memory_total_bytes", "memory.total", 2.0**20, "Memory of the GPU."),
    GpuFigure("temperature_celsius", "temperature.gpu", 1.0, "Temperature of the GPU."),
    GpuFigure("power_watts", "power.draw", 1.0, "Power that the GPU draws."),
    GpuFigure("sm_clock_hertz", "clocks.sm", 1e6, "Clock of the GPU's cores: a hot GPU lowers it."),
    GpuFigure(
        "ecc_uncorrected_errors",
        "ecc.errors.uncorrected.volatile.total",
        1.0,
        "Memory errors since the driver was loaded that could not be corrected.",
    ),
)
NVIDIA_SMI_SECONDS = 20


@dataclass(frozen=True)
class Gpu:
    index: int
    model: str
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Machine:
    node: str
    memory_available: float  # bytes
    gpus: list[Gpu]


@dataclass(frozen=True)
class Disk:
    mount: str
    free_bytes: float | None
    free_inodes: float | None


def machine() -> Machine:
    return Machine(socket.gethostname(), float(psutil.virtual_memory().available), gpus())


def gpus() -> list[Gpu]:
    """Every GPU that NVML knows of; none where there is no driver."""
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return []
    queries = ",".join(figure.query for figure in GPU_FIGURES)
    command = [smi, f"--query-gpu=index,name,{queries}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=NVIDIA_SMI_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return list(filter(None, map(parse_gpu, answer.stdout.splitlines())))


def parse_gpu(line: str) -> Gpu | None:
    """One line of nvidia-smi; a figure that a GPU does not have reads [N/A] and is left out."""
    cells = list(map(str.strip, line.split(",")))
    if len(cells) != 2 + len(GPU_FIGURES) or not cells[0].isdecimal():
        return None
    figures = {}
    for figure, cell in zip(GPU_FIGURES, cells[2:]):
        try:
            figures[figure.name] = float(cell) * figure.unit
        except ValueError:
            continue
    return Gpu(int(cells[0]), cells[1], figures)


def disk(folder: Path) -> Disk:
    """Free space for ordinary users where `folder` is; a file system without inodes to run out of has 0 of 0."""
    try:
        facts = os.statvfs(folder)
    except OSError:
        return Disk("", None, None)
    mount = folder.resolve()
    while not os.path.ismount(mount):
        mount = mount.parent
    free_inodes = float(facts.f_favail) if facts.f_files else None
    return Disk(str(mount), float(facts.f_bavail * facts.f_frsize), free_inodes)
