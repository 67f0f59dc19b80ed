"""Mistakes in settings that a user wrote as text: pydantic's findings, without its jargon."""

import math
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

# pydantic's words for a bound -> ours.
BOUNDS = {
    "Input should be less than or equal to": "must be at most",
    "Input should be greater than or equal to": "must be at least",
    "Input should be": "must be",
}
MAX_PATHS = 3  # that are suggested
ANY = "*"  # in place of a name that the user chooses, as that of a stage


def mistakes(error: ValidationError, model: type[BaseModel], stage: str = "<stage>") -> list[str]:
    """Each wrong setting of a `model`: where, what is wrong, what was given. `stage` stands in paths that lack one."""
    found = []
    for finding in error.errors():
        path = finding["loc"]
        name = ".".join(map(str, path))
        if finding["type"] == "extra_forbidden":
            near = get_close_matches(str(path[-1]), _settings_at(model, path[:-1]), 1)
            below = [] if near else _paths_ending_in(model, str(path[-1]))
            hint = near[0] if near else " or ".join(below[:MAX_PATHS]).replace(ANY, stage)
            found.append(f"{name} is no setting" + (f"; did you mean {hint}?" if hint else ""))
        elif not path:  # several settings together, which the message itself names
            found.append(finding["msg"].removeprefix("Value error, "))
        else:
            found.append(f"{name}: {_in_our_words(finding)} (got {shortened(finding['input'])})")
    return found


def no_switch(value: object) -> object:
    """`value`, for a field that holds a number: pydantic would take true for 1.

    Raises:
        ValueError: it is true or false.
    """
    if isinstance(value, bool):
        raise ValueError(f"must be a number, not {str(value).lower()}")
    return value


def _in_our_words(finding: Any) -> str:
    message = finding["msg"].removeprefix("Value error, ")
    for theirs, ours in BOUNDS.items():
        if message.startswith(theirs):
            message = ours + message.removeprefix(theirs)
            break
    given = finding["input"]
    if isinstance(given, float) and not math.isfinite(given) and "finite" not in message:
        return message.replace("must be", "must be a finite number,", 1)
    return message


def _paths_ending_in(model: type[BaseModel], last: str, inside: str = "") -> list[str]:
    """The settings below `model` whose own name is `last`, by their paths; the shortest first."""
    found = []
    for name, field in model.model_fields.items():
        path = f"{inside}{name}"
        if name == last:
            found.append(path)
        kinds = [one for one in (field.annotation, *get_args(field.annotation)) if _is_model(one)]
        if kinds:
            is_table = getattr(field.annotation, "__origin__", None) is dict
            below = f"{path}.{ANY}." if is_table else f"{path}."
            found += _paths_ending_in(kinds[0], last, below)
    return sorted(found, key=lambda path: (path.count("."), path))


def _is_model(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


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
