"""Reads folders of samples. What cannot be read becomes a `Problem` to show, never a crash."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, FiniteFloat, JsonValue, ValidationError, model_validator

from megajukebox.common.levels import LEVELS
from megajukebox.explorer.loaders.timed_lyrics import Line, read_lyrics

TRACKS = (*LEVELS, "reconstruction", "original")  # all that a song can be heard as
DEPTH = 2  # folders between the one given and a sample


@dataclass(frozen=True)
class UnreadableSample:
    """A file that was skipped, or a part of one, and why."""

    name: str
    reason: str


class TolerantRecord(BaseModel):
    """Fields that this version does not know are ignored, so that it can show what a newer one made."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def leave_out_nulls(cls, given: Any) -> Any:
        """`"artist": null` means the same as no artist."""
        return (
            {key: value for key, value in given.items() if value is not None}
            if isinstance(given, dict)
            else given
        )


class LevelRecord(TolerantRecord):
    """How one level of a song was made."""

    audio: str = ""
    codes: int | None = None
    way: str = ""
    wall_seconds: FiniteFloat | None = None
    tokens_per_second: FiniteFloat | None = None


class RequestRecord(TolerantRecord):
    artist: str = ""
    genres: tuple[str, ...] = ()
    year: int | None = None
    moods: tuple[str, ...] = ()
    language: str = ""
    lyrics: str = ""
    seed: int | None = None
    sampler: str = ""
    prompt: str = ""  # the file that the song goes on from; or is made of, or is mended in:
    upsample: str = ""
    infill: str = ""


class SampleRecord(TolerantRecord):
    """What `<id>.json` says of a song."""

    request: RequestRecord
    notes: tuple[str, ...] = ()
    sample_rate: int | None = None
    seconds: FiniteFloat = 0.0
    levels: dict[str, LevelRecord] = {}
    weights: dict[str, JsonValue] = {}
    steps: dict[str, JsonValue] = {}
    runs: JsonValue = None
    alignment: JsonValue = None
    made_by: JsonValue = None
    reconstruction: JsonValue = None  # of which real song, where nothing was sampled


@dataclass(frozen=True)
class ListedSample:
    """A song, its files, and the request that made it."""

    name: str  # path from the folder given, without the ending; unique, unlike an id somebody wrote
    facts: SampleRecord
    request: JsonValue  # as it was written, with what this version does not know
    lyrics: list[Line]
    audio: dict[str, Path]  # track -> recording that exists
    made: float  # unix time of its JSON
    source: str  # sha256 of its JSON


def read_samples(folders: list[Path]) -> tuple[list[ListedSample], list[UnreadableSample]]:
    """The samples in and under `folders`, newest first, and what could not be read."""
    samples, problems = [], []
    for path, name in find_samples(folders):
        try:
            samples.append(read_sample(path, name))
        except (
            ValueError,
            RecursionError,
        ) as error:  # JSON, Unicode and validation errors are ValueErrors
            problems.append(UnreadableSample(f"{name}.json", reason(error)))
        except OSError as error:  # gone since the folder was listed, or not for us to read
            problems.append(UnreadableSample(f"{name}.json", error.strerror or str(error)))
    return sorted(samples, key=lambda sample: (-sample.made, sample.name)), problems


def find_samples(folders: list[Path]) -> Iterator[tuple[Path, str]]:
    """Every `<id>.json` with the name of its sample; of several folders the name begins with the folder's."""
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(
                f"samples {str(folder)!r} is not a folder; make one with `megajukebox sample`, or correct the path"
            )
    labels = distinct_labels(folders)
    for folder, label in zip(folders, labels):
        for path in json_files(folder, DEPTH):
            yield path, label + path.relative_to(folder).as_posix().removesuffix(".json")


def distinct_labels(folders: list[Path]) -> list[str]:
    """What stands before the names of each folder's samples: nothing for one folder, else as little as tells apart."""
    if len(folders) < 2:
        return ["" for _ in folders]
    for parts in range(1, 5):
        labels = ["/".join(folder.parts[-parts:]) + "/" for folder in folders]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{folder}/" for folder in folders]


def json_files(folder: Path, depth: int) -> Iterator[Path]:
    """JSON files in and under `folder`; hidden folders are somebody's own business."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.suffix == ".json":
            yield path
        elif depth and path.is_dir():
            yield from json_files(path, depth - 1)


def read_sample(path: Path, name: str) -> ListedSample:
    """The sample that the JSON at `path` describes. Raises ValueError saying what is wrong with it."""
    content = path.read_bytes()
    document = json.loads(content)
    if not isinstance(document, dict):
        raise ValueError(f"holds a {type(document).__name__}, not an object")
    facts = SampleRecord.model_validate(document)
    return ListedSample(
        name=name,
        facts=facts,
        request=document["request"],
        lyrics=read_lyrics(path, facts.request.lyrics, facts.alignment),
        audio={
            track: audio
            for track in TRACKS
            if (audio := recording(path.parent, facts, track)) is not None
        },
        made=path.stat().st_mtime,
        source=hashlib.sha256(content).hexdigest(),
    )


def recording(folder: Path, facts: SampleRecord, track: str) -> Path | None:
    """The recording of a level if it is there. Only bare names count: a sample must not lead out of its folder."""
    name = facts.levels[track].audio if track in facts.levels else ""
    if not name or "\0" in name or Path(name).name != name or not (folder / name).is_file():
        return None
    return folder / name


def reason(error: Exception) -> str:
    """One line a reader can act on."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
