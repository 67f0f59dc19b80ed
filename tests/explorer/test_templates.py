"""The templates of the pages: what escapes, and what a page must pass."""

import re

import pytest
from fixtures.explorer_samples import HOSTILE
from jinja2 import UndefinedError
from markupsafe import Markup

from megajukebox.explorer.pages.html import TEMPLATES, element, environment, render

SOURCES = {path.name: path.read_text() for path in sorted(TEMPLATES.glob("*.html"))}


@pytest.mark.parametrize("name", SOURCES)
def test_a_template_writes_every_attribute_in_quotes_and_never_switches_the_escaping_off(
    name: str,
) -> None:
    text = SOURCES[name]
    assert not re.search(r"=\s*\{\{", text), "an attribute without quotes"
    assert not re.search(r"\|\s*safe|autoescape|Markup", text)
    assert not re.search(r"<script(?![^>]*(src=|application/json))|\son\w+=|\sstyle=", text)


def test_text_stays_text_in_elements_attributes_and_data() -> None:
    template = environment().from_string(
        '<p title="{{ text }}">{{ text }}</p><script>{{ {"text": text}|tojson }}</script>'
    )
    html = template.render(text=HOSTILE)
    assert html.count("<") == 4 and '"yes"' not in html and "'yes'" not in html
    assert element("p", HOSTILE, title=HOSTILE).count("<") == 2
    assert element("p", Markup("<b>"), hidden=True, class_=None) == "<p hidden><b></p>"


def test_a_name_that_a_page_does_not_pass_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="splits"):
        render("figure.html", title="loss", plot=None)
