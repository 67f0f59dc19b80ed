"""A report as tables in the terminal: a table a part, a row a measure, a column a level."""

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from megajukebox.evaluation.reporting.names import column_name, pretty
from megajukebox.evaluation.reporting.regression_gate import Change

ARROWS = {1: "↑", -1: "↓", 0: " "}


def show(report: Mapping[str, Any], console: Console) -> None:
    """Print every figure; slices are on the page and in the JSON."""
    for part, columns, rows in grid(report["figures"]):
        table = Table(title=pretty(part), title_justify="left", title_style="bold")
        table.add_column("")
        for column in columns:
            table.add_column(column_name(column), justify="right")
        for name, cells in rows.items():
            figure = next(iter(cells.values()))
            unit = f" ({figure['unit']})" if figure["unit"] else ""
            shown = (in_words(cells[column]) if column in cells else "" for column in columns)
            table.add_row(
                f"{ARROWS[figure['better']]} {' '.join(map(pretty, name.split(' ')))}{unit}", *shown
            )
        console.print(table)


def grid(figures: Mapping[str, Any]) -> list[tuple[str, list[str], dict[str, dict[str, Any]]]]:
    """(part, columns, {row: {column: figure}}) of names like part/column/row or part/column/more/row."""
    parts: dict[str, dict[str, dict[str, Any]]] = {}
    columns: dict[str, list[str]] = {}
    for name, figure in figures.items():
        part, column, *rest = name.split("/")
        parts.setdefault(part, {}).setdefault(" ".join(rest), {})[column] = figure
        if column not in columns.setdefault(part, []):
            columns[part].append(column)
    return [(part, columns[part], rows) for part, rows in parts.items()]


def in_words(figure: Mapping[str, Any]) -> str:
    """2.31 [2.10, 2.55]"""
    if figure["value"] is None:
        return "-"
    if figure["low"] is None:
        return number(figure["value"])
    return f"{number(figure['value'])} [{number(figure['low'])}, {number(figure['high'])}]"


def number(value: float) -> str:
    """Three digits that count: 1234, 12.3, 1.23, 0.0123, 1.2e-05."""
    size = abs(value)
    if 0 < size < 1e-3:
        return f"{value:.1e}"
    return f"{value:.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.3g}"


def show_gate(changes: Iterable[Change], console: Console) -> bool:
    """Print what got worse; whether anything did."""
    compared = list(changes)
    worse = [change for change in compared if change.worse]
    if not worse:
        console.print(f"gate: none of {len(compared)} figures and slices got worse beyond chance")
        return False
    table = Table(
        "worse",
        "change",
        "interval",
        "songs",
        title=f"gate: {len(worse)} of {len(compared)} got worse",
    )
    for change in worse:
        ends = f"[{number(change.low)}, {number(change.high)}]"
        table.add_row(change.name, number(change.change), ends, str(change.songs or "other songs"))
    console.print(table)
    return True
