"""What `megajukebox evaluate` said of a run's checkpoints (scores.jsonl): how figures moved, and the newest ones."""

import math
from collections.abc import Mapping
from typing import Any

from megajukebox.explorer.loaders.runs import is_number
from megajukebox.explorer.pages.html import Markup, element
from megajukebox.explorer.pages.svg_plots import figure, number

# The measures that are drawn over steps; the table has all.
DRAWN = (
    "bits_per_code", "label_gain_bits", "word_error_ms", "snr_db", "spectral_convergence_db", "frechet", "perplexity",
    "forward_kl_bits", "reverse_kl_bits",
)  # fmt: skip


def scores(lines: list[dict[str, Any]]) -> Markup:
    """The section of a run's page; nothing for a run that was never scored."""
    told = [
        line
        for line in lines
        if is_number(line.get("step")) and isinstance(line.get("scores"), dict)
    ]
    if not told:
        return Markup("")
    drawn = [figure(name, {"held_out": points}) for name, points in moved(told).items()]
    newest = max(
        reversed(told), key=lambda line: line["step"]
    )  # of equal steps the one scored last
    caption = f"Every figure at step {number(newest['step'])}"
    rows = [row(name, said) for name, said in newest["scores"].items() if isinstance(said, dict)]
    head = element(
        "tr",
        [element("th", name, scope="col") for name in ("Figure", "Value", "95 %", "Songs", "")],
    )
    table = element("table", element("thead", head), element("tbody", rows))
    scroll = element(
        "div", table, class_="scroll", tabindex="0", role="region", aria_label="Scores"
    )
    folded = element("details", element("summary", caption), scroll)
    return element(
        "section",
        element("h2", "Scores"),
        element("div", drawn, class_="curves"),
        folded,
        class_="panel",
    )


def moved(lines: list[dict[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Points by figure, of the measures that are drawn; a step scored twice counts as it was scored last."""
    values: dict[str, dict[float, float]] = {}
    for line in lines:
        for name, said in line["scores"].items():
            path = name.split("/")
            if (
                len(path) == 3
                and path[2] in DRAWN
                and isinstance(said, dict)
                and is_number(said.get("value"))
            ):
                values.setdefault(f"{path[1]} {path[2]}", {})[line["step"]] = said["value"]
    return {name: sorted(by_step.items()) for name, by_step in values.items()}


def row(name: str, said: Mapping[str, Any]) -> Markup:
    low, high = said.get("low"), said.get("high")
    ends = f"{text(low)} to {text(high)}" if is_number(low) and is_number(high) else ""
    unit = f" {said['unit']}" if said.get("unit") else ""
    better = {1: "more is better", -1: "less is better"}.get(said.get("better", 0), "")
    cells = (name, f"{text(said.get('value'))}{unit}", ends, text(said.get("count")), better)
    return element("tr", [element("td", cell) for cell in cells])


def text(value: object) -> str:
    return number(float(value)) if is_number(value) and math.isfinite(value) else "-"  # type: ignore[arg-type]
