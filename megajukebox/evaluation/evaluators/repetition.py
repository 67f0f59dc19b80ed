"""Do choruses return? Chroma of sections that are marked the same, against that of sections marked differently.

Marks are the plan that a sample was made by. Else they come with the lyrics: a timed line that reads [Chorus] begins a
section; without such lines, a sung line that comes again with the same words is the same section. Else the sections of
the song's JSON.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from megajukebox.conditioning.section_kinds import UNKNOWN_KIND
from megajukebox.conditioning.song_sections import LabelledSection
from megajukebox.evaluation.evaluators.music_features import chroma_over_time
from megajukebox.evaluation.inputs import EvalSong

Array = np.ndarray
MARK = re.compile(r"^[\[(]([^\])]+)[\])]$")
PLAN = "plan"  # source of the sections that a sample was made by
MIN_SECTION_SECONDS = 1.0  # that a section must last to be compared
MAX_SECTIONS = 40  # their pairs grow with the square
MAX_OF_A_KIND = 8
MAX_FELLOWS = 8  # songs of the same labels that a song is compared with
MAX_SHIFT = 6  # codes by which sections are moved against each other


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
        pairs.append(similarity(chromas[i], chromas[j]))
    return same, different


def sections_of(song: EvalSong) -> list[LyricSection]:
    """The sections of a sample's plan, else those that timed lyrics mark, else those of the song's JSON."""
    planned = [LyricSection(section.name, section.start, section.end) for section in song.sections]
    if song.sections and song.sections[0].source == PLAN:
        return planned
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
        return sung_lines or planned
    return list(map(LyricSection, names, starts, [*starts[1:], song.seconds]))


def section_name(text: str) -> str:
    """Words alone, numbers at the end left out: "Chorus 2" returns as "Chorus 1"."""
    return " ".join(re.findall(r"\w+", re.sub(r"\s*\d+\s*$", "", text).casefold()))


# ---- Beyond one recording: what any chorus of the genre has, and codes that are copied


def section_chromas(song: EvalSong) -> dict[str, list[Array]]:
    """By kind, the chroma [F, C] of a song's sections, a few of each; of known kinds alone."""
    chromas: dict[str, list[Array]] = {}
    for section in song.sections[:MAX_SECTIONS]:
        samples_T = song.audio[int(section.start * song.rate) : int(section.end * song.rate)]
        is_cut = section.end > song.seconds + MIN_SECTION_SECONDS
        is_short = len(samples_T) < MIN_SECTION_SECONDS * song.rate
        of_kind = chromas.setdefault(section.kind, [])
        if section.kind != UNKNOWN_KIND and not is_cut and not is_short:
            of_kind.append(chroma_over_time(samples_T, song.rate))
    return chromas


def chorus_return(
    chromas: Mapping[str, Mapping[str, Sequence[Array]]], labels: Mapping[str, Mapping[str, str]]
) -> dict[str, float]:
    """By song: similarity of its sections of one kind, less that with such sections of other songs of its labels.

    Chords that every chorus of a genre shares so do not count. Only songs in which a kind returns, and that have a fellow.
    """
    returns: dict[str, float] = {}
    for key, kinds in chromas.items():
        fellows = [other for other in chromas if other != key and labels[other] == labels[key]]
        own: list[float] = []
        others: list[float] = []
        for kind, own_chromas in kinds.items():
            pairs = list(combinations(own_chromas[:MAX_OF_A_KIND], 2))
            own += [similarity(one, two) for one, two in pairs]
            for other in fellows[:MAX_FELLOWS] if pairs else ():
                for theirs in chromas[other].get(kind, ())[:1]:
                    others.append(similarity(own_chromas[0], theirs))
        if own and others:
            returns[key] = float(np.mean(own) - np.mean(others))
    return returns


def similarity(one_FC: Array, other_FC: Array) -> float:
    """Mean cosine of two chromas, the longer brought to the length of the shorter."""
    short_FC, long_FC = sorted((one_FC, other_FC), key=len)
    index = np.round(np.linspace(0, len(long_FC) - 1, len(short_FC))).astype(int)
    return float((short_FC * long_FC[index]).sum(axis=1).mean())


def code_reuse(
    codes_T: Array, sections: Sequence[LabelledSection], codes_per_second: float
) -> Mapping[str, float]:
    """Share of equal codes of sections of one name at the best of a few shifts, less that of other names; {} without both."""
    parts: list[tuple[str, Array]] = []
    for section in sections[:MAX_SECTIONS]:
        part = codes_T[slice(*np.round(np.multiply(section[1:3], codes_per_second)).astype(int))]
        if section.name and len(part) > 2 * MAX_SHIFT:
            parts.append((section.name, part))
    same: list[float] = []
    different: list[float] = []
    for (name, one_T), (other_name, other_T) in combinations(parts, 2):
        length = min(len(one_T), len(other_T)) - 2 * MAX_SHIFT
        if length < 1:
            continue
        middle_T = one_T[MAX_SHIFT : MAX_SHIFT + length]
        windows = np.lib.stride_tricks.sliding_window_view(other_T, length)[: 2 * MAX_SHIFT + 1]
        pairs = same if name == other_name else different
        pairs.append(float((windows == middle_T).mean(axis=1).max()))
    if not same or not different:
        return {}
    return {"code_reuse": float(np.mean(same) - np.mean(different))}
