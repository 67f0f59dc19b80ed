"""What a student is trained on and with: its teacher's run, its training settings, and its task for the training loop."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megajukebox.common.errors import UserError
from megajukebox.common.levels import PRIOR_FOLDERS
from megajukebox.common.model_files import load_into, read_facts
from megajukebox.common.provenance import made_by
from megajukebox.common.untrusted_files import read_inside
from megajukebox.conditioning.schema import ConditionResources, conditions_of
from megajukebox.conditioning.tokenizers import LYRICS_MODEL, run_tokenizer
from megajukebox.conditioning.vocabulary import VOCABULARIES, read_vocabularies
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.stream.batches import ClipSource
from megajukebox.data.stream.code_dataset import CodeWindows, check_codes
from megajukebox.data.stream.song_dataset import held_out_share
from megajukebox.data.stream.teacher_dataset import TeacherWindows
from megajukebox.models.prior import Prior, PriorConfig
from megajukebox.models.student import Student, StudentConfig
from megajukebox.training.config import Preset
from megajukebox.training.settings import TrainingSettings
from megajukebox.training.tasks import Evaluator, ReaderShare, Task

TEACHER_FACTS = ("vqvae", "codes", "tokenizer", "names")  # that a student's model.json repeats
# That a student's folder keeps, so that it can be sampled without its teacher.
TEACHER_FILES = (VOCABULARIES, LYRICS_MODEL)


@dataclass(frozen=True)
class TeacherRun:
    """The run of a prior that a student imitates."""

    folder: Path
    facts: dict[str, Any]
    config: PriorConfig
    held_out: float  # fraction of the songs that it was not trained on

    @classmethod
    def open(cls, folder: Path, level: str) -> "TeacherRun":
        """Read the run. UserError if it is not of a prior of `level`."""
        facts = read_facts(folder)
        if facts["kind"] != "prior" or facts["config"]["level"] != level:
            kind = f"{facts['config'].get('level', '')} {facts['kind']}".strip()
            raise UserError(
                f"{folder} holds a {kind}, not a {level} prior; give the run of one as --teacher"
            )
        return cls(folder, facts, PriorConfig(**facts["config"]), held_out_share(folder))

    def windows(self, codes: ShardSet, dropout: float = 0.0) -> CodeWindows:
        """The windows of `codes` with this prior's conditioning. UserError if they are another VQ-VAE's codes."""
        check_codes(codes, self.folder, self.facts)
        config = self.config
        tokenizer = run_tokenizer(self.folder, self.facts) if config.lyrics else None
        dropouts = dict.fromkeys(config.condition_names, dropout)
        resources = ConditionResources(read_vocabularies(self.folder), tokenizer, dropouts)
        conditions = conditions_of(config, resources)
        return CodeWindows(codes, config.level, config.window, self.held_out, conditions)

    def load(self, device: torch.device) -> Prior:
        """The prior on `device`, frozen."""
        with torch.device("meta"):
            prior = Prior(self.config)
        load_into(prior, self.folder, device=device)
        return prior.eval().requires_grad_(False)


def student_settings(preset: Preset, level: str, ds_config: str | None) -> TrainingSettings:
    """`training.<level>_student` of the preset; where it has none, half the steps of the teacher."""
    settings = preset.training.get(f"{level}_student")
    if settings is None:
        teacher = preset.stage(PRIOR_FOLDERS[level])
        precision = teacher.ds_config.removesuffix(".json").rpartition("_")[2]
        update = {"steps": max(1, teacher.steps // 2), "ds_config": f"student_{precision}.json"}
        settings = teacher.model_copy(update=update)
    return settings if ds_config is None else settings.model_copy(update={"ds_config": ds_config})


def student_task(
    teacher: TeacherRun,
    config: StudentConfig,
    windows: ClipSource,
    settings: TrainingSettings,
    reading: ReaderShare,
    facts: dict[str, Any],
    evaluator: Evaluator,
) -> Task:
    """A student on windows that its teacher sampled (TeacherWindows), or on songs' own alone (CodeWindows)."""
    prior = config.prior
    if isinstance(windows, TeacherWindows):
        trained_on: dict[str, Any] = {"windows": windows.shards.fingerprint}
    else:
        trained_on = {"data_only": True}
    repeated = {name: teacher.facts[name] for name in TEACHER_FACTS if name in teacher.facts}
    files = {}
    for name in TEACHER_FILES:
        path = teacher.folder / name
        if path.is_file():
            files[name] = read_inside(teacher.folder, name)
    return Task(
        kind="student",
        config=config,
        build=lambda: Student(config),
        source=windows,
        settings=settings,
        reading=reading,
        files=files,
        evaluator=evaluator,
        units_per_step=reading.global_batch * prior.window,
        speed_name="tokens_per_second",
        audio_seconds=reading.global_batch * prior.window * prior.hop / prior.sample_rate,
        facts={
            "level": prior.level,
            "sample_rate": prior.sample_rate,
            "made_by": made_by(),
            **repeated,
            "teacher": teacher.facts["fingerprint"],
            "order": list(config.order),
            "steps_per_window": config.steps,
            **trained_on,
            **facts,
        },
    )
