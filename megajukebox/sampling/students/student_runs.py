"""The students that `distill` left beside the priors (runs/top_student, ...), as the samplers of their levels.

student                   the upsamplers' students, under the exact top: the fast way
top=student               that level's, of the order that distill chose; bottom=student:0,1 of another (or 0,1,2: docs)
bottom=verified           the teacher's own codes, with the student's as the draft (`polished` in version 0.1)
top=exact                 the prior itself
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from megajukebox.common.errors import UserError
from megajukebox.common.levels import LEVELS, STUDENT_FOLDERS, STUDENT_TABLE, VQVAE_FOLDER
from megajukebox.common.model_files import check_vqvae, load_into, read_facts
from megajukebox.common.untrusted_files import parse_json, read_inside
from megajukebox.models.grid_order import GridOrder
from megajukebox.models.prior import Prior
from megajukebox.models.student import Student, StudentConfig
from megajukebox.records.sample_record import RENAMED_SAMPLERS
from megajukebox.sampling.levels.level_sampler import LevelSampler
from megajukebox.sampling.songs.requests import SongRequest
from megajukebox.sampling.students.student_sampler import StudentSampler, VerifiedStudent

UPSAMPLERS = ("middle", "bottom")  # the levels that "student" alone means
KINDS = ("student", "verified", "exact")
DEFAULT_TEMPERATURE = 0.99  # of a request, as in level_jobs.py


class StudentRun:
    """One level's student. Called with the level's loaded prior it makes the level's sampler.

    Args:
        vqvae: fingerprint of the VQ-VAE whose codes are sampled.
        order: "a,b"; None: the one that distill chose.

    Raises:
        UserError: there is no such student, or it is of another VQ-VAE.
    """

    def __init__(
        self, runs: Path, level: str, vqvae: str, order: str | None = None, verified: bool = False
    ):
        entry, gate = student_entry(runs / STUDENT_FOLDERS[level], order)
        self.level = level
        self.verified = verified
        self.folder = runs / STUDENT_FOLDERS[level] / entry["folder"]
        self.facts = read_facts(self.folder)
        if self.facts["kind"] != "student" or self.facts["level"] != level:
            raise UserError(
                f"{self.folder} holds a {self.facts['level']} {self.facts['kind']}, not a {level} student"
            )
        check_vqvae(self.folder, self.facts, vqvae)
        self.config = StudentConfig(**self.facts["config"])
        self.taught = teacher_sampling(self.facts)  # temperature, guidance
        self.gate_failure: str | None = None
        if not entry.get("passed", True):
            self.gate_failure = (
                f"{entry['kl_forward']:.3f} bits per code, gate {gate['kl_forward']:g}"
            )

    @property
    def name(self) -> str:
        """As a song's record has it."""
        return f"{'verified' if self.verified else 'student'} {self.config.order}"

    def __call__(self, prior: Prior) -> LevelSampler:
        weight = prior.head.weight
        with torch.device("meta"):
            student = Student(self.config)
        load_into(student, self.folder, dtype=weight.dtype, device=weight.device)
        sampler = StudentSampler(student.eval(), self.taught["temperature"])
        return VerifiedStudent(sampler, prior) if self.verified else sampler

    def notes(self, request: SongRequest) -> Iterator[str]:
        """What of the request a student cannot follow as its teacher would, a line each."""
        if self.verified:
            return
        student = f"the {self.level} student"
        if self.gate_failure:
            order = self.config.order
            yield f"{student} {order} is further from its prior than allowed: {self.gate_failure}"
        guidance = request.at("guidance", self.level, 1.0)
        if guidance != self.taught["guidance"]:
            yield (
                f"{student} was taught guidance {self.taught['guidance']:g} and keeps to it;"
                f" {guidance:g} was asked"
            )
        temperature = request.at("temperature", self.level, DEFAULT_TEMPERATURE)
        if temperature != self.taught["temperature"]:
            yield (
                f"{student} was taught temperature {self.taught['temperature']:g};"
                f" at {temperature:g} it is not its teacher"
            )


def student_entry(run: Path, order: str | None) -> tuple[dict[str, Any], dict[str, float]]:
    """The entry of a grid order in the table that distill wrote (None: of the one it chose), and the gate."""
    try:
        table = parse_json(read_inside(run, STUDENT_TABLE))
    except FileNotFoundError:
        raise UserError(
            f"{run} holds no student ({STUDENT_TABLE} is missing); run distill, or choose another sampler"
        ) from None
    if order is None:
        used = [entry for entry in table["orders"] if entry["folder"] == table["use"]]
        return used[0], table["gate"]
    wanted = str(GridOrder.parse(order))
    entries = {entry["order"]: entry for entry in table["orders"]}
    if wanted not in entries:
        raise UserError(f"{run} has no student of order {wanted}; it has {'; '.join(entries)}")
    return entries[wanted], table["gate"]


def teacher_sampling(facts: dict[str, Any]) -> dict[str, float]:
    """The temperature and guidance of a student's teacher; the field was `manner` up to version 0.1.0."""
    return facts["teacher_sampling"] if "teacher_sampling" in facts else facts["manner"]


def student_folder(run: Path, order: str | None) -> Path:
    return run / student_entry(run, order)[0]["folder"]


def parse_students(runs: Path, samplers: Sequence[str]) -> dict[str, StudentRun]:
    """The students that `samplers` ("student", "top=student:1,1", ...) name, by level; later ones overrule.

    Raises:
        UserError: a name is none of these, or there is no such student.
    """
    chosen: dict[str, tuple[str, str | None]] = {}
    for text in samplers:
        level, equals, sampler = text.rpartition("=")
        kind, _, order = sampler.partition(":")
        kind = RENAMED_SAMPLERS.get(kind, kind)
        if kind not in KINDS or (equals and level not in LEVELS):
            raise UserError(
                f"sampler {text!r} is none; write student, or LEVEL=KIND with a level of {', '.join(LEVELS)}"
                f" and a kind of {', '.join(KINDS)} (student:1,1 names an order)"
            )
        for one in [level] if equals else UPSAMPLERS:
            chosen[one] = (kind, order or None)
    vqvae = read_facts(runs / VQVAE_FOLDER)["fingerprint"]
    students = {}
    for level, (kind, chosen_order) in chosen.items():
        if kind != "exact":
            verified = kind == "verified"
            students[level] = StudentRun(runs, level, vqvae, chosen_order, verified=verified)
    return students


def fingerprints(students: dict[str, StudentRun]) -> dict[str, str]:
    """What a song's record has of its students; a verified level is its prior's alone."""
    weights = {}
    for level, run in students.items():
        if not run.verified:
            weights[STUDENT_FOLDERS[level]] = run.facts["fingerprint"]
    return weights
