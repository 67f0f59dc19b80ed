"""The songs that are judged and those they are judged against: of song shards, code shards, and folders of samples."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from megajukebox.common.levels import LEVELS
from megajukebox.conditioning.lrc import TimedWord, parse_lrc
from megajukebox.data.audio import downmix, facts, read, read_slice
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.stream.song_dataset import split

Array = np.ndarray
LABELS = ("artist", "genre", "language")
TELL_EVERY = 10.0  # seconds between two words of how far it is
Say = Callable[[str], None]


def silent(text: str) -> None:
    """Nobody listens."""


def paced(rows: Sequence[int], say: Say, what: str) -> Iterator[int]:
    """`rows` of songs; now and then `say` hears how many of them are done, and the seconds that are left."""
    begun = told = time.monotonic()
    for done, row in enumerate(rows):
        now = time.monotonic()
        if done and now - told >= TELL_EVERY:
            told = now
            say(
                f"{what}: {done} of {len(rows)} songs, {(now - begun) / done * (len(rows) - done):.0f} s left"
            )
        yield row


@dataclass(frozen=True)
class EvalSong:
    """One recording, real or made. Audio is mono float32 [T], full scale 1."""

    key: str
    audio: Array
    rate: int  # Hz
    labels: Mapping[str, str] = field(default_factory=dict)  # those of LABELS that are known
    text: str = ""
    words: tuple[TimedWord, ...] = ()  # with times, where they are known

    @property
    def seconds(self) -> float:
        return len(self.audio) / self.rate


def labels_of(said_of: Mapping[str, Any]) -> dict[str, str]:
    """Artist, genre (the first) and language of a song's JSON or a request, as far as they are said."""
    genres = said_of.get("genres") or ()
    first = genres if isinstance(genres, str) else next(iter(genres), None)
    said = {"artist": said_of.get("artist"), "genre": first, "language": said_of.get("language")}
    return {name: str(value) for name, value in said.items() if value}


# ---- Shards


def rows_of(shards: ShardSet, held_out: bool, share: float, most: int) -> list[int]:
    """At most `most` rows, evenly spread over the held-out songs (or over the others) of a set."""
    rows = np.flatnonzero(split(shards.songs["key"], share) == held_out)
    return spread(rows, most).tolist()


def spread(rows: Array, most: int) -> Array:
    """At most `most` of `rows`, evenly spread: the same ones every time."""
    return rows if len(rows) <= most else rows[(np.arange(most) * len(rows)) // most]


def song_of(shards: ShardSet, row: int, longest: float) -> EvalSong:
    """One song of song shards, at most its first `longest` seconds. ValueError if it cannot be read."""
    rate = shards.index["sample_rate"]
    frames = min(int(shards.songs["frames"][row]), int(longest * rate))
    with shards.open_member(row, "audio") as file:
        audio = downmix(read_slice(file, 0, frames, rate))  # type: ignore[arg-type]
    text, words = lyrics_of(shards, row)
    return EvalSong(
        shards.key(row), audio, rate, labels_of(shards.read_facts(row)), text, tuple(words)
    )


def lyrics_of(shards: ShardSet, row: int) -> tuple[str, list[TimedWord]]:
    return (
        parse_lrc(shards.read_member(row, "lyrics").decode())
        if shards.has(row, "lyrics")
        else ("", [])
    )


@dataclass
class EvalSongs:
    """Songs of shards that can be gone through more than once. What cannot be read is left out, with the reason."""

    shards: ShardSet
    rows: list[int]
    longest: float  # seconds of each that are listened to
    refused: dict[str, str] = field(default_factory=dict)
    say: Say = silent

    def __iter__(self) -> Iterator[EvalSong]:
        for row in paced(self.rows, self.say, "listening"):
            try:
                yield song_of(self.shards, row, self.longest)
            except ValueError as error:
                self.refused[self.shards.key(row)] = str(error)

    def __len__(self) -> int:
        return len(self.rows)


def codes_of(shards: ShardSet, row: int, level: str) -> Array:
    """All codes [T] of a song at one level."""
    with shards.open_member(row, level) as file:
        return np.load(file, allow_pickle=False)  # type: ignore[arg-type]


# ---- Samples


@dataclass(frozen=True)
class EvalSample:
    """One song that `megajukebox sample` wrote."""

    key: str
    folder: Path
    record: Mapping[str, Any]

    @property
    def levels(self) -> list[str]:
        """The levels it has audio of, coarsest first."""
        made = self.record.get("levels", {})
        return [
            level
            for level in LEVELS
            if isinstance(made.get(level), dict) and made[level].get("audio")
        ]

    @property
    def seconds(self) -> float:
        """Length of its finest level, as the file's header has it; 0 without audio."""
        path = (
            self.folder / str(self.record["levels"][self.levels[-1]]["audio"])
            if self.levels
            else None
        )
        return (facts(path).seconds or 0.0) if path is not None and path.is_file() else 0.0

    def song(self, level: str) -> EvalSong:
        """Its audio at one level. ValueError if that cannot be read."""
        name = str(self.record["levels"][level]["audio"])
        if Path(name).name != name:
            raise ValueError(f"{self.key}: audio {name!r} is not a file name")
        rate = int(self.record["sample_rate"])
        audio = downmix(read(self.folder / name, rate))
        request = self.record["request"]
        lrc = self.folder / f"{self.key}.lrc"
        text, words = parse_lrc(
            lrc.read_text() if lrc.is_file() else str(request.get("lyrics") or "")
        )
        return EvalSong(self.key, audio, rate, labels_of(request), text, tuple(words))

    def codes(self) -> dict[str, Array]:
        """Codes [T] by level; none if they were not kept."""
        path = self.folder / f"{self.key}.codes.npz"
        if not path.is_file():
            return {}
        with np.load(path, allow_pickle=False) as arrays:
            return {level: arrays[level].astype(np.int64) for level in LEVELS if level in arrays}


def samples_in(folder: Path) -> list[EvalSample]:
    """The samples of a folder by name; reconstructions of real songs are none. ValueError if it has none."""
    found = []
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_bytes())
        made = (
            isinstance(record, dict)
            and isinstance(record.get("request"), dict)
            and "sample_rate" in record
        )
        if made and "reconstruction" not in record:
            found.append(EvalSample(path.stem, folder, record))
    if not found:
        raise ValueError(
            f"{folder} holds no samples; give a folder that `megajukebox sample` wrote"
        )
    return found


@dataclass
class Sampled:
    """The audio of one level of samples, as songs that can be gone through more than once."""

    samples: list[EvalSample]
    level: str
    refused: dict[str, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[EvalSong]:
        for sample in self.samples:
            try:
                yield sample.song(self.level)
            except (ValueError, OSError) as error:
                self.refused[sample.key] = str(error)

    def __len__(self) -> int:
        return len(self.samples)
