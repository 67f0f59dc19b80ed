"""Reads a folder of samples. What cannot be read becomes a `Problem` to show, never a crash."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, FiniteFloat, JsonValue, ValidationError, model_validator

from megajukebox.explorer.timed_lyrics import Line, read_lyrics

LEVELS = ("top", "middle", "bottom")  # in the order in which they are made; the last is the finished song


@dataclass(frozen=True)
class Problem:
    """A file that was skipped, or a part of one, and why."""

    name: str
    reason: str


class Record(BaseModel):
    """Fields that this version does not know are ignored, so that it can show what a newer one made."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def leave_out_nulls(cls, given: Any) -> Any:
        """`"artist": null` means the same as no artist."""
        return {key: value for key, value in given.items() if value is not None} if isinstance(given, dict) else given


class Level(Record):
    """How one level of a song was made."""

    audio: str = ""
    codes: int | None = None
    wall_seconds: FiniteFloat | None = None
    tokens_per_second: FiniteFloat | None = None


class Request(Record):
    artist: str = ""
    genres: tuple[str, ...] = ()
    language: str = ""
    lyrics: str = ""
    seed: int | None = None


class Facts(Record):
    """What `<id>.json` says of a song."""

    request: Request
    notes: tuple[str, ...] = ()
    sample_rate: int | None = None
    seconds: FiniteFloat = 0.0
    levels: dict[str, Level] = {}
    weights: dict[str, JsonValue] = {}
    runs: JsonValue = None
    made_by: JsonValue = None


@dataclass(frozen=True)
class Sample:
    """A song, its files, and the request that made it."""

    name: str  # of its files without their endings; it is unique in the folder, unlike an id somebody wrote
    facts: Facts
    request: JsonValue  # as it was written, with what this version does not know
    lyrics: list[Line]
    audio: dict[str, Path]  # level -> recording that exists


def read_samples(folder: Path) -> tuple[list[Sample], list[Problem]]:
    """The samples of `folder`, newest first, and what could not be read."""
    if not folder.is_dir():
        raise ValueError(
            f"samples {str(folder)!r} is not a folder; make one with `megajukebox sample`, or correct the path"
        )
    samples, problems = [], []
    for path in sorted(folder.glob("*.json"), key=lambda path: (-path.stat().st_mtime, path.name)):
        try:
            samples.append(read_sample(path))
        except (ValueError, RecursionError) as error:  # JSON, Unicode and validation errors are ValueErrors
            problems.append(Problem(path.name, reason(error)))
    return samples, problems


def read_sample(path: Path) -> Sample:
    """The sample that the JSON at `path` describes. Raises ValueError saying what is wrong with it."""
    document = json.loads(path.read_bytes())
    if not isinstance(document, dict):
        raise ValueError(f"holds a {type(document).__name__}, not an object")
    facts = Facts.model_validate(document)
    return Sample(
        name=path.stem,
        facts=facts,
        request=document["request"],
        lyrics=read_lyrics(path.parent, path.stem, facts.request.lyrics),
        audio={name: audio for name in LEVELS if (audio := recording(path.parent, facts, name)) is not None},
    )


def recording(folder: Path, facts: Facts, level: str) -> Path | None:
    """The recording of a level if it is there. Only bare names count: a sample must not lead out of its folder."""
    name = facts.levels[level].audio if level in facts.levels else ""
    if not name or "\0" in name or Path(name).name != name or not (folder / name).is_file():
        return None
    return folder / name


def reason(error: Exception) -> str:
    """One line a reader can act on."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
