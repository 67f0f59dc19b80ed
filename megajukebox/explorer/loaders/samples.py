"""Reads folders of samples. What cannot be read becomes an `UnreadableSample` to show, never a crash."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    FiniteFloat,
    JsonValue,
    ValidationError,
    model_validator,
)

from megajukebox.common.errors import UserError
from megajukebox.common.levels import LEVELS, REFINED_TRACKS
from megajukebox.common.untrusted_files import MAX_DOCUMENT_BYTES, open_inside, parse_json, read_all
from megajukebox.explorer.loaders.timed_lyrics import LyricLine, read_lyrics
from megajukebox.explorer.site_files import ContainedFile
from megajukebox.records.sample_record import current_sample_record

TRACKS = (  # all recordings that a song can have
    *LEVELS,
    *REFINED_TRACKS.values(),
    "reconstruction",
    "original",
)
DEPTH = 2  # folders between the one given and a sample
LABEL_PARTS = 4  # last folders of a path that may stand before a sample's name


@dataclass(frozen=True)
class UnreadableSample:
    """A file that was skipped, or a part of one, and why."""

    name: str
    reason: str


class TolerantRecord(BaseModel):
    """Fields that this version does not know are ignored, so that it can show what a newer one wrote."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def leave_out_nulls(cls, data: Any) -> Any:
        """`"artist": null` means the same as no artist."""
        if not isinstance(data, dict):
            return data
        return {key: value for key, value in data.items() if value is not None}


class LevelRecord(TolerantRecord):
    """How one level of a song was sampled."""

    audio: str = ""
    codes: int | None = None
    decoding: str = ""
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
    prompt: str = ""  # the file that the song continues
    upsample: str = ""  # the sample whose lower levels were sampled again
    infill: str = ""  # the sample of which a part was replaced


class SampleRecord(TolerantRecord):
    """The contents of `<id>.json`."""

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
    """A song, its files, and the request that it was sampled from."""

    name: str  # path from the folder given, without the ending; unique, which an id need not be
    record: SampleRecord
    request: JsonValue  # as it was written, with what this version does not know
    lyrics: list[LyricLine]
    audio: dict[str, Path]  # track -> recording that exists
    created: float  # unix time of its JSON
    digest: str  # sha256 of its JSON
    folder: Path  # that was given; no link below it is followed

    def recording(self, track: str) -> ContainedFile:
        """The recording of one of the tracks in `audio`, to be opened with care."""
        return ContainedFile(self.folder, self.audio[track].relative_to(self.folder))


def read_samples(folders: list[Path]) -> tuple[list[ListedSample], list[UnreadableSample]]:
    """The samples in and under `folders`, newest first, and what could not be read.

    Raises:
        UserError: one of `folders` is not a folder.
    """
    samples = []
    problems = []
    for found in find_samples(folders):
        name = found.name
        try:
            samples.append(read_sample(found))
        except (ValueError, RecursionError) as error:  # also of JSON, Unicode and pydantic
            problems.append(UnreadableSample(f"{name}.json", describe_error(error)))
        except OSError as error:  # gone since the folder was listed, or not readable for us
            problems.append(UnreadableSample(f"{name}.json", error.strerror or str(error)))
    return sorted(samples, key=lambda sample: (-sample.created, sample.name)), problems


@dataclass(frozen=True)
class SampleDocument:
    """Where the JSON of a sample lies: by its path within a folder that was given."""

    folder: Path
    document: PurePath
    name: str  # of the sample

    @property
    def path(self) -> Path:
        return self.folder / self.document


def find_samples(folders: list[Path]) -> Iterator[SampleDocument]:
    """Every `<id>.json` with the name of its sample; of several folders the name begins with the folder's."""
    for folder in folders:
        if not folder.is_dir():
            raise UserError(
                f"samples {str(folder)!r} is not a folder; create one with `megajukebox sample`, or correct the path"
            )
    for folder, label in zip(folders, distinct_labels(folders)):
        for path in json_files(folder, DEPTH):
            document = path.relative_to(folder)
            yield SampleDocument(
                folder, document, label + document.as_posix().removesuffix(".json")
            )


def distinct_labels(folders: list[Path]) -> list[str]:
    """What stands before the names of each folder's samples: nothing for one folder, else as little as tells apart."""
    if len(folders) < 2:
        return [""] * len(folders)
    for parts in range(1, LABEL_PARTS + 1):
        labels = ["/".join(folder.parts[-parts:]) + "/" for folder in folders]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{folder}/" for folder in folders]


def json_files(folder: Path, depth: int) -> Iterator[Path]:
    """JSON files in and under `folder`, but not in hidden folders, in links to folders, and in what we may not read."""
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        path = folder / entry.name
        if path.suffix == ".json":
            yield path
        elif depth and entry.is_dir(follow_symlinks=False):
            yield from json_files(path, depth - 1)


def read_sample(found: SampleDocument) -> ListedSample:
    """The sample that a JSON describes.

    Raises:
        ValueError: the JSON is not one of a sample; the message names what is wrong.
        OSError: it cannot be read, or lies behind a link.
    """
    file = open_inside(found.folder, found.document)
    created = os.fstat(file.fileno()).st_mtime
    content = read_all(file, MAX_DOCUMENT_BYTES)
    document = parse_json(content)
    if not isinstance(document, dict):
        raise ValueError(f"holds a {type(document).__name__}, not an object")
    record = SampleRecord.model_validate(current_sample_record(document))
    audio = {}
    for track in TRACKS:
        name = record.levels[track].audio if track in record.levels else ""
        # Only bare names count: a sample must not lead out of its folder.
        if name and PurePath(name).name == name:
            recording = ContainedFile(found.folder, found.document.with_name(name))
            if recording.is_recording():
                audio[track] = recording.path
    return ListedSample(
        name=found.name,
        record=record,
        request=document["request"],
        lyrics=read_lyrics(found.folder, found.document, record.request.lyrics, record.alignment),
        audio=audio,
        created=created,
        digest=hashlib.sha256(content).hexdigest(),
        folder=found.folder,
    )


def describe_error(error: Exception) -> str:
    """One line a reader can act on."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
