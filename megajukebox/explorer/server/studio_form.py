"""What the Studio offers, and how its form becomes a request for the `sample` entry."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from megajukebox.common.levels import PRIOR_FOLDERS
from megajukebox.conditioning.vocabulary import UNKNOWN, read_vocabularies
from megajukebox.explorer.loaders.samples import reason
from megajukebox.explorer.server.studio_jobs import Job
from megajukebox.explorer.server.uploads import MOST_BYTES, MOST_SECONDS, Upload

MOST_NAMES = 2000  # offered while somebody types

# A request as plain data -> what is wrong with it, in words; nothing if it can be made.
Check = Callable[[dict[str, Any]], list[str]]


class Form(BaseModel):
    """What the page may send; anything else is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    artist: str | None = Field(None, max_length=200)
    genres: tuple[str, ...] = Field((), max_length=20)
    lyrics: str = Field("", max_length=20_000)
    seconds: float = Field(4.0, gt=0, le=3600)
    seed: int = Field(0, ge=-(2**63), lt=2**63)
    temperature: float | None = Field(None, gt=0, le=10)
    sampler: str = Field("", max_length=40)
    upload: str | None = Field(None, max_length=40)
    prime_seconds: float | None = Field(None, gt=0)


@dataclass(frozen=True)
class Offer:
    """What a run can be asked for."""

    run: Path
    samplers: tuple[str, ...]
    prime: bool  # whether a song may begin with a recording
    most_seconds: float

    def as_json(self) -> dict[str, Any]:
        names = {name: offered(self.run, name) for name in ("artist", "genres")}
        return {
            "run": str(self.run),
            "artists": names["artist"],
            "genres": names["genres"],
            "samplers": list(self.samplers),
            "prime": self.prime,
            "seconds": self.most_seconds,
            "lyrics": 20_000,
            "upload_mb": MOST_BYTES >> 20,
            "upload_seconds": round(MOST_SECONDS),
        }


def offered(run: Path, condition: str) -> list[str]:
    """The names that the top prior was trained on."""
    known = read_vocabularies(run / PRIOR_FOLDERS["top"]).get(condition)
    return [name for name in known.names if name != UNKNOWN][:MOST_NAMES] if known else []


def parsed(given: object) -> Form:
    """ValueError, in words for the reader of the page, if the form cannot be meant so."""
    try:
        return Form.model_validate(given)
    except ValidationError as error:
        raise ValueError(reason(error)) from None


def request_of(form: Form, offer: Offer, upload: Upload | None, check: Check) -> dict[str, Any]:
    """The request that the form asks for. ValueError if it cannot be made."""
    if form.seconds > offer.most_seconds:
        raise ValueError(
            f"seconds is {form.seconds:g}; this server makes songs of at most {offer.most_seconds:g}"
        )
    if form.sampler and form.sampler not in offer.samplers:
        raise ValueError(f"sampler {form.sampler!r} is none of {', '.join(offer.samplers)}")
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
        request |= beginning(upload, form, offer)
    if wrong := check({"id": "studio", **request}):
        raise ValueError("; ".join(wrong))
    return request


def beginning(upload: Upload, form: Form, offer: Offer) -> dict[str, Any]:
    """The part of a request that says which recording the song begins with."""
    if not offer.prime:
        raise ValueError("this version's sampler cannot begin with a recording")
    seconds = min(form.prime_seconds or upload.seconds, upload.seconds)
    if seconds >= form.seconds:
        raise ValueError(
            f"{seconds:g} s of the recording leave nothing of {form.seconds:g} s to make; ask for more"
        )
    return {"prompt": str(upload.path), "keep_seconds": seconds}


def samplers_of(form: Form, offer: Offer) -> list[str]:
    """Which sampler is to draw the codes, if it is not the plain one: as `sample --sampler` takes it."""
    return [form.sampler] if form.sampler and form.sampler != offer.samplers[0] else []


def job_json(job: Job, page: str | None, audio: str | None) -> dict[str, Any]:
    """A song of the queue, for the page; `page` and `audio` are URLs once it is made."""
    share, doing = job.progress()
    request = job.request
    about = [
        ", ".join(request["genres"]),
        f"{request['seconds']:g} s",
        f"seed {request['seed']}",
        job.id,
    ]
    return {
        "id": job.id,
        "title": request["artist"] or "No artist",
        "about": " · ".join(part for part in about if part),
        "state": job.state,
        "reason": job.reason,
        "share": round(share, 3),
        "doing": doing,
        "page": page,
        "audio": audio,
    }
