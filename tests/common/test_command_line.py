"""What all entries share: one line for a user's mistake, a traceback for ours, old options, brackets in help."""

import re
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from megajukebox.common import logging as our_logging
from megajukebox.common.command_line import command_app, group_app, renamed_options
from megajukebox.common.errors import EXIT_FATAL, UserError


@pytest.fixture(autouse=True)
def level_of_before(monkeypatch):
    monkeypatch.setenv(our_logging.LEVEL_VARIABLE, "info")
    yield
    monkeypatch.undo()
    our_logging.setup_logging("")


@renamed_options({"--most-songs": "--max-songs", "--stop-when-lost": "--on-lost-shard=stop"})
def main(
    word: Annotated[str, typer.Argument(help="A word, or [several].")] = "none",
    max_songs: Annotated[int, typer.Option(help="Songs at most, as in 'moods=[calm]'.")] = 1,
    on_lost_shard: Annotated[str, typer.Option(help="stop or skip.")] = "skip",
) -> None:
    """Print what was given [to the letter]."""
    if word == "mistake":
        raise UserError("word 'mistake' is wrong, token=abcdef; give another")
    if word == "bug":
        raise ValueError("operands could not be broadcast")
    typer.echo(f"{word} {max_songs} {on_lost_shard} quiet={our_logging.is_quiet()}")


def run(*arguments: str):
    return CliRunner().invoke(command_app(main, "try"), arguments)


def test_old_names_of_options_are_understood_with_a_line_that_names_the_new() -> None:
    done = run("--most-songs", "3", "--stop-when-lost", "w")
    assert done.stdout == "w 3 stop quiet=False\n"
    assert done.stderr.splitlines() == [
        "megajukebox: option --most-songs is now --max-songs; the old name goes with the next version",
        "megajukebox: option --stop-when-lost is now --on-lost-shard stop; the old name goes with the next version",
    ]
    assert run("--most-songs=3", "w").stdout == "w 3 skip quiet=False\n"
    assert run("--max-songs=3", "--", "--most-songs").stdout == "--most-songs 3 skip quiet=False\n"
    assert "--most-songs" not in run("--help").stdout


def test_a_user_s_mistake_is_one_line_without_secrets_and_exit_code_93() -> None:
    done = run("mistake")
    assert done.exit_code == EXIT_FATAL == 93
    assert done.stderr == "try: word 'mistake' is wrong, token=[hidden]; give another\n"


def test_a_bare_value_error_is_a_bug_and_keeps_its_traceback() -> None:
    done = run("bug")
    assert type(done.exception) is ValueError and done.exit_code == 1


def test_help_shows_brackets() -> None:
    shown = re.sub(r"\s+", " ", run("--help").stdout)
    for text in ("A word, or [several].", "'moods=[calm]'", "given [to the letter]"):
        assert text in shown


def test_quiet_and_log_level_are_options_of_every_entry() -> None:
    assert run("--quiet").stdout.endswith("quiet=True\n")
    assert run("--log-level", "error").stdout.endswith("quiet=True\n")
    assert run("--log-level", "debug", "--quiet").stdout.endswith("quiet=False\n")
    assert run("--log-level", "loud").exit_code == 2


def test_verbs_below_a_verb_share_all_that() -> None:
    below = typer.Typer()
    below.command("one")(main)
    below.command("two")(main)
    app = group_app(below, "try", "Try [things].")
    assert CliRunner().invoke(app, ["one", "--most-songs", "2"]).stdout.startswith("none 2")
    assert CliRunner().invoke(app, ["two", "mistake"]).stderr.startswith("try two: word 'mistake'")
