"""What of a piece is to be written, in words: `parts=ATB`, `bars=9-`, `bars=3-4,parts=T`, and the grid that they mean."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from megajukebox.common.errors import UserError
from megajukebox.notes.events import PartClass, class_name, class_rank, on_steps, part_classes
from megajukebox.notes.grammar import SINGERS
from megajukebox.notes.holes import HoleGrid
from megajukebox.notes.instruments import FAMILIES, ScorePart, program_of
from megajukebox.notes.notes import Notes, in_order, ticks_of_bar

CHOIR = "SATB"  # soprano, alto, tenor, bass: the first four voices
BARS = re.compile(r"(\d+)(?:(-)(\d*))?")
SPAN_TICKS = 96  # of a piece without bars, what counts as one
MAX_BARS = 4096


@dataclass(frozen=True)
class FillRegion:
    """Parts and bars to write; empty: all of them."""

    parts: str = ""  # "ATB", or names as `class_name` gives them: "violin 2, cello 1"
    bars: str = ""  # "3-4", "9-", "1,5-6"; a pickup is bar 0

    @classmethod
    def parse(cls, text: str) -> "FillRegion":
        """`parts=ATB`, `bars=3-4,parts=T`.

        Raises:
            UserError: it says something else.
        """
        fields: dict[str, str] = {}
        for word in re.split(r"[,;]\s*(?=[a-z]+=)", text.strip()):
            name, equals, value = word.partition("=")
            if not equals or name not in ("parts", "bars") or name in fields:
                raise UserError(
                    f"fill {text!r} is not understood; write parts=ATB, bars=9- or both"
                )
            fields[name] = value.strip()
        return cls(**fields)


@dataclass(frozen=True)
class FillPlan:
    """A piece with the parts that it is to have, and its holes."""

    piece: Notes  # its parts named after their classes
    grid: HoleGrid
    given: Notes  # as it was, its parts still in their order
    originals: dict[str, ScorePart]  # of each named part as it was given
    goes_on_from: int | None = (
        None  # everything from this tick on is to be written, and nothing else
    )
    length: int = 0  # ticks of the whole; 0: as the composer likes


def fill_plan(notes: Notes, region: FillRegion) -> FillPlan:
    """What `region` means for a piece.

    Raises:
        UserError: the piece has no such parts or bars, or nothing would be written.
    """
    notes = replace(notes, marks=()).only(np.unique(notes.notes["part"]).tolist())
    given, opened = _parts(notes, region.parts)
    named = [ScorePart(class_name(c), program_of(c.family)) for c in given]
    originals = {part.name: original for part, original in zip(named, notes.parts)}
    piece = on_steps(replace(notes, parts=tuple(named)))
    classes = tuple(sorted({*given, *opened}, key=class_rank))
    starts, first_number = _bar_lines(piece)
    rows, length = _open_bars(piece, starts, first_number, region.bars)
    is_open = np.zeros((len(rows), len(classes)), bool)
    for part_class in opened:
        is_open[rows, classes.index(part_class)] = True
    # A part that nobody has written yet is open nowhere but in the hole, and silent elsewhere.
    if not is_open.any():  # of a piece that is over where it begins
        raise UserError(f"bars {region.bars!r} of this piece are none; nothing would be written")
    (first_open, *_) = np.flatnonzero(rows).tolist()
    from_there_on = len(opened) == len(classes) and bool(rows[first_open:].all())
    goes_on_from = int(starts[first_open]) if from_there_on else None
    grid = HoleGrid(starts, classes, is_open)
    return FillPlan(piece, grid, notes, originals, goes_on_from, length)


def _parts(notes: Notes, text: str) -> tuple[list[PartClass], list[PartClass]]:
    """The class of each part of the piece, and those that are to be written."""
    classes = part_classes(notes.parts)
    if not text:
        return classes, classes
    if re.fullmatch(f"[{CHOIR}]+", text):
        opened = [PartClass(SINGERS, CHOIR.index(letter)) for letter in dict.fromkeys(text)]
        return _as_choir(notes, opened), opened
    opened = []
    for name in re.split(r",\s*", text):
        match = re.fullmatch(r"(\w+) (\d)", name)
        if not match or match[2] == "0" or match[1] not in FAMILIES:
            known = ", ".join(map(class_name, classes))
            raise UserError(
                f"part {name!r} is no part; write letters of {CHOIR}, or a family and a number ({known})"
            )
        opened.append(PartClass(match[1], int(match[2]) - 1))
    return classes, opened


def _as_choir(notes: Notes, opened: Sequence[PartClass]) -> list[PartClass]:
    """The parts of a piece as voices, the highest first.

    A piece of four parts has all voices; one of fewer has those that are to be kept.
    """
    count = len(notes.parts)
    voices = [PartClass(SINGERS, number) for number in range(len(CHOIR))]
    if count != len(CHOIR):
        voices = [voice for voice in voices if voice not in opened]
    if count != len(voices):
        letters = "".join(CHOIR[part_class.ordinal] for part_class in opened)
        raise UserError(
            f"the piece has {count} parts; to write {letters} it must have {len(voices)} (those that stay) or 4"
        )
    means = []
    for part in range(count):
        means.append(float(notes.notes["pitch"][notes.notes["part"] == part].mean()))
    classes = part_classes(notes.parts)
    if {one.family for one in classes} == {SINGERS}:
        order = sorted(range(count), key=lambda part: classes[part].ordinal)
    else:
        order = sorted(range(count), key=lambda part: -means[part])
    result = [voices[0]] * count
    for voice, part in zip(voices, order):
        result[part] = voice
    return result


def _bar_lines(piece: Notes) -> tuple[np.ndarray, int]:
    """(ticks of the bar lines and of the end, the number of the first bar)."""
    if len(piece.bars):
        onsets = piece.bars["onset"].astype(np.int64)
        whole = ticks_of_bar(int(piece.bars["numerator"][0]), int(piece.bars["denominator"][0]))
        first_length = (onsets[1] if len(onsets) > 1 else piece.length) - onsets[0]
        first = 0 if first_length < whole else 1
    else:
        onsets = np.arange(0, max(piece.length, 1), SPAN_TICKS)
        first = 1
    return np.append(onsets, piece.length), first


def _open_bars(piece: Notes, starts: np.ndarray, first: int, text: str) -> tuple[np.ndarray, int]:
    """(bool [spans]: which are open, length of the whole or 0). The last span is what comes after the piece."""
    rows = np.zeros(len(starts), bool)
    last = first + len(starts) - 2  # number of the piece's last bar
    if not text:
        rows[:-1] = True
        return rows, piece.length
    length = piece.length
    for word in text.split(","):
        match = BARS.fullmatch(word.strip())
        if not match:
            raise UserError(f"bars {text!r} are none; write 3, 3-4, 9- or several with commas")
        begin = int(match[1])
        end = begin if not match[2] else int(match[3]) if match[3] else max(last, begin)
        if not first <= begin <= last + 1 or not begin <= end <= MAX_BARS:
            raise UserError(
                f"bars {text!r} are not within this piece's {first} to {last}, nor go on from its end ({last + 1}-)"
            )
        rows[begin - first : end - first + 1] = True
        rows[-1] |= end >= last  # nothing that is known follows
        if end > last:
            length = 0 if match[2] and not match[3] else _length_with(piece, end - last)
    return rows, length


def _length_with(piece: Notes, more: int) -> int:
    """Ticks of the piece and `more` bars like its last."""
    bar = ticks_of_bar(4, 4)
    if len(piece.bars):
        bar = ticks_of_bar(int(piece.bars["numerator"][-1]), int(piece.bars["denominator"][-1]))
    return piece.length + more * bar


def as_given(written: Notes, plan: FillPlan) -> Notes:
    """A piece that was written, with what events cannot say of the given one: names and programs of its parts, exact
    loudness of its notes, exact tempi, key."""
    parts = tuple(plan.originals.get(part.name, part) for part in written.parts)
    numbers = {name: number for number, name in enumerate(plan.originals)}
    notes = written.notes.copy()
    exact = {}
    for onset, part, pitch, length, velocity in plan.given.notes.tolist():
        exact[onset, part, pitch, length] = velocity
    for note in notes:
        part = numbers.get(written.parts[int(note["part"])].name, -1)
        key = (int(note["onset"]), part, int(note["pitch"]), int(note["length"]))
        note["velocity"] = exact.get(key, int(note["velocity"]))
    after = written.tempo[written.tempo["onset"] >= max(plan.piece.length, 1)]
    return replace(
        written,
        notes=in_order(notes),
        parts=parts,
        tempo=np.concatenate([plan.given.tempo, after]),
        key=plan.given.key,
    )
