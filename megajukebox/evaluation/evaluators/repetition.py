"""Do choruses return? Chroma of sections that are marked the same, against that of sections marked differently.

Marks come with the lyrics: a timed line that reads [Chorus] begins a section; without such lines, a sung line that
comes again with the same words is the same section.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from megajukebox.evaluation.evaluators.music_features import chroma_over_time
from megajukebox.evaluation.inputs import EvalSong

Array = np.ndarray
MARK = re.compile(r"^[\[(]([^\])]+)[\])]$")
MIN_SECTION_SECONDS = 1.0  # that a section must last to be compared
MAX_SECTIONS = 40  # their pairs grow with the square


class LyricSection(NamedTuple):
    """A stretch of a song, in seconds; those of one name should sound the same."""

    name: str
    start: float
    end: float


def repetition(song: EvalSong) -> Mapping[str, float]:
    """Mean similarity of sections marked the same, less that of the others; nothing where none are marked the same."""
    sections = []
    for section in sections_of(song):
        if section.end - section.start >= MIN_SECTION_SECONDS and section.end <= song.seconds:
            sections.append(section)
    same, different = similarities(song, sections[:MAX_SECTIONS])
    if not same or not different:
        return {}
    return {"repetition": float(np.mean(same) - np.mean(different))}


def similarities(
    song: EvalSong, sections: Sequence[LyricSection]
) -> tuple[list[float], list[float]]:
    """Similarity of the pairs of the same name, and of those of different names."""
    chromas = []
    for section in sections:
        samples = slice(int(section.start * song.rate), int(section.end * song.rate))
        chromas.append(chroma_over_time(song.audio[samples], song.rate))
    same: list[float] = []
    different: list[float] = []
    for i, j in combinations(range(len(sections)), 2):
        pairs = same if sections[i].name == sections[j].name else different
        # Mean cosine, the longer section brought to the length of the shorter.
        short_FC, long_FC = sorted((chromas[i], chromas[j]), key=len)
        index = np.round(np.linspace(0, len(long_FC) - 1, len(short_FC))).astype(int)
        pairs.append(float((short_FC * long_FC[index]).sum(axis=1).mean()))
    return same, different


def sections_of(song: EvalSong) -> list[LyricSection]:
    """The sections that the song's timed lyrics mark; none without times."""
    sung_lines: list[LyricSection] = []
    names: list[str] = []  # of the sections that marks begin
    starts: list[float] = []
    first_char = 0
    for line in song.text.split("\n"):
        end_char = first_char + len(line)
        sung = [word for word in song.words if first_char <= word.start_char < end_char]
        first_char = end_char + 1
        if not sung:
            continue
        sung_lines.append(LyricSection(section_name(line), sung[0].t0, sung[-1].t1))
        mark = MARK.match(line.strip())
        if mark:
            names.append(section_name(mark[1]))
            starts.append(sung[0].t0)
    if len(names) < 2:
        return sung_lines
    return list(map(LyricSection, names, starts, [*starts[1:], song.seconds]))


def section_name(text: str) -> str:
    """Words alone, numbers at the end left out: "Chorus 2" returns as "Chorus 1"."""
    return " ".join(re.findall(r"\w+", re.sub(r"\s*\d+\s*$", "", text).casefold()))
