"""gpu_day.json: a row for each part, written whole after every figure, so that nothing measured is ever lost."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megajukebox.common.files import write_atomic

RUNNING, DONE, FAILED, TIMED_OUT, SKIPPED = "running", "done", "failed", "timed out", "skipped"
FAILURES = (FAILED, TIMED_OUT)


@dataclass
class Figure:
    """One thing measured, as often as `values` has numbers, and what it is to be compared with."""

    name: str
    unit: str
    values: list[float]
    floor: float | None = None  # what the machine allows at best
    plan: float | None = None  # what our own models of it say
    target: float | None = None
    note: str = ""


@dataclass
class PartResult:
    """How a part went, and its figures; a part that failed keeps those from before."""

    status: str
    seconds: float = 0.0
    cpu_seconds: float = 0.0  # of its process and those it started
    reason: str = ""
    last_lines: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class DayResults:
    """All rows by the name of their part, and what made them."""

    made: dict[str, Any]
    parts: dict[str, PartResult] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> "DayResults":
        stored = json.loads(path.read_text())
        results = cls(stored["made"])
        for name, part in stored["parts"].items():
            figures = [Figure(**figure) for figure in part.pop("figures")]
            results.parts[name] = PartResult(figures=figures, **part)
        return results

    def save(self, path: Path) -> None:
        write_atomic(path, (json.dumps(asdict(self), indent=1) + "\n").encode())
