"""What a part is given: the device, whether sizes are small, and where its figures go."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu_parts.results import DayResults, Figure

if TYPE_CHECKING:
    import torch

# As measured by others on an H200 (bytes read and written), until `ceilings` has measured it.
COPY_GB_PER_SECOND = {"cuda": 4300.0, "cpu": 10.0}


class Figures:
    """Adds to the row of one part in gpu_day.json; every addition is on disk when it returns."""

    def __init__(self, path: Path, part: str, small: bool):
        self.path = path
        self.part = part
        self.small = small

    @cached_property
    def device(self) -> torch.device:
        """The one that all entries choose; torch is imported by then, if the part needs it at all."""
        from megajukebox.common.device import choose_device

        return choose_device()

    @property
    def folder(self) -> Path:
        """For files beside gpu_day.json; few, and below 16 MB each."""
        return self.path.parent

    def add(self, name: str, unit: str, *values: float, **beside: Any) -> None:
        """Store a figure; `beside` may have floor, plan, target and note."""
        results = DayResults.load(self.path)
        results.parts[self.part].figures.append(Figure(name, unit, list(values), **beside))
        results.save(self.path)
        print(f"{self.part}: {name}: {', '.join(f'{value:.5g}' for value in values)} {unit}")

    def measure(self, name: str, unit: str, work: Callable[[], float], **beside: Any) -> float:
        """Store what `work` returns, measured twice; returns the second."""
        first = work()
        second = work()
        self.add(name, unit, first, second, **beside)
        return second

    def fact(self, name: str, value: Any) -> None:
        """Store something that is no measured number."""
        results = DayResults.load(self.path)
        results.parts[self.part].facts[name] = value
        results.save(self.path)
        print(f"{self.part}: {name}: {value}")

    def copy_bytes_per_second(self) -> float:
        """Bytes that the device's memory reads and writes a second: the ceiling of what is bound by reading weights."""
        ceilings = DayResults.load(self.path).parts.get("ceilings")
        for figure in ceilings.figures if ceilings else []:
            if figure.name == "copy":
                return figure.values[-1] * 1e9
        return COPY_GB_PER_SECOND[self.device.type] * 1e9
