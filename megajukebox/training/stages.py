"""The stages of training, one row each: train, plan, demo and config walk this table.

A new stage is a row here, its name in config.py's STAGE_NAMES, a module with its task, and its settings in a preset.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from megajukebox.common.errors import UserError
from megajukebox.training.prior_task import prior_task
from megajukebox.training.tasks import ReaderShare, Task, TaskRequest
from megajukebox.training.vqvae_task import vqvae_task


@dataclass(frozen=True)
class TrainingStage:
    """What `megajukebox train NAME` trains."""

    name: str  # of its settings, training.<name>, and of its run folder
    level: str | None  # of the codes that it models; None for what is no prior
    data: str  # kind of shards that it reads: songs or codes
    task: Callable[[TaskRequest, ReaderShare], Task]


STAGES = (
    TrainingStage("vqvae", None, "songs", vqvae_task),
    TrainingStage("top_prior", "top", "codes", partial(prior_task, "top")),
    TrainingStage("middle_upsampler", "middle", "codes", partial(prior_task, "middle")),
    TrainingStage("bottom_upsampler", "bottom", "codes", partial(prior_task, "bottom")),
)


def stage_named(name: str) -> TrainingStage:
    """The row of `name`. Raises UserError, with the names there are, if there is none."""
    for stage in STAGES:
        if stage.name == name:
            return stage
    known = ", ".join(stage.name for stage in STAGES)
    raise UserError(f"stage {name!r} is unknown; choose one of {known}")
