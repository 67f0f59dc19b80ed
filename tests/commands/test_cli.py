"""The command line: every verb explains itself, nothing heavy is imported for help, old names are still understood."""

import os
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from megajukebox import __version__, cli
from megajukebox.cli import PANELS, RENAMED_VERBS, VERBS
from megajukebox.common import command_line, logging
from megajukebox.common.errors import EXIT_FATAL

pytestmark = pytest.mark.cold_start  # about what a new process is


def megajukebox(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "megajukebox", *arguments]
    plain = {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **plain, **environment},
    )


@pytest.fixture
def invoke(monkeypatch):
    """Call the command line in this process, on a very wide screen."""
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 1000)
    monkeypatch.setenv(logging.LEVEL_VARIABLE, "info")

    def call(*arguments: str):
        return CliRunner().invoke(cli.app, arguments, prog_name="megajukebox")

    yield call
    monkeypatch.undo()
    logging.setup_logging("")


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["help"]], ids=str)
def test_help_lists_every_verb_in_its_panel(arguments: list[str]) -> None:
    done = megajukebox(*arguments)
    assert done.returncode == 0, done.stderr
    for panel, verbs in PANELS.items():
        assert f"─ {panel} ─" in done.stdout
        for verb in verbs:
            assert re.search(rf"{verb.name} +{re.escape(verb.help)}", done.stdout), verb.name
    assert not [old for old in RENAMED_VERBS if re.search(rf"│ {old} ", done.stdout)]


def test_without_arguments_the_help_is_shown() -> None:
    assert "─ Operate ─" in megajukebox().stdout


@pytest.mark.parametrize("arguments", [["--help"], ["help"], ["--version"], ["hum"]], ids=str)
def test_help_comes_at_once_because_no_verb_is_imported_for_it(arguments: list[str]) -> None:
    script = (
        "import sys, contextlib; from megajukebox.cli import app\n"
        "with contextlib.suppress(SystemExit): app(sys.argv[1:])\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'scipy')))"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True)
    assert done.returncode == 0


def test_the_version_is_printed() -> None:
    assert megajukebox("--version").stdout == f"megajukebox {__version__}\n"


def test_help_of_a_verb_is_the_verb_s_help(invoke) -> None:
    assert invoke("help", "stop").stdout == invoke("stop", "--help").stdout
    assert "Usage: megajukebox stop" in invoke("help", "stop").stdout


def test_the_public_names_are_imported_when_they_are_used() -> None:
    script = (
        "import sys, megajukebox; assert 'torch' not in sys.modules\n"
        "for name in megajukebox.__all__: assert name in dir(megajukebox)\n"
        "from megajukebox import Jukebox, SongRequest, ShardSet, load_preset\n"
        "assert load_preset('tiny').stage('vqvae')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_samples_starts_without_torch_s_compiler_which_takes_seconds_to_import() -> None:
    script = "import sys, megajukebox.sample; sys.exit('torch._inductor' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode == 0


def commands_of(name: str) -> list[list[str]]:
    """A verb, and the verbs below it."""
    command = cli.load_command(VERBS[name])
    return [[name], *([name, below] for below in getattr(command, "commands", {}))]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_s_help_shows_its_texts_to_the_letter_brackets_too(verb: str, invoke) -> None:
    for arguments in commands_of(verb):
        done = invoke(*arguments, "--help")
        assert done.exit_code == 0, done.output
        assert f"Usage: megajukebox {' '.join(arguments)}" in done.stdout
        shown = plain(done.stdout)
        command = cli.load_command(VERBS[verb])
        for below in arguments[1:]:
            command = command.commands[below]
        for parameter in command.params:
            if not parameter.hidden and parameter.help:
                assert plain(parameter.help) in shown, parameter.name


@pytest.mark.parametrize("verb", VERBS)
def test_old_names_of_options_lead_to_options_that_the_verb_has(verb: str) -> None:
    command = cli.load_command(VERBS[verb])
    for entry in getattr(command, "commands", {verb: command}).values():
        options = {option for parameter in entry.params for option in parameter.opts}
        for old, new in getattr(entry.callback, command_line.RENAMED_OPTIONS, {}).items():
            assert old not in options and new.partition("=")[0] in options


def plain(text: str) -> str:
    return " ".join(text.split())


def test_an_unknown_verb_is_refused_and_the_nearest_named(invoke) -> None:
    done = invoke("evalute")
    assert (
        done.exit_code == 2
        and "There is no verb 'evalute'; did you mean 'evaluate'?" in done.output
    )
    assert "did you mean 'evaluate'?" in invoke("scor").output
    assert "megajukebox --help lists them" in invoke("xyzzy").output


@pytest.mark.parametrize(("old", "new"), RENAMED_VERBS.items())
def test_a_verb_of_the_version_before_is_understood(old: str, new: str, invoke) -> None:
    done = invoke(old, "--help")
    assert f"Usage: megajukebox {new}" in done.stdout
    line = f"megajukebox: verb {old} is now {new}; the old name goes with the next version"
    assert done.stderr.strip() == line


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["samples", "runs", "--out", "site"], ["build", "samples", "runs", "--out", "site"]),
        (["--out", "site", "samples"], ["build", "--out", "site", "samples"]),
        (["samples", "--serve", "--port", "0"], ["serve", "samples", "--port", "0"]),
    ],
)
def test_explore_without_a_verb_builds_or_serves(old: list[str], new: list[str]) -> None:
    assert cli.new_explore_form(old) == new
    assert cli.new_explore_form(new) == new


def test_completion_names_verbs_and_options(tmp_path) -> None:
    def complete(words: str) -> str:
        count = str(len(words.split(" ")) - 1)
        asked = {"COMP_WORDS": words, "COMP_CWORD": count, "_MEGAJUKEBOX_COMPLETE": "complete_bash"}
        return megajukebox(**asked).stdout

    assert complete("megajukebox s").split() == [
        "shards",
        "sections",
        "supervise",
        "save",
        "stop",
        "sample",
        "support-bundle",
    ]
    assert complete("megajukebox stop --u").split() == ["--undo"]
    shown = megajukebox(
        "--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1"
    )
    assert "_MEGAJUKEBOX_COMPLETE=complete_bash" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["sample", "nowhere", "--requests", "none.yaml"],
            "requests file 'none.yaml' cannot be read",
        ),
        (["sample", "nowhere", "--seconds", "-1"], "nowhere is no folder of runs"),
        (
            ["sample", "nowhere", "--no-exact", "--way", "rows"],
            "--no-exact decodes by parallel_windows, not cuda_graph",
        ),
        (
            ["train", "vqvae", "--data", "nowhere", "--out", "none", "--preset", "huge"],
            "preset 'huge' is neither",
        ),
        (["stop", "nowhere"], "stop: nowhere is not a run folder"),
        (["save", "nowhere"], "save: nowhere is not a run folder"),
    ],
    ids=str,
)
def test_a_mistake_is_told_without_a_traceback(arguments: list[str], told: str) -> None:
    done = megajukebox(*arguments)
    assert done.returncode != 0
    assert told in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_a_user_s_mistake_in_any_verb_ends_with_the_fatal_exit_code() -> None:
    assert megajukebox("stop", "nowhere").returncode == EXIT_FATAL


def test_the_group_s_logging_options_hold_for_the_verb(invoke, monkeypatch, tmp_path) -> None:
    levels = []
    monkeypatch.setattr(
        command_line,
        "setup_logging",
        lambda verb, level: levels.append((verb, level, logging.is_quiet())),
    )
    invoke("--quiet", "stop", str(tmp_path))
    assert levels == [("stop", None, True)]
