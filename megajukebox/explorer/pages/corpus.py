"""The pages of the corpus itself: what the model is trained on, to find bad data."""

from pathlib import Path
from typing import Any

from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.explorer import site_files
from megajukebox.explorer.loaders.corpus import CorpusSong, Excerpt, SongFiles
from megajukebox.explorer.loaders.samples import TRACKS
from megajukebox.explorer.loaders.search_index import SEARCHED
from megajukebox.explorer.loaders.timed_lyrics import plain
from megajukebox.explorer.pages.layout import as_text, clock, printable_json, render_page
from megajukebox.explorer.pages.sample_list import render_song_list
from megajukebox.explorer.pages.waveforms import SCRIPTS, Scale, Track

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
NOT_SHOWN = ("version", "key", "sha256")  # of a song's metadata
WHOLE_TOLERANCE = 0.01  # seconds that an excerpt may miss and count as the whole song


def no_corpus_page() -> str:
    return render_page("no_corpus.html", "Corpus", tab="Corpus", commands=HOW_TO_SHOW)


def corpus_page(shards: ShardSet, songs: list[CorpusSong], excerpt: Excerpt) -> str:
    """The list of songs; `corpus.js` beside the page holds them."""
    return render_song_list(
        "corpus.html",
        title="Corpus",
        data="corpus",
        facets=FACETS,
        orders=("", "artist", "seconds"),
        first_track="original",
        summary=summary(shards, songs, excerpt),
    )


def summary(shards: ShardSet, songs: list[CorpusSong], excerpt: Excerpt) -> str:
    """Which songs are in the list, which part of them, and how many look wrong."""
    hours = sum(song.seconds for song in songs) / 3600
    count = "all songs"
    if len(songs) < len(shards):
        count = f"{len(songs)} of {len(shards)} songs, evenly over the set"
    part = "whole"
    if excerpt.seconds is not None:
        part = f"{excerpt.seconds:g} s from the middle of each"
    wrong = sum(bool(song.findings) for song in songs)
    look = "None looks wrong."
    if wrong:
        look = f"{wrong} look wrong: choose under “Looks wrong”, then listen."
    return f"{shards.source}: {count}, {hours:.1f} hours; {part}. {look}"


def corpus_entry(song: CorpusSong, out: Path) -> dict[str, Any]:
    """The record of a song for the list. Empty values are left out: of thousands, they would be half of the bytes."""
    files = SongFiles(out, song.key, song.excerpt)
    year = song.known.get("year")
    entry = {
        "name": song.key,
        "title": title(song),
        "artist": song.named("artist"),
        "language": song.named("language"),
        "licence": song.named("licence"),
        "year": year if isinstance(year, int) else None,
        "genres": names(song.known.get("genres")),
        "moods": names(song.known.get("moods")),
        "kind": song.kind,
        "findings": song.findings,
        "seconds": song.shown,
        "levels": [track for track in TRACKS if track in song.audio],
        "page": site_files.relative_url(song_page_path(song, out), out),
        "audio": {track: site_files.relative_url(path, out) for track, path in song.audio.items()},
        "picture": site_files.relative_url(files.picture("original"), out) if song.audio else None,
    }
    return {
        name: value
        for name, value in entry.items()
        if value not in (None, "", [], {}) or name == "seconds"
    }


def corpus_words(song: CorpusSong) -> str:
    """The lyrics that the list can search."""
    return plain(song.lyrics)[:SEARCHED]


def names(value: object) -> list[str]:
    return [str(name) for name in value] if isinstance(value, list) else []


def song_page_path(song: CorpusSong, out: Path) -> Path:
    return out / "corpus" / f"{site_files.safe_name(song.key)}.html"


def song_page(song: CorpusSong, out: Path) -> str:
    """One song: to hear and see, its lyrics, what is known of it and what looks wrong."""
    folder = song_page_path(song, out).parent
    files = SongFiles(out, song.key, song.excerpt)
    tracks = []
    audio = {}
    peaks = {}
    for name in TRACKS:
        if name in song.audio:
            audio[name] = site_files.relative_url(song.audio[name], folder)
            peaks[name] = site_files.relative_url(files.numbers(name), folder)
            picture = site_files.relative_url(files.picture(name), folder)
            tracks.append(Track(name, about_track(name), audio[name], picture))
    subtitle = [song.named("artist"), clock(song.seconds), song.key]
    return render_page(
        "song.html",
        title(song),
        tab="Corpus",
        root="../",
        scripts=(*(f"./{url}" for url in peaks.values()), *SCRIPTS, "sample.js"),
        subtitle=" · ".join(part for part in subtitle if part),
        findings=song.findings,
        error=song.trouble,
        tracks=tracks,
        scale=Scale(song.rate, song.shown),
        lyrics=song.lyrics,
        language=song.named("language"),
        metadata=metadata(song),
        json=printable_json(song.known) if song.known else "",
        played_tracks=tuple(audio) or ("original",),
        entry={
            "title": title(song),
            "name": song.key,
            "seconds": song.shown,
            "audio": audio,
            "peaks": peaks,
        },
    )


def title(song: CorpusSong) -> str:
    return song.named("title") or song.named("artist") or song.key


def about_track(track: str) -> str:
    if track == "original":
        return "as it lies in the shards"
    return f"what the {track} codes keep of it"


def metadata(song: CorpusSong) -> list[tuple[str, str]]:
    """What the shards say of the song, and which part of it is shown."""
    rows = []
    for name, value in song.known.items():
        if name not in NOT_SHOWN:
            text = ", ".join(names(value)) if isinstance(value, list) else as_text(value)
            rows.append((name, text))
    if song.shown < song.seconds - WHOLE_TOLERANCE:
        end = song.start + song.shown
        rows.append(("shown", f"{song.start:.1f} to {end:.1f} s of {song.seconds:.1f} s are shown"))
    return rows
