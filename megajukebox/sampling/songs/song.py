"""A generated song, complete or not: its request, codes and audio by level, and the files it becomes."""

import io
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from megajukebox.common.files import make_folder, write_atomic
from megajukebox.common.provenance import made_by
from megajukebox.conditioning.lrc import parse_lrc, write_lrc
from megajukebox.conditioning.song_sections import section_fields
from megajukebox.data.audio import write_wav
from megajukebox.records.sample_record import SAMPLE_SCHEMA
from megajukebox.sampling.songs.prompt_sources import KnownCodes
from megajukebox.sampling.songs.requests import SongRequest


@dataclass
class GeneratedSong:
    """What is sampled for one request, so far: codes [T] and audio [samples], of stereo [samples, 2], by level."""

    request: SongRequest
    notes: list[str]
    sample_rate: int
    # Codes that are known before sampling: the prompt, and those of an interrupted attempt.
    known: KnownCodes = field(default_factory=KnownCodes, repr=False)
    prompt: KnownCodes = field(default_factory=KnownCodes, repr=False)
    codes: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    audio: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    levels: dict[str, dict[str, Any]] = field(default_factory=dict)  # how each was sampled
    facts: dict[str, Any] = field(default_factory=dict)
    timed_lyrics: str = ""  # .lrc of word times that were read from the attention
    samples: int = 0  # of audio
    main_level: str = "bottom"  # whose audio is <id>.wav: the finest that is sampled

    @property
    def seconds(self) -> float:
        return self.samples / self.sample_rate

    def add_reference_tracks(self, tracks: dict[str, np.ndarray]) -> None:
        """Recordings to hear at the same moments as the song: `original`, `reconstruction`, `refined_bottom`."""
        for track, wave in tracks.items():
            self.audio[track] = wave
            self.levels[track] = {}

    def save(self, folder: Path | str) -> Path:
        """Write the song; <id>.json comes last, so a song that has it is complete. Returns its path."""
        folder = Path(folder)
        song = self.request.id
        make_folder(folder)
        # A level whose audio was streamed to its file is not in memory.
        for level, wave in self.audio.items():
            self.levels[level]["audio"] = audio_name(song, level, self.main_level)
            write_wav(folder / self.levels[level]["audio"], wave, self.sample_rate)
        file = io.BytesIO()
        # The stubs of savez would take a more precise type for its argument allow_pickle.
        arrays: dict[str, Any] = {}
        for level, codes_T in self.codes.items():
            arrays[level] = codes_T.astype(np.uint16)
        np.savez(file, **arrays)
        write_atomic(folder / f"{song}.codes.npz", file.getvalue())
        lyrics = self.timed_lyrics or self.request.lyrics
        for suffix in ("lrc", "txt"):  # of a song of this name that was there before
            (folder / f"{song}.{suffix}").unlink(missing_ok=True)
        if lyrics:
            lyrics, is_timed = lyrics_within(lyrics, self.seconds)
            write_atomic(folder / f"{song}.{'lrc' if is_timed else 'txt'}", lyrics.encode())
        record = json.dumps(self.record(), indent=1, ensure_ascii=False) + "\n"
        write_atomic(folder / f"{song}.json", record.encode())
        return folder / f"{song}.json"

    def record(self) -> dict[str, Any]:
        """What <id>.json holds; records/sample_record.py reads those of every version."""
        return {
            "schema": SAMPLE_SCHEMA,
            "id": self.request.id,
            "sample_rate": self.sample_rate,
            "seconds": self.seconds,
            "request": self.request.model_dump(mode="json"),
            "notes": self.notes,
            "levels": self.levels,
            **section_fields(*self.request.section_plan),
            **self.facts,
            "made_by": made_by(),
        }


def lyrics_within(lyrics: str, seconds: float) -> tuple[str, bool]:
    """(the lyrics of `seconds` of audio, whether they have times).

    A request may give the times of a whole song and ask for its beginning: words that would be sung
    after the audio's end are left out, and the last one ends with it. Lyrics without times stay whole.
    """
    text, words = parse_lrc(lyrics)
    if not words:
        return lyrics, False
    if max(word.t1 for word in words) <= seconds:
        return lyrics, True
    sung = [replace(word, t1=min(word.t1, seconds)) for word in words if word.t0 < seconds]
    if not sung:
        return text, False
    end = max(word.end_char for word in sung)
    return write_lrc(sung, text[:end]), True


def audio_name(song: str, level: str, main_level: str = "bottom") -> str:
    return f"{song}.wav" if level == main_level else f"{song}.{level}.wav"
