"""Two samples side by side at the same moment, and the blind test of two runs or samplers."""

from megajukebox.explorer.loaders.search_index import SIDES
from megajukebox.explorer.pages.html import Markup, element
from megajukebox.explorer.pages.layout import copyable, heading, page, player
from megajukebox.explorer.pages.waveforms import SCRIPTS, scrolled

SERVE = "megajukebox explore --serve samples runs"
DATA = ("./entries.js", *SCRIPTS, "facets.js")


def compare_page() -> str:
    """compare.js fills it: what differs in the requests, both songs, and every pair that two runs have in common."""
    content = [
        heading("Compare", "Same request, two runs, checkpoints or samplers; or any two samples."),
        element(
            "form",
            sides_form(),
            element("div", pair_steps(), class_="row"),
            id="sides",
            class_="panel",
        ),
        element("p", id="say", class_="note", role="status", hidden=True),
        element("div", side("A"), side("B"), id="both", class_="both", hidden=True),
        element(
            "section",
            element("h2", "What differs"),
            element("div", id="differences"),
            class_="panel",
        ),
        player(("A", "B"), "Side to listen to"),
    ]
    return page("Compare", "Compare", "", *content, scripts=(*DATA, "compare.js"))


def sides_form() -> Markup:
    """What the two sides differ in, and the value of each."""
    options = [element("option", side, value=side) for side in SIDES]
    what = element("label", "Differing in", element("select", options, name="field"))
    left, right = (
        element("label", name, element("select", name=name.lower())) for name in ("A", "B")
    )
    return element("div", what, left, right, class_="row fields")


def pair_steps() -> list[Markup]:
    level = element("label", "Level", element("select", name="level"))
    before = element("button", "← Previous pair", type="button", class_="plain", id="previous")
    after = element("button", "Next pair →", type="button", class_="plain", id="next")
    return [level, before, element("output", id="place"), after]


def side(name: str) -> Markup:
    head = element(
        "div", element("h2", name, element("a", class_="which")), element("p", class_="small")
    )
    picture = scrolled(element("img", alt="", class_="spectrogram"))
    bar = element("div", element("div", class_="wave"), picture, class_="bar", data_track=name)
    return element("section", head, bar, class_="strip panel", data_track=name)


def blind_page() -> str:
    """blind.js asks the server for pairs of which it does not know which is which; without a server, how to get one."""
    say = element("p", "Votes are kept in a file, so the blind test needs the pages' own server:")
    start = element("section", say, copyable(SERVE, "command"), class_="panel", id="unserved")
    question = element("p", "Which of the two do you prefer?", id="question")
    votes = [
        element("button", name, element("kbd", key), type="button", data_vote=vote)
        for name, key, vote in (
            ("A is better", "a", "a"),
            ("No difference", "s", "same"),
            ("B is better", "b", "b"),
        )
    ]
    trial = [
        element("div", element("p", id="about", class_="small"), question),
        element("div", votes, class_="votes"),
        element(
            "details",
            element("summary", "Lyrics that were asked for"),
            element("p", id="asked", class_="asked"),
        ),
        element("p", id="reveal", role="status", class_="small"),
    ]
    tally = element(
        "section", element("h2", "Votes so far"), element("div", id="tally"), class_="panel"
    )
    content = [
        heading(
            "Blind test", "Two songs of one request. Which run made which is told after the vote."
        ),
        start,
        element("form", sides_form(), id="sides", class_="panel", hidden=True),
        element("p", id="say", class_="note", role="status", hidden=True),
        element("section", *trial, class_="panel", id="trial", hidden=True),
        tally,
        player(("A", "B"), "Side to listen to"),
    ]
    return page(
        "Blind test",
        "Blind test",
        "",
        *content,
        scripts=("./entries.js", "player.js", "facets.js", "blind.js"),
    )
