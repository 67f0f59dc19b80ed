"""What is evaluated: a run of a VQ-VAE, a prior or a student, or a folder of samples."""

from dataclasses import dataclass
from pathlib import Path

from megajukebox.common.errors import UserError
from megajukebox.common.levels import RUN_FOLDERS, STUDENT_TABLE
from megajukebox.common.model_files import FACTS, read_facts
from megajukebox.evaluation.inputs import fingerprint_of_samples, samples_in
from megajukebox.sampling.students.student_runs import student_folder

RUN_KINDS = ("vqvae", "prior", "student", "composer")  # of a run's model.json


@dataclass(frozen=True)
class EvalTarget:
    """One run, or one folder of samples."""

    kind: str  # one of RUN_KINDS, or samples
    path: Path
    weights: str  # fingerprint
    level: str | None = None
    step: int | None = None

    @property
    def run(self) -> Path | None:
        """The run folder that keeps the evaluations."""
        return None if self.kind == "samples" else self.path


def targets_in(folder: Path) -> list[EvalTarget]:
    """Find the run, the student in use, the runs of a jukebox, or the samples in `folder`.

    Raises:
        UserError: it holds none of them.
    """
    if (folder / FACTS).is_file():
        return [target_of_run(folder)]
    if (folder / STUDENT_TABLE).is_file():
        return [target_of_run(student_folder(folder, None))]
    targets = []
    for name in RUN_FOLDERS.values():
        if (folder / name / FACTS).is_file():
            targets.append(target_of_run(folder / name))
    if targets:
        return targets
    if not folder.is_dir():
        raise UserError(
            f"{str(folder)!r} does not exist; give a run, a folder of runs, or a folder of samples"
        )
    return [EvalTarget("samples", folder, fingerprint_of_samples(samples_in(folder)))]


def target_of_run(run: Path) -> EvalTarget:
    """The run as a target. UserError if its kind of model is not evaluated."""
    facts = read_facts(run)
    if facts["kind"] not in RUN_KINDS:
        raise UserError(
            f"{run} holds a {facts['kind']}; give a run of a vqvae, a prior, a student or a composer, or samples"
        )
    return EvalTarget(facts["kind"], run, facts["fingerprint"], facts.get("level"), facts["step"])
