"""The learning rate as a pure function of the step, so that there is nothing to save."""

import math

from pydantic import BaseModel, ConfigDict, Field


class ScheduleSettings(BaseModel):
    """`training.<stage>.schedule`: warm-up, a constant rate, then decay."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    warmup: int = Field(default=0, ge=0, description="steps of linear warm-up")
    decay: str = Field(default="constant", pattern="^(constant|linear|cosine)$")
    decay_floor: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of the peak learning rate at the end of the decay",
    )
    decay_start: int = Field(
        default=0, ge=0, description="first step of the decay; 0: after the warm-up"
    )
    decay_steps: int = Field(
        default=0, ge=0, description="how long the decay takes; 0: until the last step"
    )
    lr_scale: float = Field(
        default=1.0, gt=0, description="share of the ds_config's learning rate that is the peak"
    )


def lr_factor(step: int, steps: int, schedule: ScheduleSettings) -> float:
    """Share of the ds_config's learning rate at `step` (0-based) of `steps`.

    Linear warm-up over `warmup` steps (the first step is already above 0, unlike Jukebox's) to `lr_scale`, which holds
    until step `decay_start`; then constant, linear or cosine decay to `decay_floor` x `lr_scale`, over `decay_steps`
    steps or (0) until the last one. A run that trained at a constant rate is annealed, as by Jukebox's
    --lr_use_linear_decay, by resuming with decay=linear, decay_start=<steps it has>, decay_steps=<as needed> and as
    many more steps.
    """
    if step < schedule.warmup:
        return schedule.lr_scale * (step + 1) / (schedule.warmup + 1)
    start = max(schedule.decay_start, schedule.warmup)
    length = schedule.decay_steps or steps - 1 - start
    progress = min(1.0, max(0, step - start) / max(1, length))
    remaining = {
        "constant": 1.0,
        "linear": 1 - progress,
        "cosine": 0.5 + 0.5 * math.cos(math.pi * progress),
    }[schedule.decay]
    floor = schedule.decay_floor
    return schedule.lr_scale * (floor + (1 - floor) * remaining)
