"""HTML that escapes by default: Jinja2 templates (in templates/) and MarkupSafe."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

TEMPLATES = Path(__file__).parent.parent / "templates"
VOID_ELEMENTS = {"br", "img", "input", "link", "meta"}  # have no closing tag
Attribute = str | int | float | bool | None


@cache
def environment() -> Environment:
    """Return the one environment of the process, so that each template is compiled once.

    A name that a template uses and a page does not pass is an error. The filter `tojson` escapes `<`, `>`, `&` and
    `'`, so no text can end a script element.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    return environment


def render(template: str, **context: object) -> Markup:
    """Fill the file `template` of templates/; every `str` in `context` is escaped, `Markup` is not."""
    return Markup(environment().get_template(template).render(context))


def element(name: str, /, *children: str | Iterable[str], **attributes: Attribute) -> Markup:
    """`<name attributes>children</name>`; `class_` is written class, `aria_label` aria-label, None is left out."""
    opening = Markup("<{}").format(name)
    for key, value in attributes.items():
        attribute = key.rstrip("_").replace("_", "-")
        if value is True:
            opening += Markup(" {}").format(attribute)
        elif value is not None and value is not False:
            opening += Markup(' {}="{}"').format(attribute, value)
    if name in VOID_ELEMENTS:
        return opening + Markup(">")
    return Markup("{}>{}</{}>").format(opening, _joined(children), name)


def _joined(children: Iterable[str | Iterable[str]]) -> Markup:
    """Children one after the other, escaped where they are not `Markup`."""
    parts = []
    for child in children:
        parts.append(escape(child) if isinstance(child, str) else _joined(child))
    return Markup("").join(parts)
