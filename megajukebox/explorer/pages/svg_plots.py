"""Training curves as inline SVG (templates/figure.html): this module computes what stands where."""

import json
import math
from collections.abc import Iterator
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
        step = round_step((self.high - self.low) / TICKS)
        first = math.ceil(self.low / step)
        last = math.floor(self.high / step)
        return [n * step for n in range(first, last + 1)]


def round_step(step: float) -> float:
    """The next of 1, 2, 5, 10, 20, 50 ... above `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * 0.999)


@dataclass(frozen=True)
class Mark:
    """Something that happened at a step."""

    step: float
    kind: str
    text: str


@dataclass(frozen=True)
class PlacedMark:
    at: float
    kind: str
    text: str


@dataclass(frozen=True)
class Tick:
    at: float
    text: str
    anchor: str = "end"


@dataclass(frozen=True)
class Line:
    """One split: its path, and a dot for each point without neighbours."""

    style: str
    path: str
    dots: list[tuple[float, float]]


@dataclass(frozen=True)
class Key:
    """The legend of one split, with its last value."""

    name: str
    style: str
    last: str


@dataclass(frozen=True)
class Plot:
    """What is drawn where. `series` and `axis` are JSON for curves.js, which reads values under the pointer."""

    label: str
    value_ticks: list[Tick]
    step_ticks: list[Tick]
    marks: list[PlacedMark]
    lines: list[Line]
    series: str
    axis: str
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = RIGHT
    top: int = TOP
    bottom: int = BOTTOM


def figure(name: str, splits: dict[str, Points], marks: list[Mark] | None = None) -> Markup:
    """One metric with all its splits, its last values in words, and `marks` where something happened."""
    title = name.replace("_", " ")
    keys = [
        Key(split.replace("_", " "), split_style(split), number(points[-1][1]))
        for split, points in splits.items()
    ]
    plot = draw(splits, f"{title} over steps", marks or [])
    return render("figure.html", title=title, keys=keys, plot=plot)


def draw(splits: dict[str, Points], label: str, marks: list[Mark]) -> Plot | None:
    """The plot of `splits`; None where no value is finite."""
    thinned = {split: thin(points) for split, points in splits.items()}
    readable = {split: finite_points(points) for split, points in thinned.items()}
    finite = [point for points in readable.values() for point in points]
    if not finite:
        return None
    x = step_axis(finite)
    y = value_axis(finite)
    return Plot(
        label=label + (", logarithmic" if y.logarithmic else ""),
        value_ticks=[Tick(y.position(value), number(value)) for value in y.ticks()],
        step_ticks=[step_tick(x, step) for step in x.ticks() if step == int(step)],
        marks=[
            PlacedMark(x.position(mark.step), mark.kind, mark.text)
            for mark in marks
            if x.low <= mark.step <= x.high
        ],
        lines=[line(points, x, y, split_style(split)) for split, points in thinned.items()],
        series=json.dumps(readable),
        axis=json.dumps([x.low, x.high, x.start, x.end, TOP, BOTTOM]),
    )


def finite_points(points: Points) -> Points:
    return [point for point in points if math.isfinite(point[1])]


def step_tick(x: Axis, step: float) -> Tick:
    at = x.position(step)
    return Tick(at, number(step), anchor="end" if at > RIGHT - END_LABEL_WIDTH else "middle")


def line(points: Points, x: Axis, y: Axis, style: str) -> Line:
    """The points joined; a value that is not finite leaves a gap, a point without neighbours is a dot."""
    path = ""
    dots = []
    for stretch in stretches(points):
        placed = [(x.position(step), y.position(value)) for step, value in stretch]
        if len(placed) == 1:
            dots.append(placed[0])
        else:
            path += "M" + "L".join(f"{across} {down}" for across, down in placed)
    return Line(style, path, dots)


def stretches(points: Points) -> Iterator[Points]:
    """Neighbouring points whose values are finite."""
    stretch: Points = []
    for point in [*points, (0.0, math.nan)]:
        if math.isfinite(point[1]):
            stretch.append(point)
        elif stretch:
            yield stretch
            stretch = []


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


def step_axis(finite: Points) -> Axis:
    low, high = spread([step for step, _ in finite])
    return Axis(low, high, LEFT, RIGHT)


def value_axis(finite: Points) -> Axis:
    """Logarithmic where the largest value is `LOG_RATIO` times the smallest, and all are positive."""
    values = [value for _, value in finite]
    logarithmic = min(values) > 1e-30 and max(values) / min(values) > LOG_RATIO
    if logarithmic:
        low = min(values) / LOG_MARGIN
        return Axis(low, max(values) * LOG_MARGIN, BOTTOM, TOP, logarithmic=True)
    low, high = spread(values)
    margin = (high - low) * LINEAR_MARGIN
    return Axis(low - margin, high + margin, BOTTOM, TOP)


def spread(values: list[float]) -> tuple[float, float]:
    """Lowest and highest; made different if they are the same."""
    low = min(values)
    high = max(values)
    if high - low > max(1e-30, 1e-9 * abs(high)):
        return low, high
    margin = max(abs(low) * LINEAR_MARGIN, 1e-6)
    return low - margin, high + margin


def split_style(split: str) -> str:
    return SPLIT_STYLES.get(split, "other")


def number(value: float) -> str:
    """Short and readable: 0.00031, 2.417, 1250, 12k, 3.5M."""
    if not math.isfinite(value):
        return str(value)
    for threshold, unit, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= threshold:
            return f"{value / unit:.4g}{letter}"
    return f"{value:.4g}"
