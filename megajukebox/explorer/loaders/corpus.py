"""Songs of a shard set for the page: excerpts to listen to, pictures, lyrics, and what looks wrong with them."""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from os import cpu_count
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from megajukebox.conditioning.lrc import parse_lrc
from megajukebox.data.audio import downmix, encode_flac, facts, read_slice
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.explorer import site_files
from megajukebox.explorer.loaders import corpus_checks
from megajukebox.explorer.loaders.spectrograms import loudness, mel_spectrogram, peaks, png
from megajukebox.explorer.loaders.timed_lyrics import Line, Piece, lines

FOLDER = "corpus"  # of the site
ALONE = 8  # songs that are read sooner than other processes are started
# Mono audio [T] at a rate -> what each level of a VQ-VAE keeps of it, level -> [T].
Reconstruct = Callable[[np.ndarray, int], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Excerpt:
    """Which part of every song is shown: `seconds` from its middle; None is all of it, left in the shards."""

    seconds: float | None

    def of(self, frames: int, rate: int) -> tuple[int, int]:
        """(first frame, frames) of a song."""
        wanted = frames if self.seconds is None else min(frames, round(self.seconds * rate))
        return (frames - wanted) // 2, wanted

    @property
    def name(self) -> str:
        return "whole" if self.seconds is None else f"{self.seconds:g}s".replace(".", "_")


@dataclass(frozen=True)
class CorpusSong:
    """One song of the set, as the page shows it. Paths are those of its files in the site."""

    row: int
    key: str
    known: dict[str, Any]  # its JSON
    lyrics: list[Line]
    kind: str  # of its lyrics: timed, plain, none
    seconds: float  # of the whole song
    start: float  # seconds into the song at which the excerpt begins
    shown: float  # seconds of the excerpt
    rate: int
    findings: list[str]
    audio: dict[str, Path]
    excerpt: Excerpt
    trouble: str = ""  # why it cannot be heard

    def named(self, name: str) -> str:
        value = self.known.get(name)
        return value if isinstance(value, str) else ""


def chosen_rows(count: int, most: int) -> list[int]:
    """At most `most` of the rows, evenly over the set."""
    return list(range(count)) if count <= most else [n * count // most for n in range(most)]


def read_corpus(
    shards: ShardSet, out: Path, excerpt: Excerpt, most: int, reconstruct: Reconstruct | None = None
) -> list[CorpusSong]:
    """The songs of `shards` in their order, with their files written into the site at `out`."""
    rows = chosen_rows(len(shards), most)
    songs = list(reading(partial(read_song, shards, out, excerpt), rows))
    if reconstruct:
        songs = [with_levels(song, shards, out, excerpt, reconstruct) for song in songs]
    again = Counter(song.named("sha256") for song in songs)
    twice = {sha256 for sha256, count in again.items() if sha256 and count > 1}
    return [
        replace(song, findings=[*song.findings, "same sound twice"])
        if song.named("sha256") in twice
        else song
        for song in songs
    ]


def reading(read: Callable[[int], CorpusSong], rows: list[int]) -> Iterator[CorpusSong]:
    if len(rows) <= ALONE:
        yield from map(read, rows)
        return
    with ProcessPoolExecutor(cpu_count(), mp_context=get_context("spawn")) as pool:
        yield from pool.map(read, rows, chunksize=4)


def read_song(shards: ShardSet, out: Path, excerpt: Excerpt, row: int) -> CorpusSong:
    """One song; what of it cannot be read is told in `trouble`."""
    key = shards.key(row)
    seconds = int(shards.songs[row]["frames"]) / shards.index["sample_rate"]
    nothing = CorpusSong(
        row, key, {}, [], "none", seconds, 0.0, 0.0, shards.index["sample_rate"], [], {}, excerpt
    )
    try:
        song = with_words(replace(nothing, known=shards.read_facts(row)), shards)
        return with_sound(song, shards, out, excerpt)
    except (ValueError, OSError) as error:
        return replace(nothing, trouble=str(error), findings=["damaged"])


def with_words(song: CorpusSong, shards: ShardSet) -> CorpusSong:
    if not shards.has(song.row, "lyrics"):
        return song
    text, words = parse_lrc(shards.read_member(song.row, "lyrics").decode(errors="replace"))
    found = corpus_checks.of_lyrics(text, words, song.seconds)
    return replace(
        song, lyrics=lines(text, words), kind="timed" if words else "plain", findings=found
    )


def with_sound(song: CorpusSong, shards: ShardSet, out: Path, excerpt: Excerpt) -> CorpusSong:
    """Draws and checks the excerpt, and writes it, unless that was done for this very set before."""
    with shards.open_member(song.row, "audio") as file:
        rate = facts(cast(BinaryIO, file)).sample_rate
    start, length = excerpt.of(int(shards.songs[song.row]["frames"]), rate)
    site, made_from = SongFiles(out, song.key, excerpt), shards.folder / "songs.npy"
    if not site_files.up_to_date(site.numbers("original"), made_from):
        shards.check_member(song.row, "audio")
        site.write(
            "original",
            sound(shards, song.row, start, length),
            rate,
            keep=excerpt.seconds is not None,
        )
        site_files.stamp(site.numbers("original"), made_from)
    found = site_files.read_script(site.numbers("original"))["findings"]
    sung = [[moved(piece, start / rate) for piece in line] for line in song.lyrics]
    extension = (
        "flac" if excerpt.seconds is not None else shards.member_extension(song.row, "audio")
    )
    return replace(
        song, lyrics=sung, start=start / rate, shown=length / rate, rate=rate, findings=[*found, *song.findings],
        audio={"original": site.audio("original", extension)},
    )  # fmt: skip


def sound(shards: ShardSet, row: int, start: int, frames: int) -> np.ndarray:
    """Audio [frames, C] of a song."""
    with shards.open_member(row, "audio") as file:
        return read_slice(cast(BinaryIO, file), start, frames)


def with_levels(
    song: CorpusSong, shards: ShardSet, out: Path, excerpt: Excerpt, reconstruct: Reconstruct
) -> CorpusSong:
    """Adds what each level of a VQ-VAE keeps of the song, at the same moments."""
    if song.trouble:
        return song
    site = SongFiles(out, song.key, excerpt)
    wave_TC = sound(shards, song.row, round(song.start * song.rate), round(song.shown * song.rate))
    audio = {}
    for level, wave_T in reconstruct(downmix(wave_TC), song.rate).items():
        site.write(level, wave_T[:, None], song.rate, keep=True)
        audio[level] = site.audio(level, "flac")
    return replace(song, audio=audio | song.audio)


def moved(piece: Piece, seconds: float) -> Piece:
    """The piece with times from the start of the excerpt; words before it keep no time."""
    if piece.start is None or piece.end is None or piece.end <= seconds:
        return Piece(piece.text)
    return replace(piece, start=max(0.0, piece.start - seconds), end=piece.end - seconds)


@dataclass(frozen=True)
class SongFiles:
    """The files of one song in the site."""

    out: Path
    key: str
    excerpt: Excerpt

    def audio(self, track: str, extension: str) -> Path:
        return self.out / FOLDER / f"{self.name(track)}.{extension}"

    def picture(self, track: str) -> Path:
        return self.out / FOLDER / f"{self.name(track)}.png"

    def numbers(self, track: str) -> Path:
        return self.out / FOLDER / f"{self.name(track)}.js"

    def name(self, track: str) -> str:
        return f"{site_files.safe_name(self.key)}.{self.excerpt.name}.{track}"

    def write(self, track: str, wave_TC: np.ndarray, rate: int, keep: bool) -> None:
        """Pictures and, to `keep`, the sound of audio [T, C]."""
        wave_T = downmix(wave_TC)
        decibels = mel_spectrogram(wave_T, rate)
        findings = corpus_checks.of_sound(wave_TC, rate, decibels)
        numbers = {"peaks": peaks(wave_T), "db": loudness(wave_T), "findings": findings}
        if keep:
            site_files.write(self.audio(track, "flac"), encode_flac(wave_TC, rate))
        site_files.write(self.picture(track), png(decibels))
        site_files.write(self.numbers(track), site_files.script(self.name(track), numbers))
