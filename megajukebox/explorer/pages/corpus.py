"""The pages of the corpus itself: what the model hears, to find bad data."""

from pathlib import Path
from typing import Any

from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.explorer import site_files
from megajukebox.explorer.loaders.corpus import CorpusSong, Excerpt, SongFiles
from megajukebox.explorer.loaders.samples import TRACKS
from megajukebox.explorer.loaders.timed_lyrics import plain
from megajukebox.explorer.pages.html import Markup, element, inline_json
from megajukebox.explorer.pages.layout import clock, copyable, facts, heading, page, player
from megajukebox.explorer.pages.sample import as_text, folded, lyrics_panel
from megajukebox.explorer.pages.sample_list import listing
from megajukebox.explorer.pages.waveforms import SCRIPTS, scale, strip

HOW_TO_SHOW = "megajukebox explore samples runs --corpus shards/songs"
FACETS = {
    "artist": "Artist",
    "genres": "Genre",
    "year": "Year",
    "moods": "Mood",
    "language": "Language",
    "licence": "Licence",
    "kind": "Lyrics",
    "findings": "Looks wrong",
}
LISTS = ("genres", "moods")


def no_corpus_page() -> str:
    say = element("p", "No shards were given. Listen to what the model is trained on:")
    panel = element("section", say, copyable(HOW_TO_SHOW, "command"), class_="panel")
    return page("Corpus", "Corpus", "", heading("Corpus"), panel)


def corpus_page(shards: ShardSet, songs: list[CorpusSong], excerpt: Excerpt) -> str:
    """The list of songs; `corpus.js` beside the page holds them."""
    hours = sum(song.seconds for song in songs) / 3600
    part = (
        f"{len(songs)} of {len(shards)} songs, evenly over the set"
        if len(songs) < len(shards)
        else "all songs"
    )
    heard = "whole" if excerpt.seconds is None else f"{excerpt.seconds:g} s from the middle of each"
    say = f"{shards.source}: {part}, {hours:.1f} hours; {heard}."
    wrong = sum(bool(song.findings) for song in songs)
    look = (
        f"{wrong} look wrong: choose under “Looks wrong”, then listen."
        if wrong
        else "None looks wrong."
    )
    note = element("p", f"{say} {look}", class_="small")
    return listing("Corpus", note, FACETS, "corpus", ("", "artist", "seconds"))


def corpus_entry(song: CorpusSong, out: Path) -> dict[str, Any]:
    """What the list knows of a song."""
    site, folder = SongFiles(out, song.key, song.excerpt), out
    year = song.known.get("year")
    known = {
        "name": song.key,
        "title": title(song),
        "artist": song.named("artist"),
        "language": song.named("language"),
        "licence": song.named("licence"),
        "year": year if isinstance(year, int) else None,
        **{name: names(song.known.get(name)) for name in LISTS},
        "kind": song.kind,
        "findings": song.findings,
        "seconds": song.shown,
        "levels": [track for track in TRACKS if track in song.audio],
        "page": site_files.relative_url(song_page_path(song, out), folder),
        "audio": {
            track: site_files.relative_url(path, folder) for track, path in song.audio.items()
        },
        "picture": site_files.relative_url(site.picture("original"), folder)
        if song.audio
        else None,
    }
    return {
        key: value
        for key, value in known.items()
        if value not in (None, "", [], {}) or key == "seconds"
    }


def corpus_words(song: CorpusSong) -> str:
    return plain(song.lyrics)[:2000]


def names(value: object) -> list[str]:
    return [str(name) for name in value] if isinstance(value, list) else []


def song_page_path(song: CorpusSong, out: Path) -> Path:
    return out / "corpus" / f"{site_files.safe_name(song.key)}.html"


def song_page(song: CorpusSong, out: Path) -> str:
    """One song: to hear and see, its lyrics, what is known of it and what looks wrong."""
    folder = song_page_path(song, out).parent
    site = SongFiles(out, song.key, song.excerpt)
    tracks = [track for track in TRACKS if track in song.audio]
    urls = {track: site_files.relative_url(song.audio[track], folder) for track in tracks}
    pictures = {track: site_files.relative_url(site.picture(track), folder) for track in tracks}
    numbers = {track: site_files.relative_url(site.numbers(track), folder) for track in tracks}
    strips = [strip(track, about(track), pictures[track], urls[track]) for track in tracks]
    entry = {
        "title": title(song),
        "name": song.key,
        "seconds": song.shown,
        "audio": urls,
        "peaks": numbers,
    }
    content = [
        element("p", element("a", "← All songs", href="../corpus.html"), class_="above"),
        heading(
            title(song),
            " · ".join(filter(None, (song.named("artist"), clock(song.seconds), song.key))),
        ),
        findings(song),
        element(
            "section",
            strips,
            scale(song.rate, song.shown) if strips else "",
            class_="panel",
            id="strips",
        ),
        element(
            "div", lyrics_panel(song.lyrics, song.named("language")), known(song), class_="columns"
        ),
        player(tuple(tracks) or ("original",), first="original"),
        inline_json("entry", entry),
    ]
    scripts = (*(f"./{url}" for url in numbers.values()), *SCRIPTS, "sample.js")
    return page(title(song), "Corpus", "../", *content, scripts=scripts)


def title(song: CorpusSong) -> str:
    return song.named("title") or song.named("artist") or song.key


def about(track: str) -> str:
    return (
        "as it lies in the shards" if track == "original" else f"what the {track} codes keep of it"
    )


def findings(song: CorpusSong) -> Markup:
    if not song.findings and not song.trouble:
        return Markup("")
    rows = [element("li", finding) for finding in song.findings]
    trouble = element("p", song.trouble) if song.trouble else ""
    return element(
        "aside", element("strong", "Looks wrong"), element("ul", rows), trouble, class_="note"
    )


def known(song: CorpusSong) -> Markup:
    said = {
        name: value
        for name, value in song.known.items()
        if name not in ("version", "key", "sha256")
    }
    rows: list[tuple[str, str | None]] = [
        (name, ", ".join(names(value)) if isinstance(value, list) else as_text(value))
        for name, value in said.items()
    ]
    part = f"{song.start:.1f} to {song.start + song.shown:.1f} s of {song.seconds:.1f} s are shown"
    metadata = facts([*rows, ("shown", part if song.shown < song.seconds - 0.01 else None)])
    json_ = folded("JSON", song.known)
    return element("section", element("h2", "What is known of it"), metadata, json_, class_="panel")
