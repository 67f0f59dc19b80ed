"""The students that `distill` left beside the priors (runs/top_student, ...), found and loaded."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from megajukebox.data.weights import load_into, read_facts
from megajukebox.models.grid import GridOrder
from megajukebox.models.student import Student, StudentConfig
from megajukebox.sampling.requests import Request
from megajukebox.sampling.student_level import StudentLevel

TABLE = "student.json"  # of training/distillation.py


class StudentRun:
    """One level's student. The weights are only in memory while `loaded`."""

    def __init__(self, runs: Path, level: str, vqvae: str, order: str | None = None):
        """`order` "a,b", or the one that distill chose. ValueError if there is none, or it is of another VQ-VAE."""
        self.level, self.folder = level, self._folder(runs / f"{level}_student", order)
        self.facts = read_facts(self.folder)
        if self.facts["kind"] != "student" or self.facts["level"] != level:
            raise ValueError(f"{self.folder} holds a {self.facts['level']} {self.facts['kind']}, not a {level} student")
        if self.facts.get("vqvae") not in (None, vqvae):
            raise ValueError(f"{self.folder} was distilled for the codes of another VQ-VAE; distill it again")
        self.config = StudentConfig(**self.facts["config"])
        self.manner: dict[str, float] = self.facts["manner"]

    @staticmethod
    def _folder(run: Path, order: str | None) -> Path:
        path = run / TABLE
        if not path.is_file():
            raise ValueError(
                f"{run} holds no student ({TABLE} is missing); run distill first, or choose another sampler"
            )
        table = json.loads(path.read_text())
        if order is None:
            return run / table["use"]
        wanted = str(GridOrder.parse(order))
        known = {row["order"]: row["folder"] for row in table["orders"]}
        if wanted not in known:
            raise ValueError(f"{run} has no student of order {wanted}; it has {', '.join(known)}")
        return run / known[wanted]

    @contextmanager
    def loaded(self, device: torch.device, dtype: torch.dtype) -> Iterator[StudentLevel]:
        """A level sampler with the student on `device`, gone after the block."""
        with torch.device("meta"):
            student = Student(self.config)
        load_into(student, self.folder, dtype=dtype, device=device)
        yield StudentLevel(student.eval(), self.manner["temperature"])
        student.to("meta")
        if device.type == "cuda":
            torch.cuda.empty_cache()

    def told(self) -> dict[str, Any]:
        """For the record of a song: which student made a level, and how far it is from its teacher."""
        return {
            "order": str(self.config.order),
            "steps_per_window": self.config.steps,
            "weights": self.facts["fingerprint"],
        }

    def notes(self, request: Request) -> Iterator[str]:
        """What of the request a student cannot follow as its teacher would."""
        for setting, default in (("temperature", 0.99), ("guidance", 1.0)):
            asked, taught = request.at(setting, self.level, default), self.manner[setting]
            if setting == "guidance" and asked != taught:
                yield f"the {self.level} student was taught guidance {taught:g} and keeps to it; {asked:g} was asked"
            if setting == "temperature" and asked != taught:
                yield f"the {self.level} student was taught temperature {taught:g}; at {asked:g} it is not its teacher"
