"""What the Studio offers, and how its form becomes a request for the `sample` entry."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from megajukebox.common.errors import UserError
from megajukebox.common.levels import PRIOR_FOLDERS
from megajukebox.conditioning.vocabulary import UNKNOWN, read_vocabularies
from megajukebox.explorer.loaders.samples import describe_error
from megajukebox.explorer.server.uploads import MAX_BYTES, MAX_SECONDS, Upload

MAX_NAMES = 2000  # offered while somebody types
MAX_LYRICS = 20_000  # characters

# A request as plain data -> what is wrong with it, in words; [] if it can be sampled.
RequestCheck = Callable[[dict[str, Any]], list[str]]


class SongForm(BaseModel):
    """What the page may send; anything else is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    artist: str | None = Field(None, max_length=200)
    genres: tuple[str, ...] = Field((), max_length=20)
    lyrics: str = Field("", max_length=MAX_LYRICS)
    seconds: float = Field(4.0, gt=0, le=3600)
    seed: int = Field(0, ge=-(2**63), lt=2**63)
    temperature: float | None = Field(None, gt=0, le=10)
    sampler: str = Field("", max_length=40)
    upload: str | None = Field(None, max_length=40)
    prime_seconds: float | None = Field(None, gt=0)


@dataclass(frozen=True)
class StudioOptions:
    """What a run can be asked for. The first of `samplers` is the default."""

    run: Path
    samplers: tuple[str, ...]
    max_seconds: float

    def as_json(self) -> dict[str, Any]:
        return {
            "run": str(self.run),
            "artists": trained_names(self.run, "artist"),
            "genres": trained_names(self.run, "genres"),
            "samplers": list(self.samplers),
            "seconds": self.max_seconds,
            "lyrics": MAX_LYRICS,
            "upload_mb": MAX_BYTES >> 20,
            "upload_seconds": round(MAX_SECONDS),
        }


def trained_names(run: Path, condition: str) -> list[str]:
    """The names of a condition that the top prior was trained on."""
    vocabulary = read_vocabularies(run / PRIOR_FOLDERS["top"]).get(condition)
    if vocabulary is None:
        return []
    return [name for name in vocabulary.names if name != UNKNOWN][:MAX_NAMES]


def parse_form(data: object) -> SongForm:
    """The form that the page sent.

    Raises:
        UserError: a field is wrong; the message is for the reader of the page.
    """
    try:
        return SongForm.model_validate(data)
    except ValidationError as error:
        raise UserError(describe_error(error)) from None


def build_request(
    form: SongForm, options: StudioOptions, upload: Upload | None, check: RequestCheck
) -> dict[str, Any]:
    """The request that the form asks for; with `upload`, one that continues that recording.

    Raises:
        UserError: it cannot be sampled.
    """
    if form.seconds > options.max_seconds:
        raise UserError(
            f"seconds is {form.seconds:g}; this server generates at most {options.max_seconds:g}"
        )
    if form.sampler and form.sampler not in options.samplers:
        raise UserError(f"sampler {form.sampler!r} is none of {', '.join(options.samplers)}")
    request: dict[str, Any] = {
        "artist": form.artist or None,
        "genres": list(form.genres),
        "lyrics": form.lyrics,
        "seconds": form.seconds,
        "seed": form.seed,
    }
    if form.temperature is not None:
        request["temperature"] = form.temperature
    if upload:
        kept = min(form.prime_seconds or upload.seconds, upload.seconds)
        if kept >= form.seconds:
            raise UserError(
                f"{kept:g} s of the recording leave nothing of {form.seconds:g} s to generate; ask for more"
            )
        request["prompt"] = str(upload.path)
        request["keep_seconds"] = kept
    problems = check({"id": "studio", **request})
    if problems:
        raise UserError("; ".join(problems))
    return request
