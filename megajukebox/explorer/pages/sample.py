"""The page of one sample: its levels to see and to hear, its lyrics, and how it was made."""

import json
import shlex

from megajukebox.common.levels import LEVELS
from megajukebox.explorer.loaders.samples import ListedSample, UnreadableSample
from megajukebox.explorer.loaders.search_index import Links, entry, runs_folder, seed, title
from megajukebox.explorer.loaders.timed_lyrics import Line, Piece
from megajukebox.explorer.pages.html import Markup, element, inline_json
from megajukebox.explorer.pages.layout import copyable, facts, heading, page, player, problem_note
from megajukebox.explorer.pages.waveforms import SCRIPTS, scale, strip


def sample_page(sample: ListedSample, links: Links, problems: list[UnreadableSample]) -> str:
    request = sample.facts.request
    compare = element("button", "Compare with …", type="button", class_="plain", id="compare")
    tracks = [
        strip(track, speed(sample, track), links.spectrogram.get(track), url)
        for track, url in in_order(links)
    ]
    content = [
        element("p", element("a", "← All samples", href="../index.html"), compare, class_="above"),
        heading(title(sample), subtitle(sample)),
        notes(sample.facts.notes),
        problem_note(problems, "could not be read"),
        element(
            "section",
            tracks,
            missing(links),
            scale(sample.facts.sample_rate, sample.facts.seconds) if tracks else "",
            class_="panel",
            id="strips",
        ),
        element(
            "div",
            lyrics_panel(sample.lyrics, request.language),
            element("section", element("h2", "How it was made"), *making(sample), class_="panel"),
            class_="columns",
        ),
        player(tuple(track for track, _ in in_order(links)) or ("bottom",)),
        inline_json("entry", entry(sample, links)),
    ]
    scripts = (*links.peaks.values(), *SCRIPTS, "sample.js")
    return page(f"{title(sample)} {sample.name}", "Samples", "../", *content, scripts=scripts)


def in_order(links: Links) -> list[tuple[str, str]]:
    """Tracks with the URLs of their recordings, in the order in which they are made."""
    return list(links.audio.items())


def missing(links: Links) -> Markup:
    absent = [level for level in LEVELS if level not in links.audio]
    return (
        element("p", f"No recording of: {', '.join(absent)}.", class_="small missing")
        if absent
        else Markup("")
    )


def notes(warnings: tuple[str, ...]) -> Markup:
    """What `megajukebox sample` warned of when it made the song."""
    if not warnings:
        return Markup("")
    rows = [element("li", warning) for warning in warnings]
    return element("aside", element("strong", "Notes"), element("ul", rows), class_="note")


def subtitle(sample: ListedSample) -> str:
    request = sample.facts.request
    number = seed(sample)
    drawn = "" if number is None else f"seed {number}"
    parts = [
        ", ".join(request.genres), "" if request.year is None else str(request.year), ", ".join(request.moods),
        request.language, f"{sample.facts.seconds:.1f} s", drawn, sample.name,
    ]  # fmt: skip
    return " · ".join(part for part in parts if part)


def speed(sample: ListedSample, track: str) -> str:
    made = sample.facts.levels[track]
    parts = [
        f"{made.codes:,} codes" if made.codes is not None else "",
        f"{made.tokens_per_second:,.0f} tokens/s" if made.tokens_per_second is not None else "",
        f"{made.wall_seconds:,.1f} s to make" if made.wall_seconds is not None else "",
    ]
    return " · ".join(part for part in parts if part)


def lyrics_panel(lines: list[Line], language: str) -> Markup:
    return element(
        "section",
        element("h2", "Lyrics"),
        lyrics(lines),
        class_="panel",
        id="lyrics",
        lang=language or None,
    )


def lyrics(lines: list[Line]) -> Markup:
    if not lines:
        return element("p", "No lyrics.", class_="small")
    return element(
        "div", [element("p", [sung(piece) for piece in line]) for line in lines], class_="words"
    )


def sung(piece: Piece) -> str:
    """Timed words light up when they are sung, and a click plays from there."""
    if piece.start is None:
        return piece.text
    sure = None if piece.confidence is None else f"{piece.confidence:.0%} of the attention"
    return element(
        "span",
        piece.text,
        data_start=round(piece.start, 3),
        data_end=round(piece.end or 0.0, 3),
        title=sure,
    )


def making(sample: ListedSample) -> list[Markup]:
    made = sample.facts
    weights = facts([(name, short(value)) for name, value in made.weights.items()])
    return [
        element("h3", "The same again, as a command"),
        copyable(command(sample), "the command that makes this sample again"),
        element("h3", "Weights"),
        weights if made.weights else element("p", "Not written down.", class_="small"),
        folded("Request as JSON", sample.request),
        folded("Runs", made.runs),
        folded("Steps", made.steps),
        folded("Made by", made.made_by),
    ]


def folded(name: str, value: object) -> Markup:
    return (
        element("details", element("summary", name), element("pre", as_text(value)))
        if value
        else Markup("")
    )


def as_text(value: object) -> str:
    return value if isinstance(value, str) else printable_json(value)


def printable_json(value: object) -> str:
    """Indented JSON in the letters of its language; signs that cannot be seen, or turn text round, are escaped."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return "".join(
        sign if sign.isprintable() or sign == "\n" else json.dumps(sign)[1:-1] for sign in text
    )


def short(fingerprint: object) -> Markup | str:
    """The head of a fingerprint, the whole of it on hover."""
    text = "" if fingerprint is None else as_text(fingerprint)
    return element("code", f"{text[:16]}…", title=text) if len(text) > 20 else text


def command(sample: ListedSample) -> str:
    """Shell lines that ask for the same song again; quoted, so that no lyrics can become a command."""
    told, runs = sample.facts.reconstruction, shlex.quote(runs_folder(sample.facts.runs))
    if isinstance(told, dict):
        shards, song = (shlex.quote(str(told.get(name))) for name in ("of", "song"))
        seconds = f" --seconds {sample.facts.seconds:g} --out again"
        return f"megajukebox sample {runs} --reconstruct {shards} --song {song}{seconds}"
    request = printable_json(
        [sample.request]
    )  # no line of it is a bare word, so none can end the heredoc
    again = f"megajukebox sample {runs} --requests request.json --out again"
    return f"cat > request.json <<'REQUEST'\n{request}\nREQUEST\n{again}"
