"""The form for a new song, and the queue of songs."""

from megajukebox.explorer.pages.layout import render_page

HOW_TO_SERVE = "megajukebox explore serve --run runs/tiny"


def studio_page() -> str:
    """The form and the queue; without a server, how to start one."""
    return render_page(
        "studio.html", "Studio", tab="Studio", scripts=("studio.js",), commands=HOW_TO_SERVE
    )
