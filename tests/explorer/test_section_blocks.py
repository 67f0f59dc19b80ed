"""Sections of a song as blocks of the part that is shown."""

from megajukebox.explorer.pages.section_blocks import section_blocks

SECTIONS = [
    {"kind": "verse", "start": 0, "end": 10, "from": "lrc"},
    {"kind": "chorus", "start": 10, "end": 20, "from": "lrc"},
    {"kind": "chorus", "start": 30, "end": 40, "from": "lrc"},
    {"kind": "unknown", "label": "<b>", "start": 40, "end": 50, "from": "txt"},
]


def test_blocks_are_those_of_the_part_that_is_shown() -> None:
    blocks = section_blocks({"sections": SECTIONS}, start=15.0, seconds=20.0)
    assert [(one.kind, one.start, one.width) for one in blocks] == [
        ("chorus", "0.000%", "25.000%"),
        ("chorus", "75.000%", "25.000%"),
    ]
    assert blocks[1].text == "chorus 0:30 to 0:40, as at 0:10 (headings in its lyrics)"
    last = section_blocks({"sections": SECTIONS}, start=45.0, seconds=20.0)
    assert last[0].text.startswith("<b> 0:40 to 0:50") and last[0].width == "25.000%"


def test_returns_without_sections_are_blocks_too_and_broken_ones_none() -> None:
    (block,) = section_blocks({"returns": [[20.0, 30.0, 5.0]]}, 0.0, 40.0)
    assert block.kind == "return" and "as at 0:05" in block.text
    assert section_blocks({"sections": 3}, 0.0, 10.0) == section_blocks({}, 0.0, 10.0) == []
    assert section_blocks({"sections": SECTIONS}, 0.0, 0.0) == []
