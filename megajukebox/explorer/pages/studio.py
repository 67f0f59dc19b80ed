"""The form for a new song, and the queue of those that are being made."""

from megajukebox.explorer.pages.html import Markup, element
from megajukebox.explorer.pages.layout import copyable, heading, page

SERVE = "megajukebox explore --serve --run runs/tiny"


def studio_page() -> str:
    """studio.js fills in what the run knows, sends the form and follows the queue; without a server, how to get one."""
    say = element(
        "p", "New songs are made by a trained run, so the Studio needs the pages' own server:"
    )
    unserved = element("section", say, copyable(SERVE, "command"), class_="panel", id="unserved")
    queue = element(
        "section",
        element("h2", "Songs"),
        element("p", id="model", class_="small"),
        element("ol", id="jobs"),
        class_="panel",
        id="queue",
        hidden=True,
    )
    content = [
        heading("Studio", id="run"),
        unserved,
        element("div", form(), queue, class_="columns studio"),
        element("datalist", id="artists"),
        element("datalist", id="genre-names"),
    ]
    return page("Studio", "Studio", "", *content, scripts=("studio.js",))


def form() -> Markup:
    fields = [
        labelled(
            "Artist",
            element("input", name="artist", list="artists", maxlength=200, autocomplete="off"),
        ),
        labelled(
            "Genres, with commas between",
            element("input", name="genres", list="genre-names", maxlength=400, autocomplete="off"),
        ),
        labelled(
            "Lyrics",
            element(
                "textarea", name="lyrics", rows=8, maxlength=20000, placeholder="Words to sing"
            ),
        ),
        element(
            "div",
            labelled(
                "Seconds",
                element(
                    "input", name="seconds", type="number", min=0.5, max=600, step="any", value=4
                ),
            ),
            labelled("Seed", element("input", name="seed", type="number", step=1, value=1)),
            labelled(
                "Temperature",
                element("input", name="temperature", type="number", min=0.05, max=2, step="any"),
            ),
            labelled("Sampler", element("select", name="sampler")),
            class_="row fields",
        ),
        element(
            "fieldset",
            element("legend", "Begin with a recording"),
            element(
                "input",
                name="recording",
                type="file",
                accept="audio/*",
                aria_label="Recording to begin with",
            ),
            element("p", id="upload", class_="small", role="status"),
            labelled(
                "Seconds of it to keep",
                element("input", name="prime_seconds", type="number", min=0, step="any"),
            ),
            id="prime",
        ),
        element("button", "Make the song", class_="button"),
        element("p", id="trouble", role="alert"),
    ]
    return element(
        "form", element("h2", "A new song"), *fields, id="song", class_="panel", hidden=True
    )


def labelled(name: str, field: Markup) -> Markup:
    return element("label", element("span", name), field)
