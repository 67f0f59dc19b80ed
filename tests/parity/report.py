"""What a parity run says: one line a quantity, and whether everything was known and equal."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

FLOAT = 1e-4  # largest error, relative to the largest absolute value of the quantity
GRADIENT = 1e-3
REMARKS = (
    "seed",
    "note",
    "notes",
    "name",
    "description",
    "torch",
    "version",
)  # what a case may say about itself


@dataclass
class Report:
    """Lines as they come; `failures` names what was not equal, not computed, or not known."""

    lines: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    quiet: bool = False

    def _line(self, name: str, text: str, good: bool) -> None:
        self.lines.append(f"{'equal    ' if good else 'DIFFERENT'}  {name:<58} {text}")
        if not good:
            self.failures.append(name)
        if not self.quiet:
            print(self.lines[-1], flush=True)

    def close(self, name: str, ours: Any, theirs: Any, tolerance: float = FLOAT) -> None:
        """Floats: the largest error relative to the quantity's scale."""
        a, b = array(ours).astype(np.float64), array(theirs).astype(np.float64)
        if a.shape != b.shape:
            return self._line(name, f"shape {a.shape} instead of {b.shape}", False)
        finite = np.isfinite(b)
        if not np.array_equal(finite, np.isfinite(a)) or not np.array_equal(a[~finite], b[~finite]):
            return self._line(name, "infinite at other places", False)
        error = float(np.abs(a[finite] - b[finite]).max(initial=0.0))
        scale = float(np.abs(b[finite]).max(initial=0.0))
        relative = error / scale if scale else error
        return self._line(
            name,
            f"largest error {error:.3g}, {relative:.2g} of scale {scale:.4g}",
            relative <= tolerance,
        )

    def same(self, name: str, ours: Any, theirs: Any) -> None:
        """Integers and texts: no difference at all."""
        if isinstance(theirs, str | dict) or isinstance(ours, str | dict):
            return self._line(
                name,
                "no difference" if ours == theirs else f"{ours!r} instead of {theirs!r}",
                ours == theirs,
            )
        a, b = array(ours), array(theirs)
        if a.shape != b.shape:
            return self._line(name, f"shape {a.shape} instead of {b.shape}", False)
        wrong = int((a != b).sum())
        return self._line(name, f"{wrong} of {b.size} differ", wrong == 0)

    def fail(self, name: str, why: str) -> None:
        self._line(name, why, False)


def array(value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().numpy()
    return np.asarray(value)


class Case:
    """One folder of fixtures. Every entry of io.npz and meta.json must be asked for, or the case fails."""

    def __init__(self, folder: Path, report: Report):
        self.folder, self.report, self.name = folder, report, folder.name
        self.meta = json.loads((folder / "meta.json").read_text())
        with np.load(folder / "io.npz", allow_pickle=False) as arrays:
            self.arrays = {name: arrays[name] for name in arrays.files}
        self._asked: set[str] = set()

    def has(self, name: str) -> bool:
        return name in self.arrays or name in self.meta

    def array(self, name: str) -> np.ndarray:
        self._asked.add(name)
        return self.arrays[name]

    def tensor(self, name: str) -> torch.Tensor:
        value = torch.from_numpy(self.array(name))
        return value.long() if value.dtype in (torch.int16, torch.int32, torch.int64) else value

    def fact(self, name: str, default: Any = None) -> Any:
        self._asked.add(name)
        return self.meta.get(name, default)

    def names(self, prefix: str) -> list[str]:
        return [name for name in self.arrays if name.startswith(prefix)]

    def close(self, name: str, ours: Any, theirs: Any = None, tolerance: float = FLOAT) -> None:
        theirs = self.array(name) if theirs is None else theirs
        self.report.close(f"{self.name}/{name}", ours, theirs, tolerance)

    def same(self, name: str, ours: Any, theirs: Any = None) -> None:
        theirs = self.array(name) if theirs is None else theirs
        self.report.same(f"{self.name}/{name}", ours, theirs)

    def fail(self, name: str, why: str) -> None:
        self._asked.add(name)
        self.report.fail(f"{self.name}/{name}", why)

    def norms(self, name: str, ours: dict[str, float]) -> None:
        """Gradient norms by parameter: the worst, relative to its own size (or to a thousandth of the largest)."""
        theirs = self.fact(name)
        if set(ours) != set(theirs):
            odd = sorted(set(ours) ^ set(theirs))
            return self.fail(name, f"{len(odd)} parameters on one side only, such as {odd[0]}")
        floor = 1e-3 * max(theirs.values(), default=0.0)
        errors = {n: abs(ours[n] - theirs[n]) / max(theirs[n], floor, 1e-30) for n in theirs}
        worst = max(errors, key=lambda n: errors[n])
        text = f"{len(errors)} parameters, largest relative error {errors[worst]:.2g} ({worst})"
        return self.report._line(f"{self.name}/{name}", text, errors[worst] <= GRADIENT)

    def finish(self) -> None:
        """Report everything in the folder that nobody asked for."""
        for name in [*self.arrays, *self.meta]:
            if name not in self._asked and name not in REMARKS:
                self.fail(name, "unknown quantity")
