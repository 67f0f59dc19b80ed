"""Between what the page Draw sends and `Notes`."""

import re

import numpy as np

from megajukebox.notes.instruments import CHOIR, ScorePart
from megajukebox.notes.notes import NOTE, Notes, bars_of_metre, in_order, steady, ticks_of_bar
from megajukebox.records.drawn_piece import (
    DRAWN_DENOMINATORS,
    KEY,
    MAX_DRAWN_BARS,
    MAX_DRAWN_NOTES,
    VOICES,
    DrawnVoices,
)

MIN_BPM, MAX_BPM = 20.0, 400.0


def notes_of(drawn: DrawnVoices) -> Notes:
    """The piece in four parts, those without a note too."""
    rows = [(onset, voice, pitch, length, 0) for onset, length, pitch, voice in drawn.notes]
    return Notes(
        in_order(np.array(rows, NOTE)),
        tuple(ScorePart(name, CHOIR) for name in VOICES),
        bars_of_metre(*drawn.metre, drawn.length),
        steady(round(drawn.bpm, 3)),
        drawn.length,
        key=drawn.key,
    )


def drawn_of(notes: Notes, bars: int | None = None) -> DrawnVoices:
    """The first bars of a piece in four voices, by the names of its parts, else in their order.

    A pickup becomes the end of a whole bar. What does not fit, parts beyond the fourth and bars beyond the eighth or
    beyond `bars`, is left out; notes that reach over the end are cut.

    Raises:
        ValueError: it has no bars, or a metre that the page does not draw.
    """
    if not len(notes.bars):
        raise ValueError("it has no bars; it was performed, not written")
    numerator, denominator = int(notes.bars["numerator"][0]), int(notes.bars["denominator"][0])
    if numerator > 16 or denominator not in DRAWN_DENOMINATORS:
        raise ValueError(f"its metre {numerator}/{denominator} cannot be drawn")
    whole = ticks_of_bar(numerator, denominator)
    first = int(notes.bars["onset"][1]) if len(notes.bars) > 1 else whole
    shift = whole - first if first < whole else 0
    count = min(bars or MAX_DRAWN_BARS, -(-(notes.length + shift) // whole), MAX_DRAWN_BARS)
    end = count * whole
    voices = _voices(notes)
    rows = []
    for onset, part, pitch, length, _ in notes.notes.tolist():
        start = onset + shift
        if start < end and part in voices:
            rows.append((start, min(length, end - start), pitch, voices[part]))
    return DrawnVoices(
        notes=tuple(sorted(rows)[:MAX_DRAWN_NOTES]),
        bars=max(count, 1),
        metre=(numerator, denominator),
        bpm=min(max(float(notes.tempo["bpm"][0]), MIN_BPM), MAX_BPM),
        key=notes.key if _is_key(notes.key) else "",
    )


def _voices(notes: Notes) -> dict[int, int]:
    """The number of the voice of each part."""
    named: dict[int, int] = {}
    for number, part in enumerate(notes.parts):
        for voice, name in enumerate(VOICES):
            if part.name.lower().startswith(name.lower()) and voice not in named.values():
                named[number] = voice
                break
    if len(named) == min(len(notes.parts), len(VOICES)):
        return named
    pitched = [number for number, part in enumerate(notes.parts) if not part.is_drums]
    return {number: voice for voice, number in enumerate(pitched[: len(VOICES)])}


def _is_key(key: str) -> bool:
    return re.fullmatch(KEY, key) is not None
