"""What all pages share: the tabs, the keys, and how a template becomes a page."""

import json
from typing import Any

from markupsafe import Markup

from megajukebox import __version__
from megajukebox.explorer.pages.html import render

# A new page: its name and file here, its module beside this one, its template, a line in site_builder.py.
TABS = (
    ("Samples", "index.html"),
    ("Compare", "compare.html"),
    ("Blind test", "blind.html"),
    ("Corpus", "corpus.html"),
    ("Runs", "runs.html"),
    ("Studio", "studio.html"),
    ("Draw", "draw.html"),
)
KEYS = (
    ("space", "play, pause"),
    ("← →", "5 seconds back, forward"),
    ("1 2 3 …", "level, or side, to listen to: the moment of the song stays"),
    ("j k", "next, previous sample"),
    ("Enter", "open the selected sample"),
    ("c", "add the selected sample to a comparison"),
    ("+ − 0", "zoom the waveforms in, out, back"),
    ("/", "search"),
    ("p h", "on the page Draw: play, harmonise"),
    ("?", "this help"),
    ("Esc", "close it"),
)
SCRIPTS_OF_ALL_PAGES = ("served.js", "site.js")
FINGERPRINT_SHOWN = 16  # characters; the whole of it on hover


def render_page(
    template: str,
    title: str,
    tab: str,
    root: str = "",
    scripts: tuple[str, ...] = (),
    **context: Any,
) -> str:
    """Return a whole page.

    Args:
        tab: the name in `TABS` that the page belongs to.
        root: leads from the page's folder to that of the site: "" or "../".
        scripts: names in static/, or paths from the page's folder where they hold a slash.
    """
    urls = []
    for script in (*SCRIPTS_OF_ALL_PAGES, *scripts):
        is_from_page = "/" in script and not script.startswith("vendor/")
        urls.append(script if is_from_page else f"{root}static/{script}")
    return render(
        template,
        title=title,
        tab=tab,
        root=root,
        scripts=urls,
        tabs=TABS,
        keys=KEYS,
        version=__version__,
        **context,
    )


def abbreviated(fingerprint: str) -> str | Markup:
    """The head of a fingerprint, with the whole of it on hover; short texts as they are."""
    if len(fingerprint) <= FINGERPRINT_SHOWN + 4:
        return fingerprint
    head = fingerprint[:FINGERPRINT_SHOWN]
    return Markup('<code title="{}">{}…</code>').format(fingerprint, head)


def printable_json(value: object) -> str:
    """Indented JSON in the letters of its language; characters that are invisible or reverse text are escaped."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    letters = []
    for letter in text:
        is_shown = letter.isprintable() or letter == "\n"
        letters.append(letter if is_shown else json.dumps(letter)[1:-1])
    return "".join(letters)


def as_text(value: object) -> str:
    """Text as it is, anything else as JSON."""
    return value if isinstance(value, str) else printable_json(value)


def clock(seconds: float) -> str:
    """75.4 -> 1:15"""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
