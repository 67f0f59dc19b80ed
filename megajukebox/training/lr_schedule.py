"""The learning rate as a pure function of the step, so that there is nothing to save."""

import math


def rate(
    step: int, steps: int, warmup: int = 0, decay: str = "constant", floor: float = 0.0,
    start: int = 0, length: int = 0, scale: float = 1.0,
) -> float:  # fmt: skip
    """Share of the ds_config's learning rate at `step` (0-based) of `steps`.

    Linear warm-up over `warmup` steps (the first step is already above 0, unlike Jukebox's) to `scale`, which holds
    until step `start`; then constant, linear or cosine decay to `floor` x `scale`, over `length` steps or (0) until the
    last one. A run that trained at a constant rate is annealed, as by Jukebox's --lr_use_linear_decay, by going on with
    decay=linear, decay_start=<steps it has>, decay_steps=<as needed> and as many more steps.
    """
    if step < warmup:
        return scale * (step + 1) / (warmup + 1)
    start = max(start, warmup)
    length = length or steps - 1 - start
    progress = min(1.0, max(0, step - start) / max(1, length))
    falling = {
        "constant": 1.0,
        "linear": 1 - progress,
        "cosine": 0.5 + 0.5 * math.cos(math.pi * progress),
    }[decay]
    return scale * (floor + (1 - floor) * falling)
