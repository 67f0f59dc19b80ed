"""A song in the making or made: its request, codes and audio by level, and the files it becomes."""

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from megajukebox.common.files import make_folder, write_atomic
from megajukebox.common.provenance import made_by
from megajukebox.conditioning.lrc import parse_lrc
from megajukebox.data.audio import write_wav
from megajukebox.sampling.songs.prompt_sources import KnownCodes
from megajukebox.sampling.songs.requests import SongRequest


@dataclass
class GeneratedSong:
    """What was made for one request, so far: codes and audio by level."""

    request: SongRequest
    notes: list[str]
    sample_rate: int
    known: KnownCodes = field(
        default_factory=KnownCodes, repr=False
    )  # what is given, or was done by an interrupted attempt
    prompt: KnownCodes = field(default_factory=KnownCodes, repr=False)  # what is given alone
    codes: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    audio: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    levels: dict[str, dict[str, Any]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    timed_lyrics: str = ""  # .lrc of times found in the attention
    samples: int = 0  # of audio

    def add_reference_tracks(self, tracks: dict[str, np.ndarray]) -> None:
        """Recordings to hear at the same moments as the song: `original`, `reconstruction`."""
        for track, wave_T in tracks.items():
            self.audio[track], self.levels[track] = wave_T, {}

    def save(self, folder: Path | str) -> Path:
        """Write the song; <id>.json comes last, so a song that has it is complete. Returns its path."""
        folder, name = Path(folder), self.request.id
        make_folder(folder)
        for (
            level,
            wave,
        ) in self.audio.items():  # a level whose audio was streamed to its file is not in memory
            self.levels[level]["audio"] = audio_name(name, level)
            write_wav(folder / self.levels[level]["audio"], wave[:, None], self.sample_rate)
        codes = io.BytesIO()
        # The stubs of savez would take a more precise type for its argument allow_pickle.
        arrays: dict[str, Any] = {level: c.astype(np.uint16) for level, c in self.codes.items()}
        np.savez(codes, **arrays)
        write_atomic(folder / f"{name}.codes.npz", codes.getvalue())
        self._save_lyrics(folder)
        write_atomic(
            folder / f"{name}.json",
            (json.dumps(self.record(), indent=1, ensure_ascii=False) + "\n").encode(),
        )
        return folder / f"{name}.json"

    def _save_lyrics(self, folder: Path) -> None:
        lyrics = self.timed_lyrics or self.request.lyrics
        for ending in ("lrc", "txt"):
            (folder / f"{self.request.id}.{ending}").unlink(
                missing_ok=True
            )  # of a song that was here before
        if lyrics:
            write_atomic(
                folder / f"{self.request.id}.{'lrc' if parse_lrc(lyrics)[1] else 'txt'}",
                lyrics.encode(),
            )

    def record(self) -> dict[str, Any]:
        return {
            "id": self.request.id,
            "sample_rate": self.sample_rate,
            "seconds": self.samples / self.sample_rate,
            "request": self.request.model_dump(mode="json"),
            "notes": self.notes,
            "levels": self.levels,
            **self.facts,
            "made_by": made_by(),
        }


def audio_name(song: str, level: str) -> str:
    return f"{song}.wav" if level == "bottom" else f"{song}.{level}.wav"
