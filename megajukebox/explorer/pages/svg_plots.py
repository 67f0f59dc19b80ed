"""Training curves as inline SVG: no picture files, sharp at any size, coloured by the style sheet."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass

from megajukebox.explorer.loaders.runs import Points
from megajukebox.explorer.pages.html import Markup, element, joined

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 54, 352, 8, 176  # of the plot inside the picture
MOST_POINTS = 300
LOG_ABOVE = 50  # times the smallest value, and the values are drawn on a logarithmic scale


@dataclass(frozen=True)
class Axis:
    """Maps values to a place on the picture, from `start` at the lowest value to `end` at the highest."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def place(self, value: float) -> float:
        scale = math.log if self.logarithmic else float
        share = (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low))
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        """Round numbers inside the axis."""
        if self.logarithmic:
            powers = range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
            return [10.0**power for power in powers][:: max(1, len(powers) // 4)]
        step = round_step((self.high - self.low) / 5)
        return [
            n * step for n in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)
        ]


def round_step(step: float) -> float:
    """The next of 1, 2, 5, 10, 20, 50 ... above `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * 0.999)


Marks = list[tuple[float, str, str]]  # (step, kind, what happened)


def figure(name: str, splits: dict[str, Points], marks: Marks | None = None) -> Markup:
    """One metric with all its splits, its last values in words, and `marks` where something happened."""
    thinned = {split: thin(points) for split, points in splits.items()}
    finite = [point for points in thinned.values() for point in points if math.isfinite(point[1])]
    title = name.replace("_", " ")
    last = [
        element(
            "span",
            element("b", split.replace("_", " ")),
            f" {number(points[-1][1])}",
            class_=f"key {style(split)}",
        )
        for split, points in splits.items()
    ]
    caption = element(
        "figcaption", element("strong", title), element("span", joined(*last), class_="keys")
    )
    drawing = (
        draw(thinned, finite, f"{title} over steps", marks or [])
        if finite
        else element("p", "No finite value was logged.")
    )
    return element("figure", caption, drawing, class_="curve")


def draw(splits: dict[str, Points], finite: Points, label: str, marks: Marks) -> Markup:
    x, y = step_axis(finite), value_axis(finite)
    grid = [
        (
            element("path", d=f"M{LEFT} {y.place(tick)}H{RIGHT}", class_="grid"),
            element("text", number(tick), x=LEFT - 6, y=y.place(tick) + 4, text_anchor="end"),
        )
        for tick in y.ticks()
    ]
    steps = [
        element(
            "text", number(tick), x=x.place(tick), y=HEIGHT - 6, text_anchor=anchor(x.place(tick))
        )
        for tick in x.ticks()
        if tick == int(tick)
    ]
    lines = [line(points, x, y, style(split)) for split, points in splits.items()]
    readable = {
        split: [point for point in points if math.isfinite(point[1])]
        for split, points in splits.items()
    }
    return element(
        "svg",
        [joined(*pair) for pair in grid],
        steps,
        [mark(x, *one) for one in marks if x.low <= one[0] <= x.high],
        lines,
        element("path", d="", class_="cursor"),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=label + (", logarithmic" if y.logarithmic else ""),
        data_series=json.dumps(readable),
        data_axis=json.dumps([x.low, x.high, x.start, x.end, TOP, BOTTOM]),
    )


def mark(x: Axis, step: float, kind: str, words: str) -> Markup:
    """A line across the picture at a step; the pointer on it tells what happened."""
    place = x.place(step)
    return element(
        "path", element("title", words), d=f"M{place} {TOP}V{BOTTOM}", class_=f"mark {kind}"
    )


def line(points: Points, x: Axis, y: Axis, kind: str) -> Markup:
    """The points joined; a value that is not finite leaves a gap, a point without neighbours is a dot."""
    strokes = [
        [(x.place(step), y.place(value)) for step, value in stretch]
        for stretch in stretches(points)
    ]
    paths = [
        "M" + "L".join(f"{across} {down}" for across, down in stroke)
        for stroke in strokes
        if len(stroke) > 1
    ]
    dots = [
        element("circle", cx=across, cy=down, r=2.5)
        for stroke in strokes
        if len(stroke) == 1
        for across, down in stroke
    ]
    return element("g", element("path", d="".join(paths)), dots, class_=f"line {kind}")


def stretches(points: Points) -> Iterator[Points]:
    stretch: Points = []
    for point in [*points, (0.0, math.nan)]:
        if math.isfinite(point[1]):
            stretch.append(point)
        elif stretch:
            yield stretch
            stretch = []


def thin(points: Points) -> Points:
    """At most `MOST_POINTS`, each the mean of its neighbours."""
    size = math.ceil(len(points) / MOST_POINTS)
    groups = [points[n : n + size] for n in range(0, len(points), size)]
    return (
        [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]
        if size > 1
        else points
    )


def step_axis(finite: Points) -> Axis:
    low, high = spread([step for step, _ in finite])
    return Axis(low, high, LEFT, RIGHT)


def value_axis(finite: Points) -> Axis:
    values = [value for _, value in finite]
    logarithmic = min(values) > 1e-30 and max(values) / min(values) > LOG_ABOVE
    if logarithmic:
        return Axis(min(values) / 1.1, max(values) * 1.1, BOTTOM, TOP, logarithmic=True)
    low, high = spread(values)
    room = (high - low) * 0.05
    return Axis(low - room, high + room, BOTTOM, TOP)


def spread(values: list[float]) -> tuple[float, float]:
    """Lowest and highest; made different if they are the same."""
    low, high = min(values), max(values)
    room = max(abs(low) * 0.05, 1e-6)
    return (low, high) if high - low > max(1e-30, 1e-9 * abs(high)) else (low - room, high + room)


def style(split: str) -> str:
    """The style sheet knows these two; every other split shares a third look."""
    return {"train": "train", "held_out": "held-out"}.get(split, "other")


def anchor(place: float) -> str:
    """Where the text of a step hangs: it must not leave the picture on the right."""
    return "end" if place > RIGHT - 12 else "middle"


def number(value: float) -> str:
    """Short and readable: 0.00031, 2.417, 1250, 12k, 3.5M."""
    if not math.isfinite(value):
        return str(value)
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.4g}{letter}"
    return f"{value:.4g}"
