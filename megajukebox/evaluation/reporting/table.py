"""A report as tables in the terminal: a table for each part, a row for each metric, a column for each level.

The words for metrics that tables, plots and the page share are here too.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from megajukebox.common.plain_text import plain
from megajukebox.evaluation.reporting.regression_gate import Change

ARROWS = {1: "↑", -1: "↓", 0: " "}  # the better direction
BAND = re.compile(r"band_0*(\d+)_0*(\d+)")
WORDS = {
    "snr": "SNR",
    "si_sdr": "SI-SDR",
    "stft_distance": "STFT distance",
    "dc": "DC",
    "frechet": "Fréchet distance",
    "loudness_lufs": "loudness",
    "word_error_ms": "error of word starts",
    "even_error_ms": "error if sung evenly",
    "forward_kl_bits": "forward KL",
    "reverse_kl_bits": "reverse KL",
    "true_peak": "true peak",
    "label_gain_bits": "gain of labels",
    "entropy_bits": "entropy",
}

Grid = list[
    tuple[str, list[str], dict[str, dict[str, Any]]]
]  # (part, columns, {row: {column: metric}})


def print_report(report: Mapping[str, Any], console: Console) -> None:
    """Print every metric; slices are on the page and in the JSON."""
    for part, columns, rows in grid_of(report["metrics"]):
        table = Table(title=metric_words(part), title_justify="left", title_style="bold")
        table.add_column("")
        for column in columns:
            table.add_column(column_words(column), justify="right")
        for name, cells in rows.items():
            metric = next(iter(cells.values()))
            words = " ".join(map(metric_words, name.split(" ")))
            unit = f" ({metric['unit']})" if metric["unit"] else ""
            values = [format_value(cells.get(column)) for column in columns]
            table.add_row(f"{ARROWS[metric['better']]} {words}{unit}", *values)
        console.print(table)


def print_gate(changes: Iterable[Change], console: Console) -> bool:
    """Print what got worse; returns whether anything did."""
    compared = list(changes)
    worse = [change for change in compared if change.worse]
    if not worse:
        console.print(f"gate: none of {len(compared)} metrics and slices got worse beyond chance")
        return False
    title = f"gate: {len(worse)} of {len(compared)} got worse"
    table = Table("worse", "change", "interval", "songs", title=title)
    for change in worse:
        ends = f"[{format_number(change.low)}, {format_number(change.high)}]"
        songs = str(change.songs or "other songs")
        table.add_row(plain(change.name), format_number(change.change), ends, songs)
    console.print(table)
    return True


def grid_of(metrics: Mapping[str, Any]) -> Grid:
    """Arrange metrics of names like part/column/row or part/column/more/row in a grid for each part."""
    parts: dict[str, dict[str, dict[str, Any]]] = {}
    columns: dict[str, list[str]] = {}
    for name, metric in metrics.items():
        part, column, *row = name.split("/")
        parts.setdefault(part, {}).setdefault(" ".join(row), {})[column] = metric
        if column not in columns.setdefault(part, []):
            columns[part].append(column)
    return [(part, columns[part], rows) for part, rows in parts.items()]


# ---- Words


def metric_words(name: str) -> str:
    """`snr_db` -> SNR, `band_00250_00500` -> 250-500 Hz; units are written elsewhere."""
    band = BAND.fullmatch(name)
    if band:
        return f"{int(band[1])}-{int(band[2])} Hz"
    name = name.removesuffix("_db")
    return WORDS.get(name, name.replace("_", " "))


def column_words(column: str) -> str:
    return column.replace("_", " ").replace("/", " ")


def format_value(metric: Mapping[str, Any] | None) -> str:
    """2.31 [2.10, 2.55], nothing for a metric that is not there."""
    if metric is None:
        return ""
    if metric["value"] is None:
        return "-"
    value = format_number(metric["value"])
    if metric["low"] is None:
        return value
    return f"{value} [{format_number(metric['low'])}, {format_number(metric['high'])}]"


def format_number(value: float) -> str:
    """Three digits that count: 1234, 12.3, 1.23, 0.0123, 1.2e-05."""
    size = abs(value)
    if 0 < size < 1e-3:
        return f"{value:.1e}"
    if size >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.3g}"
