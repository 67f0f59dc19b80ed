"""The front page: thousands of samples to search, filter and play."""

from megajukebox.explorer.loaders.samples import TRACKS, UnreadableSample
from megajukebox.explorer.loaders.search_index import FACETS
from megajukebox.explorer.pages.html import Markup, element, inline_json, joined
from megajukebox.explorer.pages.layout import copyable, heading, icons, page, player, problem_note

HOW_TO_MAKE_SAMPLES = """megajukebox sample runs --requests requests.json --out samples
megajukebox explore samples runs"""
ORDERS = {
    "": "in order",
    "made": "newest first",
    "artist": "by artist",
    "checkpoint": "by checkpoint",
    "seconds": "longest first",
}


def list_page(count: int, problems: list[UnreadableSample]) -> str:
    """The samples, newest first."""
    note = problem_note(problems, "could not be read")
    return listing(
        "Samples",
        note if count else joined(note, empty()),
        FACETS,
        "entries",
        ("made", "artist", "checkpoint", "seconds"),
    )


def listing(
    title: str, note: Markup, facets: dict[str, str], data: str, orders: tuple[str, ...]
) -> str:
    """A list of songs. `<data>.js` beside the page holds what list.js draws, of which only what is in view;
    `<data>-words.js` the lyrics, for the search alone."""
    content = [
        heading(title, id="count", role="status"),
        note,
        search(facets, orders),
        element("ol", id="samples", class_="cards", aria_label=title),
        element("p", "Nothing fits these filters.", id="none", hidden=True),
        element("noscript", element("p", "The list needs JavaScript.", class_="note")),
        card_template(),
        chosen(),
        player(TRACKS, first="original" if data == "corpus" else None),
        inline_json("list", {"data": data}),
    ]
    return page(
        title, title, "", *content, scripts=(f"./{data}.js", "player.js", "facets.js", "list.js")
    )


def empty() -> Markup:
    say = element(
        "p", "There are no samples in this folder yet. Make some, then build this page again:"
    )
    return element(
        "section", say, copyable(HOW_TO_MAKE_SAMPLES, "commands"), class_="panel", id="empty"
    )


def search(facets: dict[str, str], orders: tuple[str, ...]) -> Markup:
    box = element(
        "input",
        type="search",
        name="q",
        placeholder="Search names and lyrics",
        aria_label="Search names and lyrics",
    )
    choices = [
        element(
            "label",
            label,
            element("select", element("option", "all", value=""), name=field),
            hidden=True,
        )
        for field, label in facets.items()
    ]
    seed = element(
        "label", "Seed", element("input", type="text", name="seed", size=8, inputmode="numeric")
    )
    seeds = [seed] if "run" in facets else []  # songs of a corpus have none
    options = [
        element("option", ORDERS[value], value="" if n == 0 else value)
        for n, value in enumerate(orders)
    ]
    order = element("label", "Order", element("select", options, name="order"))
    clear = element("button", "Clear", type="reset", class_="plain")
    more = element(
        "button", "Filters", type="button", id="more", class_="plain", aria_expanded="false"
    )
    fields = element("div", *choices, *seeds, order, clear, class_="fields", id="fields")
    return element("form", box, more, fields, id="filters", role="search")


def card_template() -> Markup:
    """One card of the list, empty; list.js fills copies of it."""
    picture = element(
        "div",
        element("img", alt="", loading="lazy", decoding="async"),
        element("i", class_="playhead"),
        element("button", icons(), type="button", class_="play"),
        class_="picture",
    )
    pick = element("button", "Compare", type="button", class_="pick", aria_pressed="false")
    words = [
        element("h2", element("a")),
        element("p", class_="genres"),
        element("p", class_="small"),
        element("p", class_="flags"),
        pick,
    ]
    return element(
        "template",
        element("li", picture, element("div", *words, class_="words"), class_="card"),
        id="card",
    )


def chosen() -> Markup:
    """Says which samples were taken to a comparison so far."""
    go = element("a", "Compare them", href="compare.html", class_="button")
    drop = element("button", "Cancel", type="button", class_="plain")
    return element("div", element("span"), go, drop, id="chosen", hidden=True, role="status")
