"""The learning rate as a pure function of the step, so that there is nothing to save."""

import math


def rate(step: int, steps: int, warmup: int = 0, decay: str = "constant", floor: float = 0.0) -> float:
    """Share (0..1] of the peak learning rate at `step` (0-based) of `steps`.

    Linear warm-up over `warmup` steps (the first step is already above 0, unlike Jukebox's), then constant, linear or
    cosine decay to `floor` at the last step.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))
    falling = {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 + 0.5 * math.cos(math.pi * progress)}[decay]
    return floor + (1 - floor) * falling
