"""Records of samples in the names of version 0.1 are read in today's."""

import pytest

from megajukebox.records.sample_record import (
    current_decoding,
    current_sample_record,
    current_song_key,
)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("sequential", "sequential"),
        ("ahead", "speculative"),
        ("fixed_point", "jacobi"),
        ("across", "jacobi_windows"),
        ("rows", "cuda_graph"),
        ("windows", "parallel_windows"),
        ("polished 1,1", "verified 1,1"),
        ("student 0,1", "student 0,1"),
        ("own", "own"),
    ],
)
def test_old_names_of_a_level_s_decoding_become_those_of_today(old: str, new: str) -> None:
    assert current_decoding(old) == current_decoding(new) == new


def test_a_record_of_version_1_is_read_in_the_fields_of_today() -> None:
    old = {
        "engine": {"exact": False, "way": "windows", "int8": False},
        "levels": {"top": {"codes": 3, "way": "fixed_point"}, "original": {"audio": "a.wav"}},
    }
    new = {
        "decoding": {"exact": False, "decoding": "parallel_windows", "int8": False},
        "levels": {"top": {"codes": 3, "decoding": "jacobi"}, "original": {"audio": "a.wav"}},
    }
    assert current_sample_record(old) == new
    assert current_sample_record(new) == new
    assert "engine" in old, "the record itself stays as it is"


def test_fields_of_a_wrong_type_are_left_to_whoever_validates_them() -> None:
    damaged = {"engine": "fast", "levels": {"top": 5, "bottom": {"way": 7}}}
    assert current_sample_record(damaged) == {
        "decoding": "fast",
        "levels": {"top": 5, "bottom": {"way": 7}},
    }


def test_the_key_of_a_resume_file_of_version_1_equals_today_s() -> None:
    old = {"request": {"id": "a"}, "engine": {"exact": True}}
    assert current_song_key(old) == {"request": {"id": "a"}, "decoding": {"exact": True}}
