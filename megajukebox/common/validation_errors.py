"""What is wrong with settings that a person wrote, in words: pydantic's findings, without its jargon."""

from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails


def mistakes(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Each wrong setting of a `model`: where, what is wrong, what was given."""
    return [_mistake(finding, model) for finding in error.errors()]


def _mistake(finding: ErrorDetails, model: type[BaseModel]) -> str:
    place, said = finding["loc"], finding["msg"].removeprefix("Value error, ")
    name = ".".join(map(str, place))
    if finding["type"] == "extra_forbidden":
        near = get_close_matches(str(place[-1]), _settings(model, place[:-1]), 1)
        return f"{name} is no setting" + (f"; did you mean {near[0]}?" if near else "")
    if not place:  # several settings together, which the message itself names
        return said
    return f"{name}: {said} (got {shortened(finding['input'])})"


def _settings(model: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    """The settings that there are at a place, which is the names on the way to it."""
    kind: Any = model
    for name in place:
        fields = getattr(kind, "model_fields", None)
        kind = _inner(
            fields[name].annotation if fields and name in fields else kind, fields is None
        )
    return list(getattr(kind, "model_fields", ()))


def _inner(annotation: Any, of_values: bool) -> Any:
    """`Settings | None` -> Settings; dict[str, Settings] as it is, or with `of_values` Settings."""
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    is_table = getattr(annotation, "__origin__", None) is dict
    return annotation if not kinds or (is_table and not of_values) else kinds[-1]


def shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "..."
