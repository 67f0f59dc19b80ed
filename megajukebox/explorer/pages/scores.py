"""What `megajukebox evaluate` wrote of a run's checkpoints (scores.jsonl): metrics over steps, and the newest ones."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from megajukebox.explorer.loaders.runs import Points, is_number
from megajukebox.explorer.pages.svg_plots import figure, number

# The metrics that are drawn over steps; the table has all.
DRAWN_METRICS = (
    "bits_per_code",
    "label_gain_bits",
    "word_error_ms",
    "snr_db",
    "spectral_convergence_db",
    "frechet",
    "perplexity",
    "forward_kl_bits",
    "reverse_kl_bits",
)
HEADINGS = ("Metric", "Value", "95 %", "Songs", "")
DIRECTIONS = {1: "more is better", -1: "less is better"}


@dataclass(frozen=True)
class ScoreTable:
    """Curves of the drawn metrics, and a row for each metric at `step`."""

    figures: list[Markup]
    step: str
    headings: tuple[str, ...]
    rows: list[tuple[str, ...]]


def score_table(lines: list[dict[str, Any]]) -> ScoreTable | None:
    """The scores of a run; None for a run that was never evaluated."""
    scored = []
    for line in lines:
        if is_number(line.get("step")) and isinstance(line.get("metrics"), dict):
            scored.append(line)
    if not scored:
        return None
    # Of equal steps the one that was evaluated last.
    newest = max(reversed(scored), key=lambda line: line["step"])
    figures = []
    for name, points in over_steps(scored).items():
        figures.append(figure(name, {"held_out": points}))
    rows = []
    for name, score in newest["metrics"].items():
        if isinstance(score, dict):
            rows.append(table_row(name, score))
    return ScoreTable(
        figures=figures,
        step=number(newest["step"]),
        headings=HEADINGS,
        rows=rows,
    )


def over_steps(lines: list[dict[str, Any]]) -> dict[str, Points]:
    """The points of each drawn metric; of a step that was evaluated twice the later result counts."""
    values: dict[str, dict[float, float]] = {}
    for line in lines:
        for name, score in line["metrics"].items():
            path = name.split("/")  # part, level, metric
            is_drawn = len(path) == 3 and path[2] in DRAWN_METRICS
            if is_drawn and isinstance(score, dict) and is_number(score.get("value")):
                by_step = values.setdefault(f"{path[1]} {path[2]}", {})
                by_step[line["step"]] = score["value"]
    return {name: sorted(by_step.items()) for name, by_step in values.items()}


def table_row(name: str, score: Mapping[str, Any]) -> tuple[str, ...]:
    """Name, value, 95 % interval, number of songs, which direction is better."""
    low = score.get("low")
    high = score.get("high")
    interval = (
        f"{as_number(low)} to {as_number(high)}" if is_number(low) and is_number(high) else ""
    )
    unit = f" {score['unit']}" if score.get("unit") else ""
    direction = DIRECTIONS.get(score.get("better", 0), "")
    value = f"{as_number(score.get('value'))}{unit}"
    return (name, value, interval, as_number(score.get("count")), direction)


def as_number(value: object) -> str:
    """A finite number in short, anything else as a dash."""
    return number(float(value)) if is_number(value) and math.isfinite(value) else "-"  # type: ignore[arg-type]
