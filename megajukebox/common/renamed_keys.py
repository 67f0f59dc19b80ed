"""Keys of settings and records that were renamed: what an older version wrote is read under its present names."""

from collections.abc import Mapping
from typing import Any

from pydantic import model_validator

from megajukebox.common.errors import UserError


def rename_keys(given: Any, renamed: Mapping[str, str]) -> Any:
    """`given`, if it is a dict, with its old keys under their present names (`renamed`: old -> new).

    Raises:
        ValueError: an old key and its present name are both there.
    """
    if not isinstance(given, dict):
        return given
    result = {}
    for key, value in given.items():
        name = renamed.get(key, key)
        if name != key and name in given:
            raise UserError(f"{key} was renamed {name}, and both are given; leave out {key}")
        result[name] = value
    return result


def accept_old_keys(**renamed: str) -> Any:
    """A validator for the body of a pydantic model, old key = present name: `_old = accept_old_keys(rows="blocks")`."""

    def accept(cls: type, given: Any) -> Any:
        return rename_keys(given, renamed)

    return model_validator(mode="before")(accept)
