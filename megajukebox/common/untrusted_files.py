"""Reading files that somebody else may have written: of runs, samples, caches and requests in shared folders.

Such a name may be a link to a secret, a pipe that nobody writes to, or a device without an end; its content may be a
bomb. Everything in the package reads through this module, `data/` (audio, tars) and the readers of checkpoints; a test
finds what does not (tests/test_untrusted_reads.py).
"""

import errno
import json
import os
import pickle
import stat
from collections.abc import Hashable, Iterable
from pathlib import Path, PurePath
from typing import Any, BinaryIO, NamedTuple

import yaml

MAX_DOCUMENT_BYTES = 16 << 20  # of a JSON or YAML document
MAX_DEPTH = 64  # of lists and mappings in one another
MAX_DIGITS = 400  # of a whole number: as long as the longest float in full

NOT_WAITING = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC


class UnsafeFileError(OSError):
    """A name that is a link, a pipe, a device or a folder where a regular file is expected, or a file that is too large."""


# ---- Opening ----------------------------------------------------------------------------------------------------------


def open_given(path: str | Path) -> BinaryIO:
    """Open a file that the user named. Links are followed, for the user may have made them.

    Raises:
        UnsafeFileError: it is no regular file.
        OSError: it cannot be opened.
    """
    return _regular(os.open(path, NOT_WAITING), os.fspath(path))


def open_inside(folder: str | Path, name: str | PurePath) -> BinaryIO:
    """Open a file by its name within a folder that others may write to. No link below `folder` is followed.

    Every part of `name` is opened from the folder before it, so that nothing can be exchanged in between.

    Raises:
        UnsafeFileError: `name` leaves the folder, goes through a link, or is no regular file.
        OSError: it cannot be opened.
    """
    # Strings and no paths: a scrape opens the files of hundreds of ranks.
    inner_name = os.fspath(name)
    path = os.path.join(folder, inner_name)
    parts = [part for part in inner_name.split("/") if part not in ("", ".")]
    if not parts or inner_name.startswith("/") or ".." in parts:
        raise UnsafeFileError(errno.EINVAL, f"is not a file within {folder}", path)
    parent = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            inner = os.open(part, flags, dir_fd=parent)
            os.close(parent)
            parent = inner
        file = os.open(parts[-1], NOT_WAITING | os.O_NOFOLLOW, dir_fd=parent)
    except OSError as error:
        if error.errno == errno.ELOOP or (
            error.errno == errno.ENOTDIR and _goes_through_link(Path(path))
        ):
            raise UnsafeFileError(error.errno, "is a link, or lies behind one", path) from None
        raise type(error)(error.errno, error.strerror, path) from None
    finally:
        os.close(parent)
    return _regular(file, path)


def _goes_through_link(path: Path) -> bool:
    return any(parent.is_symlink() for parent in path.parents)


def _regular(file: int, path: str) -> BinaryIO:
    mode = os.fstat(file).st_mode
    if stat.S_ISREG(mode):
        return open(path, "rb", opener=lambda *_: file)  # so that it knows its name
    os.close(file)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder", path)
    raise UnsafeFileError(errno.EINVAL, "is no regular file", path)


# ---- Reading ----------------------------------------------------------------------------------------------------------


def read_all(file: BinaryIO, max_bytes: int) -> bytes:
    """The whole of an open file, which is then closed.

    Raises:
        UnsafeFileError: it has more than `max_bytes`.
    """
    with file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise UnsafeFileError(errno.EFBIG, f"has more than {max_bytes:,} bytes", str(file.name))
    return data


def read_given(path: str | Path, max_bytes: int = MAX_DOCUMENT_BYTES) -> bytes:
    """The bytes of a file that the user named; see open_given."""
    return read_all(open_given(path), max_bytes)


def read_inside(
    folder: str | Path, name: str | PurePath, max_bytes: int = MAX_DOCUMENT_BYTES
) -> bytes:
    """The bytes of a file within a folder that others may write to; see open_inside."""
    return read_all(open_inside(folder, name), max_bytes)


class PlainUnpickler(pickle.Unpickler):
    """Makes numbers, texts, lists and dicts. Whatever else a pickle names is refused: to make it would run code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"names {module}.{name}; nothing was run")


# ---- Documents --------------------------------------------------------------------------------------------------------


class RepeatedKey(NamedTuple):
    """Stands, as a key, in a mapping of a document that gives one of its keys twice (see `mark_repeated`)."""

    name: object
    where: str = ""  # " (line 3)", where a parser knows it


def parse_json(data: bytes | str, mark_repeated: bool = False) -> Any:
    """A JSON document; a byte order mark before it is skipped.

    Args:
        mark_repeated: leave keys that are given twice to the caller (`repeated_key`), who takes the rest.

    Raises:
        ValueError: it is none, gives a key twice, or goes deeper than MAX_DEPTH.
    """
    if isinstance(data, str):
        data = data.removeprefix("\ufeff")
    try:
        value = json.loads(data, object_pairs_hook=_mapping)
    except RecursionError:
        raise ValueError(f"goes deeper than {MAX_DEPTH} lists and mappings") from None
    _check_depth(value)
    repeated = "" if mark_repeated else repeated_key(value)
    if repeated:
        raise ValueError(repeated)
    return value


def _mapping(pairs: list[tuple[str, Any]]) -> dict[Any, Any]:
    values: dict[Any, Any] = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        values[RepeatedKey(next(name for name in names if names.count(name) > 1))] = None
    return values


def repeated_key(value: Any, inside: str = "") -> str:
    """`'optimizer.params.lr' is given twice; keep one of them`, of the first key of a document that is; "" if none is."""
    inner: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        for key in value:
            if isinstance(key, RepeatedKey):
                name = f"{inside}{key.name}" if inside else key.name
                return f"{name!r} is given twice{key.where}; keep one of them"
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value)
    for name, one in inner:
        found = repeated_key(one, f"{inside}{name}.") if isinstance(one, (dict, list)) else ""
        if found:
            return found
    return ""


def _check_depth(value: Any) -> None:
    layer = [value]
    for _ in range(MAX_DEPTH + 1):
        inner: list[Any] = []
        for one in layer:
            if isinstance(one, dict):
                inner.extend(one.values())
            elif isinstance(one, list):
                inner.extend(one)
        if not inner:
            return
        layer = inner
    raise ValueError(f"goes deeper than {MAX_DEPTH} lists and mappings")


MERGE = "tag:yaml.org,2002:merge"


# libyaml takes a sixth of the time: a run.yaml of 128 kB 0.5 s of CPU and no longer 2.4 s.
FASTEST_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class BoundedLoader(FASTEST_LOADER):  # type: ignore[misc]
    """YAML without numbers in base 60 or without end; what gives a key twice has a RepeatedKey. See `_check_events`."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        named: set[Any] = set()
        repeated: RepeatedKey | None = None
        for key_node, _ in node.value:
            if key_node.tag == MERGE:
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in named:
                repeated = RepeatedKey(key, f" (line {key_node.start_mark.line + 1})")
            elif isinstance(key, Hashable):
                named.add(key)
        mapping = super().construct_mapping(node, deep)
        if repeated:
            mapping[repeated] = None
        return mapping

    def construct_number(self, node: yaml.ScalarNode) -> Any:
        text = self.construct_scalar(node)
        if ":" in text:  # YAML 1.1 reads 1:30 in base 60; YAML 1.2, and people, as a text
            return text
        if len(text) > MAX_DIGITS:
            raise yaml.constructor.ConstructorError(
                None, None, f"is a number of {len(text)} digits", node.start_mark
            )
        if node.tag.endswith(":int"):
            return self.construct_yaml_int(node)
        return self.construct_yaml_float(node)


for kind in ("int", "float"):
    BoundedLoader.add_constructor(f"tag:yaml.org,2002:{kind}", BoundedLoader.construct_number)


def _check_events(data: bytes | str, allow_aliases: bool) -> None:
    """Refuse what makes a small document large or slow, before anything is made of it.

    Raises:
        yaml.MarkedYAMLError: it has an alias, goes deeper than MAX_DEPTH, or is no YAML.
    """
    depth = 0
    for event in yaml.parse(data, Loader=FASTEST_LOADER):
        mark: Any = event.start_mark
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.AliasEvent) and not allow_aliases:
            problem = f"has an alias (*{event.anchor}): write the value out"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
        if depth > MAX_DEPTH:
            problem = f"goes deeper than {MAX_DEPTH} lists and mappings"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def parse_yaml(data: bytes | str, allow_aliases: bool = False, mark_repeated: bool = False) -> Any:
    """A YAML document; `mark_repeated` as in `parse_json`.

    Raises:
        ValueError: it is none, has an alias, gives a key twice, or goes deeper than MAX_DEPTH; the message says where.
    """
    try:
        _check_events(data, allow_aliases)
        value = yaml.load(data, Loader=BoundedLoader)
    except yaml.MarkedYAMLError as error:
        where = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        raise ValueError(f"{error.problem or 'is no YAML'}{where}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"is no YAML: {str(error).splitlines()[0]}") from None
    except (KeyError, IndexError, AttributeError, TypeError, OverflowError, RecursionError):
        # What PyYAML does with `!!bool maybe`, `!!int ""`, `!!timestamp never` and the like.
        raise ValueError("is no YAML: a value does not fit its !!tag") from None
    repeated = "" if mark_repeated else repeated_key(value)
    if repeated:
        raise ValueError(repeated)
    return value
