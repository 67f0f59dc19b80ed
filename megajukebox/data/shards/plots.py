"""A shard set as one picture: how long its songs are, and who made them in which language and
genre.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

PANELS = ("artist", "genres", "language")
MAX_NAMES = 12  # of one kind
MAX_LABEL = 22  # characters
INK = "#333333"
BAR = "#4878a8"


def draw(
    path: Path, seconds: np.ndarray, vocabulary: Mapping[str, Mapping[str, int]], title: str
) -> None:
    """Write the PNG: the lengths of all songs `seconds` [songs], and the commonest names of each
    kind there is as bars, the commonest on top.
    """
    kinds = [kind for kind in PANELS if vocabulary.get(kind)]
    figure = Figure(figsize=(3.6 * (1 + len(kinds)), 3.6), layout="constrained")
    axes = figure.subplots(1, 1 + len(kinds), squeeze=False)[0]
    figure.suptitle(title, color=INK)
    axes[0].hist(seconds, bins=min(40, max(5, len(seconds) // 3)), color=BAR)
    axes[0].set_ylabel("songs", color=INK)
    style(axes[0], f"length (s), median {np.median(seconds):.0f}")
    for panel, kind in zip(axes[1:], kinds):
        counts = vocabulary[kind]
        commonest = sorted(counts.items(), key=lambda item: -item[1])[:MAX_NAMES]
        labels = []
        sizes = []
        for name, count in reversed(commonest):
            short = name if len(name) <= MAX_LABEL else name[: MAX_LABEL - 1] + "…"
            labels.append(short.replace("$", r"\$"))  # a dollar would start a formula
            sizes.append(count)
        panel.barh(labels, sizes, color=BAR)
        more = f" ({MAX_NAMES} of {len(counts)})" if len(counts) > MAX_NAMES else ""
        style(panel, f"songs by {kind}{more}")
    figure.savefig(path, format="png", dpi=110)


def style(panel: Axes, title: str) -> None:
    """Give a panel its title, small ticks and no frame at the top and right."""
    panel.set_title(title, fontsize=10, color=INK)
    panel.tick_params(labelsize=8, colors=INK)
    panel.spines[["top", "right"]].set_visible(False)
