"""Names of the rows of label tables: in OpenAI's lists, in the files of transformers' tokenizer, or by number."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megajukebox.common.errors import UserError
from megajukebox.common.files import write_atomic
from megajukebox.common.untrusted_files import parse_json, read_inside
from megajukebox.conditioning.jukebox_labels import (
    Version,
    jukebox_name,
    read_label_file,
    rows_as_vocabulary,
)
from megajukebox.conditioning.tokenizers import CHARACTERS
from megajukebox.conditioning.vocabulary import MAX_VOCABULARIES_BYTES, UNKNOWN, Vocabulary
from megajukebox.interop.export_record import EXPORT_RECORD
from megajukebox.models.prior import PriorConfig

LABEL_FILES = {"artist": "artist", "genres": "genre"}  # in OpenAI's lists: v2_artist_ids.txt
TOKENIZER_FILES = {"artist": "artists.json", "genres": "genres.json"}  # of transformers
NamedPriors = Sequence[tuple[Version, Mapping[str, Vocabulary]]]  # of each prior
TOKENIZER_CONFIG = "tokenizer_config.json"  # of transformers
MAX_GENRES = 5  # of one song, in transformers' tokenizer
V2_SUFFIX = ".v2"  # of a name in the latter, where names of both versions stand together


def label_version(config: PriorConfig, names: str | None = None) -> Version:
    """v3 labels name one genre, v2 labels a bag of them; `names`: the entry of model.json, which knows best."""
    if names in ("jukebox_v2", "jukebox_v3"):
        return "v2" if names == "jukebox_v2" else "v3"
    return "v3" if config.conditions["genres"].max_values == 1 else "v2"


def openai_list(version: Version, condition: str) -> str:
    """The name of OpenAI's list of one condition."""
    return f"{version}_{LABEL_FILES[condition]}_ids.txt"


def named_rows(
    config: PriorConfig, version: Version, folder: Path, required: bool
) -> dict[str, Vocabulary]:
    """The names of a prior's rows by the lists in `folder`, OpenAI's before those of a tokenizer.

    Conditions without a list are left out unless `required`.

    Raises:
        UserError: a list is missing or damaged, or does not fit the table.
    """
    names: dict[str, Vocabulary] = {}
    for condition, label in config.conditions.items():
        openai = folder / openai_list(version, condition)
        if openai.is_file():
            names[condition] = read_label_file(openai, label.table_size)
        elif (folder / TOKENIZER_FILES[condition]).is_file():
            rows = _tokenizer_rows(folder, condition, version, label.table_size)
            names[condition] = rows_as_vocabulary(rows, label.table_size)
        elif required:
            raise UserError(
                f"{openai} is missing, and {TOKENIZER_FILES[condition]} too; the {config.level}"
                f" prior's labels are {version} ids"
            )
    return names


def numbered_rows(size: int) -> Vocabulary:
    """Rows that nobody named: each is asked for by its number."""
    return Vocabulary((UNKNOWN, *map(str, range(1, size))))


def write_openai_lists(folder: Path, priors: NamedPriors) -> list[Path]:
    """Write the names of the priors' rows as OpenAI's lists; returns the files.

    A list is for all priors of its version; `unlisted` says where they differ and none is written.
    """
    files: list[Path] = []
    for condition in LABEL_FILES:
        for version, vocabulary in _by_version(priors, condition).items():
            lines = [f"{name};{row}\n" for name, row in _spelt_rows(vocabulary, version).items()]
            files.append(folder / openai_list(version, condition))
            write_atomic(files[-1], "".join(lines).encode())
    return files


def write_tokenizer_files(folder: Path, priors: NamedPriors, lyric_tokens: int) -> list[Path]:
    """Write the names of the priors' rows, from the top, as transformers' JukeboxTokenizer reads them.

    `lyric_tokens`: that the top sees at once. Returns the files; none where no rows have names.
    """
    tables: dict[str, dict[str, int]] = {}
    for condition, file in TOKENIZER_FILES.items():
        table = tables.setdefault(file, {})
        for version, vocabulary in _by_version(priors, condition).items():
            suffix = V2_SUFFIX if version == "v2" else ""
            for spelt, row in _spelt_rows(vocabulary, version).items():
                table[spelt + suffix] = row
    if not all(tables.values()):
        return []
    versions = [version for version, _ in priors]
    characters = CHARACTERS[versions[0]]
    tables["lyrics.json"] = {
        "<unk>": 0,
        **{character: number for number, character in enumerate(characters, start=1)},
    }
    settings = {
        "tokenizer_class": "JukeboxTokenizer",
        "version": versions,
        "n_genres": MAX_GENRES,
        "max_n_lyric_tokens": lyric_tokens,
    }
    for file, content in {**tables, TOKENIZER_CONFIG: settings}.items():
        write_atomic(folder / file, json.dumps(content, ensure_ascii=False).encode())
    return [folder / file for file in (*tables, TOKENIZER_CONFIG)]


def unlisted(priors: NamedPriors) -> list[str]:
    """A line for each condition whose names no list can hold."""
    lines: list[str] = []
    for condition in LABEL_FILES:
        named = [names for _, names in priors if condition in names]
        if named and not _by_version(priors, condition):
            lines.append(
                f"no list of {condition} names is written: the priors of one version number them"
                f" differently; {EXPORT_RECORD} has them all"
            )
    return lines


def _by_version(priors: NamedPriors, condition: str) -> dict[Version, Vocabulary]:
    """The names of a condition in each version; none at all where two priors of a version differ."""
    by_version: dict[Version, Vocabulary] = {}
    for version, names in priors:
        vocabulary = names.get(condition)
        if vocabulary is None or vocabulary == numbered_rows(len(vocabulary)):
            continue
        if by_version.setdefault(version, vocabulary).names != vocabulary.names:
            return {}
    return by_version


def _tokenizer_rows(folder: Path, condition: str, version: Version, size: int) -> dict[int, str]:
    """{row: name} of one version in artists.json or genres.json."""
    path = folder / TOKENIZER_FILES[condition]
    try:
        given: Any = parse_json(read_inside(folder, path.name, MAX_VOCABULARIES_BYTES))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path} {reason}; fetch it again, or take it away") from None
    if not isinstance(given, dict):
        raise UserError(f"{path} is no table of names and ids; fetch it again, or take it away")
    # A file of one version may leave the suffix out.
    has_suffixes = any(name.endswith(V2_SUFFIX) for name in given)
    rows: dict[int, str] = {}
    for name, row in given.items():
        is_v2 = name.endswith(V2_SUFFIX)
        if not name.isprintable():  # control characters and halves of surrogates name nobody
            continue
        if has_suffixes and is_v2 != (version == "v2") and row != 0:
            continue
        if not isinstance(row, int) or isinstance(row, bool) or not 0 <= row < size:
            raise UserError(
                f"{path}: {name!r:.80} has id {row!r:.80}; the {version} table has ids 0 to {size - 1}"
            )
        rows.setdefault(row, name.removesuffix(V2_SUFFIX) if is_v2 else name)
    return rows


def _spelt_rows(vocabulary: Vocabulary, version: Version) -> dict[str, int]:
    """{name: row} as the version spells names. What it cannot spell, or spells as another, stays as it is."""
    rows = {"unknown": 0}
    for row, name in enumerate(vocabulary.names):
        if row == 0 or name == f"<row {row}>" or len(name.splitlines()) != 1:
            continue
        spelt = jukebox_name(name, version)
        rows.setdefault(spelt if spelt and spelt not in rows else name, row)
    return rows
