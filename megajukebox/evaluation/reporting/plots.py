"""The plots of a report: dots with intervals, lines over frequency, every song as a point; for light and dark pages."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megajukebox.evaluation.reporting.table import column_words, metric_words

# The explorer's colours (explorer/static/style.css), so that all pages are of one kind.
THEMES = {
    "light": {
        "ink": "#1f1d1a",
        "soft": "#625c54",
        "line": "#ded9d1",
        "cycle": ("#b0401a", "#1f6a8c", "#5d7320"),
    },
    "dark": {
        "ink": "#ece8e2",
        "soft": "#a9a297",
        "line": "#3a3733",
        "cycle": ("#f29063", "#6cb8da", "#b2cc6a"),
    },
}
MARKS = ("o", "s", "D", "^", "v")  # colour is not the only difference
MAX_ROWS = 30  # of the plot of slices
WIDTH = 7.0  # inches

Draw = Callable[[Axes, Mapping[str, Any]], None]
Rows = dict[str, dict[str, Any]]  # {row: {column: metric}}


class Plot(NamedTuple):
    """One plot of a page."""

    name: str  # of the file
    title: str
    draw: Draw
    height: float  # inches


def svg(draw: Draw, theme: str, height: float) -> bytes:
    """What `draw` draws, as an SVG of WIDTH x `height` inches. The same report gives the same bytes."""
    colours = THEMES[theme]
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "megajukebox",
        "font.family": "sans-serif",
        "font.size": 10,
        "text.color": colours["ink"],
        "axes.labelcolor": colours["soft"],
        "axes.edgecolor": colours["line"],
        "xtick.color": colours["soft"],
        "ytick.color": colours["soft"],
        "grid.color": colours["line"],
        "axes.grid": True,
        "axes.axisbelow": True,
        "legend.frameon": False,
        "legend.labelcolor": colours["ink"],
    }
    with rc_context(settings):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.subplots()
        axes.spines[["top", "right", "left"]].set_visible(False)
        draw(axes, colours)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()


# ---- How they are drawn


def dots(rows: Mapping[str, Mapping[str, Any]], unit: str) -> Draw:
    """One line for each row, one dot with its interval for each column; the column `chance` is a tick."""
    columns = columns_of(rows)
    series = columns.copy()
    if "chance" in series:
        series.remove("chance")
    step = min(0.22, 0.7 / max(len(series), 1))  # from one column's dot to the next, in rows

    def draw(axes: Axes, colours: Mapping[str, Any]) -> None:
        for n, column in enumerate(series):
            offset = (n - (len(series) - 1) / 2) * step
            colour, mark = colour_and_mark(n, colours)
            values = []
            heights = []
            for y, cells in enumerate(rows.values()):
                if column not in cells:
                    continue
                metric = cells[column]
                values.append(metric["value"])
                heights.append(y + offset)
                if metric["low"] is not None:
                    ends = [metric["low"], metric["high"]]
                    axes.plot(ends, [y + offset] * 2, color=colour, linewidth=1.6)
            axes.plot(values, heights, mark, color=colour, label=column_words(column))
        for y, cells in enumerate(rows.values()):
            if "chance" in cells:  # a dashed tick where guessing would be
                label = "chance" if y == 0 else None
                x = [cells["chance"]["value"]] * 2
                axes.plot(x, [y - 0.4, y + 0.4], "--", color=colours["soft"], label=label)
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(unit)
        if len(columns) > 1:
            draw_legend(axes)

    return draw


def lines(bands: Mapping[str, Mapping[str, Any]], unit: str) -> Draw:
    """One line for each column over the bands of frequency, with the interval as a shade."""

    def draw(axes: Axes, colours: Mapping[str, Any]) -> None:
        for n, column in enumerate(columns_of(bands)):
            colour, mark = colour_and_mark(n, colours)
            x = []
            values = []
            low = []
            high = []
            for position, cells in enumerate(bands.values()):
                if column in cells:
                    x.append(position)
                    values.append(cells[column]["value"])
                    low.append(cells[column]["low"])
                    high.append(cells[column]["high"])
            axes.plot(x, values, f"-{mark}", color=colour, label=column_words(column))
            if None not in low:
                axes.fill_between(x, low, high, color=colour, alpha=0.18)
        axes.set_xticks(range(len(bands)), list(bands))
        axes.set_ylabel(unit)
        draw_legend(axes)

    return draw


def points(columns: Mapping[str, Sequence[float]], unit: str, limit: float | None = None) -> Draw:
    """Every song as a point, a line for each column; `limit` is a dashed line."""

    def draw(axes: Axes, colours: Mapping[str, Any]) -> None:
        for n, values in enumerate(columns.values()):
            colour, mark = colour_and_mark(n, colours)
            jitter = np.random.default_rng(0).uniform(-0.25, 0.25, len(values))
            axes.plot(values, n + jitter, mark, color=colour, alpha=0.6, markersize=4)
        if limit is not None:
            axes.axvline(limit, color=colours["soft"], linestyle="--")
        axes.set_yticks(range(len(columns)), list(map(column_words, columns)))
        axes.set_ylim(len(columns) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(unit)

    return draw


def columns_of(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The columns of all rows, each once, in the order in which they come."""
    columns: dict[str, None] = {}
    for cells in rows.values():
        columns |= dict.fromkeys(cells)
    return list(columns)


def colour_and_mark(n: int, colours: Mapping[str, Any]) -> tuple[str, str]:
    colour = colours["cycle"][n] if n < len(colours["cycle"]) else colours["soft"]
    return colour, MARKS[n % len(MARKS)]


def draw_legend(axes: Axes) -> None:
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=4,
        borderaxespad=0.2,
        columnspacing=1.2,
        handlelength=1.4,
    )


# ---- Which plots a report has


def plots_of(report: Mapping[str, Any]) -> list[Plot]:
    """The plots for what the report has metrics of."""
    metrics = report["metrics"]
    return [
        *band_plots(metrics),
        *accuracy_plots(metrics),
        *slice_plots(metrics),
        *song_plots(metrics),
        *level_plots(metrics),
    ]


def dot_plot(name: str, title: str, rows: Mapping[str, Mapping[str, Any]], unit: str) -> Plot:
    series = max(map(len, rows.values()))
    height = 0.9 + len(rows) * max(0.34, 0.16 * series)
    return Plot(name, title, dots(rows, unit), height)


def level_plots(metrics: Mapping[str, Any]) -> list[Plot]:
    """Single metrics of each part, by level."""
    plots = []
    for metric in ("frechet", "peakiness_db", "repetition", "word_error_ms"):
        rows: Rows = {}
        unit = ""
        for name, value in metrics.items():
            part, column, *row = name.split("/")
            if row == [metric] and value["value"] is not None:
                rows.setdefault(metric_words(part), {})[column] = value
                unit = value["unit"]
        if sum(map(len, rows.values())) > 1:
            words = metric_words(metric)
            plots.append(dot_plot(metric, words[:1].upper() + words[1:], rows, unit))
    return plots


def band_plots(metrics: Mapping[str, Any]) -> list[Plot]:
    """Signal to noise ratio of reconstructions, and noise between their harmonics, over frequency."""
    titles = {
        "snr_db": ("bands", "Signal to noise of reconstructions, by frequency"),
        "valley_noise_db": (
            "noise",
            "Noise between the harmonics of reconstructions, by frequency",
        ),
    }
    plots = []
    for term, (file_name, title) in titles.items():
        bands: Rows = {}
        for name, metric in metrics.items():
            part, column, *row = name.split("/")
            if part != "reconstruction" or len(row) != 2 or row[1] != term:
                continue
            if metric["value"] is not None:
                words = metric_words(row[0]).removesuffix(" Hz")
                bands.setdefault(words, {})[column] = metric
        if bands:
            plots.append(Plot(file_name, title, lines(bands, "dB"), 3.2))
    return plots


def accuracy_plots(metrics: Mapping[str, Any]) -> list[Plot]:
    """By part: how often artist, genre and language are recognised."""
    parts: dict[str, Rows] = {}
    for name, metric in metrics.items():
        part, column, *row = name.split("/")
        if row and row[-1].endswith("_accuracy"):
            words = metric_words(row[-1].removesuffix("_accuracy"))
            parts.setdefault(part, {}).setdefault(words, {})[column] = metric
    plots = []
    for part, rows in parts.items():
        title = f"Recognised: {metric_words(part)}"
        plots.append(dot_plot(f"accuracy_{part}", title, rows, "fraction of songs"))
    return plots


def slice_plots(metrics: Mapping[str, Any]) -> list[Plot]:
    """Bits per code by artist, genre and language; of the first MAX_ROWS slices."""
    rows: Rows = {}
    for name, metric in metrics.items():
        _, column, *row = name.split("/")
        if row != ["bits_per_code"]:
            continue
        for label, cell in {"all songs": metric, **metric["slices"]}.items():
            rows.setdefault(label.replace("=", " "), {})[column] = cell
    if not rows:
        return []
    first_rows = dict(list(rows.items())[:MAX_ROWS])
    title = "Bits per code of held-out songs"
    return [dot_plot("bits", title, first_rows, "bits, less is better")]


# Metrics that are best seen song by song: (file, title, part, metric, unit).
SONG_PLOTS = (
    ("loudness", "Loudness of samples and held-out songs", "samples", "loudness_lufs", "LUFS"),
    (
        "nearest",
        "Nearest training clip; left of the line is suspicious",
        "copying/clips",
        "nearest",
        "distance",
    ),
    (
        "passages",
        "Longest passage of codes in common with a training song; right of the line is suspicious",
        "copying/codes",
        "shared_codes",
        "codes",
    ),
)


def song_plots(metrics: Mapping[str, Any]) -> list[Plot]:
    """Those of SONG_PLOTS that the report has values of."""
    plots = []
    for name, title, part, metric, unit in SONG_PLOTS:
        columns: dict[str, list[float]] = {}
        for path, value in metrics.items():
            if not (path.startswith(f"{part}/") and path.endswith(f"/{metric}")):
                continue
            known = [item for item in value["items"].values() if item is not None]
            if known:
                column = path.removeprefix(f"{part}/").removesuffix(metric).strip("/")
                columns[column or "samples"] = known
        limit = metrics.get(f"{part}/limit/{metric}", {}).get("value")
        if columns:
            height = 0.8 + 0.5 * len(columns)
            plots.append(Plot(name, title, points(columns, unit, limit), height))
    return plots
