"""Timed lyrics: LRC text to plain text with the times of its words, and back."""

import math
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class TimedWord:
    """Characters [start_char, end_char) of the text, sung from `t0` to `t1` (seconds)."""

    start_char: int
    end_char: int
    t0: float
    t1: float


# A line without word times lasts at most this long a word, so that pauses are not sung through.
SECONDS_PER_WORD = 1.0
MAX_TIMES = 20  # of one line: a chorus; more copies of a long line would be a bomb
TIME = r"(\d{1,6}):(\d{1,6}(?:[.:]\d{1,9})?)"
LINE_TIMES = re.compile(rf"\s*((?:\[{TIME}\]\s*)+)")
LINE_TIME = re.compile(rf"\[{TIME}\]")
WORD_TIME = re.compile(rf"<{TIME}>")
TAG = re.compile(
    r"\s*\[(ar|ti|al|au|by|la|lr|length|offset|re|tool|ve|id|#)\s*:.*\]\s*$", re.IGNORECASE
)
# Spaces of its own line alone: over many empty lines it would take the square of their number.
OFFSET = re.compile(
    r"^[^\S\n]*\[offset[^\S\n]*:[^\S\n]*([+-]?\d{1,9})[^\S\n]*\]", re.IGNORECASE | re.MULTILINE
)


@dataclass(frozen=True)
class TimedLine:
    """A line of LRC: when it starts (seconds), its body with word times, and whether it had a time of its own."""

    start: float
    body: str
    has_time: bool


def parse_lrc(text: str) -> tuple[str, list[TimedWord]]:
    """(plain text, its words with times) of LRC with word times, line times, or both.

    Plain text comes back as it is, without timed words.
    """
    if not any(LINE_TIMES.match(line) for line in text.split("\n")):
        return text, []
    offset = OFFSET.search(text)
    shift = -int(offset[1]) / 1000 if offset else 0.0  # the tag is in milliseconds
    lines = timed_lines(text.removeprefix("\ufeff").splitlines(), shift)
    starts = sorted(line.start for line in lines if line.has_time)
    starts.append(math.inf)
    plain: list[str] = []
    words: list[TimedWord] = []
    length = 0
    for line in lines:
        body = line.body
        if line.has_time:
            next_start = starts[bisect_right(starts, line.start)]
            body, sung = timed_words(line.body, line.start, next_start)
            for word in sung:
                start_char = word.start_char + length
                words.append(TimedWord(start_char, word.end_char + length, word.t0, word.t1))
        plain.append(body)
        length += len(body) + 1
    return "\n".join(plain), words


def seconds(minutes: str, rest: str) -> float:
    """Seconds of `minutes` and a `rest` like 7, 7.25 or 7:25."""
    return 60 * int(minutes) + float(rest.replace(":", "."))


def timed_lines(lines: Sequence[str], shift: float) -> list[TimedLine]:
    """In order of time; a line sung twice comes twice. A line without a time of its own follows the one before it."""
    timed: list[TimedLine] = []
    last = 0.0
    for line in lines:
        if TAG.match(line):
            continue
        times = LINE_TIMES.match(line)
        if times is None:
            timed.append(TimedLine(max(0.0, last), shifted(line, shift), has_time=False))
        else:
            body = shifted(line[times.end() :], shift)
            for minutes, rest in LINE_TIME.findall(times[1])[:MAX_TIMES]:
                start = max(0.0, seconds(minutes, rest) + shift)
                timed.append(TimedLine(start, body, has_time=True))
        last = timed[-1].start
    return sorted(timed, key=lambda line: line.start)


def shifted(body: str, shift: float) -> str:
    """A body whose word times are `shift` seconds later."""
    if not shift:
        return body
    return WORD_TIME.sub(
        lambda time: f"<{clock(max(0.0, seconds(time[1], time[2]) + shift))}>", body
    )


def timed_words(body: str, start: float, next_start: float) -> tuple[str, list[TimedWord]]:
    """A line's plain text and its words, whose characters count from the start of the line."""
    words: list[TimedWord] = []
    if not WORD_TIME.search(body):
        # The words share the time until the next line, none of them longer than SECONDS_PER_WORD.
        line = " ".join(body.split())
        found = list(re.finditer(r"\S+", line))
        step = min(SECONDS_PER_WORD, (next_start - start) / max(1, len(found)))
        for i, match in enumerate(found):
            first, end = match.span()
            words.append(TimedWord(first, end, start + i * step, start + (i + 1) * step))
        return line, words
    pieces = WORD_TIME.split(body)  # text, minutes, seconds, text, minutes, seconds, text ...
    times = [start, *map(seconds, pieces[1::3], pieces[2::3])]
    times.append(max(times[-1], min(next_start, times[-1] + SECONDS_PER_WORD)))
    line = ""
    for piece, t0, t1 in zip(pieces[::3], times, times[1:]):
        word = " ".join(piece.split())
        if line and not line.endswith(" ") and piece[:1].isspace():
            line += " "
        if word:
            words.append(TimedWord(len(line), len(line) + len(word), t0, max(t0, t1)))
            line += word + (" " if piece[-1].isspace() else "")
    return line.rstrip(), words


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
            line = f"[{clock(sung[0].t0)}] "
        for word, after in zip(sung, [*sung[1:], None]):
            line += f"<{clock(word.t0)}>{text[word.start_char : word.end_char]}"
            if after is None or clock(after.t0) != clock(word.t1):
                line += f"<{clock(word.t1)}>"
            line += text[word.end_char : after.start_char if after else end]
        lines.append(line.rstrip() if sung else line)
        start = end + 1
    return "\n".join(lines)
