"""What a user asks for: one song a request, from YAML or JSON; every mistake is named, and no other request suffers.

{id: a, seconds: 20}                                             from nothing
{id: b, seconds: 20, prompt: demo.wav, keep_seconds: 5}          continues a recording
{id: c, seconds: 40, prompt: samples/a.json}                     continues an earlier sample
{id: d, upsample: samples/a.json}                                samples the levels below again
{id: e, infill: samples/a.json, replace: [[4, 6.5]], lyrics: x}  samples a range again, with other words if wanted
{id: f, seconds: 20, artist: My Band, adapters: {mine: 0.8}}     with an adapter (docs/adapters.md)
"""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from megajukebox.common.errors import UserError
from megajukebox.common.levels import LEVELS
from megajukebox.common.plain_text import plain
from megajukebox.common.untrusted_files import (
    parse_json,
    parse_yaml,
    read_given,
    repeated_key,
)
from megajukebox.common.validation_errors import mistakes, no_switch
from megajukebox.conditioning.section_plan import MAX_PLANNED, Planned, plan_sections
from megajukebox.conditioning.song_sections import SectionPlan

MAX_SHOWN = 300  # characters of what somebody wrote, in a message
MAX_REASON = 2000
MAX_SONG_SECONDS = 86_400  # of a whole song, not of what is sampled
NUMBERS = ("year", "seconds", "song_seconds", "seed", "variations", "keep_seconds")
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ -]{0,127}")  # of a folder: no path
MAX_ADAPTER_SCALE = 4.0  # of what was trained; beyond it songs are noise
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
SOURCES = ("prompt", "upsample", "infill")  # settings that name a file; at most one of them


def per_level(maximum: float, zero_allowed: bool = True) -> BeforeValidator:
    """A setting that is one number, or one a level: at least 0 (or above it) and at most `maximum`."""

    def check(value: object) -> dict[str, Any]:
        numbers = value if isinstance(value, dict) else dict.fromkeys(LEVELS, value)
        unknown = sorted(str(level) for level in set(numbers) - set(LEVELS))
        if unknown:
            raise ValueError(f"has no level {', '.join(unknown)}; levels are {', '.join(LEVELS)}")
        for level, number in numbers.items():
            is_switch = isinstance(number, bool)  # which Python counts among the whole numbers
            in_range = isinstance(number, (int, float)) and not is_switch and 0 <= number <= maximum
            if not in_range or not (number or zero_allowed):
                least = "at least" if zero_allowed else "above"
                raise ValueError(
                    f"{level} is {number!r}; it must be {least} 0 and at most {maximum:g}"
                )
        return numbers

    return BeforeValidator(check)


# One name, or a list of them.
Names = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
]


class SongRequest(BaseModel):
    """One song to generate. `temperature`, filters, `guidance` and `hop_fraction` are one number, or one a level."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    artist: str | None = None
    genres: Names = ()
    year: int | None = Field(None, ge=0, le=9999)
    moods: Names = ()
    keywords: Names = ()
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
    adapters: dict[str, float] = Field(
        {},
        description="scale by the name of an adapter that was given, or lies in RUNS/adapters",
        exclude_if=lambda adapters: not adapters,
    )
    sections: Planned = Field(
        (),
        max_length=MAX_PLANNED,
        description="what sounds when: kinds with seconds, or auto; default: headings in the lyrics",
        exclude_if=lambda sections: not sections,
    )
    seconds: float = Field(10.0, gt=0, le=3600)
    song_seconds: float | None = Field(
        None,
        gt=0,
        le=MAX_SONG_SECONDS,
        description="length of the song that timing is conditioned on; default: seconds",
    )
    seed: int = 0  # any whole number: the noise is a hash of it
    temperature: Annotated[dict[str, float], per_level(10.0, zero_allowed=False)] = {}
    top_k: Annotated[dict[str, int], per_level(65536)] = {}
    top_p: Annotated[dict[str, float], per_level(1.0)] = {}
    guidance: Annotated[dict[str, float], per_level(20.0)] = {}  # 1 is off
    # Of a window, by which the next one moves on.
    hop_fraction: Annotated[dict[str, float], per_level(1.0, zero_allowed=False)] = {}
    variations: int = Field(
        1, ge=1, le=1000, description="songs of this request, with seeds seed, seed + 1, ..."
    )
    prompt: str | None = Field(None, description="a recording or an earlier sample to continue")
    keep_seconds: float | None = Field(
        None,
        gt=0,
        le=MAX_SONG_SECONDS,
        description="how much of the prompt is kept; default: all",
    )
    upsample: str | None = Field(
        None, description="an earlier sample; levels below `upsample_from` are sampled again"
    )
    upsample_from: Literal["top", "middle"] = "top"
    infill: str | None = Field(
        None, description="a recording or an earlier sample, of which `replace` is sampled again"
    )
    replace: tuple[tuple[float, float], ...] = Field((), description="ranges of seconds")

    @field_validator(*NUMBERS, mode="before")
    @classmethod
    def _is_number(cls, value: object) -> object:
        return no_switch(value)

    @field_validator("adapters", mode="before")
    @classmethod
    def _scales(cls, value: object) -> object:
        """A list of names means the full scale of each."""
        if isinstance(value, str):
            value = [value]
        if isinstance(value, list):
            value = dict.fromkeys(value, 1.0)
        if isinstance(value, dict):
            return {name: no_switch(scale) for name, scale in value.items()}
        return value

    @field_validator("adapters", mode="after")
    @classmethod
    def _scales_in_range(cls, adapters: dict[str, float]) -> dict[str, float]:
        for name, scale in adapters.items():
            if not FILE_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no name of a folder; letters, digits, . _ - will do")
            if not 0 <= scale <= MAX_ADAPTER_SCALE:
                raise ValueError(f"{name} is {scale:g}; it must be from 0 to {MAX_ADAPTER_SCALE:g}")
        return adapters

    @field_validator("replace", mode="after")
    @classmethod
    def _in_order(cls, ranges: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
        if any(not 0 <= start < end <= MAX_SONG_SECONDS for start, end in ranges):
            raise ValueError(
                "must hold ranges [start, end] in finite seconds with 0 <= start < end <="
                f" {MAX_SONG_SECONDS}"
            )
        return ranges

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
        asked = [name for name in SOURCES if getattr(self, name) is not None]
        if len(asked) > 1:
            raise ValueError(f"{' and '.join(asked)} cannot be asked together; choose one")
        if bool(self.replace) != (self.infill is not None):
            raise ValueError(
                "infill and replace go together: which file, and which ranges of seconds of it"
            )
        if self.keep_seconds is not None and self.prompt is None:
            raise ValueError("keep_seconds says how much of a prompt is kept; give the prompt")
        return self

    @property
    def section_plan(self) -> SectionPlan:
        """When which section is to sound, over the length that timing is conditioned on."""
        return plan_sections(self.sections, self.lyrics, self.song_seconds or self.seconds)

    @property
    def mode(self) -> str:
        """`prompt`, `upsample`, `infill`, or `new`."""
        for name in SOURCES:
            if getattr(self, name) is not None:
                return name
        return "new"

    @property
    def source(self) -> str | None:
        """The file that the song continues, upsamples or infills."""
        return None if self.mode == "new" else getattr(self, self.mode)

    def at(self, setting: str, level: str, default: float) -> float:
        """A setting's value for one level."""
        return getattr(self, setting).get(level, default)

    def names(self, condition: str) -> list[str]:
        """The names that the request gives of one condition."""
        value = getattr(self, condition, None)
        if value is None:
            return []
        values = value if isinstance(value, tuple) else (value,)
        return [str(one) for one in values]


def read_requests(path: Path) -> tuple[list[SongRequest], list[str]]:
    """The valid requests of a YAML or JSON list, and one line for each that is not.

    Raises:
        UserError: the file itself is missing or is not a list of requests.
    """
    parse = parse_json if path.suffix.lower() == ".json" else parse_yaml
    try:
        data = parse(read_given(path), mark_repeated=True)
    except OSError as error:
        raise UserError(
            f"requests file {str(path)!r} cannot be read; give a YAML or JSON list of requests"
            f" ({error.strerror})"
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is not YAML or JSON: {plain(str(error))[:MAX_SHOWN]}") from None
    entries = [data] if isinstance(data, dict) else data
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path} holds no list of requests; see docs/sampling.md for one")
    for entry in entries:
        if not isinstance(entry, dict):
            continue
        for name in SOURCES:  # files named as seen from the requests' folder, and not from here
            file = entry.get(name)
            # exists() of os, which says no to names that no file can have
            if isinstance(file, str) and not os.path.exists(file):
                beside = os.path.join(path.parent, file)
                if os.path.exists(beside):
                    entry[name] = beside
    return parse_requests(entries, path.stem)


def parse_requests(data: list, name: str = "song") -> tuple[list[SongRequest], list[str]]:
    """The valid requests of plain data, and one line for each that is not. One without an id is <name>-<number>.

    A request of several variations becomes <id>-1, <id>-2, ..., which share their prompt.
    """
    valid: dict[str, SongRequest] = {}
    refused = []
    for number, entry in enumerate(data):
        if not isinstance(entry, dict):
            shown = plain(repr(entry))[:MAX_SHOWN]
            refused.append(f"request {number}: {shown} is not a mapping of settings")
            continue
        repeated = repeated_key(entry)
        if repeated:
            shown = plain(str(entry.get("id", number)))[:MAX_SHOWN]
            refused.append(f"request {shown}: {plain(repeated)[:MAX_SHOWN]}")
            continue
        try:
            settings = {str(key): value for key, value in entry.items()}
            request = SongRequest.model_validate({"id": f"{name}-{number:03d}", **settings})
        except ValidationError as error:
            shown = plain(str(entry.get("id", number)))[:MAX_SHOWN]
            reasons = plain("; ".join(mistakes(error, SongRequest)))[:MAX_REASON]
            refused.append(f"request {shown}: {reasons}")
            continue
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            reason = plain(str(error))[:MAX_SHOWN]
            refused.append(f"request {number}: cannot be read as settings: {reason}")
            continue
        for n in range(request.variations):
            variation = request
            if request.variations > 1:
                change = {"id": f"{request.id}-{n + 1}", "seed": request.seed + n, "variations": 1}
                variation = request.model_copy(update=change)
            if variation.id in valid:
                refused.append(
                    f"request {number}: id {variation.id!r} was used before; give each request its own"
                )
            else:
                valid[variation.id] = variation
    return list(valid.values()), refused
