"""The sections of a song: read from side-cars, label files and lyrics; and which stretch of it sounded before.

    "sections": [{"kind": "verse", "start": 12.4, "end": 33.2, "from": "lrc"}, ...]      in a song's JSON, in seconds
    "returns":  [[start, end, earlier_start], ...]

A return says that what sounds from `start` to `end` sounded before, from `earlier_start` on. Where sections are known it
is each section with the last earlier one of its name; else self-similarity finds it (data/self_similarity.py).
"""

import math
import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from megajukebox.common.errors import BadSampleError, UserError
from megajukebox.conditioning.lrc import TimedWord, parse_lrc
from megajukebox.conditioning.section_kinds import (
    END_MARKS,
    UNKNOWN_KIND,
    heading_of,
    kind_of,
    plain_label,
)

MAX_SECTIONS = 1000  # of a song: an hour in stretches of 3.6 s
MAX_LABEL = 100  # characters
MIN_SECONDS = 0.5  # of a section that is kept
# A line of a label file: `12.4 verse`, or with its end `12.4 33.2 verse` (Audacity); times in seconds or as m:ss.
TIME = r"(?:(\d{1,4}):)?(\d{1,5}(?:[.,]\d{1,9})?)"
LABEL_LINE = re.compile(rf"\s*{TIME}\s+(?:{TIME}\s+)?(\S.*?)\s*$")


class LabelledSection(NamedTuple):
    """A stretch of a song, in seconds. `label` is what its source calls it, where the kind does not say so already."""

    kind: str  # of SECTION_KINDS
    start: float
    end: float
    source: str  # json, txt, lrc, words, found
    label: str = ""

    @property
    def name(self) -> str:
        """What returns: the kind, or the label of an unknown kind; "" is nothing that could."""
        return self.label if self.kind == UNKNOWN_KIND else self.kind

    def to_record(self) -> dict[str, Any]:
        """The entry of a song's JSON."""
        record: dict[str, Any] = {"kind": self.kind}
        if self.label:
            record["label"] = self.label
        times = {"start": round(self.start, 3), "end": round(self.end, 3)}
        return {**record, **times, "from": self.source}


class SectionReturn(NamedTuple):
    """What sounds from `start` to `end` sounded before, from `earlier` on; all in seconds."""

    start: float
    end: float
    earlier: float
    strength: float = 1.0  # share of the earlier codes that is told: a request may ask for less


class SectionPlan(NamedTuple):
    """The sections of a song that is to be made, and which of them return."""

    sections: tuple[LabelledSection, ...] = ()
    returns: tuple[SectionReturn, ...] = ()


def labelled(label: str, start: float, end: float, source: str) -> LabelledSection:
    """The section that a source calls `label`."""
    kind = kind_of(label)
    kept = plain_label(label)[:MAX_LABEL] if kind == UNKNOWN_KIND else ""
    return LabelledSection(kind, start, end, source, "" if kept == UNKNOWN_KIND else kept)


# ---- What people write


def read_label_lines(text: str) -> list[dict[str, Any]]:
    """The sections in `seconds label` lines, as a song's JSON has them; the last has no end unless one is written.

    Raises:
        UserError: a line is not of this form; it is named.
    """
    rows: list[tuple[float, float | None, str]] = []
    for number, line in enumerate(re.split(r"\r\n?|\n|;", text), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = LABEL_LINE.match(line)
        if not match:
            raise UserError(
                f"line {number}: {line.strip()[:60]!r} is not `seconds label`; write `12.4 verse`"
            )
        end = None if match[4] is None else seconds_of(match[3], match[4])
        rows.append((seconds_of(match[1], match[2]), end, match[5]))
    entries = [{"kind": label, "start": start, "end": end} for start, end, label in rows]
    return checked_sections(entries, "txt")


def seconds_of(minutes: str | None, seconds: str) -> float:
    return 60 * int(minutes or 0) + float(seconds.replace(",", "."))


def checked_sections(entries: Any, source: str = "json") -> list[dict[str, Any]]:
    """Sections as a user gives them, in order of time: each a mapping with `kind` and `start`, and `end` if known.

    A section without an end lasts until the next one; the last one until the song ends, and keeps no `end`.

    Raises:
        UserError: names the entry and what is wrong with it.
    """
    if not isinstance(entries, (list, tuple)):
        raise UserError(f"{str(entries)[:60]!r} is no list of sections")
    if len(entries) > MAX_SECTIONS:
        raise UserError(f"{len(entries)} sections; at most {MAX_SECTIONS} are taken")
    rows = sorted(map(checked_entry, entries), key=lambda row: row[0])
    sections: list[dict[str, Any]] = []
    for number, (start, end, label) in enumerate(rows):
        is_last = number + 1 == len(rows)
        following = math.inf if is_last else rows[number + 1][0]
        if label.casefold() in END_MARKS and is_last and end is None:
            break
        if following == start:
            raise UserError(f"two sections start at {start:g} s; keep one of them")
        end = min(following, math.inf if end is None else end)
        record: dict[str, Any] = {"kind": label, "start": start, "from": source}
        sections.append(record if math.isinf(end) else {**record, "end": end})
    return sections


def checked_entry(entry: Any) -> tuple[float, float | None, str]:
    """(start, end or None, label) of one entry of `sections`."""
    if not isinstance(entry, Mapping):
        raise UserError(f"section {str(entry)[:60]!r} is no mapping; give kind, start and end")
    label = entry.get("kind", entry.get("label"))
    if not isinstance(label, str) or not label.strip() or len(label) > MAX_LABEL:
        raise UserError(f"section {str(dict(entry))[:60]}: `kind` must be a word")
    start = seconds_in(entry, label, "start")
    end = None if entry.get("end") is None else seconds_in(entry, label, "end")
    if end is not None and end <= start:
        raise UserError(f"section {label!r} ends at {end:g} s, and starts at {start:g} s")
    return start, end, label.strip()


def seconds_in(entry: Mapping[str, Any], label: str, name: str) -> float:
    """The time under `name` of an entry of `sections`."""
    value: Any = entry.get(name)
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise UserError(f"section {label!r}: `{name}` is {value!r}; give seconds from 0 on")
    return float(value)


# ---- What a song says


def resolve_sections(
    given: Sequence[Mapping[str, Any]], lyrics: str | None, seconds: float
) -> tuple[list[LabelledSection], int]:
    """(sections of a song that lasts `seconds`, how many were cut or left out at its end).

    Args:
        given: what `checked_sections` returned; [] where nothing lies beside the song.
        lyrics: plain text or LRC; asked where nothing is given.
    """
    sections: list[LabelledSection] = []
    for entry in given:
        end = float(entry.get("end", seconds))
        sections.append(labelled(entry["kind"], float(entry["start"]), end, entry["from"]))
    if not sections and lyrics:
        text, words = parse_lrc(lyrics)
        sections = sections_of_lyrics(text, words, seconds)
    kept: list[LabelledSection] = []
    changed = 0
    for section in sections:
        inside = section._replace(end=min(section.end, seconds))
        changed += inside.end < section.end or inside.start >= seconds
        if inside.end - inside.start >= MIN_SECONDS:
            kept.append(inside)
    return kept, changed


def sections_of_lyrics(
    text: str, words: Sequence[TimedWord], seconds: float
) -> list[LabelledSection]:
    """The sections that the headings of timed lyrics begin; without headings, the lines that come again as a chorus.

    A heading with a time of its own starts there, another one where the next word is sung. Plain lyrics say nothing of
    when: none.
    """
    starts = [word.start_char for word in words]  # in order
    headings: list[tuple[float, str]] = []
    lines: list[LabelledSection] = []
    waiting: str | None = None  # a heading without a time
    first_char = 0
    for line in text.split("\n"):
        end_char = first_char + len(line)
        sung = words[bisect_left(starts, first_char) : bisect_left(starts, end_char)]
        heading = heading_of(line)
        if heading is not None:
            waiting = heading
        elif sung:
            name = " ".join(re.findall(r"\w+", line.casefold()))
            lines.append(LabelledSection(UNKNOWN_KIND, sung[0].t0, sung[-1].t1, "words", name))
        if waiting is not None and sung:
            headings.append((sung[0].t0, waiting))
            waiting = None
        first_char = end_char + 1
    if len(headings) < 2:
        return repeated_lines(lines)
    sections = []
    for (start, name), following in zip(headings, [*headings[1:], (seconds, "")]):
        if following[0] - start >= MIN_SECONDS:
            sections.append(labelled(name, start, following[0], "lrc"))
    return sections


def repeated_lines(lines: Sequence[LabelledSection]) -> list[LabelledSection]:
    """A chorus for each stretch of lines whose words are sung again elsewhere in the song."""
    places: dict[str, set[int]] = {}
    for number, line in enumerate(lines):
        places.setdefault(line.label, set()).add(number)
    stretches: list[list[int]] = []
    for number, line in enumerate(lines):
        others = places[line.label] - {number}
        if not line.label or not others:
            continue
        if stretches and stretches[-1][-1] == number - 1:
            stretches[-1].append(number)
        else:
            stretches.append([number])
    if len(stretches) < 2:  # one stretch that repeats itself is no section that comes back
        return []
    sections = []
    for stretch in stretches:
        start, last = lines[stretch[0]].start, stretch[-1]
        end = lines[last + 1].start if last + 1 < len(lines) else lines[last].end
        sections.append(LabelledSection("chorus", start, max(end, lines[last].end), "words"))
    return sections


def returns_of(sections: Iterable[LabelledSection]) -> list[SectionReturn]:
    """Each section with the last earlier one of its name, as long as both last."""
    returns = []
    last: dict[str, LabelledSection] = {}
    for section in sections:
        earlier = last.get(section.name)
        if section.name and earlier is not None:
            length = min(section.end - section.start, earlier.end - earlier.start)
            returns.append(SectionReturn(section.start, section.start + length, earlier.start))
        last[section.name] = section
    return returns


def section_fields(
    sections: Sequence[LabelledSection], returns: Sequence[SectionReturn]
) -> dict[str, Any]:
    """`sections` and `returns` for a song's JSON; {} where nothing is known."""
    fields: dict[str, Any] = {}
    if sections:
        fields["sections"] = [section.to_record() for section in sections]
    if returns:
        fields["returns"] = [[round(time, 3) for time in one[:3]] for one in returns]
    return fields


# ---- What a shard says


def stored_sections(metadata: Mapping[str, Any]) -> list[LabelledSection]:
    """The `sections` of a song's JSON in a shard; [] where it has none.

    Raises:
        BadSampleError: they are not of the form that is written.
    """
    entries = metadata.get("sections") or []
    if not isinstance(entries, list) or len(entries) > MAX_SECTIONS:
        raise BadSampleError("json", f"sections {str(entries)[:60]} are no list of sections")
    sections = []
    for entry in entries:
        try:
            start, end, kind = checked_entry(entry)
        except UserError as error:
            raise BadSampleError("json", f"sections cannot be read ({error})") from None
        if end is None:
            raise BadSampleError("json", f"section {kind!r} has no end")
        label = str(entry.get("label", ""))[:MAX_LABEL]
        section = labelled(kind, start, end, str(entry.get("from", "json")))
        sections.append(section._replace(label=label) if label else section)
    return sorted(sections, key=lambda section: section.start)


def stored_returns(metadata: Mapping[str, Any]) -> list[SectionReturn]:
    """The `returns` of a song's JSON in a shard; without them, those of its sections.

    Raises:
        BadSampleError: they are no triples of seconds, or one does not lie before what returns.
    """
    entries = metadata.get("returns")
    if entries is None:
        return returns_of(stored_sections(metadata))
    returns = []
    for entry in entries if isinstance(entries, list) else [entries]:
        numbers: list[Any] = entry if isinstance(entry, list) and len(entry) == 3 else [None]
        is_time = [type(time) in (int, float) and 0 <= time < math.inf for time in numbers]
        if not all(is_time) or not numbers[2] < numbers[0] < numbers[1]:
            raise BadSampleError("json", f"return {str(entry)[:60]} is no [start, end, earlier]")
        returns.append(SectionReturn(*map(float, numbers)))
    return sorted(returns)
