"""OpenAI's names of artists and genres."""

import pytest

from megajukebox.conditioning.jukebox_labels import jukebox_genres, jukebox_name, read_label_file


def test_names_are_written_as_the_label_files_have_them():
    assert (
        jukebox_name("Céline Dion", "v2") == "c_line_dion"
        and jukebox_name("Céline Dion", "v3") == "céline dion"
    )
    assert jukebox_genres("Hip-Hop Soul", "v2") == ["hip", "hop", "soul"]
    assert jukebox_genres("Hip-Hop Soul", "v3") == ["hip-hop soul"]


def test_rows_without_a_name_and_names_used_twice_do_not_break_the_vocabulary(tmp_path):
    (tmp_path / "ids.txt").write_text("unknown;0\na;b;2\nsame;1\nsame;3\n\n")
    names = read_label_file(tmp_path / "ids.txt", 5).names
    assert names == ("<unknown>", "same", "a;b", "<row 3>", "<row 4>")


@pytest.mark.parametrize("line", ["no id", "far;9", ";1", "word;x"])
def test_a_broken_line_is_named(tmp_path, line):
    (tmp_path / "ids.txt").write_text(f"unknown;0\n{line}\n")
    with pytest.raises(ValueError, match="line 2"):
        read_label_file(tmp_path / "ids.txt", 5)
