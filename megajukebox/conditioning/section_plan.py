"""The plan of a song before its first code: which section sounds when, and which of them returns.

    sections: [{kind: intro, seconds: 8}, {kind: verse}, {kind: chorus}, {kind: verse}, {kind: chorus, again: 0.8}]
    sections: auto                                          by rule, as many as fit
    lyrics: "[Verse]\\nsnow on the road\\n[Chorus]\\n..."      headings; with the times of an .lrc, at those times

Lengths that nobody gave: that of the section's first occurrence, else by the lines that are sung in it. All are then
scaled to the length of the song, so that a section that returns is exactly as long as it was.
"""

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from megajukebox.conditioning.lrc import parse_lrc
from megajukebox.conditioning.section_kinds import heading_of
from megajukebox.conditioning.song_sections import (
    LabelledSection,
    SectionPlan,
    labelled,
    returns_of,
    sections_of_lyrics,
)

SECONDS_A_LINE = 4.0  # two bars of 4/4 at 120 beats a minute
SECONDS_WITHOUT_WORDS = 8.0
MAX_PLANNED = 200
# How a song goes whose sections nobody gave; then chorus and verse in turn, and the last is the outro.
AUTO_ORDER = ("intro", "verse", "chorus", "verse", "chorus", "bridge", "chorus")
SOURCE = "plan"


class PlannedSection(BaseModel):
    """A section of a song that is to be made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str = Field(min_length=1, max_length=100, description="verse, chorus, ... or a name")
    seconds: float | None = Field(default=None, gt=0, le=3600)
    again: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="share of the earlier occurrence's codes that it is told",
    )


Planned = tuple[PlannedSection, ...] | Literal["auto"]


def plan_sections(planned: Planned, lyrics: str, seconds: float) -> SectionPlan:
    """The sections of a song of `seconds`, from what was asked, else from headings in its lyrics; else no plan."""
    if planned == "auto":
        planned = auto_sections(seconds)
    if not planned:
        text, words = parse_lrc(lyrics)
        timed = sections_of_lyrics(text, words, seconds)
        if timed and timed[0].source == "lrc":
            sections = [section._replace(source=SOURCE) for section in timed]
            return SectionPlan(tuple(sections), tuple(returns_of(sections)))
        planned = headed_sections(text)
    return scaled_plan(planned, seconds)


def auto_sections(seconds: float) -> tuple[PlannedSection, ...]:
    """As many sections as fit, in the order of most songs."""
    count = max(1, round(seconds / SECONDS_WITHOUT_WORDS))
    kinds = list(AUTO_ORDER[:count])
    while len(kinds) < count:
        kinds.append("verse" if kinds[-1] == "chorus" else "chorus")
    if count > len(AUTO_ORDER):
        kinds[-1] = "outro"
    return tuple(PlannedSection(kind=kind) for kind in kinds)


def headed_sections(text: str) -> tuple[PlannedSection, ...]:
    """The sections that headings in plain lyrics name, as long as their lines take to sing."""
    sections: list[PlannedSection] = []
    heading: str | None = None
    lines = 0
    for line in [*text.split("\n"), "[end]"]:
        following = heading_of(line)
        if following is None:
            lines += bool(line.strip())
            continue
        if heading is not None and len(sections) < MAX_PLANNED:
            seconds = min(lines * SECONDS_A_LINE or SECONDS_WITHOUT_WORDS, 3600.0)
            sections.append(PlannedSection(kind=heading, seconds=seconds))
        heading = following
        lines = 0
    return tuple(sections)


def scaled_plan(planned: Sequence[PlannedSection], seconds: float) -> SectionPlan:
    """The plan of sections one after the other that together last `seconds`.

    A section that returns lasts as long as it did first, unless its own length was given.
    """
    lengths: list[float] = []
    first_lengths: dict[str, float] = {}
    for section in planned:
        name = labelled(section.kind, 0, 1, SOURCE).name
        length = section.seconds or first_lengths.get(name, SECONDS_WITHOUT_WORDS)
        first_lengths.setdefault(name, length)
        lengths.append(length)
    scale = seconds / math.fsum(lengths) if lengths else 1.0
    sections: list[LabelledSection] = []
    start = 0.0
    for section, length in zip(planned, lengths):
        end = start + length * scale
        sections.append(labelled(section.kind, start, end, SOURCE))
        start = end
    again = {placed.start: section.again for placed, section in zip(sections, planned)}
    returns = []
    for one in returns_of(sections):
        if again[one.start] > 0:
            returns.append(one._replace(strength=again[one.start]))
    return SectionPlan(tuple(sections), tuple(returns))
