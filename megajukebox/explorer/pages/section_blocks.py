"""The sections of a song as blocks on a time line, and what sounded before."""

from typing import Any, NamedTuple

from megajukebox.common.errors import BadSampleError
from megajukebox.conditioning.song_sections import stored_returns, stored_sections
from megajukebox.explorer.pages.layout import clock

SOURCES = {
    "json": "the song's JSON",
    "txt": "its label file",
    "lrc": "headings in its lyrics",
    "words": "lines that are sung again",
}


class SectionBlock(NamedTuple):
    """One block of the picture; `start` and `width` in percent of it."""

    kind: str
    start: str
    width: str
    text: str


def section_blocks(metadata: dict[str, Any], start: float, seconds: float) -> list[SectionBlock]:
    """The sections of a song's JSON within the part that is shown, or, without any, its returns as blocks."""
    try:
        sections = stored_sections(metadata)
        returns = stored_returns(metadata)
    except BadSampleError:
        return []  # its JSON is shown as it is
    spans: list[tuple[float, float, str, str]] = []
    earlier = {one.start: one.earlier for one in returns}
    for section in sections:
        text = f"{section.label or section.kind} {clock(section.start)} to {clock(section.end)}"
        if section.start in earlier:
            text += f", as at {clock(earlier[section.start])}"
        text += f" ({SOURCES.get(section.source, section.source)})"
        spans.append((section.start, section.end, section.kind, text))
    if not sections:
        for one in returns:
            times = f"{clock(one.start)} to {clock(one.end)}, as at {clock(one.earlier)}"
            spans.append((one.start, one.end, "return", f"sounds again: {times} (self-similarity)"))
    blocks = []
    for first, last, kind, text in spans:
        begins = max(first - start, 0.0)
        length = min(last - start, seconds) - begins
        if length > 0 and seconds > 0:
            block = SectionBlock(kind, f"{begins / seconds:.3%}", f"{length / seconds:.3%}", text)
            blocks.append(block)
    return blocks
