"""Which steps must not touch the weights: those whose loss or gradient is no number, and sudden spikes. Pure rules.

A spike is a loss or gradient norm above mean + 6 standard deviations of the last 128 steps that counted (OLMo's rule).
After many skipped steps the run is no longer worth its electricity: it stops, or rewinds (PaLM: restart from a
checkpoint about 100 steps before the spike and skip 200 to 500 batches, after which it did not come again).
"""

import math
from collections import deque
from dataclasses import dataclass, field, replace

from pydantic import BaseModel, ConfigDict, Field

from megajukebox.records.rewinds import Rewind
from megajukebox.records.spike_score import mean_and_spread


class SpikeSettings(BaseModel):
    """`training.<stage>.spikes`: when a step is skipped, and what happens when skipping goes on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold_std: float = Field(
        default=6.0,
        ge=0,
        description="skip steps whose loss or gradient norm exceeds the mean by so many standard deviations; 0: none",
    )
    window: int = Field(
        default=128,
        gt=1,
        description="steps that the mean is of; before there are as many nothing is a spike",
    )
    max_skipped_steps: int = Field(
        default=10,
        ge=0,
        description="more skipped steps than this within skip_window end the run (93)",
    )
    skip_window: int = Field(default=100, gt=0)
    max_rewinds: int = Field(
        default=0,
        ge=0,
        description="rewinds before the run counts as diverged; each restores an earlier checkpoint and skips the data"
        " around the spike",
    )
    rewind_steps: int = Field(
        default=100,
        ge=0,
        description="to a checkpoint at least so many steps before the first skipped one",
    )
    rewind_skip_steps: int = Field(
        default=200, ge=0, description="and leave out the clips of so many further steps"
    )
    min_scale_rewinds: int = Field(
        default=1,
        ge=0,
        description="rewinds from the minimum fp16 loss scale, before the run diverged (93)",
    )
    min_scale_lr_factor: float = Field(
        default=0.5, gt=0, lt=1, description="and each continues at so much of the learning rate"
    )


@dataclass(frozen=True)
class SkipReason:
    """Why a step does not touch the weights: `kind` is one of SKIP_KINDS, `text` is for people."""

    kind: str
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass
class SpikeDetector:
    """What the last steps were like. The same on every rank, saved with every checkpoint."""

    settings: SpikeSettings = field(default_factory=SpikeSettings)
    losses: deque[float] = field(init=False)
    norms: deque[float] = field(init=False)
    skipped_steps: deque[int] = field(init=False)  # within skip_window
    skip_count: int = 0  # of the whole run
    first_overflow_step: int | None = None  # of the steps not taken since the last one that was

    def __post_init__(self) -> None:
        self.losses = deque(maxlen=self.settings.window)
        self.norms = deque(maxlen=self.settings.window)
        self.skipped_steps = deque()

    def check(self, loss: float, norm: float) -> SkipReason | None:
        """Why a step with this loss and gradient norm (before clipping) must be skipped; None if it may be taken."""
        if not math.isfinite(loss):
            return SkipReason("nan", f"loss is {loss}")
        # DeepSpeed returns a norm of -1 where it is infinite or not a number.
        if not math.isfinite(norm) or norm < 0:
            return SkipReason("nan", "the gradient is not finite")
        for name, value, history in (
            ("loss", loss, self.losses),
            ("gradient norm", norm, self.norms),
        ):
            limit = self.limit(history)
            if value > limit:
                above = f"{self.settings.threshold_std:g} sigma of the steps before"
                return SkipReason("spike", f"{name} {value:.4g} spiked: over {limit:.4g}, {above}")
        return None

    def limit(self, history: deque[float]) -> float:
        """What a value may reach; infinity while there is too little to compare with."""
        if not self.settings.threshold_std or len(history) < self.settings.window:
            return math.inf
        mean, spread = mean_and_spread(history)
        return mean + self.settings.threshold_std * spread

    def update(self, step: int, loss: float, norm: float, reason: SkipReason | None) -> None:
        """Take note of step `step`, skipped for `reason` or taken."""
        if reason is None:
            # An infinite value would make the mean infinite, and nothing a spike, for a whole window.
            if math.isfinite(loss) and math.isfinite(norm):
                self.losses.append(loss)
                self.norms.append(norm)
            self.first_overflow_step = None
        else:
            self.note_not_taken(step)
            self.skipped_steps.append(step)
            self.skip_count += 1
        oldest = step - self.settings.skip_window
        while self.skipped_steps and self.skipped_steps[0] <= oldest:
            self.skipped_steps.popleft()

    def note_not_taken(self, step: int) -> None:
        """Take note that step `step` was not taken. An fp16 overflow is only that: the loss scale reacts to it."""
        if self.first_overflow_step is None:
            self.first_overflow_step = step

    @property
    def has_diverged(self) -> bool:
        """Whether more steps were skipped of late than the settings allow."""
        return len(self.skipped_steps) > self.settings.max_skipped_steps

    def state(self) -> dict[str, object]:
        """For a checkpoint; its keys are those of version 1."""
        return {
            "losses": list(self.losses),
            "norms": list(self.norms),
            "bad": list(self.skipped_steps),
            "skipped": self.skip_count,
            "stuck": self.first_overflow_step,
        }

    def restore(self, state: dict) -> None:
        """Continue from a `state`; one of another window keeps what fits. {}: start anew."""
        # Version 0.1.0 wrote the infinite norms of overflows that it did not notice.
        losses = [loss for loss in state.get("losses", []) if math.isfinite(loss)]
        norms = [norm for norm in state.get("norms", []) if math.isfinite(norm)]
        self.losses = deque(losses, maxlen=self.settings.window)
        self.norms = deque(norms, maxlen=self.settings.window)
        self.skipped_steps = deque(state.get("bad", []))
        self.skip_count = state.get("skipped", 0)
        self.first_overflow_step = state.get("stuck")


# ---- Rewinding --------------------------------------------------------------------------------------------------------


def data_step(step: int, rewinds: list[Rewind]) -> int:
    """Which step's clips are read at training step `step`: later ones after every rewind before it."""
    return step + sum(rewind.steps for rewind in rewinds if step >= rewind.step)


def rewind_lr_factor(step: int, rewinds: list[Rewind]) -> float:
    """What is left of the learning rate at `step` after every rewind before it."""
    return math.prod(rewind.rate for rewind in rewinds if step >= rewind.step)


def plan_rewind(
    saved_steps: list[int], first_skipped: int, rewind_steps: int, skip_steps: int
) -> Rewind | None:
    """The rewind that leads past a spike.

    Args:
        saved_steps: of the checkpoints that there are.
        first_skipped: the step at which the spike began.
        rewind_steps: least distance of the checkpoint from it, else the oldest is taken.
        skip_steps: batches after it that are left out.

    Returns:
        None without a checkpoint before the spike.
    """
    before = [step for step in saved_steps if step <= first_skipped]
    if not before:
        return None
    far_enough = [step for step in before if step <= first_skipped - rewind_steps]
    target = max(far_enough, default=min(before))
    return Rewind(target, first_skipped - target + skip_steps)


def plan_rewind_lower_lr(
    saved_steps: list[int], first_overflow: int, rewind_steps: int, lr_factor: float
) -> Rewind | None:
    """The rewind to before step `first_overflow`, from which on fp16 could take no step: same data, lower rate.

    Weights that could not take that step cannot at a smaller rate either, so at least one step lies between.
    """
    rewind = plan_rewind(saved_steps, first_overflow - 1, rewind_steps, 0)
    return rewind and replace(rewind, steps=0, rate=lr_factor)
