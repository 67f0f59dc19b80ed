"""Which steps must not touch the weights: those whose loss or gradient is no number, and sudden spikes. Pure rules.

A spike is a loss or gradient norm above mean + 6 standard deviations of the last 128 steps that counted (OLMo's rule).
After many bad steps the run is no longer worth its electricity: it stops, or goes back (PaLM: restart from a checkpoint
about 100 steps before the spike and skip 200 to 500 batches, after which it did not come again).
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

    rules: SpikeSettings = field(default_factory=SpikeSettings)
    losses: deque[float] = field(init=False)
    norms: deque[float] = field(init=False)
    bad: deque[int] = field(init=False)
    skipped: int = 0  # steps of the whole run
    first_overflow_step: int | None = (
        None  # the first of the steps left out since the last one that was taken
    )

    def __post_init__(self) -> None:
        self.losses, self.norms = deque(maxlen=self.rules.window), deque(maxlen=self.rules.window)
        self.bad = deque()

    def check(self, loss: float, norm: float) -> SkipReason | None:
        """Why a step with this loss and gradient norm (before clipping) must be skipped; None if it may be taken."""
        if not math.isfinite(loss):
            return SkipReason("nan", f"loss is {loss}")
        if (
            not math.isfinite(norm) or norm < 0
        ):  # DeepSpeed says -1 where it is infinite or not a number
            return SkipReason("nan", "the gradient is not finite")
        for name, value, history in (
            ("loss", loss, self.losses),
            ("gradient norm", norm, self.norms),
        ):
            limit = self.limit(history)
            if value > limit:
                above = f"{self.rules.threshold_std:g} sigma of the steps before"
                return SkipReason("spike", f"{name} {value:.4g} spiked: over {limit:.4g}, {above}")
        return None

    def limit(self, history: deque[float]) -> float:
        """What a value may reach; infinity while there is too little to compare with."""
        if not self.rules.threshold_std or len(history) < self.rules.window:
            return math.inf
        mean, spread = mean_and_spread(history)
        return mean + self.rules.threshold_std * spread

    def update(self, step: int, loss: float, norm: float, reason: SkipReason | None) -> None:
        """Remember step `step`, skipped for `reason` or taken."""
        if reason is None:
            self.losses.append(loss)
            self.norms.append(norm)
            self.first_overflow_step = None
        else:
            self.left_out(step)
            self.bad.append(step)
            self.skipped += 1
        while self.bad and self.bad[0] <= step - self.rules.skip_window:
            self.bad.popleft()

    def left_out(self, step: int) -> None:
        """Step `step` was not taken; where that is for fp16's loss scale to heed, nothing else is noted of it."""
        self.first_overflow_step = (
            step if self.first_overflow_step is None else self.first_overflow_step
        )

    @property
    def has_diverged(self) -> bool:
        """More bad steps of late than the rules allow."""
        return len(self.bad) > self.rules.max_skipped_steps

    def state(self) -> dict[str, object]:
        kept = {name: list(getattr(self, name)) for name in ("losses", "norms", "bad")}
        return {**kept, "skipped": self.skipped, "stuck": self.first_overflow_step}

    def restore(self, state: dict) -> None:
        """Go on from a `state`; one of another window keeps what fits. Nothing to restore: start anew."""
        for name in ("losses", "norms", "bad"):
            history = getattr(self, name)
            history.clear()
            history.extend(state.get(name, []))
        self.skipped, self.first_overflow_step = state.get("skipped", 0), state.get("stuck")


# ---- Going back -----------------------------------------------------------------------------------------------------


def data_step(step: int, jumps: list[Rewind]) -> int:
    """Which step's clips are read at training step `step`: later than itself after every jump before it."""
    return step + sum(jump.steps for jump in jumps if step >= jump.step)


def rate_share(step: int, jumps: list[Rewind]) -> float:
    """What is left of the learning rate at `step` after every jump before it."""
    return math.prod(jump.rate for jump in jumps if step >= jump.step)


def plan_rewind(saved: list[int], spiked: int, back: int, ahead: int) -> Rewind | None:
    """The jump that leads past a spike that began at step `spiked`: from the newest checkpoint at least `back` steps
    before it (else the oldest), to `ahead` batches after it. None without a checkpoint before it.
    """
    before = [step for step in saved if step <= spiked]
    if not before:
        return None
    target = max((step for step in before if step <= spiked - back), default=min(before))
    return Rewind(target, spiked - target + ahead)


def plan_rewind_lower_lr(saved: list[int], stuck: int, back: int, rate: float) -> Rewind | None:
    """The jump back to before step `stuck`, from which on fp16 could take no step: the same data again, at `rate` times
    the rate.

    Weights that could not take step `stuck` cannot at a smaller rate either, so at least one step lies between.
    """
    jump = plan_rewind(saved, stuck - 1, back, 0)
    return jump and replace(jump, steps=0, rate=rate)
