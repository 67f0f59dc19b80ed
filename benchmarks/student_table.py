"""The tables and the plot of benchmarks/student.py."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from megajukebox.distillation.curriculum import GATES

PLOT = Path(__file__).parents[1] / "docs" / "student.svg"
NUMBERS = {
    "KL forward": "kl_forward",
    "KL reverse": "kl_reverse",
    "songs' codes: student": "bits_per_code_of_songs",
    "teacher": "teacher_bits_per_code_of_songs",
    "teacher on its samples": "teacher_bits_of_samples",
    "on own": "teacher_bits_of_own_samples",
}
STEPS = (16, 32, 64, 128, 256, 512)  # the preset tiny's
COLOURS = {"not at all": "#b0b0b0", "data only": "#d08020", "distilled": "#2060c0"}


def number(name: str, mean: float, half: float) -> str:
    return f"{mean:.4f} ± {half:.4f}" if "KL" in name else f"{mean:.3f}"


def marker_of(order: str) -> str:
    """A dot for lines of several rows and for whole columns, a cross for one row a line."""
    return "o" if order.count(",") == 2 or order == "0,1" else "x"


def show(found: dict[str, Any]) -> None:
    console = Console(width=150)
    for level, rows in found.get("worth", {}).items():
        table = Table("order", "taught", "steps", *NUMBERS, title=level)
        for row in rows:
            told = [number(name, *row[key]) if key in row else "" for name, key in NUMBERS.items()]
            table.add_row(row["order"], row["taught"], str(row["steps_per_window"]), *told)
        console.print(table)
        for row in rows:
            for place in ("column", "row"):
                means = " ".join(f"{x:.2f}" for x in row.get(f"kl_forward_by_{place}", []))
                console.print(
                    f"{level} {row['order']} {row['taught']}: KL forward by {place}: {means}",
                    soft_wrap=True,
                )
    for name, row in found.get("songs", {}).items():
        console.print(name, row)
    for row in found.get("speed", {}).get("rows", []):
        console.print(row)


def plot(found: dict[str, Any]) -> None:
    """Steps per window against divergence, the size of a dot its speed: one panel a level."""
    if "worth" not in found:
        return
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    axes = figure.subplots(1, len(found["worth"]), squeeze=False)[0]
    walls = {
        (r["level"], r["way"]): r["cpu_per_second"] for r in found.get("speed", {}).get("rows", [])
    }
    for panel, (level, rows) in zip(axes, sorted(found["worth"].items(), reverse=True)):
        exact = walls.get((level, "teacher, code by code"), 0.0)
        for how, colour in COLOURS.items():
            some = [r for r in rows if r["taught"] == how and r["order"] != "teacher"]
            for marker in "ox":
                dots = [r for r in some if marker_of(r["order"]) == marker]
                x, y = [r["steps_per_window"] for r in dots], [r["kl_forward"][0] for r in dots]
                label = how if marker == "o" and dots else None
                panel.errorbar(
                    x,
                    y,
                    [r["kl_forward"][1] for r in dots],
                    fmt=marker,
                    color=colour,
                    label=label,
                    ms=4,
                )
            for r in some if how == "not at all" else []:
                wall = walls.get((level, f"student {r['order']}"))
                times = f" {exact / wall:.1f}x" if wall else ""
                panel.annotate(
                    f"({r['order']}){times}",
                    (r["steps_per_window"], r["kl_forward"][0]),
                    fontsize=6,
                    xytext=(4, 3),
                    textcoords="offset points",
                )
        panel.set_xscale("log")
        panel.axhline(GATES[level][0], color="#c04040", linewidth=0.8, linestyle=":")
        panel.set_xlim(12, 1000)
        panel.set_xticks(STEPS, [str(steps) for steps in STEPS])
        panel.minorticks_off()
        panel.set_ylim(bottom=0)
        panel.set_title(level)
        panel.set_xlabel("steps a window")
    axes[0].set_ylabel("KL(teacher || student), bits per code")
    axes[-1].legend(title="taught", fontsize=7)
    PLOT.parent.mkdir(exist_ok=True)
    figure.savefig(PLOT)
