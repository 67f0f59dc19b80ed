"""What a user asks for: one song a request, from YAML or JSON; every mistake is named, and no other request suffers.

{id: a, seconds: 20}                                             from nothing
{id: b, seconds: 20, prompt: demo.wav, keep_seconds: 5}          goes on from a recording
{id: c, seconds: 40, prompt: samples/a.json}                     goes on from an earlier sample
{id: d, upsample: samples/a.json}                                the levels below are made anew
{id: e, infill: samples/a.json, replace: [[4, 6.5]], lyrics: x}  a range is made anew, with other words if wanted
"""

import json
import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from megajukebox.common.levels import LEVELS
from megajukebox.common.validation_errors import mistakes

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
SOURCES = ("prompt", "upsample", "infill")  # settings that name a file; at most one of them


class SongRequest(BaseModel):
    """One song to make. `temperature`, `top_k`, `top_p` and `guidance` are one number, or one a level."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    artist: str | None = None
    genres: tuple[str, ...] = ()
    year: int | None = None
    moods: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    language: str | None = None
    lyrics: str = Field(
        "",
        max_length=100_000,
        description="plain text, or .lrc with the times at which it is to be sung",
    )
    aligned: dict[str, Any] = Field(
        {},
        description="conditions that follow the song in time, by their names",
        exclude_if=lambda aligned: not aligned,  # records of before have no such field
    )
    seconds: float = Field(10.0, gt=0, le=3600)
    song_seconds: float | None = Field(
        None, gt=0, description="length the song is told to have; default: seconds"
    )
    seed: int = 0
    temperature: dict[str, float] = {}
    top_k: dict[str, int] = {}
    top_p: dict[str, float] = {}
    guidance: dict[str, float] = {}  # 1 is off
    hop_fraction: dict[str, float] = {}  # of a window, by which the next one moves on
    variations: int = Field(
        1, ge=1, le=1000, description="songs of this request, with seeds seed, seed + 1, ..."
    )
    prompt: str | None = Field(None, description="a recording, or an earlier sample, to go on from")
    keep_seconds: float | None = Field(
        None, gt=0, description="how much of the prompt is kept; default: all"
    )
    upsample: str | None = Field(
        None, description="an earlier sample; levels below `upsample_from` are made anew"
    )
    upsample_from: Literal["top", "middle"] = "top"
    infill: str | None = Field(
        None, description="a recording or an earlier sample, of which `replace` is made anew"
    )
    replace: tuple[tuple[float, float], ...] = Field((), description="ranges of seconds")

    @field_validator("id")
    @classmethod
    def _names_files(cls, value: str) -> str:
        if not NAME.fullmatch(value):
            raise ValueError(
                "it names the files: letters a to z, digits, - and _, at most 64, the first no - or _"
            )
        return value

    @model_validator(mode="after")
    def _one_source(self) -> "SongRequest":
        given = [name for name in SOURCES if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} cannot be asked together; choose one")
        if bool(self.replace) != (self.infill is not None):
            raise ValueError(
                "infill and replace go together: which file, and which ranges of seconds of it"
            )
        if any(not 0 <= start < end for start, end in self.replace):
            raise ValueError(
                f"replace {self.replace} must hold ranges [start, end] with 0 <= start < end"
            )
        if self.keep_seconds is not None and self.prompt is None:
            raise ValueError("keep_seconds says how much of a prompt is kept; give the prompt")
        return self

    @property
    def source(self) -> str | None:
        """The file that the song begins with, is made of, or is mended in."""
        return next(
            (getattr(self, name) for name in SOURCES if getattr(self, name) is not None), None
        )

    @property
    def mode(self) -> str:
        return next((name for name in SOURCES if getattr(self, name) is not None), "new")

    @field_validator("genres", "moods", "keywords", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("temperature", "top_k", "top_p", "guidance", "hop_fraction", mode="before")
    @classmethod
    def _every_level(cls, value: object, info) -> dict:
        given = value if isinstance(value, dict) else dict.fromkeys(LEVELS, value)
        unknown = set(given) - set(LEVELS)
        if unknown:
            raise ValueError(
                f"has no level {', '.join(sorted(map(str, unknown)))}; levels are {', '.join(LEVELS)}"
            )
        highest = {
            "temperature": 10.0,
            "top_k": 65536,
            "top_p": 1.0,
            "guidance": 20.0,
            "hop_fraction": 1.0,
        }[info.field_name]
        may_be_0 = info.field_name not in ("temperature", "hop_fraction")
        for level, number in given.items():
            if (
                not isinstance(number, (int, float))
                or not 0 <= number <= highest
                or not (number or may_be_0)
            ):
                least = "at least" if may_be_0 else "above"
                raise ValueError(
                    f"{level} is {number!r}; it must be {least} 0 and at most {highest:g}"
                )
        return given

    def at(self, setting: str, level: str, default: float) -> float:
        return getattr(self, setting).get(level, default)

    def names(self, condition: str) -> list[str]:
        """What the request says of one condition, as names."""
        value = getattr(self, condition, None)
        return (
            []
            if value is None
            else [str(v) for v in value]
            if isinstance(value, tuple)
            else [str(value)]
        )


def read_requests(path: Path) -> tuple[list[SongRequest], list[str]]:
    """The good requests of a YAML or JSON list, and one line for each that cannot be made.

    Raises ValueError if the file itself is missing or is not a list of requests.
    """
    try:
        data = (
            json.loads(path.read_text())
            if path.suffix == ".json"
            else yaml.safe_load(path.read_text())
        )
    except OSError:
        raise ValueError(
            f"requests file {str(path)!r} cannot be read; give a YAML or JSON list of requests"
        ) from None
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is not YAML or JSON: {error}") from None
    data = [data] if isinstance(data, dict) else data
    if not isinstance(data, list) or not data:
        raise ValueError(f"{path} holds no list of requests; see the README for one")
    for entry in data:
        if isinstance(entry, dict):
            entry.update(
                {
                    name: str(path.parent / entry[name])
                    for name in SOURCES
                    if _beside(path, entry.get(name))
                }
            )
    return parse_requests(data, path.stem)


def _beside(path: Path, named: object) -> bool:
    """Whether a file is named as it lies beside the requests, and not as seen from here."""
    return isinstance(named, str) and not Path(named).exists() and (path.parent / named).exists()


def parse_requests(data: list, name: str = "song") -> tuple[list[SongRequest], list[str]]:
    """Requests of plain data; one without an id is called <name>-<number>."""
    good: dict[str, SongRequest] = {}
    wrong = []
    for number, entry in enumerate(data):
        if not isinstance(entry, dict):
            wrong.append(f"request {number}: {entry!r} is not a mapping of settings")
            continue
        try:
            request = SongRequest.model_validate({"id": f"{name}-{number:03d}", **entry})
        except ValidationError as error:
            wrong.append(
                f"request {entry.get('id', number)}: {'; '.join(mistakes(error, SongRequest))}"
            )
            continue
        for one in variations_of(request):
            if one.id in good:
                wrong.append(
                    f"request {number}: id {one.id!r} was used before; give each request its own"
                )
            else:
                good[one.id] = one
    return list(good.values()), wrong


def variations_of(request: SongRequest) -> list[SongRequest]:
    """The request once for each of its variations: <id>-1, <id>-2, ... They share their prompt."""
    if request.variations == 1:
        return [request]
    numbers = range(request.variations)
    changes = (
        {"id": f"{request.id}-{n + 1}", "seed": request.seed + n, "variations": 1} for n in numbers
    )
    return [request.model_copy(update=change) for change in changes]
