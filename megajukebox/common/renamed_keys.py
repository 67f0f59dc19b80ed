"""Keys of settings and records that were renamed: what an older version wrote is read under its present names."""

from typing import Any

from pydantic import model_validator

from megajukebox.common.errors import UserError


def accept_old_keys(**renamed: str) -> Any:
    """A validator for the body of a pydantic model, old key = present name: `_old = accept_old_keys(rows="blocks")`.

    It raises UserError where an old key and its present name are both there.
    """

    def accept(cls: type, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        result = {}
        for key, value in given.items():
            name = renamed.get(key, key)
            if name != key and name in given:
                raise UserError(f"{key} was renamed {name}, and both are given; leave out {key}")
            result[name] = value
        return result

    return model_validator(mode="before")(accept)
