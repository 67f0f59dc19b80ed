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
from megajukebox.explorer.loaders.timed_lyrics import LyricLine, LyricPiece, split_lines
from megajukebox.records.found_returns import read_returns

FOLDER = "corpus"  # of the site
MAX_SERIAL = 8  # songs that are read sooner than other processes are started
SONGS_PER_TASK = 4  # of a process
# Audio [T, C] at a rate -> the reconstruction of each level of a VQ-VAE, level -> [T], of stereo [T, 2].
Reconstruct = Callable[[np.ndarray, int], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Excerpt:
    """Which part of every song is shown: `seconds` from its middle; None is all of it, left in the shards."""

    seconds: float | None


@dataclass(frozen=True)
class CorpusSong:
    """One song of the set, as the page shows it. Paths are those of its files in the site."""

    row: int
    key: str
    seconds: float  # of the whole song
    sample_rate: int
    excerpt: Excerpt
    metadata: dict[str, Any]  # its JSON
    lyrics: list[LyricLine]
    lyrics_kind: str  # timed, plain, none
    excerpt_start: float  # seconds into the song
    excerpt_seconds: float
    findings: list[str]
    audio: dict[str, Path]
    error: str = ""  # why it has no audio

    def text_field(self, name: str) -> str:
        value = self.metadata.get(name)
        return value if isinstance(value, str) else ""


@dataclass(frozen=True)
class SongFiles:
    """The files of one song in the site."""

    out: Path
    key: str
    excerpt: Excerpt

    def name(self, track: str) -> str:
        """Of the track's files; other excerpts have other files."""
        seconds = self.excerpt.seconds
        part = "whole" if seconds is None else f"{seconds:g}s".replace(".", "_")
        return f"{site_files.safe_name(self.key)}.{part}.{track}"

    def path(self, track: str, extension: str) -> Path:
        """Of the picture (png), the peaks and findings (js), or the audio."""
        return self.out / FOLDER / f"{self.name(track)}.{extension}"

    def write(self, track: str, wave_TC: np.ndarray, rate: int, keep_audio: bool) -> None:
        """Pictures, findings and, with `keep_audio`, the audio [T, C] itself."""
        wave_T = downmix(wave_TC)
        decibels = mel_spectrogram(wave_T, rate)
        findings = corpus_checks.check_audio(wave_TC, rate, decibels)
        numbers = {"peaks": peaks(wave_T), "db": loudness(wave_T), "findings": findings}
        if keep_audio:
            site_files.write(self.path(track, "flac"), encode_flac(wave_TC, rate))
        site_files.write(self.path(track, "png"), png(decibels))
        site_files.write(self.path(track, "js"), site_files.script(self.name(track), numbers))


def read_corpus(
    shards: ShardSet,
    out: Path,
    excerpt: Excerpt,
    max_songs: int,
    reconstruct: Reconstruct | None = None,
) -> list[CorpusSong]:
    """The songs of `shards` in their order, with their files written into the site at `out`."""
    rows = spread_rows(len(shards), max_songs)
    songs = list(read_songs(partial(read_song, shards, out, excerpt), rows))
    if reconstruct:
        songs = [add_reconstructions(song, shards, out, reconstruct) for song in songs]
    copies = Counter(song.text_field("sha256") for song in songs)
    for song in songs:
        sha256 = song.text_field("sha256")
        if sha256 and copies[sha256] > 1:
            song.findings.append("same sound twice")
    return songs


def spread_rows(count: int, max_rows: int) -> list[int]:
    """At most `max_rows` of `count` rows, evenly over the set."""
    if count <= max_rows:
        return list(range(count))
    return [n * count // max_rows for n in range(max_rows)]


def read_songs(read: Callable[[int], CorpusSong], rows: list[int]) -> Iterator[CorpusSong]:
    """On all cores where there are many. Workers are spawned: the server that may call this has threads."""
    if len(rows) <= MAX_SERIAL:
        yield from map(read, rows)
        return
    with ProcessPoolExecutor(cpu_count(), mp_context=get_context("spawn")) as pool:
        yield from pool.map(read, rows, chunksize=SONGS_PER_TASK)


def read_song(shards: ShardSet, out: Path, excerpt: Excerpt, row: int) -> CorpusSong:
    """One song; why it cannot be read stands in `error`."""
    sample_rate = shards.index["sample_rate"]
    unread = CorpusSong(
        row=row,
        key=shards.key(row),
        seconds=int(shards.songs[row]["frames"]) / sample_rate,
        sample_rate=sample_rate,
        excerpt=excerpt,
        metadata={},
        lyrics=[],
        lyrics_kind="none",
        excerpt_start=0.0,
        excerpt_seconds=0.0,
        findings=[],
        audio={},
    )
    try:
        metadata = shards.read_facts(row)
        found = read_returns(shards.folder, shards.index["shards"][int(shards.songs[row]["shard"])])
        if found and "returns" not in metadata and unread.key in found.songs:
            metadata["returns"] = found.songs[unread.key]
        song = replace(unread, metadata=metadata)
        if shards.has(row, "lyrics"):
            text, words = parse_lrc(shards.read_member(row, "lyrics").decode(errors="replace"))
            song = replace(
                song,
                lyrics=split_lines(text, words),
                lyrics_kind="timed" if words else "plain",
                findings=corpus_checks.check_lyrics(text, words, song.seconds),
            )
        return add_excerpt(song, shards, out)
    except (ValueError, OSError) as error:
        return replace(unread, error=str(error), findings=["damaged"])


def add_excerpt(song: CorpusSong, shards: ShardSet, out: Path) -> CorpusSong:
    """With the excerpt drawn, checked and written, unless that was done for this very set before."""
    with shards.open_member(song.row, "audio") as file:
        rate = facts(cast(BinaryIO, file)).sample_rate
    excerpt = song.excerpt
    frames = length = int(shards.songs[song.row]["frames"])
    is_whole = excerpt.seconds is None
    if excerpt.seconds is not None:
        length = min(frames, round(excerpt.seconds * rate))
    start = (frames - length) // 2
    files = SongFiles(out, song.key, excerpt)
    peaks_file = files.path("original", "js")
    modified = (shards.folder / "songs.npy").stat().st_mtime_ns
    if not site_files.up_to_date(peaks_file, modified):
        shards.check_member(song.row, "audio")
        wave_TC = read_audio(shards, song.row, start, length)
        files.write("original", wave_TC, rate, keep_audio=not is_whole)
        site_files.stamp(peaks_file, modified)
    extension = shards.member_extension(song.row, "audio") if is_whole else "flac"
    lyrics = []
    for line in song.lyrics:
        lyrics.append([shift_piece(piece, start / rate) for piece in line])
    return replace(
        song,
        lyrics=lyrics,
        excerpt_start=start / rate,
        excerpt_seconds=length / rate,
        sample_rate=rate,
        findings=[*site_files.read_script(peaks_file)["findings"], *song.findings],
        audio={"original": files.path("original", extension)},
    )


def read_audio(shards: ShardSet, row: int, start: int, frames: int) -> np.ndarray:
    """Audio [frames, C] of a song."""
    with shards.open_member(row, "audio") as file:
        return read_slice(cast(BinaryIO, file), start, frames)


def add_reconstructions(
    song: CorpusSong, shards: ShardSet, out: Path, reconstruct: Reconstruct
) -> CorpusSong:
    """With the reconstruction of the excerpt from each level of a VQ-VAE."""
    if song.error:
        return song
    files = SongFiles(out, song.key, song.excerpt)
    start = round(song.excerpt_start * song.sample_rate)
    length = round(song.excerpt_seconds * song.sample_rate)
    wave_TC = read_audio(shards, song.row, start, length)
    audio = {}
    for level, wave in reconstruct(wave_TC, song.sample_rate).items():
        files.write(level, wave.reshape(len(wave), -1), song.sample_rate, keep_audio=True)
        audio[level] = files.path(level, "flac")
    return replace(song, audio=audio | song.audio)


def shift_piece(piece: LyricPiece, seconds: float) -> LyricPiece:
    """The piece with times from the start of the excerpt; words before it keep no time."""
    if piece.start is None or piece.end is None or piece.end <= seconds:
        return LyricPiece(piece.text)
    return replace(piece, start=max(0.0, piece.start - seconds), end=piece.end - seconds)
