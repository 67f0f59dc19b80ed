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


SECONDS_PER_WORD = 1.0  # a line without word times lasts at most this long a word, so that pauses are not sung through
TIME = r"(\d+):(\d+(?:[.:]\d+)?)"
LINE_TIMES = re.compile(rf"\s*((?:\[{TIME}\]\s*)+)")
LINE_TIME = re.compile(rf"\[{TIME}\]")
WORD_TIME = re.compile(rf"<{TIME}>")
TAG = re.compile(
    r"\s*\[(ar|ti|al|au|by|la|lr|length|offset|re|tool|ve|id|#)\s*:.*\]\s*$", re.IGNORECASE
)
OFFSET = re.compile(r"^\s*\[offset\s*:\s*([+-]?\d+)\s*\]", re.IGNORECASE | re.MULTILINE)


def parse_lrc(text: str) -> tuple[str, list[TimedWord]]:
    """(plain text, its words with times) of LRC with word times, line times, or both; plain text has no timed words."""
    if not any(LINE_TIMES.match(line) for line in text.split("\n")):
        return text, []
    offset = OFFSET.search(text)
    lines = timed_lines(
        text.removeprefix("\ufeff").splitlines(), shift=-int(offset[1]) / 1000 if offset else 0.0
    )
    starts = [*sorted(start for start, _, timed in lines if timed), math.inf]
    plain, words, length = [], [], 0
    for start, body, timed in lines:
        line, sung = (
            timed_words(body, start, starts[bisect_right(starts, start)]) if timed else (body, [])
        )
        words += [TimedWord(length + a, length + b, t0, t1) for a, b, t0, t1 in sung]
        plain.append(line)
        length += len(line) + 1
    return "\n".join(plain), words


def seconds(minutes: str, rest: str) -> float:
    return 60 * int(minutes) + float(rest.replace(":", "."))


def timed_lines(lines: Sequence[str], shift: float) -> list[tuple[float, str, bool]]:
    """(start in seconds, body, has a time) in order of time; a line sung twice comes twice.

    A line without a time of its own follows the one before it.
    """
    found, last = [], 0.0
    for line in lines:
        if TAG.match(line):
            continue
        times = LINE_TIMES.match(line)
        starts = [seconds(*t) for t in LINE_TIME.findall(times[1])] if times else [last - shift]
        body = line[times.end() :] if times else line
        found += [(max(0.0, start + shift), shifted(body, shift), bool(times)) for start in starts]
        last = found[-1][0]
    return sorted(found, key=lambda item: item[0])


def shifted(body: str, shift: float) -> str:
    return (
        WORD_TIME.sub(lambda t: f"<{clock(max(0.0, seconds(t[1], t[2]) + shift))}>", body)
        if shift
        else body
    )


def timed_words(
    body: str, start: float, next_start: float
) -> tuple[str, list[tuple[int, int, float, float]]]:
    """A line's plain text and its (start character, end character, t0, t1)."""
    if not WORD_TIME.search(body):
        return evenly(" ".join(body.split()), start, next_start)
    pieces = WORD_TIME.split(body)  # text, minutes, seconds, text, minutes, seconds, text ...
    times = [start] + [seconds(m, s) for m, s in zip(pieces[1::3], pieces[2::3])]
    times.append(max(times[-1], min(next_start, times[-1] + SECONDS_PER_WORD)))
    line, words = "", []
    for piece, t0, t1 in zip(pieces[::3], times, times[1:]):
        word = " ".join(piece.split())
        if line and not line.endswith(" ") and piece[:1].isspace():
            line += " "
        if word:
            words.append((len(line), len(line) + len(word), t0, max(t0, t1)))
            line += word + (" " if piece[-1].isspace() else "")
    return line.rstrip(), words


def evenly(
    line: str, start: float, next_start: float
) -> tuple[str, list[tuple[int, int, float, float]]]:
    found = list(re.finditer(r"\S+", line))
    step = min(SECONDS_PER_WORD, (next_start - start) / max(1, len(found)))
    return line, [
        (w.start(), w.end(), start + i * step, start + (i + 1) * step) for i, w in enumerate(found)
    ]


def clock(t: float) -> str:
    return f"{round(t * 100) // 6000:02d}:{round(t * 100) % 6000 / 100:05.2f}"


def write_lrc(words: Sequence[TimedWord], text: str) -> str:
    """Enhanced LRC of `text` with the times of its `words` (in order of characters); inverse of `parse_lrc` to 0.01 s.

    A word followed by a pause is closed by a time of its own. Lines without words are kept without a time.
    """
    out, start = [], 0
    for line in text.split("\n"):
        end = start + len(line)
        sung = [w for w in words if start <= w.start_char < end]
        out.append(f"[{clock(sung[0].t0)}] {written_words(sung, text, end)}" if sung else line)
        start = end + 1
    return "\n".join(out)


def written_words(sung: Sequence[TimedWord], text: str, end: int) -> str:
    out = ""
    for word, after in zip(sung, [*sung[1:], None]):
        out += f"<{clock(word.t0)}>{text[word.start_char : word.end_char]}"
        if after is None or clock(after.t0) != clock(word.t1):
            out += f"<{clock(word.t1)}>"
        out += text[word.end_char : after.start_char if after else end]
    return out.rstrip()
