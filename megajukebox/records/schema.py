"""How a dataclass becomes a record on disk and comes back: with a version, tolerantly.

Writers give every record `"schema": 2`. Readers take versions 1 and 2: each kind of record has a function that gives a
version-1 record the names of today. Fields that are not known, or hold another type than they should, are left out.
"""

import json
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from megajukebox.common.files import write_atomic
from megajukebox.records.productive_time import number

SCHEMA = 2

T = TypeVar("T")


def to_record(value: Any) -> dict[str, Any]:
    """The fields of a dataclass that are set (None is not), after the version."""
    record: dict[str, Any] = {"schema": SCHEMA}
    for field in fields(value):
        content = getattr(value, field.name)
        if content is not None:
            record[field.name] = content
    return record


def from_record(cls: type[T], record: Mapping[str, Any]) -> T:
    """A `cls`, every field of which has a default, from what a file holds of it."""
    known: dict[str, Any] = {}
    for name, read in field_readers(cls).items():  # type: ignore[arg-type]
        if name in record:
            content = read(record[name])
            if content is not None:
                known[name] = content
    return cls(**known)


@cache
def field_readers(cls: type) -> dict[str, Callable[[Any], Any]]:
    """For every field of a dataclass what `reader_of` its type is: found once, for a run has 100,000 records."""
    hints = typing.get_type_hints(cls)
    return {field.name: reader_of(hints[field.name]) for field in fields(cls) if field.init}


def reader_of(hint: Any) -> Callable[[Any], Any]:
    """A function that returns what it is given if that is of the type `hint`, else None. Numbers must be finite."""
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        kinds = [kind for kind in typing.get_args(hint) if kind is not types.NoneType]
        return reader_of(kinds[0])
    if hint is float:
        return number
    if hint is int:
        return whole_number
    kind = origin if origin in (list, dict) else object if hint is Any else hint
    return lambda content: content if isinstance(content, kind) else None


def whole_number(content: Any) -> int | None:
    """A finite number without what is behind its point."""
    value = number(content)
    return None if value is None else int(value)


def is_current(record: Mapping[str, Any]) -> bool:
    """Whether a record has the names of today; one without a version is of version 1."""
    version = number(record.get("schema"))
    return version is not None and version >= SCHEMA


def renamed(record: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """`record` with its fields called as `names` (old: new) has them."""
    return {names.get(name, name): content for name, content in record.items()}


def write_record(path: Path, value: Any) -> None:
    """A dataclass as a small JSON file, whole or not at all."""
    write_atomic(path, json.dumps(to_record(value)).encode())
