"""Audits a page in Chromium with axe-core: contrast, names, roles; WCAG 2.2 level AA and axe's best practices."""

import gzip
from functools import cache
from pathlib import Path

from browser import Browser

AXE = Path(__file__).parent / "data" / "axe" / "axe.min.js.gz"
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
TOLD = """found => found.violations.map(one => `${one.id}: ${one.help}: ${one.nodes[0].html.slice(0, 200)}`)"""


@cache
def axe() -> str:
    return gzip.decompress(AXE.read_bytes()).decode()


def violations(tab: Browser) -> list[str]:
    """What axe finds wrong with the open page, in the light and in the dark."""
    tab.run(f"{axe()}; 0")
    found = []
    for theme in ("light", "dark"):
        tab.run(f"document.documentElement.dataset.theme = {theme!r}")
        wrong = tab.run(f"axe.run(document, {{ runOnly: {RULES} }}).then({TOLD})")
        found += [f"{theme}: {one}" for one in wrong]
    tab.run("delete document.documentElement.dataset.theme")
    return found


def too_wide(tab: Browser) -> bool:
    """Whether the page can be scrolled sideways: on a phone, words would be cut."""
    return tab.run("document.documentElement.scrollWidth > innerWidth")
