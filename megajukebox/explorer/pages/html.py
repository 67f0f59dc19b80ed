"""HTML that escapes by default: plain text can only become text, whatever it holds."""

import html
import json
from collections.abc import Iterable

VOID = {"br", "img", "input", "link", "meta"}  # elements without a closing tag
Attribute = str | int | float | bool | None


class Markup(str):
    """Text that is HTML already; any other `str` is escaped when it is put into an element."""


def element(name: str, /, *children: str | Iterable[str], **attributes: Attribute) -> Markup:
    """`<name attributes>children</name>`; `class_` is written class, `aria_label` aria-label, None is left out."""
    opening = f"<{name}{''.join(written(key, value) for key, value in attributes.items())}>"
    return Markup(opening if name in VOID else f"{opening}{joined(*children)}</{name}>")


def joined(*children: str | Iterable[str]) -> Markup:
    """Children one after the other, escaped where they are not markup."""
    return Markup(
        "".join(escaped(child) if isinstance(child, str) else joined(*child) for child in children)
    )


def escaped(text: str) -> Markup:
    return text if isinstance(text, Markup) else Markup(html.escape(text, quote=True))


def written(key: str, value: Attribute) -> str:
    """One attribute with the space before it; True is a bare attribute."""
    name = key.rstrip("_").replace("_", "-")
    if value is None or value is False:
        return ""
    return f" {name}" if value is True else f' {name}="{html.escape(str(value), quote=True)}"'


def inline_json(identity: str, data: object) -> Markup:
    """A script element that holds `data` as JSON; `<`, `>` and `&` are escaped, so no text can end it."""
    text = json.dumps(
        data, allow_nan=False
    )  # ASCII only, so U+2028 and lone surrogates are escaped too
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(f'<script type="application/json" id="{html.escape(identity)}">{text}</script>')
