"""Vocabularies: the same counts give the same ids, growing moves none, unknown names are said to be unknown."""

import pytest

from megajukebox.conditioning.vocabulary import Vocabulary


def test_vocabularies_rank_merge_and_survive_json() -> None:
    counts = {"Rock": 2, " rock": 2, "Pop": 3, "Cafe\u0301": 1, "jazz": 3}
    vocabulary = Vocabulary.build(counts, min_count=2)
    assert vocabulary.names == ("<unknown>", "rock", "jazz", "pop")
    assert Vocabulary.from_json(vocabulary.to_json()) == vocabulary
    assert len(Vocabulary.build(counts, size=2)) == 2
    assert Vocabulary.build(counts).id("CAFÉ") > 0


def test_a_vocabulary_grows_without_moving_its_ids() -> None:
    small = Vocabulary.build({"rock": 2, "pop": 1})
    large = small.grown({"jazz": 100, "Rock": 100})
    assert large.names == ("<unknown>", "rock", "pop", "jazz")


def test_ids_fill_slots_and_say_unknown_only_when_nothing_is_known() -> None:
    vocabulary = Vocabulary.build({"a": 4, "b": 3, "c": 2})
    assert vocabulary.ids(["A ", "x", "c", "a"], 4).tolist() == [1, 3, -1, -1]
    assert vocabulary.ids(["a", "b", "c"], 2).tolist() == [1, 2]
    assert vocabulary.ids(["x"], 2).tolist() == [0, -1]
    assert vocabulary.ids([], 2).tolist() == [-1, -1]
    assert vocabulary.ids([], 1).tolist() == [0]
    assert Vocabulary.of_years(1999, 2001).ids(["2000"], 1).tolist() == [2]


def test_a_vocabulary_with_a_name_twice_or_no_unknown_is_refused() -> None:
    with pytest.raises(ValueError, match="first name must be '<unknown>'"):
        Vocabulary(("rock",))
    with pytest.raises(ValueError, match="names 'a' twice"):
        Vocabulary(("<unknown>", "a", "a"))
