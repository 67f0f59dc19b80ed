"""What a user asks for: one song a request, from YAML or JSON; every mistake is named, and no other request suffers."""

import json
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

LEVELS = ("top", "middle", "bottom")


class Request(BaseModel):
    """One song to make. `temperature`, `top_k`, `top_p` and `guidance` are one number, or one a level."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")
    artist: str | None = None
    genres: tuple[str, ...] = ()
    year: int | None = None
    moods: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    language: str | None = None
    lyrics: str = Field(
        "", max_length=100_000, description="plain text, or .lrc with the times at which it is to be sung"
    )
    seconds: float = Field(10.0, gt=0, le=3600)
    song_seconds: float | None = Field(None, gt=0, description="length the song is told to have; default: seconds")
    seed: int = 0
    temperature: dict[str, float] = {}
    top_k: dict[str, int] = {}
    top_p: dict[str, float] = {}
    guidance: dict[str, float] = {}  # 1 is off

    @field_validator("genres", "moods", "keywords", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("temperature", "top_k", "top_p", "guidance", mode="before")
    @classmethod
    def _every_level(cls, value: object, info) -> dict:
        given = value if isinstance(value, dict) else dict.fromkeys(LEVELS, value)
        unknown = set(given) - set(LEVELS)
        if unknown:
            raise ValueError(f"has no level {', '.join(sorted(map(str, unknown)))}; levels are {', '.join(LEVELS)}")
        highest = {"temperature": 10.0, "top_k": 65536, "top_p": 1.0, "guidance": 20.0}[info.field_name]
        may_be_0 = info.field_name != "temperature"
        for level, number in given.items():
            if not isinstance(number, (int, float)) or not 0 <= number <= highest or not (number or may_be_0):
                least = "at least" if may_be_0 else "above"
                raise ValueError(f"{level} is {number!r}; it must be {least} 0 and at most {highest:g}")
        return given

    def at(self, setting: str, level: str, default: float) -> float:
        return getattr(self, setting).get(level, default)

    def names(self, condition: str) -> list[str]:
        """What the request says of one condition, as names."""
        value = getattr(self, condition, None)
        return [] if value is None else [str(v) for v in value] if isinstance(value, tuple) else [str(value)]


def read_requests(path: Path) -> tuple[list[Request], list[str]]:
    """The good requests of a YAML or JSON list, and one line for each that cannot be made.

    Raises ValueError if the file itself is missing or is not a list of requests.
    """
    try:
        data = json.loads(path.read_text()) if path.suffix == ".json" else yaml.safe_load(path.read_text())
    except OSError:
        raise ValueError(f"requests file {str(path)!r} cannot be read; give a YAML or JSON list of requests") from None
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is not YAML or JSON: {error}") from None
    data = [data] if isinstance(data, dict) else data
    if not isinstance(data, list) or not data:
        raise ValueError(f"{path} holds no list of requests; see the README for one")
    return parse_requests(data, path.stem)


def parse_requests(data: list, name: str = "song") -> tuple[list[Request], list[str]]:
    """Requests of plain data; one without an id is called <name>-<number>."""
    good: dict[str, Request] = {}
    wrong = []
    for number, entry in enumerate(data):
        if not isinstance(entry, dict):
            wrong.append(f"request {number}: {entry!r} is not a mapping of settings")
            continue
        try:
            request = Request.model_validate({"id": f"{name}-{number:03d}", **entry})
        except ValidationError as error:
            wrong.append(f"request {entry.get('id', number)}: {_mistakes(error)}")
            continue
        if request.id in good:
            wrong.append(f"request {number}: id {request.id!r} was used before; give each request its own")
        else:
            good[request.id] = request
    return list(good.values()), wrong


def _mistakes(error: ValidationError) -> str:
    """Each wrong setting: what is wrong with it, and what was given."""
    return "; ".join(
        f"{'.'.join(map(str, e['loc']))}: {e['msg']} (got {str(e['input'])[:50]!r})" for e in error.errors()
    )
