"""A shard set as one picture: how long its songs are, and who made them in which language and genre."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

PANELS = ("artist", "genres", "language")
SHOWN = 12  # names of one kind
INK, BAR = "#333333", "#4878a8"


def draw(
    path: Path, seconds: np.ndarray, vocabulary: Mapping[str, Mapping[str, int]], title: str
) -> None:
    """Write the PNG: the lengths of all songs `seconds` [songs], and the commonest names of each kind there is."""
    kinds = [kind for kind in PANELS if vocabulary.get(kind)]
    figure = Figure(figsize=(3.6 * (1 + len(kinds)), 3.6), layout="constrained")
    axes = figure.subplots(1, 1 + len(kinds), squeeze=False)[0]
    figure.suptitle(title, color=INK)
    draw_lengths(axes[0], seconds)
    for panel, kind in zip(axes[1:], kinds):
        draw_counts(panel, kind, vocabulary[kind])
    figure.savefig(path, format="png", dpi=110)


def draw_lengths(panel: Axes, seconds: np.ndarray) -> None:
    panel.hist(seconds, bins=min(40, max(5, len(seconds) // 3)), color=BAR)
    bare(panel, f"length (s), median {np.median(seconds):.0f}")
    panel.set_ylabel("songs", color=INK)


def draw_counts(panel: Axes, kind: str, counts: Mapping[str, int]) -> None:
    """Bars, the commonest on top."""
    commonest = sorted(counts.items(), key=lambda item: -item[1])[:SHOWN][::-1]
    panel.barh(
        [shortened(name) for name, _ in commonest], [count for _, count in commonest], color=BAR
    )
    bare(
        panel, f"songs by {kind}" + (f" ({SHOWN} of {len(counts)})" if len(counts) > SHOWN else "")
    )


def bare(panel: Axes, title: str) -> None:
    panel.set_title(title, fontsize=10, color=INK)
    panel.tick_params(labelsize=8, colors=INK)
    panel.spines[["top", "right"]].set_visible(False)


def shortened(name: str) -> str:
    """A dollar would start a formula."""
    return (name if len(name) <= 22 else name[:21] + "…").replace("$", r"\$")
