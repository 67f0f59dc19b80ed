"""The pages of the corpus itself: what the model is trained on, to find bad data."""

from pathlib import Path
from typing import Any

from megajukebox.common.levels import REFINED_TRACKS
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.explorer import site_files
from megajukebox.explorer.loaders.corpus import CorpusSong, Excerpt, SongFiles
from megajukebox.explorer.loaders.samples import TRACKS
from megajukebox.explorer.pages.layout import as_text, clock, printable_json, render_page
from megajukebox.explorer.pages.sample_list import render_song_list
from megajukebox.explorer.pages.section_blocks import section_blocks
from megajukebox.explorer.pages.waveforms import SCRIPTS, Track, scale

HOW_TO_SHOW = "megajukebox explore build samples runs --corpus shards/songs"
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
# Of a song's metadata; sections and returns are drawn.
NOT_SHOWN = ("version", "key", "sha256", "sections", "returns")
WHOLE_TOLERANCE = 0.01  # seconds that an excerpt may miss and count as the whole song


def no_corpus_page() -> str:
    return render_page("no_corpus.html", "Corpus", tab="Corpus", commands=HOW_TO_SHOW)


def corpus_page(shards: ShardSet, songs: list[CorpusSong], excerpt: Excerpt) -> str:
    """The list of songs; `corpus.js` beside the page holds them.

    A line on top says which songs are in the list, which part of them, and how many look wrong.
    """
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
    return render_song_list(
        "corpus.html",
        title="Corpus",
        data="corpus",
        facets=FACETS,
        orders=("", "artist", "seconds"),
        first_track="original",
        summary=f"{shards.source}: {count}, {hours:.1f} hours; {part}. {look}",
    )


def corpus_entry(song: CorpusSong, out: Path) -> dict[str, Any]:
    """The record of a song for the list. Empty values are left out: of thousands, they would be half of the bytes."""
    files = SongFiles(out, song.key, song.excerpt)
    picture = site_files.relative_url(files.path("original", "png"), out)
    year = song.metadata.get("year")
    audio = {}
    for track, path in song.audio.items():
        audio[track] = site_files.relative_url(path, out)
    entry = {
        "name": song.key,
        "title": title(song),
        "artist": song.text_field("artist"),
        "language": song.text_field("language"),
        "licence": song.text_field("licence"),
        "year": year if isinstance(year, int) else None,
        "genres": names(song.metadata.get("genres")),
        "moods": names(song.metadata.get("moods")),
        "kind": song.lyrics_kind,
        "findings": song.findings,
        "seconds": song.excerpt_seconds,
        "levels": [track for track in TRACKS if track in song.audio],
        "page": site_files.relative_url(song_page_path(song, out), out),
        "audio": audio,
        "picture": picture if audio else None,
    }
    record = {}
    for name, value in entry.items():
        if value not in (None, "", [], {}) or name == "seconds":
            record[name] = value
    return record


def names(value: object) -> list[str]:
    return list(map(str, value)) if isinstance(value, list) else []


def song_page_path(song: CorpusSong, out: Path) -> Path:
    return out / "corpus" / f"{site_files.safe_name(song.key)}.html"


def song_page(song: CorpusSong, out: Path) -> str:
    """One song: to see and to play, its lyrics, its metadata and what looks wrong."""
    folder = song_page_path(song, out).parent
    files = SongFiles(out, song.key, song.excerpt)
    tracks = []
    audio = {}
    peaks = {}
    for name in TRACKS:
        if name in song.audio:
            audio[name] = site_files.relative_url(song.audio[name], folder)
            peaks[name] = site_files.relative_url(files.path(name, "js"), folder)
            picture = site_files.relative_url(files.path(name, "png"), folder)
            about = f"reconstructed from the {name} codes"
            if name == "original":
                about = "as stored in the shards"
            elif name in REFINED_TRACKS.values():
                about = "the same codes, refined"
            tracks.append(Track(name, about, audio[name], picture))
    subtitle = [song.text_field("artist"), clock(song.seconds), song.key]
    return render_page(
        "song.html",
        title(song),
        tab="Corpus",
        root="../",
        scripts=(*(f"./{url}" for url in peaks.values()), *SCRIPTS, "sample.js"),
        subtitle=" · ".join(filter(None, subtitle)),
        findings=song.findings,
        error=song.error,
        tracks=tracks,
        scale=scale(song.sample_rate, song.excerpt_seconds),
        sections=section_blocks(song.metadata, song.excerpt_start, song.excerpt_seconds),
        lyrics=song.lyrics,
        language=song.text_field("language"),
        metadata=metadata(song),
        json=printable_json(song.metadata) if song.metadata else "",
        played_tracks=tuple(audio) or ("original",),
        entry={
            "title": title(song),
            "name": song.key,
            "seconds": song.excerpt_seconds,
            "audio": audio,
            "peaks": peaks,
        },
    )


def title(song: CorpusSong) -> str:
    return song.text_field("title") or song.text_field("artist") or song.key


def metadata(song: CorpusSong) -> list[tuple[str, str]]:
    """The song's JSON in the shards, and which part of the song is shown."""
    rows = []
    for name, value in song.metadata.items():
        if name not in NOT_SHOWN:
            text = ", ".join(names(value)) if isinstance(value, list) else as_text(value)
            rows.append((name, text))
    if song.excerpt_seconds < song.seconds - WHOLE_TOLERANCE:
        end = song.excerpt_start + song.excerpt_seconds
        rows.append(
            ("shown", f"{song.excerpt_start:.1f} to {end:.1f} s of {song.seconds:.1f} s are shown")
        )
    return rows
