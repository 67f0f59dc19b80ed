"""Rows of metrics.jsonl: the numbers of one step. Their keys are the names that Prometheus has, where it has them.

{"schema": 2, "step": 10, "time": 1764500000.0, "split": "train", "loss": 5.1, "grad_norm": 0.5, "time_step_seconds": 9.8}
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from megajukebox.records.phases import upgrade_phase
from megajukebox.records.productive_time import number
from megajukebox.records.schema import is_current

TRAIN = "train"
HELD_OUT = "held_out"
NOT_METRICS = ("schema", "step", "time", "split")
VERSION_1 = {
    "gradient_norm": "grad_norm",
    "stall_share": "data_wait_ratio",
    "buffer_fill": "prefetch_fill_ratio",
    "skipped": "bad_samples",
}


def upgrade_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with the keys of today; one of version 2 is as it was."""
    if is_current(row):
        return dict(row)
    current: dict[str, Any] = {}
    for name, value in row.items():
        phase = phase_of(name)
        if name.startswith("skipped_"):
            current["bad_samples_" + name.removeprefix("skipped_")] = value
        elif phase is not None:
            current[f"time_{upgrade_phase(phase)}_seconds"] = value
        else:
            current[VERSION_1.get(name, name)] = value
    return current


@lru_cache(maxsize=1024)  # the same few keys stand in every row of a run
def phase_of(key: str) -> str | None:
    """The phase whose time a metric counts: time_step_seconds -> step."""
    if key.startswith("time_") and key.endswith("_seconds"):
        return key.removeprefix("time_").removesuffix("_seconds")
    return None


def phase_seconds(row: Mapping[str, Any]) -> dict[str, float]:
    """Seconds by phase since the process began, as a row gives them."""
    by_phase: dict[str, float] = {}
    for key, value in row.items():
        phase = phase_of(key)
        if phase is None:
            continue
        seconds = number(value)
        if seconds is not None:
            by_phase[phase] = seconds
    return by_phase
