"""Timed lyrics: LRC text to plain text with the times of its words, and back."""

import math
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from megajukebox.conditioning.lrc_lines import (
    LrcLine,
    LrcLineReader,
    LrcRemark,
    LrcRemarkKind,
    is_lrc,
)


@dataclass(frozen=True)
class TimedWord:
    """Characters [start_char, end_char) of the text, sung from `t0` to `t1` (seconds)."""

    start_char: int
    end_char: int
    t0: float
    t1: float


# A line without word times lasts at most this long a word, so that pauses are not sung through.
SECONDS_PER_WORD = 1.0


class LrcReading(NamedTuple):
    """Lyrics as they are sung, and what of their LRC was read otherwise than it stands there."""

    text: str  # plain
    words: list[TimedWord]
    remarks: list[LrcRemark]


def parse_lrc(text: str) -> tuple[str, list[TimedWord]]:
    """(plain text, its words with times) of LRC with word times, line times, or both.

    Plain text comes back as it is, without timed words.
    """
    return read_lrc(text)[:2]


def read_lrc(text: str) -> LrcReading:
    """The same, with remarks."""
    if not is_lrc(text):
        return LrcReading(text, [], [])
    reader = LrcLineReader(text)
    lines = reader.lines()
    remarks = reader.remarks
    starts = sorted(line.start for line in lines if line.has_time)
    if starts and starts[0] < 0:
        early = sum(start < 0 for start in starts)
        detail = f"lines before the song: {early}, the first at {starts[0]:g} s; taken as 0 s"
        number = next(line.number for line in lines if line.has_time)
        remarks.append(LrcRemark(number, LrcRemarkKind.moved_lyrics_time, detail))
    starts.append(math.inf)
    plain: list[str] = []
    words: list[TimedWord] = []
    length = 0
    for line in lines:
        body = line.text
        if line.has_time:
            body, sung, backwards = timed_words(line, starts[bisect_right(starts, line.start)])
            if backwards:
                detail = (
                    "its word times run backwards; later words are not sung before earlier ones"
                )
                remarks.append(LrcRemark(line.number, LrcRemarkKind.moved_lyrics_time, detail))
            for word in sung:
                start_char = word.start_char + length
                words.append(TimedWord(start_char, word.end_char + length, word.t0, word.t1))
        plain.append(body)
        length += len(body) + 1
    return LrcReading("\n".join(plain), words, sorted(remarks))


def timed_words(line: LrcLine, next_start: float) -> tuple[str, list[TimedWord], bool]:
    """(plain text, words, whether their times ran backwards); characters count from the start of the line.

    Times are not before the song.
    """
    times = [time for time, _ in line.pieces]
    backwards = any(later < earlier for earlier, later in pairwise(times))
    with_words = [index for index, (_, text) in enumerate(line.pieces) if text.strip()]
    if with_words == [0] or len(times) == 1:
        # Word times that only close the line end its last word.
        end = times[1] if len(times) > 1 else math.inf
        return *spread_words(line.pieces[0][1], line.start, min(next_start, end)), backwards
    latest = max(0.0, line.start)
    for index, time in enumerate(times):
        latest = max(latest if index else 0.0, time)
        times[index] = latest
    times.append(max(times[-1], min(next_start, times[-1] + SECONDS_PER_WORD)))
    plain = ""
    words: list[TimedWord] = []
    for (_, piece), t0, t1 in zip(line.pieces, times, times[1:]):
        word = " ".join(piece.split())
        if plain and not plain.endswith(" ") and piece[:1].isspace():
            plain += " "
        if word:
            words.append(TimedWord(len(plain), len(plain) + len(word), t0, t1))
            plain += word + (" " if piece[-1].isspace() else "")
    return plain.rstrip(), words, backwards


def spread_words(piece: str, start: float, end: float) -> tuple[str, list[TimedWord]]:
    """Words that share the time from `start` to `end` (s), none of them longer than SECONDS_PER_WORD."""
    line = " ".join(piece.split())
    found = list(re.finditer(r"\S+", line))
    start, end = max(0.0, start), max(0.0, start, end)
    step = min(SECONDS_PER_WORD, (end - start) / max(1, len(found)))
    words = []
    for index, match in enumerate(found):
        t0 = start + index * step
        words.append(TimedWord(*match.span(), t0, start + (index + 1) * step))
    return line, words


def clock(t: float) -> str:
    """mm:ss.cc of `t` seconds."""
    hundredths = round(t * 100)
    return f"{hundredths // 6000:02d}:{hundredths % 6000 / 100:05.2f}"


def write_lrc(words: Sequence[TimedWord], text: str) -> str:
    """Enhanced LRC of `text` with the times of its `words` (in order of characters); inverse of `parse_lrc` to 0.01 s.

    A word followed by a pause is closed by a time of its own. Lines without words are kept without a time.
    """
    lines: list[str] = []
    start = 0
    for line in text.split("\n"):
        end = start + len(line)
        sung = [w for w in words if start <= w.start_char < end]
        if sung:
            line = f"[{clock(sung[0].t0)}] {text[start : sung[0].start_char].lstrip()}"
        for word, after in zip(sung, [*sung[1:], None]):
            line += f"<{clock(word.t0)}>{text[word.start_char : word.end_char]}"
            if after is None or clock(after.t0) != clock(word.t1):
                line += f"<{clock(word.t1)}>"
            line += text[word.end_char : after.start_char if after else end]
        lines.append(line.rstrip() if sung else line)
        start = end + 1
    return "\n".join(lines)
