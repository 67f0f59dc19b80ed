"""What all pages share: head, navigation, the player at the foot, and the pieces they are built of."""

from megajukebox import __version__
from megajukebox.explorer.loaders.samples import UnreadableSample
from megajukebox.explorer.pages.html import Markup, element, joined

SHOWN_PROBLEMS = 50
ICONS = {"play": "M8 5v14l11-7z", "pause": "M6 5h4v14H6zM14 5h4v14h-4z"}
TABS = (
    ("Samples", "index.html"),
    ("Compare", "compare.html"),
    ("Blind test", "blind.html"),
    ("Corpus", "corpus.html"),
    ("Runs", "runs.html"),
    ("Studio", "studio.html"),
)
KEYS = (
    ("space", "play, pause"),
    ("← →", "5 seconds back, forward"),
    ("1 2 3 …", "level, or side, to listen to: the moment of the song stays"),
    ("j k", "next, previous sample"),
    ("Enter", "open the chosen sample"),
    ("c", "take the chosen sample to a comparison"),
    ("+ − 0", "zoom the waveforms in, out, back"),
    ("/", "search"),
    ("?", "this help"),
    ("Esc", "close it"),
)


def page(title: str, here: str, root: str, *content: Markup, scripts: tuple[str, ...] = ()) -> str:
    """A whole page. `root` leads from its folder to that of the site ("" or "../"), `here` is the tab it belongs to.

    `scripts` are names in static/, or paths from the page's folder where they hold a slash.
    """
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
        [
            element("script", src=address(script, root), defer=True)
            for script in ("served.js", "site.js", *scripts)
        ],
    )
    body = element(
        "body",
        element("a", "Skip to content", href="#content", class_="skip"),
        navigation(here, root),
        element("p", id="error", role="alert", hidden=True),
        element("main", *content, id="content", tabindex="-1"),
        element(
            "footer",
            f"Made by megajukebox {__version__}. Press ",
            element("kbd", "?"),
            " for the keys.",
        ),
        help_overlay(),
        data_root=root,
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def address(script: str, root: str) -> str:
    from_page = "/" in script and not script.startswith("vendor/")
    return script if from_page else f"{root}static/{script}"


def navigation(here: str, root: str) -> Markup:
    tabs = [
        element("a", name, href=f"{root}{file}", aria_current="page" if name == here else None)
        for name, file in TABS
    ]
    brand = element("a", "megajukebox", href=f"{root}index.html", class_="brand")
    theme = element(
        "button", "◐", type="button", id="theme", aria_label="Light or dark", title="Light or dark"
    )
    keys = element("button", "?", type="button", id="keys", aria_label="Keys", title="Keys (?)")
    tools = element("div", theme, keys, class_="tools")
    return element("header", brand, element("nav", tabs, aria_label="Pages"), tools, class_="site")


def help_overlay() -> Markup:
    rows = [
        element("div", element("dt", element("kbd", key)), element("dd", what))
        for key, what in KEYS
    ]
    close = element("form", element("button", "Close", class_="plain"), method="dialog")
    return element(
        "dialog", element("h2", "Keys"), element("dl", rows), close, id="help", aria_label="Keys"
    )


def player(
    tracks: tuple[str, ...], label: str = "Level to listen to", first: str | None = None
) -> Markup:
    """The bar at the foot of the page. One audio element a track; nothing is loaded before it is played.

    `first` is the track to begin with, by default the finished song.
    """
    buttons = [
        element(
            "button",
            name,
            element("kbd", str(key)),
            type="button",
            data_track=name,
            aria_pressed="false",
        )
        for key, name in enumerate(tracks, start=1)
    ]
    return element(
        "section",
        [element("audio", preload="none", data_track=name) for name in tracks],
        element("button", icons(), type="button", class_="play", aria_label="Play"),
        element("a", class_="title"),
        element(
            "input",
            type="range",
            class_="seek",
            min=0,
            max=1,
            step=0.01,
            value=0,
            aria_label="Position in the song",
        ),
        element("output", "0:00 / 0:00", class_="time"),
        element("div", *buttons, class_="tracks", role="group", aria_label=label),
        element("p", class_="trouble", role="status"),
        id="player",
        aria_label="Player",
        data_first=first,
    )


def icons() -> Markup:
    """Both icons of a play button; the style sheet shows the one that fits."""
    return joined(
        [
            element(
                "svg",
                element("path", d=path),
                viewBox="0 0 24 24",
                class_=f"icon-{name}",
                aria_hidden="true",
            )
            for name, path in ICONS.items()
        ]
    )


def heading(title: str, under: str | Markup = "", **attributes: str) -> Markup:
    return element("div", element("h1", title), element("p", under, **attributes), class_="heading")


def problem_note(problems: list[UnreadableSample], trouble: str) -> Markup:
    """Says what was skipped and why, under "2 files <trouble>"; nothing where nothing was."""
    if not problems:
        return Markup("")
    rows = [
        element("li", element("code", problem.name), f" {problem.reason}")
        for problem in problems[:SHOWN_PROBLEMS]
    ]
    more = len(problems) - SHOWN_PROBLEMS
    rest = element("li", f"and {more} more") if more > 0 else Markup("")
    files = "1 file" if len(problems) == 1 else f"{len(problems)} files"
    return element(
        "aside", element("strong", f"{files} {trouble}"), element("ul", rows, rest), class_="note"
    )


def facts(rows: list[tuple[str, str | None]]) -> Markup:
    """Names with their values; those without a value are left out."""
    pairs = [
        element("div", element("dt", name), element("dd", value)) for name, value in rows if value
    ]
    return element("dl", pairs, class_="facts")


def copyable(text: str, label: str) -> Markup:
    """Text in a box with a button that copies it."""
    button = element("button", "Copy", type="button", class_="copy", aria_label=f"Copy {label}")
    return element(
        "div", button, element("pre", text, tabindex="0", aria_label=label), class_="copyable"
    )


def clock(seconds: float) -> str:
    """75.4 -> 1:15"""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
