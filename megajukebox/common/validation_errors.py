"""Mistakes in settings that a user wrote as text: pydantic's findings, without its jargon."""

from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


def mistakes(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Each wrong setting of a `model`: where, what is wrong, what was given."""
    found = []
    for finding in error.errors():
        path = finding["loc"]
        message = finding["msg"].removeprefix("Value error, ")
        name = ".".join(map(str, path))
        if finding["type"] == "extra_forbidden":
            near = get_close_matches(str(path[-1]), _settings_at(model, path[:-1]), 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            found.append(f"{name} is no setting{hint}")
        elif not path:  # several settings together, which the message itself names
            found.append(message)
        else:
            found.append(f"{name}: {message} (got {shortened(finding['input'])})")
    return found


def _settings_at(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """The settings there are at a path, which is the names on the way to it."""
    kind: Any = model
    for name in path:
        fields = getattr(kind, "model_fields", None)
        annotation = fields[name].annotation if fields and name in fields else kind
        # `Settings | None` -> Settings; dict[str, Settings] -> itself first, then Settings
        inner = [one for one in get_args(annotation) if one is not type(None)]
        is_new_table = fields is not None and getattr(annotation, "__origin__", None) is dict
        kind = annotation if is_new_table or not inner else inner[-1]
    return list(getattr(kind, "model_fields", ()))


def shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "..."
