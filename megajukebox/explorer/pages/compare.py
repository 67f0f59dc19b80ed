"""Two samples side by side at the same moment, and the blind test of two runs or samplers."""

from megajukebox.explorer.loaders.search_index import SIDES
from megajukebox.explorer.pages.layout import render_page
from megajukebox.explorer.pages.waveforms import SCRIPTS

HOW_TO_SERVE = "megajukebox explore serve samples runs"


def compare_page() -> str:
    """Two songs, what differs in their requests, and every pair that two runs have in common."""
    scripts = ("./entries.js", *SCRIPTS, "facets.js", "compare.js")
    return render_page("compare.html", "Compare", tab="Compare", scripts=scripts, sides=SIDES)


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
