"""The stages of training, one row each: train, plan and demo walk this table.

A new stage is a row here, its name in config.py's STAGE_NAMES, a module with its task, and its settings in a preset.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from megajukebox.common.errors import UserError
from megajukebox.common.levels import (
    COMPOSER_FOLDER,
    LEVELS,
    REFINER_FOLDERS,
    STUDENT_FOLDERS,
)
from megajukebox.training.composer_task import composer_task
from megajukebox.training.config import Preset
from megajukebox.training.planner.gpus import GPUS_PER_NODE
from megajukebox.training.planner.workload import (
    PlannedStage,
    Workload,
    audio_workload,
    code_workload,
    composer_workload,
    refiner_workload,
)
from megajukebox.training.prior_task import prior_task
from megajukebox.training.refiner_task import refiner_task
from megajukebox.training.tasks import ReaderShare, Task, TaskRequest
from megajukebox.training.vqvae_task import vqvae_task


@dataclass(frozen=True)
class TrainingStage:
    """What `megajukebox train NAME` trains."""

    name: str  # of its settings, training.<name>
    level: str | None  # of the codes that it models; None for what is no prior
    data: str  # kind of shards that it reads: songs, codes or notes
    task: Callable[[TaskRequest, ReaderShare], Task]
    workload: Callable[[Preset, str], Workload]  # of a preset and the stage's name, for `plan`
    default_gpus: int = GPUS_PER_NODE

    def folder(self, preset: Preset) -> str:
        """Name of its run's folder beside the other runs: a refiner's is that of its level."""
        return REFINER_FOLDERS[preset.refiner.level] if self.name == "refiner" else self.name


def prior_stage(name: str, level: str, default_gpus: int) -> TrainingStage:
    return TrainingStage(
        name,
        level,
        "codes",
        partial(prior_task, level),
        partial(code_workload, level),
        default_gpus,
    )


# The GPUs are those of Jukebox's own runs (Dhariwal et al. 2020).
STAGES = (
    TrainingStage("vqvae", None, "songs", vqvae_task, audio_workload, 256),
    TrainingStage("refiner", None, "songs", refiner_task, refiner_workload),
    prior_stage("top_prior", "top", 512),
    prior_stage("middle_upsampler", "middle", 128),
    prior_stage("bottom_upsampler", "bottom", 128),
    TrainingStage(COMPOSER_FOLDER, None, "notes", composer_task, composer_workload),
)


def stage_named(name: str) -> TrainingStage:
    """The row of `name`. Raises UserError, with the names there are, if there is none."""
    for stage in STAGES:
        if stage.name == name:
            return stage
    known = ", ".join(stage.name for stage in STAGES)
    raise UserError(f"stage {name!r} is unknown; choose one of {known}")


def stages_of(preset: Preset) -> list[TrainingStage]:
    """The rows of the stages that a preset trains, in order."""
    return [stage for stage in STAGES if stage.name in preset.training]


def planned_stage(preset: Preset, name: str) -> PlannedStage:
    """What `plan` needs to know of a stage, also of a student's, which is as large as its prior.

    Raises:
        UserError: the preset does not train it, or there is no such stage.
    """
    preset.stage(name)
    for level in LEVELS:
        if name == STUDENT_FOLDERS[level]:
            return PlannedStage(name, code_workload(level, preset, name), GPUS_PER_NODE)
    stage = stage_named(name)
    return PlannedStage(name, stage.workload(preset, name), stage.default_gpus)


def workload_of(preset: Preset, name: str) -> Workload:
    """What stage `name` of `preset` trains, without anything of how."""
    return planned_stage(preset, name).workload
