"""The lists of songs to search, filter and play: samples on the front page, songs of a corpus."""

from typing import Any

from megajukebox.explorer.loaders.samples import TRACKS, UnreadableSample
from megajukebox.explorer.loaders.search_index import FACETS
from megajukebox.explorer.pages.layout import render_page

HOW_TO_MAKE_SAMPLES = """megajukebox sample runs --requests requests.json --out samples
megajukebox explore build samples runs"""
ORDERS = {
    "": "in order",
    "created": "newest first",
    "artist": "by artist",
    "checkpoint": "by checkpoint",
    "seconds": "longest first",
}


def list_page(count: int, problems: list[UnreadableSample]) -> str:
    """The samples, newest first."""
    return render_song_list(
        "samples.html",
        title="Samples",
        data="entries",
        facets=FACETS,
        orders=("created", "artist", "checkpoint", "seconds"),
        first_track=None,
        count=count,
        problems=problems,
        commands=HOW_TO_MAKE_SAMPLES,
    )


def render_song_list(
    template: str,
    title: str,
    data: str,
    facets: dict[str, str],
    orders: tuple[str, ...],
    first_track: str | None,
    **context: Any,
) -> str:
    """A list whose songs are in `<data>.js` beside the page, in the first of `orders` until another is chosen."""
    values = ("", *orders[1:])  # the order of the data needs no sorting
    labels = [ORDERS[order] for order in orders]
    return render_page(
        template,
        title,
        tab=title,
        scripts=(f"./{data}.js", "player.js", "facets.js", "list.js"),
        data=data,
        facets=facets,
        has_seeds="run" in facets,  # songs of a corpus have none
        orders=list(zip(values, labels)),
        tracks=TRACKS,
        first=first_track,
        **context,
    )
