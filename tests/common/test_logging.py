"""Log lines: to stderr, with rank, verb and level, without secrets; progress as lines where there is no terminal."""

import io
import logging
import sys

import pytest

from megajukebox.common.logging import LEVEL_VARIABLE, LogLevel, is_quiet, setup_logging
from megajukebox.common.progress import ProgressReporter, track

log = logging.getLogger("megajukebox.tests")


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(LEVEL_VARIABLE, "info")
    yield
    monkeypatch.undo()
    setup_logging("")


def test_lines_carry_the_verb_and_the_level_where_it_is_not_info(capsys) -> None:
    setup_logging("train")
    log.info("step %d", 3)
    log.warning("disk is full")
    log.debug("not shown")
    captured = capsys.readouterr()
    assert captured.err == "train: step 3\ntrain: warning: disk is full\n" and captured.out == ""


@pytest.mark.parametrize(
    "names", [("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")]
)
def test_among_several_ranks_lines_carry_the_rank(names, capsys, monkeypatch) -> None:
    setup_logging("train")
    for name, value in zip(names, ("3", "8"), strict=True):
        monkeypatch.setenv(name, value)
    log.info("step 3")
    assert capsys.readouterr().err == "[rank 3] train: step 3\n"


def test_the_environment_sets_the_level_for_launchers_and_an_option_for_children(
    capsys, monkeypatch
) -> None:
    monkeypatch.setenv(LEVEL_VARIABLE, "ERROR")
    setup_logging("")
    assert is_quiet()
    setup_logging("", LogLevel.debug)
    log.debug("shown")
    assert capsys.readouterr().err == "debug: shown\n" and not is_quiet()
    setup_logging("")  # a child process
    assert log.isEnabledFor(logging.DEBUG)


def test_other_libraries_log_warnings_alone(capsys) -> None:
    setup_logging("", LogLevel.debug)
    logging.getLogger("somebody.else").info("chatter")
    logging.getLogger("somebody.else").warning("real")
    assert capsys.readouterr().err == "warning: real\n"


def test_no_line_shows_a_secret_not_even_in_a_traceback(capsys) -> None:
    setup_logging("", timestamps=True)
    try:
        raise ValueError("https://me:hunter2@host/ failed")
    except ValueError:
        log.exception("token=%s", "abcdef")
    shown = capsys.readouterr().err
    assert "token=[hidden]" in shown and "hunter2" not in shown and "Traceback" in shown
    assert shown[:2] == "20" and shown[4] == "-"


def test_a_full_disk_under_the_log_does_not_end_the_program(monkeypatch) -> None:
    class FullDisk(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    setup_logging("")
    monkeypatch.setattr(sys, "stderr", FullDisk())
    log.error("lost")


def test_progress_without_a_terminal_is_a_line_now_and_then(capsys) -> None:
    setup_logging("encode")
    with ProgressReporter(interval_seconds=0) as progress:
        progress.add("shards", total=4, completed=1)
        progress.advance("shards")
        progress.advance("shards", note="loss 3.1")
        progress.advance("shards", detail=", loss 3.0")
    first, second, third = capsys.readouterr().err.splitlines()
    assert first.startswith("encode: shards: 2/4, ") and first.endswith(" s left")
    assert second == "encode: shards: loss 3.1"
    assert third.startswith("encode: shards: 4/4, ") and third.endswith(", loss 3.0")


def test_progress_is_silent_when_quiet_or_on_other_ranks(capsys) -> None:
    for level, enabled in ((LogLevel.warning, True), (LogLevel.info, False)):
        setup_logging("", level)
        with ProgressReporter(enabled, interval_seconds=0) as progress:
            progress.add("songs", total=1)
            progress.advance("songs")
    assert capsys.readouterr().err == ""


def test_progress_on_a_terminal_is_a_bar(monkeypatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    setup_logging("")
    assert list(track([1, 2, 3], "songs [all]")) == [1, 2, 3]
    assert "songs [all]" in terminal.getvalue() and "3/3" in terminal.getvalue()
