"""What all pages share: head, navigation, the player at the foot, and the pieces they are built of."""

from megajukebox import __version__
from megajukebox.explorer.markup import Markup, element, joined
from megajukebox.explorer.records import LEVELS, Problem

SHOWN_PROBLEMS = 50
ICONS = {"play": "M8 5v14l11-7z", "pause": "M6 5h4v14H6zM14 5h4v14h-4z"}


def page(title: str, here: str, root: str, *content: Markup, scripts: tuple[str, ...] = ()) -> str:
    """A whole page. `root` leads from its folder to that of the site ("" or "../"), `here` is the tab it belongs to."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", f"{title} · megajukebox"),
        element("link", rel="icon", href="data:,"),
        element("link", rel="stylesheet", href=f"{root}static/style.css"),
        element("script", src=f"{root}static/errors.js"),
        [element("script", src=f"{root}static/{script}", defer=True) for script in scripts],
    )
    body = element(
        "body",
        element("a", "Skip to content", href="#content", class_="skip"),
        navigation(here, root),
        element("p", id="error", role="alert", hidden=True),
        element("main", *content, id="content", tabindex="-1"),
        element("footer", f"Made by megajukebox {__version__}."),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def navigation(here: str, root: str) -> Markup:
    tabs = [
        element("a", name, href=f"{root}{file}", aria_current="page" if name == here else None)
        for name, file in (("Samples", "index.html"), ("Runs", "runs.html"))
    ]
    brand = element("a", "megajukebox", href=f"{root}index.html", class_="brand")
    return element("header", brand, element("nav", tabs, aria_label="Pages"), class_="site")


def player() -> Markup:
    """The bar at the foot of the page. One audio element a level; nothing is loaded before it is played."""
    levels = [
        element("button", name, element("kbd", str(key)), type="button", data_level=name, aria_pressed="false")
        for key, name in enumerate(LEVELS, start=1)
    ]
    return element(
        "section",
        [element("audio", preload="none", data_level=name) for name in LEVELS],
        element("button", icons(), type="button", class_="play", aria_label="Play"),
        element("a", class_="title"),
        element(
            "input", type="range", class_="seek", min=0, max=1, step=0.01, value=0, aria_label="Position in the song"
        ),
        element("output", "0:00 / 0:00", class_="time"),
        element("div", *levels, class_="levels", role="group", aria_label="Level to listen to"),
        element("p", class_="trouble", role="status"),
        id="player",
        aria_label="Player: space plays and pauses, arrows seek, 1 2 3 choose the level",
    )


def icons() -> Markup:
    """Both icons of a play button; the style sheet shows the one that fits."""
    return joined(
        [
            element("svg", element("path", d=path), viewBox="0 0 24 24", class_=f"icon-{name}", aria_hidden="true")
            for name, path in ICONS.items()
        ]
    )


def problem_note(problems: list[Problem], trouble: str) -> Markup:
    """Says what was skipped and why, under "2 files <trouble>"; nothing where nothing was."""
    if not problems:
        return Markup("")
    rows = [element("li", element("code", problem.name), f" {problem.reason}") for problem in problems[:SHOWN_PROBLEMS]]
    more = len(problems) - SHOWN_PROBLEMS
    rest = element("li", f"and {more} more") if more > 0 else Markup("")
    files = "1 file" if len(problems) == 1 else f"{len(problems)} files"
    return element("aside", element("strong", f"{files} {trouble}"), element("ul", rows, rest), class_="note")


def facts(rows: list[tuple[str, str | None]]) -> Markup:
    """Names with their values; those without a value are left out."""
    pairs = [element("div", element("dt", name), element("dd", value)) for name, value in rows if value]
    return element("dl", pairs, class_="facts")


def copyable(text: str, label: str) -> Markup:
    """Text in a box with a button that copies it."""
    button = element("button", "Copy", type="button", class_="copy", aria_label=f"Copy {label}")
    return element("div", button, element("pre", text, tabindex="0", aria_label=label), class_="copyable")


def clock(seconds: float) -> str:
    """75.4 -> 1:15"""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
