"""The plots of a report: dots with intervals, lines over frequency, every song as a point; for light and dark pages."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megajukebox.evaluation.reporting.names import column_name, pretty

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
MOST_ROWS = 30
Draw = Callable[[Axes, Mapping[str, Any]], None]


def svg(draw: Draw, theme: str, height: float) -> bytes:
    """What `draw` draws, as an SVG 7 inches wide. The same report gives the same bytes."""
    colours = THEMES[theme]
    settings: dict[Any, Any] = {
        "svg.fonttype": "none", "svg.hashsalt": "megajukebox", "font.family": "sans-serif", "font.size": 10,
        "text.color": colours["ink"], "axes.labelcolor": colours["soft"], "axes.edgecolor": colours["line"],
        "xtick.color": colours["soft"], "ytick.color": colours["soft"], "grid.color": colours["line"],
        "axes.grid": True, "axes.axisbelow": True, "legend.frameon": False, "legend.labelcolor": colours["ink"],
    }  # fmt: skip
    with rc_context(settings):
        figure = Figure(figsize=(7, height), layout="constrained")
        axes = figure.subplots()
        axes.spines[["top", "right", "left"]].set_visible(False)
        draw(axes, colours)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()


def dots(rows: Mapping[str, Mapping[str, Any]], unit: str) -> Draw:
    """One line a row, one dot with its interval a column; a column called chance is a tick."""
    columns = list(dict.fromkeys(column for cells in rows.values() for column in cells))

    def draw(axes: Axes, colours: Mapping[str, Any]) -> None:
        series = [column for column in columns if column != "chance"]
        for n, column in enumerate(series):
            place = (n - (len(series) - 1) / 2) * min(0.22, 0.7 / len(series))
            colour, mark = look(n, colours)
            found = [
                (y + place, cells[column])
                for y, cells in enumerate(rows.values())
                if column in cells
            ]
            for y, figure in found:
                if figure["low"] is not None:
                    axes.plot([figure["low"], figure["high"]], [y, y], color=colour, linewidth=1.6)
            axes.plot(
                [f["value"] for _, f in found],
                [y for y, _ in found],
                mark,
                color=colour,
                label=column_name(column),
            )
        for y, cells in enumerate(rows.values()):
            if "chance" in cells:
                label = "chance" if y == 0 else None
                axes.plot(
                    [cells["chance"]["value"]] * 2,
                    [y - 0.4, y + 0.4],
                    "--",
                    color=colours["soft"],
                    label=label,
                )
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(unit)
        if len(columns) > 1:
            legend(axes)

    return draw


def lines(bands: Mapping[str, Mapping[str, Any]], unit: str) -> Draw:
    """One line a column over the bands of frequency, with the interval as a shade."""
    columns = list(dict.fromkeys(column for cells in bands.values() for column in cells))

    def draw(axes: Axes, colours: Mapping[str, Any]) -> None:
        for n, column in enumerate(columns):
            colour, mark = look(n, colours)
            found = [
                (x, cells[column]) for x, cells in enumerate(bands.values()) if column in cells
            ]
            x = [place for place, _ in found]
            axes.plot(
                x,
                [f["value"] for _, f in found],
                f"-{mark}",
                color=colour,
                label=column_name(column),
            )
            if all(f["low"] is not None for _, f in found):
                low, high = ([f[end] for _, f in found] for end in ("low", "high"))
                axes.fill_between(x, low, high, color=colour, alpha=0.18)
        axes.set_xticks(range(len(bands)), list(bands))
        axes.set_ylabel(unit)
        legend(axes)

    return draw


def points(columns: Mapping[str, Sequence[float]], unit: str, limit: float | None = None) -> Draw:
    """Every song as a point, a line a column; what is beyond the limit is on the wrong side of the dashed line."""

    def draw(axes: Axes, colours: Mapping[str, Any]) -> None:
        for n, values in enumerate(columns.values()):
            colour, mark = look(n, colours)
            jitter = np.random.default_rng(0).uniform(-0.25, 0.25, len(values))
            axes.plot(values, n + jitter, mark, color=colour, alpha=0.6, markersize=4)
        if limit is not None:
            axes.axvline(limit, color=colours["soft"], linestyle="--")
        axes.set_yticks(range(len(columns)), [column_name(column) for column in columns])
        axes.set_ylim(len(columns) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(unit)

    return draw


def look(n: int, colours: Mapping[str, Any]) -> tuple[str, str]:
    colour = colours["cycle"][n] if n < len(colours["cycle"]) else colours["soft"]
    return colour, MARKS[n % len(MARKS)]


def legend(axes: Axes) -> None:
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=4,
        borderaxespad=0.2,
        columnspacing=1.2,
        handlelength=1.4,
    )


# ---- Which plots a report has

Plot = tuple[str, str, Draw, float]  # name of the file, title, what draws it, height in inches


def plots_of(report: Mapping[str, Any]) -> list[Plot]:
    """The plots for what the report has figures of."""
    figures = report["figures"]
    found = [
        *band_plots(figures),
        *heard_plots(figures),
        *slice_plots(figures),
        *song_plots(figures),
    ]
    for measure in ("frechet", "repetition", "word_error_ms"):
        rows = of_measure(figures, measure)
        if sum(map(len, rows.values())) > 1:
            title = pretty(measure)[:1].upper() + pretty(measure)[1:]
            found.append(dot_plot(measure, title, rows, figures[first(figures, measure)]["unit"]))
    return found


def dot_plot(name: str, title: str, rows: Mapping[str, Mapping[str, Any]], unit: str) -> Plot:
    series = max(len(cells) for cells in rows.values())
    return name, title, dots(rows, unit), 0.9 + len(rows) * max(0.34, 0.16 * series)


def first(figures: Mapping[str, Any], measure: str) -> str:
    return next(name for name in figures if name.endswith(f"/{measure}"))


def of_measure(figures: Mapping[str, Any], measure: str) -> dict[str, dict[str, Any]]:
    """{part: {column: figure}} of one measure in all parts."""
    rows: dict[str, dict[str, Any]] = {}
    for name, figure in figures.items():
        part, column, *rest = name.split("/")
        if rest == [measure] and figure["value"] is not None:
            rows.setdefault(pretty(part), {})[column] = figure
    return rows


def band_plots(figures: Mapping[str, Any]) -> list[Plot]:
    bands: dict[str, dict[str, Any]] = {}
    for name, figure in figures.items():
        part, column, *rest = name.split("/")
        if (
            part == "reconstruction"
            and len(rest) == 2
            and rest[1] == "snr_db"
            and figure["value"] is not None
        ):
            bands.setdefault(pretty(rest[0]).removesuffix(" Hz"), {})[column] = figure
    return (
        [("bands", "Signal to noise of reconstructions, by frequency", lines(bands, "dB"), 3.2)]
        if bands
        else []
    )


def heard_plots(figures: Mapping[str, Any]) -> list[Plot]:
    """By part: whether artist, genre and language are recognised."""
    parts: dict[str, dict[str, dict[str, Any]]] = {}
    for name, figure in figures.items():
        part, column, *rest = name.split("/")
        if rest and rest[-1].endswith("_heard"):
            parts.setdefault(part, {}).setdefault(pretty(rest[-1]), {})[column] = figure
    return [
        dot_plot(f"heard_{p}", f"Recognised: {pretty(p)}", rows, "share of songs")
        for p, rows in parts.items()
    ]


def slice_plots(figures: Mapping[str, Any]) -> list[Plot]:
    """Bits per code by artist, genre and language; of the commonest slices."""
    rows: dict[str, dict[str, Any]] = {}
    for name, figure in figures.items():
        _, column, *rest = name.split("/")
        if rest == ["bits_per_code"]:
            for label, cell in {"all songs": figure, **figure["slices"]}.items():
                rows.setdefault(label.replace("=", " "), {})[column] = cell
    kept = dict(list(rows.items())[:MOST_ROWS])
    return (
        [dot_plot("bits", "Bits per code of held-out songs", kept, "bits, less is better")]
        if kept
        else []
    )


def song_plots(figures: Mapping[str, Any]) -> list[Plot]:
    """Measures that are best seen song by song."""
    wanted = (
        ("loudness", "Loudness of samples and held-out songs", "samples", "loudness_lufs", "LUFS"),
        ("nearest", "Nearest training clip; left of the line is suspicious", "copying/clips", "nearest", "distance"),
        ("passages", "Longest passage of codes in common with a training song; right of the line is suspicious",
         "copying/codes", "shared_codes", "codes"),
    )  # fmt: skip
    found: list[Plot] = []
    for name, title, part, measure, unit in wanted:
        columns = {
            n.removeprefix(f"{part}/").removesuffix(measure).strip("/") or "samples": known(figure)
            for n, figure in figures.items()
            if n.startswith(f"{part}/") and n.endswith(f"/{measure}") and known(figure)
        }
        limit = figures.get(f"{part}/limit/{measure}", {}).get("value")
        if columns:
            found.append((name, title, points(columns, unit, limit), 0.8 + 0.5 * len(columns)))
    return found


def known(figure: Mapping[str, Any]) -> list[float]:
    return [value for value in figure["items"].values() if value is not None]
