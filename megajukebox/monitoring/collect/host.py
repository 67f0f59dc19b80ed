"""This machine: its GPUs by NVML (through nvidia-smi, its own command), its memory, the file system of a folder."""

import os
import shutil
import socket
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

QUERY = {  # nvidia-smi's name -> ours, and what one of its units is in ours
    "utilization.gpu": ("utilization_ratio", 0.01),
    "memory.used": ("memory_used_bytes", 2.0**20),
    "memory.total": ("memory_total_bytes", 2.0**20),
    "temperature.gpu": ("temperature_celsius", 1.0),
    "power.draw": ("power_watts", 1.0),
    "clocks.sm": ("sm_clock_hertz", 1e6),
    "ecc.errors.uncorrected.volatile.total": ("ecc_uncorrected_errors", 1.0),
}


@dataclass(frozen=True)
class Gpu:
    index: int
    model: str
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Machine:
    node: str
    memory_available: float
    gpus: list[Gpu]

    GPU_FIGURES: ClassVar[dict[str, str]] = {
        "utilization_ratio": "Share of the time in which the GPU ran a kernel.",
        "memory_used_bytes": "Memory in use on the GPU.",
        "memory_total_bytes": "Memory of the GPU.",
        "temperature_celsius": "Temperature of the GPU.",
        "power_watts": "Power that the GPU draws.",
        "sm_clock_hertz": "Clock of the GPU's cores: a hot GPU lowers it.",
        "ecc_uncorrected_errors": "Memory errors since the driver was loaded that could not be corrected.",
    }


@dataclass(frozen=True)
class Disk:
    mount: str
    free_bytes: float | None
    free_inodes: float | None


def machine() -> Machine:
    return Machine(socket.gethostname(), memory_available(), gpus())


def gpus() -> list[Gpu]:
    """Every GPU that NVML knows of; none where there is no driver."""
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return []
    command = [smi, f"--query-gpu=index,name,{','.join(QUERY)}", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in told.stdout.splitlines()]
    return [gpu for row in rows if (gpu := gpu_of(row)) is not None]


def gpu_of(row: list[str]) -> Gpu | None:
    """One line of nvidia-smi; a figure that a GPU does not have reads [N/A] and is left out."""
    if len(row) != 2 + len(QUERY) or not row[0].isdecimal():
        return None
    figures = {}
    for cell, (name, unit) in zip(row[2:], QUERY.values()):
        try:
            figures[name] = float(cell) * unit
        except ValueError:
            continue
    return Gpu(int(row[0]), row[1], figures)


def memory_available() -> float:
    """Bytes that a process could still get, by Linux's own estimate; 0 where there is no /proc."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0.0
    return next(
        (float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 0.0
    )


def disk(folder: Path) -> Disk:
    """Free space for ordinary users where `folder` is; a file system without inodes to run out of tells 0 of 0."""
    try:
        facts = os.statvfs(folder)
    except OSError:
        return Disk("", None, None)
    inodes = float(facts.f_favail) if facts.f_files else None
    return Disk(mount_of(folder), float(facts.f_bavail * facts.f_frsize), inodes)


def mount_of(folder: Path) -> str:
    place = folder.resolve()
    while not os.path.ismount(place):
        place = place.parent
    return str(place)
