"""Training curves as inline SVG (templates/figure.html): this module computes what stands where."""

import json
import math
from dataclasses import dataclass

from markupsafe import Markup

from megajukebox.explorer.loaders.runs import Points
from megajukebox.explorer.pages.html import render

# The picture, and the plot inside it, in the picture's own units.
WIDTH = 360
HEIGHT = 200
LEFT = 54
RIGHT = 352
TOP = 8
BOTTOM = 176
END_LABEL_WIDTH = 12  # a label nearer to the right edge would leave the picture
MAX_POINTS = 300
TICKS = 5  # about so many on an axis
LOG_RATIO = 50  # times the smallest value: above, values are drawn on a logarithmic scale
LOG_MARGIN = 1.1
LINEAR_MARGIN = 0.05  # of the spread of the values
SPLIT_STYLES = {"train": "train", "held_out": "held-out"}  # every other split shares a third look


@dataclass(frozen=True)
class Axis:
    """Maps values to positions on the picture, from `start` at the lowest value to `end` at the highest."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def position(self, value: float) -> float:
        scale = math.log if self.logarithmic else float
        share = (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low))
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        """Round numbers inside the axis."""
        if self.logarithmic:
            first = math.ceil(math.log10(self.low))
            last = math.floor(math.log10(self.high))
            powers = range(first, last + 1)
            return [10.0**power for power in powers[:: max(1, len(powers) // 4)]]
        # The next of 1, 2, 5, 10, 20, 50 ... above a fifth of the axis.
        least = (self.high - self.low) / TICKS
        power = 10.0 ** math.floor(math.log10(least))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * 0.999)
        first = math.ceil(self.low / step)
        last = math.floor(self.high / step)
        return [n * step for n in range(first, last + 1)]


@dataclass(frozen=True)
class Mark:
    """Something that happened at a step."""

    step: float
    kind: str
    text: str


@dataclass(frozen=True)
class Line:
    """One split: its path, and a dot for each point without neighbours."""

    style: str
    path: str
    dots: list[tuple[float, float]]


@dataclass(frozen=True)
class PlotArea:
    """What the template draws. `series` and `axis` are JSON for curves.js, which reads values under the pointer."""

    x: Axis
    y: Axis
    marks: list[Mark]
    lines: list[Line]
    series: str
    axis: str  # steps at both ends of the x axis, their positions, top and bottom


def figure(name: str, splits: dict[str, Points], marks: list[Mark] | None = None) -> Markup:
    """One metric as a drawing.

    Args:
        splits: the points of each split; its last value stands in words beside the title.
        marks: what happened at which step.
    """
    return render(
        "figure.html",
        title=name.replace("_", " "),
        splits=splits,
        plot=plot(splits, marks or []),
        number=number,
        styles=SPLIT_STYLES,
        width=WIDTH,
        height=HEIGHT,
        end_label_width=END_LABEL_WIDTH,
    )


def plot(splits: dict[str, Points], marks: list[Mark]) -> PlotArea | None:
    """What to draw of `splits`; None where no value is finite."""
    thinned = {split: thin(points) for split, points in splits.items()}
    readable = {}
    finite: Points = []
    for split, points in thinned.items():
        readable[split] = [point for point in points if math.isfinite(point[1])]
        finite += readable[split]
    if not finite:
        return None
    steps, values = map(list, zip(*finite))
    low, high = spread(steps)
    x = Axis(low, high, LEFT, RIGHT)
    y = value_axis(values)
    lines = []
    for split, points in thinned.items():
        lines.append(line(points, x, y, SPLIT_STYLES.get(split, "other")))
    axis = json.dumps([x.low, x.high, x.start, x.end, TOP, BOTTOM])
    return PlotArea(x, y, marks, lines, json.dumps(readable), axis)


def line(points: Points, x: Axis, y: Axis, style: str) -> Line:
    """The points joined; a value that is not finite leaves a gap, a point without neighbours is a dot."""
    path = ""
    dots = []
    stretch: list[tuple[float, float]] = []  # neighbours on the picture whose values are finite
    for step, value in [*points, (0.0, math.nan)]:
        if math.isfinite(value):
            stretch.append((x.position(step), y.position(value)))
            continue
        if len(stretch) == 1:
            dots += stretch
        elif stretch:
            path += "M" + "L".join(f"{across} {down}" for across, down in stretch)
        stretch = []
    return Line(style, path, dots)


def thin(points: Points) -> Points:
    """At most `MAX_POINTS`, each the mean of its neighbours."""
    size = math.ceil(len(points) / MAX_POINTS)
    if size <= 1:
        return points
    thinned = []
    for first in range(0, len(points), size):
        group = points[first : first + size]
        mean = sum(value for _, value in group) / len(group)
        thinned.append((group[-1][0], mean))
    return thinned


def value_axis(values: list[float]) -> Axis:
    """Logarithmic where the largest value is `LOG_RATIO` times the smallest, and all are positive."""
    low = min(values)
    high = max(values)
    if low > 1e-30 and high / low > LOG_RATIO:
        return Axis(low / LOG_MARGIN, high * LOG_MARGIN, BOTTOM, TOP, logarithmic=True)
    low, high = spread(values)
    margin = (high - low) * LINEAR_MARGIN
    return Axis(low - margin, high + margin, BOTTOM, TOP)


def spread(values: list[float]) -> tuple[float, float]:
    """Lowest and highest; widened if they are the same."""
    low = min(values)
    high = max(values)
    if high - low > max(1e-30, 1e-9 * abs(high)):
        return low, high
    margin = max(abs(low) * LINEAR_MARGIN, 1e-6)
    return low - margin, high + margin


def number(value: float) -> str:
    """Short and readable: 0.00031, 2.417, 1250, 12k, 3.5M."""
    if not math.isfinite(value):
        return str(value)
    for threshold, unit, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= threshold:
            return f"{value / unit:.4g}{letter}"
    return f"{value:.4g}"
