"""Places in sections, and the memory of what sounded before: against a slow loop, and never a code of the future."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megajukebox.conditioning.schema import SongConditioning, WindowPosition
from megajukebox.conditioning.section_conditions import (
    GOLDEN_RATIO,
    MemoryCondition,
    SectionsCondition,
    SongReturns,
    memory_of,
)
from megajukebox.conditioning.song_sections import LabelledSection, SectionReturn

HOP, RATE = 10, 100  # ten codes a second


def memory_slowly(returns, codes, start, size, shifts) -> np.ndarray:
    """The obvious loop: code by code, the last return that it lies in."""
    ids = []
    for code in range(start - size.margin, start + size.window_codes + size.margin):
        told = 0
        for one, shift in zip(returns, shifts):
            begin, end = round(one.start * 10), round(one.end * 10)
            lag = begin - round(one.earlier * 10) + shift
            source = code - lag
            if begin <= code < end and lag >= 1 and 0 <= source < start:
                kept = one.strength == 1 or code * GOLDEN_RATIO % 1 < one.strength
                told = 1 + codes[source] if kept else 0
        ids.append(told)
    return np.array(ids)


times = st.integers(0, 120).map(lambda tenths: tenths / 10)


@st.composite
def some_returns(draw: st.DrawFn) -> list[SectionReturn]:
    returns = []
    for _ in range(draw(st.integers(0, 4))):
        earlier, gap, length = draw(times), draw(times), draw(times)
        start = earlier + gap + 0.1
        strength = draw(st.sampled_from([1.0, 0.5, 0.8]))
        returns.append(SectionReturn(start, start + length + 0.1, earlier, strength))
    return sorted(returns)


@settings(max_examples=150, deadline=None)
@given(
    some_returns(),
    st.integers(0, 150),
    st.integers(1, 40),
    st.integers(0, 12),
    st.integers(-4, 4),
)
def test_memory_is_that_of_a_slow_loop_and_never_of_the_future(
    returns: list[SectionReturn], start: int, window: int, margin: int, shift: int
) -> None:
    codes = np.random.default_rng(start).integers(0, 500, 400)
    asked = []

    def earlier(first: int, end: int) -> np.ndarray:
        asked.append((first, end))
        return codes[first:end]

    size = MemoryCondition(window, margin, 0.1, 0.0)
    shifts = [shift] * len(returns)
    ids = memory_of(returns, earlier, start, size, 10.0, shifts)
    assert np.array_equal(ids, memory_slowly(returns, codes, start, size, shifts))
    assert all(0 <= first < end <= start for first, end in asked), "what the window has is unread"
    changed = codes.copy()
    changed[start:] += 1000
    again = memory_of(returns, lambda a, b: changed[a:b], start, size, 10.0, shifts)
    assert np.array_equal(ids, again), "codes of the future change nothing"


def position(start: int, codes: np.ndarray, window: int = 20) -> WindowPosition:
    return WindowPosition(
        len(codes) * HOP, start * HOP, window * HOP, RATE, lambda a, b: codes[a:b]
    )


CODES = np.arange(200)
CHORUS_AGAIN = SongReturns((SectionReturn(12.0, 16.0, 4.0),))


def test_a_return_is_told_the_codes_of_its_first_time_up_to_its_end() -> None:
    condition = MemoryCondition(20, 5, 0.0, 0.0)
    ids = condition.window(CHORUS_AGAIN, position(115, CODES))
    told = np.where((np.arange(110, 140) >= 120) & (np.arange(110, 140) < 160))[0]
    assert np.array_equal(np.flatnonzero(ids), told)
    assert ids[told[0]] == 1 + 40 and ids[-1] == 1 + 59
    assert not condition.window(condition.null(), position(115, CODES)).any()
    nowhere = replace(position(115, CODES), earlier=None)
    assert not condition.window(CHORUS_AGAIN, nowhere).any(), "a student has no codes at hand"


def test_a_window_that_holds_the_first_time_is_told_none_of_it() -> None:
    condition = MemoryCondition(100, 0, 0.0, 0.0)
    assert not condition.window(CHORUS_AGAIN, position(40, CODES, 100)).any()
    ids = condition.window(CHORUS_AGAIN, position(45, CODES, 100))
    assert ids[75:80].tolist() == [41, 42, 43, 44, 45] and not ids[80:].any(), "codes before it"


def conditioning(*conditions) -> SongConditioning:
    values = {"memory": CHORUS_AGAIN, "sections": SECTIONS}
    return SongConditioning(conditions, {c.name: values[c.name] for c in conditions})


def test_training_is_told_less_and_other_draws_do_not_move() -> None:
    memory = MemoryCondition(20, 5, jitter_seconds=0.3, noise=0.2, dropout=0.25)
    other = MemoryCondition(20, 5, 0.0, 0.0, dropout=0.25, name="memory")
    shifts = []
    missing = []
    dropped = 0
    for seed in range(300):
        song = conditioning(memory)
        rng, twin = np.random.default_rng(seed), np.random.default_rng(seed)
        ids = song.window(position(122, CODES), rng)["memory"]
        conditioning(other).window(position(122, CODES), twin)
        assert rng.random() == twin.random(), "one draw, whatever is made of it"
        if not ids.any():
            dropped += 1
            continue
        own = np.flatnonzero(ids)
        shifts += (ids[own] - 1 - (own + 117 - 80)).tolist()
        missing.append(np.mean(ids[3:] == 0))
    assert 45 < dropped < 110, "a quarter"
    assert set(shifts) == set(range(-3, 4))
    assert 0.15 < np.mean(missing) < 0.25
    still = conditioning(memory).window(position(122, CODES))["memory"]
    assert still.tolist() == [0, 0, 0, *range(41, 68)], "without draws all of it, in its place"


SECTIONS = (
    LabelledSection("verse", 0.0, 4.0, "json"),
    LabelledSection("chorus", 4.0, 8.0, "json"),
    LabelledSection("verse", 8.0, 12.0, "json"),
    LabelledSection("chorus", 12.0, 16.0, "json"),
    LabelledSection("unknown", 16.0, 18.0, "json", "theme"),
)


def test_places_say_kind_occurrence_and_how_far_it_is() -> None:
    condition = SectionsCondition(window_codes=60, bins=8, max_seconds=2.0)
    places = condition.window(SECTIONS, position(70, CODES, 60))
    assert places.shape == (60, 4) and places.dtype == np.int64
    assert places[0].tolist() == [4, 1, 8, 7], "chorus, first, over 2 s, at 3/4"
    assert places[10].tolist() == [2, 2, 1, 1], "the second verse begins"
    assert places[50].tolist() == [4, 2, 1, 1]
    later = condition.window(SECTIONS, position(165, CODES, 60))
    assert later[0].tolist() == [0, 1, 3, 3] and not later[15:].any(), "no section: nothing"
    assert not condition.window(condition.null(), position(0, CODES, 60)).any()


def test_songs_are_read_from_the_json_of_a_shard() -> None:
    record = [section.to_record() for section in SECTIONS]
    song = SimpleNamespace(metadata=json.loads(json.dumps({"sections": record})))
    assert SectionsCondition(8, 8, 1.0).read(song) == SECTIONS
    assert MemoryCondition(8, 0, 0.0, 0.0).read(song).returns == (
        SectionReturn(8.0, 12.0, 0.0),
        SectionReturn(12.0, 16.0, 4.0),
    )


@pytest.mark.parametrize("occurrences", [1, 8, 12])
def test_many_occurrences_share_the_last_row(occurrences: int) -> None:
    sections = tuple(
        LabelledSection("chorus", 1.0 * n, 1.0 * n + 1, "json") for n in range(occurrences)
    )
    places = SectionsCondition(10, 4, 1.0).window(
        sections, position(10 * occurrences - 10, CODES, 10)
    )
    assert places[0, 1] == min(occurrences, 8)
