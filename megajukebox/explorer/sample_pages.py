"""The list of samples and the page of each one."""

import json
import shlex
from dataclasses import dataclass
from typing import Any

from megajukebox.explorer.markup import Markup, element, inline_json, joined
from megajukebox.explorer.page import clock, copyable, facts, icons, page, player, problem_note
from megajukebox.explorer.pictures import CEILING_DB, FLOOR_DB
from megajukebox.explorer.records import LEVELS, Problem, Sample
from megajukebox.explorer.timed_lyrics import Line, Piece

HOW_TO_MAKE_SAMPLES = """megajukebox sample runs --requests requests.json --out samples
megajukebox explore samples runs"""
FILTERS = (("artist", "Artist"), ("genres", "Genre"))  # field of an entry, label; another filter is another row


@dataclass(frozen=True)
class Links:
    """Where the files of one sample lie, as URLs from the page that shows them. Each maps level -> URL."""

    page: str
    audio: dict[str, str]
    spectrogram: dict[str, str]
    outline: dict[str, str]


def title(sample: Sample) -> str:
    return sample.facts.request.artist or "No artist"


def entry(sample: Sample, links: Links) -> dict[str, Any]:
    """What the list knows of a sample; the rest is on its own page, so that thousands fit in one list."""
    request = sample.facts.request
    return {
        "name": sample.name,
        "title": title(sample),
        "artist": request.artist,
        "genres": list(request.genres),
        "seed": None if request.seed is None else str(request.seed),  # text: JavaScript rounds large numbers
        "seconds": sample.facts.seconds,
        "notes": len(sample.facts.notes),
        "lyrics": "\n".join("".join(piece.text for piece in line) for line in sample.lyrics)[:2000],
        "page": links.page,
        "picture": next((links.spectrogram[level] for level in reversed(LEVELS) if level in links.spectrogram), None),
        "audio": links.audio,
    }


def list_page(entries: list[dict[str, Any]], problems: list[Problem]) -> str:
    """The front page. `entries` are drawn by list.js, a few at a time."""
    note = problem_note(problems, "could not be read")
    if not entries:
        return page("Samples", "Samples", "", element("div", element("h1", "Samples"), class_="heading"), note, empty())
    heading = element("div", element("h1", "Samples"), element("p", id="count", role="status"), class_="heading")
    content = [
        heading,
        note,
        search(),
        element("ol", id="samples", class_="cards"),
        element("p", "Nothing fits these filters.", id="none", hidden=True),
        element("noscript", element("p", "The list needs JavaScript.", class_="note")),
        card_template(),
        player(),
        inline_json("entries", entries),
    ]
    return page("Samples", "Samples", "", *content, scripts=("player.js", "list.js"))


def empty() -> Markup:
    say = element("p", "There are no samples in this folder yet. Make some, then build this page again:")
    return element("section", say, copyable(HOW_TO_MAKE_SAMPLES, "commands"), class_="panel")


def search() -> Markup:
    box = element(
        "input", type="search", name="q", placeholder="Search titles and lyrics", aria_label="Search titles and lyrics"
    )
    choices = [
        element("label", label, element("select", element("option", "all", value=""), name=field))
        for field, label in FILTERS
    ]
    clear = element("button", "Clear", type="reset")
    return element("form", box, *choices, clear, id="filters", role="search")


def card_template() -> Markup:
    """One card of the list, empty; list.js fills copies of it."""
    picture = element(
        "div",
        element("img", alt="", loading="lazy", decoding="async"),
        element("i", class_="playhead"),
        element("button", icons(), type="button", class_="play"),
        class_="picture",
    )
    words = [element("h2", element("a")), element("p", class_="genres"), element("p", class_="small")]
    return element("template", element("li", picture, element("div", *words, class_="words"), class_="card"), id="card")


def sample_page(sample: Sample, links: Links, problems: list[Problem]) -> str:
    """One sample: its levels to see and to hear, its lyrics, and how it was made."""
    request = sample.facts.request
    heading = element("div", element("h1", title(sample)), element("p", subtitle(sample)), class_="heading")
    content = [
        element("p", element("a", "← All samples", href="../index.html")),
        heading,
        notes(sample.facts.notes),
        problem_note(problems, "could not be read"),
        element(
            "section", [strip(sample, level, links) for level in LEVELS], scale(sample), class_="panel", id="strips"
        ),
        element(
            "div",
            element(
                "section",
                element("h2", "Lyrics"),
                lyrics(sample.lyrics),
                class_="panel",
                id="lyrics",
                lang=request.language or None,
            ),
            element("section", element("h2", "How it was made"), *making(sample), class_="panel"),
            class_="columns",
        ),
        player(),
        inline_json("entry", entry(sample, links)),
    ]
    return page(f"{title(sample)} {sample.name}", "Samples", "../", *content, scripts=("player.js", "sample.js"))


def notes(warnings: tuple[str, ...]) -> Markup:
    """What `megajukebox sample` warned of when it made the song."""
    if not warnings:
        return Markup("")
    rows = [element("li", warning) for warning in warnings]
    return element("aside", element("strong", "Notes"), element("ul", rows), class_="note")


def subtitle(sample: Sample) -> str:
    request = sample.facts.request
    seed = "" if request.seed is None else f"seed {request.seed}"
    parts = [", ".join(request.genres), request.language, f"{sample.facts.seconds:.1f} s", seed, sample.name]
    return " · ".join(part for part in parts if part)


def strip(sample: Sample, level: str, links: Links) -> Markup:
    """Waveform over spectrogram of one level; a click plays from there."""
    if level not in links.audio:
        return element(
            "div", element("h2", level), element("p", "No recording of this level.", class_="small"), class_="missing"
        )
    pictures = [
        element("img", src=links.outline[level], alt="", class_="outline") if level in links.outline else "",
        element("img", src=links.spectrogram[level], alt="", class_="spectrogram")
        if level in links.spectrogram
        else "",
    ]
    bar = element("div", *pictures, element("i", class_="playhead"), class_="bar", data_level=level)
    download = element("a", "wav", href=links.audio[level], download=True, aria_label=f"Download the {level} level")
    named = element(
        "div", element("h2", level), element("span", speed(sample, level), class_="small"), download, class_="named"
    )
    return element("div", named, bar, class_="strip", data_level=level)


def speed(sample: Sample, level: str) -> str:
    made = sample.facts.levels[level]
    parts = [
        f"{made.codes:,} codes" if made.codes is not None else "",
        f"{made.tokens_per_second:,.0f} tokens/s" if made.tokens_per_second is not None else "",
        f"{made.wall_seconds:,.1f} s to make" if made.wall_seconds is not None else "",
    ]
    return " · ".join(part for part in parts if part)


def scale(sample: Sample) -> Markup:
    """What the pictures show, in one line."""
    rate = sample.facts.sample_rate
    highest = f"{rate / 2000:.1f} kHz" if rate else "half the sample rate"
    text = f"Spectrograms: 30 Hz to {highest} upwards, mel scale, {FLOOR_DB:.0f} to {CEILING_DB:.0f} dB of full scale."
    times = element("p", element("span", "0:00"), element("span", clock(sample.facts.seconds)), class_="times small")
    return joined(times, element("p", text, class_="small"))


def lyrics(lines: list[Line]) -> Markup:
    if not lines:
        return element("p", "No lyrics.", class_="small")
    return element("div", [element("p", [sung(piece) for piece in line]) for line in lines], class_="words")


def sung(piece: Piece) -> str:
    """Timed words light up when they are sung, and a click plays from there."""
    if piece.start is None:
        return piece.text
    return element("span", piece.text, data_start=round(piece.start, 3), data_end=round(piece.end or 0.0, 3))


def making(sample: Sample) -> list[Markup]:
    made = sample.facts
    weights = facts([(name, short(value)) for name, value in made.weights.items()])
    return [
        element("h3", "The same again, as a command"),
        copyable(command(sample), "the command that makes this sample again"),
        element("h3", "Weights"),
        weights if made.weights else element("p", "Not written down.", class_="small"),
        folded("Request as JSON", sample.request),
        folded("Runs", made.runs),
        folded("Made by", made.made_by),
    ]


def folded(name: str, value: object) -> Markup:
    return element("details", element("summary", name), element("pre", as_text(value))) if value else Markup("")


def as_text(value: object) -> str:
    return value if isinstance(value, str) else printable_json(value)


def printable_json(value: object) -> str:
    """Indented JSON in the letters of its language; signs that cannot be seen, or turn text round, are escaped."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return "".join(sign if sign.isprintable() or sign == "\n" else json.dumps(sign)[1:-1] for sign in text)


def short(fingerprint: object) -> Markup | str:
    """The head of a fingerprint, the whole of it on hover."""
    text = "" if fingerprint is None else as_text(fingerprint)
    return element("code", f"{text[:16]}…", title=text) if len(text) > 20 else text


def command(sample: Sample) -> str:
    """Shell lines that ask for the same song again; quoted, so that no lyrics can become a command."""
    request = printable_json([sample.request])  # no line of it is a bare word, so none can end the heredoc
    again = f"megajukebox sample {shlex.quote(runs_folder(sample.facts.runs))} --requests request.json --out again"
    return f"cat > request.json <<'REQUEST'\n{request}\nREQUEST\n{again}"


def runs_folder(runs: object) -> str:
    """The folder of the runs that made a sample, from its path or from the paths of the runs in it; else a guess."""
    one = next(iter(runs.values()), None) if isinstance(runs, dict) else None
    if isinstance(one, str) and "/" in one:
        return one.rpartition("/")[0]
    return runs if isinstance(runs, str) else "runs"
