"""Names of artists, genres, years ... as ids: the vocabularies that a prior is conditioned on."""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from megajukebox.common.errors import UserError
from megajukebox.common.untrusted_files import parse_json, read_inside

UNKNOWN = "<unknown>"
UNKNOWN_ID = 0
EMPTY_SLOT = -1
VOCABULARIES = "vocabularies.json"  # of a run folder: the names of every condition
MAX_VOCABULARIES_BYTES = 1 << 26  # a million names
YEARS = re.compile(r"(\d{4,6})-(\d{4,6})")
MAX_BIN_YEARS = 10_000  # under one name


def normalised(name: str) -> str:
    """The form in which names are compared: composed, without case or outer spaces."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold()).strip()


@dataclass(frozen=True)
class Vocabulary:
    """Normalised names by id; id 0 is "<unknown>". Written to JSON as the list of its names.

    A name like "1990-1999" is also that of every year in it.
    """

    names: tuple[str, ...] = (UNKNOWN,)

    def __post_init__(self) -> None:
        if self.names[:1] != (UNKNOWN,):
            raise UserError(
                f"vocabulary starts with {self.names[:1]}; its first name must be {UNKNOWN!r}"
            )
        for name, times in Counter(self.names).items():
            if times > 1:
                raise UserError(f"vocabulary names {name!r} twice; keep one of them")

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def _id(self) -> dict[str, int]:
        ids: dict[str, int] = {}
        # Imported lists are not normalised; of two names alike the first counts.
        for i, name in enumerate(self.names):
            ids.setdefault(normalised(name), i)
        for i, name in enumerate(self.names):
            for year in years_in(name):
                ids.setdefault(str(year), i)
        return ids

    def id(self, name: str) -> int:
        """The id of a name however it is written; UNKNOWN_ID if it is not here."""
        return self._id.get(normalised(name), UNKNOWN_ID)

    def ids(self, names: Sequence[str], slots: int) -> np.ndarray:
        """[slots] int64: the known ones of `names`, at most `slots` of them, then empty slots (-1).

        All unknown: one unknown (0). No names: unknown (0) for one slot, an empty bag (-1 ...) for more.
        """
        ids: list[int] = []
        for name in names:
            i = self.id(name)
            if i != UNKNOWN_ID and i not in ids and len(ids) < slots:
                ids.append(i)
        if not ids and (names or slots == 1):
            ids.append(UNKNOWN_ID)
        empty = [EMPTY_SLOT] * (slots - len(ids))
        return np.array(ids + empty, dtype=np.int64)

    def grown(
        self, counts: Mapping[str, int], min_count: int = 1, size: int | None = None
    ) -> "Vocabulary":
        """With the new names of `counts` added behind: the ids of the names it has do not move."""
        if size is not None and size <= len(self):
            return self
        total: Counter[str] = Counter()
        for name, count in counts.items():
            total[normalised(name)] += count
        new: list[str] = []
        # The most frequent first, equal ones by name: the same counts give the same ids.
        for name in sorted(total, key=lambda name: (-total[name], name)):
            if total[name] >= min_count and name not in ("", UNKNOWN) and name not in self._id:
                new.append(name)
        return Vocabulary((*self.names, *new)[:size])

    def to_json(self) -> str:
        return json.dumps(list(self.names), ensure_ascii=False)

    @staticmethod
    def from_json(text: str) -> "Vocabulary":
        names = parse_json(text)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError("a vocabulary file holds one JSON list of names")
        return Vocabulary(tuple(names))

    @staticmethod
    def build(
        counts: Mapping[str, int], min_count: int = 1, size: int | None = None
    ) -> "Vocabulary":
        """Of the names in `counts` (an index's counts) those met `min_count` times or more, the most frequent first.

        `size`: at most so many ids, the unknown one included.
        """
        return Vocabulary().grown(counts, min_count, size)

    @staticmethod
    def of_years(first: int, last: int, bin_years: int = 1) -> "Vocabulary":
        """Every year from `first` to `last`, `bin_years` of them under one id: "1990-1999" for ten."""
        names = [UNKNOWN]
        for start in range(first // bin_years * bin_years, last + 1, bin_years):
            end = start + bin_years - 1
            names.append(f"{start:04d}-{end:04d}" if bin_years > 1 else str(start))
        return Vocabulary(tuple(names))

    @property
    def bin_years(self) -> int:
        """Years under one id, in a vocabulary of years."""
        return max(map(len, map(years_in, self.names[1:])), default=0) or 1


def years_in(name: str) -> range:
    """The years that "1990-1999" stands for; none for any other name."""
    years = YEARS.fullmatch(name)
    if not years:
        return range(0)
    first = int(years[1])
    return range(first, min(int(years[2]), first + MAX_BIN_YEARS) + 1)


def vocabularies_json(vocabularies: Mapping[str, Vocabulary]) -> bytes:
    """The vocabularies of every condition as a file, one line each."""
    entries = (f' "{name}": {names.to_json()}' for name, names in vocabularies.items())
    return ("{\n" + ",\n".join(entries) + "\n}\n").encode()


def read_vocabularies(run: Path) -> dict[str, Vocabulary]:
    """The vocabularies of a run folder by condition; none if it keeps none."""
    try:
        given = parse_json(read_inside(run, VOCABULARIES, MAX_VOCABULARIES_BYTES))
    except FileNotFoundError:
        return {}
    return {name: Vocabulary(tuple(entries)) for name, entries in given.items()}
