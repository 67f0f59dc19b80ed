"""Figures of what comes back: chance is 0, a copy shows, and what a whole genre shares does not count."""

import numpy as np
import pytest

from megajukebox.conditioning.song_sections import LabelledSection
from megajukebox.evaluation.evaluators.repetition import (
    chorus_return,
    code_reuse,
    repetition,
    section_chromas,
    sections_of,
)
from megajukebox.evaluation.inputs import EvalSong

RATE = 8000
FORM = ("verse", "chorus", "verse", "chorus")
PART = 3.0  # seconds of a section


def sections(source: str = "json") -> tuple[LabelledSection, ...]:
    return tuple(
        LabelledSection(kind, PART * n, PART * n + PART, source) for n, kind in enumerate(FORM)
    )


def phrase(seed: int) -> np.ndarray:
    """Six notes of half a second."""
    time = np.arange(RATE // 2) / RATE
    notes = 60 + np.random.default_rng(seed).permutation(12)[:6]
    waves = [np.sin(2 * np.pi * 440 * 2 ** ((note - 69) / 12) * time) for note in notes]
    return 0.3 * np.concatenate(waves).astype(np.float32)


def song(key: str, verse: int, chorus: int, other_chorus: int | None = None) -> EvalSong:
    last = chorus if other_chorus is None else other_chorus
    audio = np.concatenate([phrase(seed) for seed in (verse, chorus, verse, last)])
    return EvalSong(key, audio, RATE, {"artist": "Ada"}, sections=sections())


def returns(*songs: EvalSong) -> dict[str, float]:
    chromas = {one.key: section_chromas(one) for one in songs}
    return chorus_return(chromas, {one.key: one.labels for one in songs})


def test_a_chorus_that_every_song_of_the_genre_has_does_not_count() -> None:
    found = returns(song("a", 1, 2), song("b", 3, 4))
    assert found["a"] > 0.3 and found["b"] > 0.3
    shared = returns(song("a", 1, 2), song("b", 1, 2))
    assert shared["a"] == pytest.approx(0, abs=0.05)
    assert returns(song("a", 1, 2)) == {}, "no fellow to compare with"


def test_sections_of_a_plan_or_of_the_json_are_compared() -> None:
    returning, other = song("a", 1, 2), song("b", 1, 2, other_chorus=5)
    assert [one.name for one in sections_of(returning)] == list(FORM)
    assert repetition(returning)["repetition"] > repetition(other)["repetition"] + 0.1
    assert repetition(returning)["repetition"] > 0.3


def codes(reuse: float, seed: int) -> np.ndarray:
    """Four sections of 60 codes; of the second verse and chorus so many are those of the first, three codes later."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 500, 120)
    again = np.where(rng.random(120) < reuse, first, rng.integers(0, 500, 120))
    again = np.concatenate([np.roll(half, 3) for half in np.split(again, 2)])
    return np.concatenate([first, again])


@pytest.mark.parametrize("reuse", [0.0, 0.3, 1.0])
def test_code_reuse_is_the_share_of_codes_that_are_copied(reuse: float) -> None:
    found = [code_reuse(codes(reuse, seed), sections(), 20.0)["code_reuse"] for seed in range(8)]
    assert np.mean(found) == pytest.approx(reuse, abs=0.05)


def test_without_two_of_a_name_and_two_names_there_is_no_figure() -> None:
    assert code_reuse(codes(1.0, 0), sections()[:2], 20.0) == {}
    assert code_reuse(codes(1.0, 0), (), 20.0) == {}
    assert code_reuse(codes(1.0, 0)[:10], sections(), 20.0) == {}, "a song that was cut"
