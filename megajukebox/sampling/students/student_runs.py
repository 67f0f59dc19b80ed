"""The students that `distill` left beside the priors (runs/top_student, ...), as the samplers of their levels.

student                   the upsamplers' students, under the exact top: the quick way
top=student               that level's, of the order that distill chose; bottom=student:0,1 of another (or 0,1,2: docs)
bottom=polished           the teacher's own sample, from the student's as a first guess
top=exact                 the prior itself
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from megajukebox.common.levels import LEVELS, STUDENT_TABLE
from megajukebox.common.model_files import check_vqvae, load_into, read_facts
from megajukebox.models.grid_order import GridOrder
from megajukebox.models.prior import Prior
from megajukebox.models.student import Student, StudentConfig
from megajukebox.sampling.levels.level_sampler import LevelSampler
from megajukebox.sampling.songs.requests import SongRequest
from megajukebox.sampling.students.student_sampler import StudentSampler, VerifiedStudent

QUICK = ("middle", "bottom")  # levels that "student" alone means
KINDS = ("student", "polished", "exact")


class StudentRun:
    """One level's student. Called with the level's loaded prior it gives the level's sampler."""

    def __init__(
        self, runs: Path, level: str, vqvae: str, order: str | None = None, polish: bool = False
    ):
        """`order` "a,b", or the one that distill chose. ValueError if there is none, or it is of another VQ-VAE."""
        row, gate = student_entry(runs / f"{level}_student", order)
        self.level, self.verified, self.folder = (
            level,
            polish,
            runs / f"{level}_student" / row["folder"],
        )
        self.facts = read_facts(self.folder)
        if self.facts["kind"] != "student" or self.facts["level"] != level:
            raise ValueError(
                f"{self.folder} holds a {self.facts['level']} {self.facts['kind']}, not a {level} student"
            )
        check_vqvae(self.folder, self.facts, vqvae)
        self.config = StudentConfig(**self.facts["config"])
        self.taught = teacher_sampling(self.facts)
        self.failed = (
            None
            if row.get("passed", True)
            else f"{row['kl_forward']:.3f} bits per code, gate {gate['kl_forward']:g}"
        )

    @property
    def name(self) -> str:
        """As a song's record has it."""
        return f"{'polished' if self.verified else 'student'} {self.config.order}"

    def __call__(self, prior: Prior) -> LevelSampler:
        weight = prior.head.weight
        with torch.device("meta"):
            student = Student(self.config)
        load_into(student, self.folder, dtype=weight.dtype, device=weight.device)
        level = StudentSampler(student.eval(), self.taught["temperature"])
        return VerifiedStudent(level, prior) if self.verified else level

    def notes(self, request: SongRequest) -> Iterator[str]:
        """What of the request a student cannot follow as its teacher would."""
        if self.verified:
            return
        if self.failed:
            yield f"the {self.level} student {self.config.order} is further from its prior than allowed: {self.failed}"
        asked, taught = request.at("guidance", self.level, 1.0), self.taught["guidance"]
        if asked != taught:
            yield f"the {self.level} student was taught guidance {taught:g} and keeps to it; {asked:g} was asked"
        asked, taught = request.at("temperature", self.level, 0.99), self.taught["temperature"]
        if asked != taught:
            yield f"the {self.level} student was taught temperature {taught:g}; at {asked:g} it is not its teacher"


def teacher_sampling(facts: dict[str, Any]) -> dict[str, float]:
    """The temperature and guidance of a student's teacher; the field was `manner` up to version 0.1.0."""
    return facts["teacher_sampling"] if "teacher_sampling" in facts else facts["manner"]


def student_entry(run: Path, order: str | None) -> tuple[dict[str, Any], dict[str, float]]:
    """What distill wrote of an order, or of the one that it chose, and the gate."""
    path = run / STUDENT_TABLE
    if not path.is_file():
        raise ValueError(
            f"{run} holds no student ({STUDENT_TABLE} is missing); run distill, or choose another sampler"
        )
    table = json.loads(path.read_text())
    if order is None:
        return next(row for row in table["orders"] if row["folder"] == table["use"]), table["gate"]
    wanted, known = str(GridOrder.parse(order)), {row["order"]: row for row in table["orders"]}
    if wanted not in known:
        raise ValueError(f"{run} has no student of order {wanted}; it has {'; '.join(known)}")
    return known[wanted], table["gate"]


def student_folder(run: Path, order: str | None) -> Path:
    return run / student_entry(run, order)[0]["folder"]


def parse_students(runs: Path, asked: Sequence[str]) -> dict[str, StudentRun]:
    """The students that `asked` ("student", "top=student:1,1", ...) names, by level; later ones overrule.

    Raises ValueError for what is no such name, and where there is no such student.
    """
    chosen: dict[str, tuple[str, str | None]] = {}
    for text in asked:
        level, equals, way = text.rpartition("=")
        kind, _, order = way.partition(":")
        if kind not in KINDS or (equals and level not in LEVELS):
            raise ValueError(
                f"sampler {text!r} is none; write student, or LEVEL=KIND with a level of {', '.join(LEVELS)}"
                f" and a kind of {', '.join(KINDS)} (student:1,1 names an order)"
            )
        chosen |= {one: (kind, order or None) for one in ([level] if equals else QUICK)}
    vqvae = read_facts(runs / "vqvae")["fingerprint"]
    return {
        level: StudentRun(runs, level, vqvae, order, polish=kind == "polished")
        for level, (kind, order) in chosen.items()
        if kind != "exact"
    }


def fingerprints(students: dict[str, StudentRun]) -> dict[str, str]:
    """What a song's record says of them; a polished level is its prior's alone."""
    return {
        f"{level}_student": run.facts["fingerprint"]
        for level, run in students.items()
        if not run.verified
    }
