"""Files that somebody else may have written: what is opened, and what a document may hold."""

import os
from pathlib import Path

import pytest

from megajukebox.common.errors import UserError
from megajukebox.common.files import (
    atomic_open,
    make_private_folder,
    open_append,
    write_atomic,
)
from megajukebox.common.untrusted_files import (
    UnsafeFileError,
    open_inside,
    parse_json,
    parse_yaml,
    read_given,
    read_inside,
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "heartbeats").mkdir(parents=True)
    (folder / "heartbeats" / "rank-0.json").write_text("{}")
    (tmp_path / "secret").write_text("password")
    return folder


def test_reads_a_file_within_the_folder(run: Path) -> None:
    assert read_inside(run, "heartbeats/rank-0.json") == b"{}"
    assert Path(open_inside(run, "heartbeats/rank-0.json").name) == run / "heartbeats/rank-0.json"
    link = run.parent / "link"
    link.symlink_to(run)  # the folder itself may be a link: the user named it
    assert read_inside(link, "heartbeats/rank-0.json") == b"{}"


def test_refuses_links_wherever_they_are(run: Path) -> None:
    (run / "run.yaml").symlink_to(run.parent / "secret")
    (run / "evil").symlink_to(run.parent)
    for name in ("run.yaml", "evil/secret"):
        with pytest.raises(UnsafeFileError, match="link"):
            read_inside(run, name)


@pytest.mark.parametrize("name", ["../secret", "heartbeats/../../secret", "/etc/passwd", ""])
def test_refuses_names_that_leave_the_folder(run: Path, name: str) -> None:
    with pytest.raises(UnsafeFileError, match="is not a file within"):
        open_inside(run, name)


def test_does_not_wait_for_a_pipe_nor_read_a_device(run: Path) -> None:
    os.mkfifo(run / "metrics.jsonl")
    with pytest.raises(UnsafeFileError, match="no regular file"):
        read_inside(run, "metrics.jsonl")
    with pytest.raises(UnsafeFileError, match="no regular file"):
        read_given("/dev/zero")
    with pytest.raises(IsADirectoryError):
        read_inside(run, "heartbeats")


def test_a_missing_file_is_missing_and_not_unsafe(run: Path) -> None:
    for name in ("none.json", "none/rank.json", "heartbeats/rank-0.json/x"):
        with pytest.raises((FileNotFoundError, NotADirectoryError)) as caught:
            read_inside(run, name)
        assert name in str(caught.value)


def test_refuses_more_bytes_than_are_allowed(run: Path) -> None:
    (run / "large").write_bytes(bytes(11))
    assert len(read_inside(run, "large", max_bytes=11)) == 11
    with pytest.raises(UnsafeFileError, match=r"more than 10 bytes.*large"):
        read_inside(run, "large", max_bytes=10)


@pytest.mark.parametrize(
    "text",
    [
        "a: &x [1]\nb: *x",
        "a: 1\na: 2",
        "[" * 100 + "]" * 100,
        "[" * 100_000,
        "a: 0x" + "f" * 5000,
        "a: " + "9" * 5000,
        "a: !!python/object/apply:os.system [id]",
        "a: !!bool maybe",
        'a: !!int ""',
        "a: !!timestamp never",
        "a: 2020-13-45",
        "{[a]: b}",
        "a: \x00",
        "a: [",
    ],
)
def test_yaml_that_is_refused_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        parse_yaml(text)


def test_yaml_of_ours_is_read_as_ever() -> None:
    text = "lr: 3.0e-4\nsteps: 1_000\nmask: 0x1f\non_gpu: true\nname: none of it\nnothing: ~\nlist: [1, [2]]"
    assert parse_yaml(text) == {
        "lr": 3e-4,
        "steps": 1000,
        "mask": 31,
        "on_gpu": True,
        "name": "none of it",
        "nothing": None,
        "list": [1, [2]],
    }
    assert parse_yaml("length: 1:30") == {"length": "1:30"}  # base 60 in YAML 1.1
    assert parse_yaml("stage: " + "1:" * 200_000 + "1")["stage"].startswith("1:1:")


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', "[" * 100_000, "[" * 70 + "]" * 70, "{", ""])
def test_json_that_is_refused_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        parse_json(text)


def test_a_link_in_the_place_of_a_partial_file_is_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "bashrc"
    victim.write_text("alias ls='ls -l'")
    (tmp_path / "x.json.partial").symlink_to(victim)
    write_atomic(tmp_path / "x.json", b"{}")
    assert victim.read_text() == "alias ls='ls -l'"
    assert not (tmp_path / "x.json").is_symlink()
    assert (tmp_path / "x.json").read_bytes() == b"{}"


def test_what_a_killed_writer_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "x.json.partial").write_bytes(b"half")
    with atomic_open(tmp_path / "x.json") as file:
        assert Path(file.name).name == "x.json.partial"
        file.write(b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_appending_follows_no_link(tmp_path: Path) -> None:
    with open_append(tmp_path / "log") as file:
        file.write(b"a\n")
    with open_append(tmp_path / "log") as file:
        file.write(b"b\n")
    assert (tmp_path / "log").read_bytes() == b"a\nb\n"
    (tmp_path / "evil").symlink_to(tmp_path / "log")
    with pytest.raises(OSError):
        open_append(tmp_path / "evil")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError):  # and does not wait for a reader
        open_append(tmp_path / "pipe")


def test_a_private_folder_is_this_users_alone(tmp_path: Path) -> None:
    folder = make_private_folder(tmp_path / "a" / "cache")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert make_private_folder(folder) == folder
    folder.chmod(0o777)
    with pytest.raises(UserError, match="others may write"):
        make_private_folder(folder)
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(UserError, match="not a folder of yours"):
        make_private_folder(tmp_path / "link")
