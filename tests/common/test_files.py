"""Folders that cannot be made, because a file has their name: one line, whatever the entry."""

import pytest

from megajukebox.common.files import make_folder
from megajukebox.resilience.exit_codes import EXIT_FATAL


def test_a_folder_and_those_above_it_are_made_once_or_more(tmp_path):
    for _ in range(2):
        make_folder(tmp_path / "a/b")
    assert (tmp_path / "a/b").is_dir()


@pytest.mark.parametrize("name", ["file", "file/folder", "file/folder/below"])
def test_a_file_in_the_way_of_a_folder_is_named(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file is a file; choose another, or move it"):
        make_folder(tmp_path / name)


def test_training_into_a_file_calls_a_person(tmp_path):
    from fixtures.tiny_runs import codes_and_preset, train

    (tmp_path / "file").touch()
    assert "is a file; choose another" in train(
        *codes_and_preset(tmp_path), tmp_path / "file", expect=EXIT_FATAL
    )
