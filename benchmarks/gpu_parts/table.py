"""The last lines of the day: every figure that has something to be compared with, and what went wrong."""

from dataclasses import replace

from gpu_parts.results import DONE, DayResults, Figure

SMALL = "tiny sizes: floor, plan and target are of the real ones, and left out"
COLUMNS = ("part", "figure", "ours", "again", "unit", "floor", "plan", "target", "note")


def table(results: DayResults) -> str:
    """Text in columns: figures beside floor, plan or target first, then parts that did not finish.

    Of a day with --small the figures alone: they show that a part works, and no machine's speed.
    """
    small = results.made.get("small", False)
    rows: list[tuple[str, ...]] = [COLUMNS]
    unfinished = []
    for name, part in results.parts.items():
        for figure in part.figures:
            if not (figure.floor is figure.plan is figure.target is None):
                rows.append(
                    cells(
                        name,
                        replace(figure, floor=None, plan=None, target=None) if small else figure,
                    )
                )
        if part.status != DONE:
            unfinished.append(f"{name}: {part.status} {part.reason}")
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for row in rows:
        padded = [cell.ljust(width) for cell, width in zip(row, widths)]
        lines.append("  ".join(padded).rstrip())
    return "\n".join([SMALL] * small + lines + unfinished) + "\n"


def cells(part: str, figure: Figure) -> tuple[str, ...]:
    first = figure.values[0] if figure.values else None
    again = figure.values[1] if len(figure.values) > 1 else None
    beside = [figure.floor, figure.plan, figure.target]
    numbers = [number(value) for value in (first, again)]
    return (part, figure.name, *numbers, figure.unit, *map(number, beside), figure.note)


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
