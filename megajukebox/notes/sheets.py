"""Sheet music to `Notes`, by music21: MusicXML, packed MusicXML (.mxl), ABC and Humdrum's kern.

Repeats are played: what returns in a performance returns in the notes. Texts are given to music21's parser, never
paths: of files it keeps pickles in a shared folder.
"""

import io
import logging
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np

from megajukebox.notes.instruments import CHOIR, DRUMS, ScorePart, programs_by_names
from megajukebox.notes.musicxml import DRUM_CHANNEL, SOFTWARE
from megajukebox.notes.notes import (
    BAR,
    CHORD_SYMBOL,
    MAX_BPM,
    NOTE,
    PHRASE_END,
    PITCHES,
    TEMPO,
    TICKS_PER_QUARTER,
    WORD,
    NoteMark,
    Notes,
    in_order,
    ticks_of_bar,
)
from megajukebox.notes.parts import MAX_OFF_GRID, ReadPiece, merge_parts

log = logging.getLogger(__name__)

MAX_UNPACKED_BYTES = 64 << 20  # of a packed MusicXML file
MAX_TUNES = 5000  # of one ABC file
UNSAID_BPM = 90.0  # where a sheet says nothing: a walking pace
FORMATS = {".abc": "abc", ".musicxml": "musicxml", ".xml": "musicxml", ".krn": "humdrum"}
PACKED = (".mxl",)
MODES = ("major", "minor")
TUNE_NUMBER = re.compile(r"^X:\s*(\d+)", re.MULTILINE)
VOICE_NAME = re.compile(r'^V:.*?\b(?:name|nm)="([^"\n]*)"', re.MULTILINE)
NO_KEY = re.compile(r"^K:\s*none\b", re.MULTILINE)  # music21 takes it for C major
# A declaration of entities: how a small XML file becomes a large one. MusicXML has no use for any.
XML_ENTITY = re.compile(rb"<!ENTITY", re.IGNORECASE)


def read_sheet(data: bytes, ending: str) -> Iterator[ReadPiece]:
    """The pieces of a file: several of an ABC tunebook, else one.

    Args:
        ending: ".abc", ".musicxml", ".xml", ".mxl" or ".krn".
    Raises:
        ValueError: it cannot be read; the message says why.
    """
    if ending in PACKED:
        data, ending = _unpacked(data), ".musicxml"
    if XML_ENTITY.search(data):
        raise ValueError("declares XML entities, which no sheet needs")
    text = _decoded(data)
    if ending == ".abc":
        yield from _tunes(text)
    else:
        yield _piece(_parsed(text, FORMATS[ending]))


def _decoded(data: bytes) -> str:
    """UTF-8, UTF-16 with its mark, or Latin-1, as old files are."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _unpacked(data: bytes) -> bytes:
    """The score within a .mxl file: the first MusicXML that META-INF/container.xml could name."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for member in archive.infolist():
                inner = member.filename.lower()
                if inner.startswith("meta-inf/") or not inner.endswith((".xml", ".musicxml")):
                    continue
                if member.file_size > MAX_UNPACKED_BYTES:
                    raise ValueError(f"unpacks to {member.file_size:,} bytes")
                with archive.open(member) as file:
                    return file.read(MAX_UNPACKED_BYTES)
    except (zipfile.BadZipFile, NotImplementedError, OSError, EOFError, RuntimeError) as error:
        raise ValueError(f"is no packed MusicXML file: {error}") from None
    except Exception as error:  # zlib's own
        raise ValueError(f"is a damaged packed MusicXML file: {error}") from None
    raise ValueError("holds no MusicXML score")


def _tunes(text: str) -> Iterator[ReadPiece]:
    """Every tune of an ABC file, each parsed alone, so that one that is broken costs itself."""
    starts = [match.start() for match in TUNE_NUMBER.finditer(text)]
    if len(starts) > MAX_TUNES:
        raise ValueError(f"has {len(starts)} tunes, more than {MAX_TUNES}")
    if not starts:
        raise ValueError("is no ABC file: it has no line X: with a tune's number")
    head = text[: starts[0]]
    for start, end in zip(starts, [*starts[1:], len(text)]):
        tune = text[start:end].strip() + "\n"
        number = TUNE_NUMBER.match(tune)
        assert number
        name = number[1] if len(starts) > 1 else ""
        try:
            score = _parsed(_head_fields(head) + tune, "abc")
            piece = _piece(score, VOICE_NAME.findall(tune))
            if piece.notes is not None and NO_KEY.search(tune):
                piece = piece._replace(notes=replace(piece.notes, key=""))
            yield piece._replace(name=name)
        except ValueError as error:
            if len(starts) == 1:
                raise
            yield ReadPiece(None, (str(error),), name)


def _head_fields(head: str) -> str:
    """Fields of a file's head that hold for every tune: its metre, unit length, key."""
    lines = [line for line in head.splitlines() if re.match(r"^[LMQ]:", line)]
    return "".join(f"{line}\n" for line in lines)


def _parsed(text: str, form: str) -> Any:
    """music21's stream of a text."""
    import music21

    try:
        return music21.converter.parseData(text, format=form)
    except Exception as error:  # of dozens of kinds, all of them the text's fault
        what = " ".join(str(error).split())[:200]
        raise ValueError(f"is no {form} that can be read: {type(error).__name__}: {what}") from None


def _piece(score: Any, names: Sequence[str] = ()) -> ReadPiece:
    """The piece of a stream. `names`: of its parts, where music21 does not know them."""
    try:
        return _converted(score, names)
    except ValueError:
        raise
    except Exception as error:  # of a stream that parsed and makes no sense
        what = " ".join(str(error).split())[:200]
        raise ValueError(f"makes no sense as music: {type(error).__name__}: {what}") from None


def _converted(score: Any, names: Sequence[str]) -> ReadPiece:
    import music21

    odd: Counter[str] = Counter()
    score = _with_repeats(score, odd)
    streams = list(score.parts) if hasattr(score, "parts") and len(score.parts) else [score]
    rows: list[list[int]] = []
    marks: list[NoteMark] = []
    for number, stream in enumerate(streams):
        last: dict[int, list[int]] = {}
        for element in stream.flatten().notes:
            if isinstance(element, music21.harmony.Harmony):
                marks.append(NoteMark(_ticks(element.offset), CHORD_SYMBOL, element.figure, number))
                continue
            rows += _notes_of(element, number, last, odd)
            marks += _marks_of(element, number)
    if not rows:
        raise ValueError("holds no notes")
    parts, numbers = merge_parts(_parts_of(streams, is_ours=_is_ours(score), names=names))
    table = np.zeros(len(rows), NOTE)
    for name, column in zip(("onset", "length", "pitch", "velocity"), list(zip(*rows))[:4]):
        table[name] = column
    table["part"] = [numbers[row[4]] for row in rows]
    last_end = int((table["onset"].astype(np.int64) + table["length"]).max())
    bars, end = _bars(streams[0], last_end)
    notes = Notes(
        in_order(table),
        parts,
        bars,
        _tempo(score),
        max(last_end, end),
        tuple(sorted(mark_of_part(mark, numbers) for mark in marks)),
        _key(score),
    )
    return ReadPiece(notes, tuple(f"{count} {what}" for what, count in odd.items() if count))


def mark_of_part(mark: NoteMark, numbers: list[int]) -> NoteMark:
    return NoteMark(mark.onset, mark.kind, mark.text, numbers[mark.part])


def _with_repeats(score: Any, odd: Counter[str]) -> Any:
    """As it is played. A sheet whose repeats contradict one another stays as it is written."""
    marks = score.recurse().getElementsByClass("RepeatMark")
    if not any(True for _ in marks):
        return score
    try:
        return score.expandRepeats()
    except Exception as error:
        log.debug("repeats: %s", error)
        odd["sets of repeats that contradict one another, not played"] += 1
        return score


def _ticks(offset: float | Fraction) -> int:
    return round(float(offset) * TICKS_PER_QUARTER)


def _notes_of(
    element: Any, part: int, last: dict[int, list[int]], odd: Counter[str]
) -> Iterator[list[int]]:
    """[onset, length, pitch, velocity, part] of a note, or of each of a chord.

    `last` has the row of the last note of each pitch: one that is tied to it lengthens that row.
    """
    exact = float(element.offset) * TICKS_PER_QUARTER
    onset = round(exact)
    if element.duration.isGrace or not element.quarterLength:
        odd["grace notes, left out"] += 1
        return
    end = _ticks(element.offset + element.quarterLength)
    for note in getattr(element, "notes", (element,)):
        pitch = note.pitch.midi if hasattr(note, "pitch") else None
        if pitch is None or not 0 <= pitch < PITCHES:
            odd["notes without a pitch, left out"] += 1
            continue
        before = last.get(pitch)
        is_tied = note.tie is not None and note.tie.type in ("stop", "continue")
        if before is not None and is_tied and sum(before[:2]) == onset:
            before[1] = end - before[0]
            continue
        odd["onsets between two ticks, rounded"] += abs(exact - onset) > MAX_OFF_GRID
        last[pitch] = [onset, max(end - onset, 1), pitch, element.volume.velocity or 0, part]
        yield last[pitch]


def _marks_of(element: Any, part: int) -> Iterator[NoteMark]:
    onset = _ticks(element.offset)
    for expression in element.expressions:
        if type(expression).__name__ == "Fermata":
            yield NoteMark(onset, PHRASE_END, "", part)
    for lyric in element.lyrics[:1]:  # the first verse
        text = " ".join((lyric.text or "").split())
        if text:
            goes_on = lyric.syllabic in ("begin", "middle")
            yield NoteMark(onset, WORD, text + "-" * goes_on, part)


def _is_ours(score: Any) -> bool:
    """Whether musicxml.py wrote the file, so that every program in it was meant."""
    metadata = getattr(score, "metadata", None)
    return metadata is not None and SOFTWARE in map(str, metadata["software"] or ())


def _parts_of(streams: list[Any], is_ours: bool, names: Sequence[str]) -> list[ScorePart]:
    """Programs by the parts' names, else by the file's instruments; voices of several parts without either sing.

    Args:
        is_ours: the file's instruments come first.
        names: of the parts, where music21 does not know them.
    """
    if len(names) != len(streams):
        parts_names = [getattr(stream, "partName", None) or "" for stream in streams]
        names = [" ".join(str(name).split()) for name in parts_names]
    parts = []
    for stream, name, program in zip(streams, names, programs_by_names(names)):
        find = getattr(stream, "getInstrument", None)
        instrument = find(returnDefault=False) if find else None
        if is_ours and instrument is not None and instrument.midiProgram is not None:
            is_drums = instrument.midiChannel == DRUM_CHANNEL - 1
            program = DRUMS if is_drums else instrument.midiProgram
        if program is None and instrument is not None:
            unpitched = type(instrument).__name__ == "UnpitchedPercussion"
            program = DRUMS if unpitched else instrument.midiProgram
        if program is None:
            program = CHOIR if len(streams) > 1 else 0
        parts.append(ScorePart(name, int(program)))
    return parts


def _bars(stream: Any, last: int) -> tuple[np.ndarray, int]:
    """(bars, the tick at which the last one ends) of the first part."""
    rows: list[tuple[int, int, int]] = []
    numerator, denominator, end = 4, 4, 0
    for measure in stream.getElementsByClass("Measure"):
        sign = measure.timeSignature
        if sign is not None:
            numerator, denominator = sign.numerator, sign.denominator
        onset = _ticks(measure.offset)
        if rows and onset <= rows[-1][0]:
            continue  # a measure without any time
        rows.append((onset, numerator, denominator))
        end = onset + _ticks(measure.duration.quarterLength)
    if not rows:  # a tune too short for bar lines
        for sign in stream.recurse().getElementsByClass("TimeSignature"):
            numerator, denominator = sign.numerator, sign.denominator
    if not rows or rows[0][0] != 0:
        rows = [(0, numerator, denominator), *rows]
    return _whole_bars(rows, max(last, end)), end


def _whole_bars(rows: list[tuple[int, int, int]], end: int) -> np.ndarray:
    """Bars none of which is longer than its metre: what goes on beyond is divided."""
    divided = []
    for (onset, numerator, denominator), until in zip(rows, [*(row[0] for row in rows[1:]), end]):
        whole = max(1, ticks_of_bar(numerator, denominator))
        for start in range(onset, max(until, onset + 1), whole):
            divided.append((start, numerator, denominator))
    return np.array(divided, BAR)


def _tempo(score: Any) -> np.ndarray:
    steps = {0: UNSAID_BPM}
    for mark in score.flatten().getElementsByClass("MetronomeMark"):
        bpm = mark.getQuarterBPM()
        if bpm and 0 < bpm <= MAX_BPM:
            steps[_ticks(mark.offset)] = round(float(bpm), 3)
    return np.array(sorted(steps.items()), TEMPO)


def _key(score: Any) -> str:
    """The key that the sheet names; signatures alone do not tell the mode."""
    for key in score.recurse().getElementsByClass("Key"):
        if key.mode in MODES:
            return f"{key.tonic.name.replace('-', 'b')} {key.mode}"
    return ""
