"""Two samples side by side at the same moment, the blind test of two runs or samplers, and ratings of many at once."""

from megajukebox.explorer.loaders.search_index import SIDES
from megajukebox.explorer.pages.layout import render_page
from megajukebox.explorer.pages.waveforms import SCRIPTS

HOW_TO_SERVE = "megajukebox explore serve samples runs"
HOW_TO_RECONSTRUCT = """\
megajukebox reconstruct runs/tiny --data shards/songs --out reconstructions
megajukebox explore serve reconstructions"""


def compare_page() -> str:
    """Two songs, what differs in their requests, and every pair that two runs have in common."""
    scripts = ("./entries.js", *SCRIPTS, "facets.js", "compare.js")
    return render_page("compare.html", "Compare", tab="Compare", scripts=scripts, sides=SIDES)


RECORDINGS = 9  # at most that are rated at once: each has a key


def blind_page() -> str:
    """Pairs of which the page does not know which is which; without a server, how to start one."""
    scripts = ("./entries.js", "player.js", "facets.js", "blind.js")
    return render_page(
        "blind.html",
        "Blind test",
        tab="Blind test",
        scripts=scripts,
        sides=SIDES,
        commands=HOW_TO_SERVE,
    )


def rate_page() -> str:
    """Recordings of one clip, hidden behind numbers, each with a slider; the original is the reference."""
    return render_page(
        "rate.html",
        "Rate recordings",
        tab="Blind test",
        scripts=("player.js", "rate.js"),
        recordings=[str(number) for number in range(1, RECORDINGS + 1)],
        commands=HOW_TO_RECONSTRUCT,
    )
