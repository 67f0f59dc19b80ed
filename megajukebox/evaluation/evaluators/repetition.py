"""Do choruses return? Chroma of sections that are marked the same, against that of sections marked differently.

Marks come with the lyrics: a timed line that reads [Chorus] begins a section; without such lines, a sung line that
comes again with the same words is the same section.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from megajukebox.conditioning.lrc import TimedWord
from megajukebox.evaluation.evaluators.music_features import course
from megajukebox.evaluation.inputs import EvalSong

Array = np.ndarray
MARK = re.compile(r"^[\[(]([^\])]+)[\])]$")
SHORTEST = 1.0  # seconds that a section must last to be compared
MOST = 40  # sections that are compared: their pairs grow with the square


class LyricSection(NamedTuple):
    """A stretch of a song, in seconds; those of one name should sound the same."""

    name: str
    start: float
    end: float


def repetition(song: EvalSong) -> Mapping[str, float]:
    """Mean similarity of sections marked the same, less that of the others; nothing where none are marked the same."""
    marked = [s for s in sections(song) if s.end - s.start >= SHORTEST and s.end <= song.seconds][
        :MOST
    ]
    same, different = similarities(song, marked)
    return {"repetition": float(np.mean(same) - np.mean(different))} if same and different else {}


def similarities(song: EvalSong, marked: Sequence[LyricSection]) -> tuple[list[float], list[float]]:
    """How alike are the pairs of the same name, and those of different names."""
    courses = [
        course(song.audio[int(s.start * song.rate) : int(s.end * song.rate)], song.rate)
        for s in marked
    ]
    pairs: dict[bool, list[float]] = {True: [], False: []}
    for i, j in combinations(range(len(marked)), 2):
        pairs[marked[i].name == marked[j].name].append(similarity(courses[i], courses[j]))
    return pairs[True], pairs[False]


def similarity(one_FC: Array, other_FC: Array) -> float:
    """Mean cosine of two courses of chroma, the longer one brought to the length of the shorter."""
    short, long = sorted((one_FC, other_FC), key=len)
    picked = long[np.round(np.linspace(0, len(long) - 1, len(short))).astype(int)]
    return float((short * picked).sum(axis=1).mean())


def sections(song: EvalSong) -> list[LyricSection]:
    """The sections that the song's timed lyrics mark; none without times."""
    lines = timed_lines(song.text, song.words)
    marks = [(MARK.match(text.strip()), start) for text, start, _ in lines]
    if sum(mark is not None for mark, _ in marks) >= 2:
        named = [(plain(mark[1]), start) for mark, start in marks if mark]
        ends = [*(start for _, start in named[1:]), song.seconds]
        return [LyricSection(name, start, end) for (name, start), end in zip(named, ends)]
    return [LyricSection(plain(text), start, end) for text, start, end in lines]


def timed_lines(text: str, words: Iterable[TimedWord]) -> list[tuple[str, float, float]]:
    """(line, start, end) of the lines that have words with times."""
    found, first, timed = [], 0, list(words)
    for line in text.split("\n"):
        sung = [w for w in timed if first <= w.start_char < first + len(line)]
        if sung:
            found.append((line, sung[0].t0, sung[-1].t1))
        first += len(line) + 1
    return found


def plain(text: str) -> str:
    """Words alone, numbers at the end left out: "Chorus 2" returns as "Chorus 1"."""
    return " ".join(re.findall(r"\w+", re.sub(r"\s*\d+\s*$", "", text).casefold()))
