"""How well a VQ-VAE's codebooks are used, from what its run logs."""

import math

from megajukebox.monitoring.collect.run_state import RunState
from megajukebox.records.productive_time import number


def codes(run: RunState) -> float | None:
    """Codes of a codebook."""
    model = run.settings.get("model")
    return (
        number(model.get("codebook_size", model.get("codes"))) if isinstance(model, dict) else None
    )


def usage(run: RunState, level: str) -> float | None:
    """Codes that the last batch chose, over those that it would have chosen if all were used alike.

    A small batch cannot choose all; and codes alive in the running average say nothing, since restarts keep those
    alive that nobody chooses.
    """
    used, seen, size = run.value(f"{level}/used"), vectors(run, level), codes(run)
    if used is None or not size:
        return None
    return used / (size * (1 - math.exp(-seen / size)) if seen else size)


def vectors(run: RunState, level: str) -> float | None:
    """Code vectors of one micro-batch over all ranks."""
    rate, seconds = run.value("audio_seconds_per_second"), run.value("step_seconds")
    model = run.settings.get("model")
    try:
        down, stride, samples = model["down"], model["stride"], model["sample_rate"]  # type: ignore[index]
        depth = {3: ("bottom", "middle", "top"), 2: ("bottom", "top"), 1: ("top",)}[
            len(down)
        ].index(level) + 1
        hop = math.prod(s**d for s, d in zip(stride[:depth], down[:depth]))
        accumulation = (
            number((run.settings.get("ds_config") or {}).get("gradient_accumulation_steps")) or 1
        )
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError):
        return None
    return rate * seconds * samples / hop / accumulation if rate and seconds else None
