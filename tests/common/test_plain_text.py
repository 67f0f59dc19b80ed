"""What comes from data and is printed or logged: it moves no cursor, and writes no clipboard."""

import logging

import pytest

from megajukebox.commands.control import write_flag
from megajukebox.commands.prepare import print_table
from megajukebox.common.command_line import entry_function
from megajukebox.common.errors import UserError
from megajukebox.common.logging import setup_logging
from megajukebox.common.plain_text import plain, without_controls

EVIL = "a\x1b]52;c;aGk=\x07b\x9b2Jc\u202e\udcff"


def test_signs_that_a_terminal_obeys_become_question_marks() -> None:
    assert plain(EVIL + "\nd") == "a?]52;c;aGk=?b?2Jc???d"
    assert without_controls("a\n\tb\x1b") == "a\n\tb?"
    assert plain("Ärger, ключ, 歌 [x]") == "Ärger, ключ, 歌 [x]"


def test_logs_and_mistakes_of_users_hold_none(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging("test")
    # pytest keeps what was logged, and cannot send half a character to the process that reports it.
    logging.getLogger("megajukebox.x").warning("song %s\nsecond line", EVIL.removesuffix("\udcff"))

    def main() -> None:
        raise UserError(f"song {EVIL} is none\n  id: {EVIL}")

    with pytest.raises(SystemExit):
        entry_function(main, "test")(log_level=None, quiet=False)
    printed = capsys.readouterr().err
    assert printed.count("\n") == 4 and "\x1b" not in printed and "\x9b" not in printed


def test_names_of_songs_that_prepare_refuses_hold_none(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    print_table(Console(), "refused", [(EVIL, "[red]x[/]", EVIL)])
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and "[red]x[/]" in printed


def test_a_flag_is_not_written_through_a_link(tmp_path) -> None:
    write_flag(tmp_path, "SAVE")
    write_flag(tmp_path, "SAVE")
    assert (tmp_path / "SAVE").read_bytes() == b""
    (tmp_path / "STOP").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="STOP cannot be written"):
        write_flag(tmp_path, "STOP")
    assert not (tmp_path / "elsewhere").exists()
