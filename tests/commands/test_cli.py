"""The command line: every verb explains itself at once, and a wrong one is told which there are."""

import os
import subprocess
import sys

import pytest

from megajukebox.cli import VERBS


def megajukebox(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "megajukebox.cli", *arguments]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
        "NO_COLOR": "1",
        "TERM": "dumb",
    }
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


@pytest.mark.parametrize("arguments", [[], ["--help"]], ids=str)
def test_help_lists_every_verb(arguments: list[str]) -> None:
    done = megajukebox(*arguments)
    assert done.returncode == 0, done.stderr
    assert all(
        f"  {verb} " in done.stdout and about in done.stdout for verb, (_, about) in VERBS.items()
    )


def test_help_comes_at_once_because_no_verb_is_imported_for_it() -> None:
    script = (
        "import sys; from megajukebox.cli import main; main(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode == 0


def test_what_samples_starts_without_torch_s_compiler_which_takes_seconds_to_import() -> None:
    script = "import sys, megajukebox.sample; sys.exit('torch._inductor' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode == 0


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str) -> None:
    done = megajukebox(verb, "--help")
    assert done.returncode == 0, done.stderr
    assert f"megajukebox {verb}" in done.stdout and "Options" in done.stdout


def test_an_unknown_verb_is_refused_and_the_known_ones_named() -> None:
    done = megajukebox("compose", "--help")
    assert done.returncode == 1 and done.stdout == ""
    assert (
        done.stderr.strip()
        == f"megajukebox: there is no verb 'compose'; choose one of {', '.join(VERBS)}"
    )


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
            "--no-exact takes the way windows, not rows",
        ),
        (
            ["train", "vqvae", "--data", "nowhere", "--out", "none", "--preset", "huge"],
            "preset 'huge' is neither",
        ),
    ],
    ids=str,
)
def test_a_mistake_is_told_without_a_traceback(arguments: list[str], told: str) -> None:
    done = megajukebox(*arguments)
    assert done.returncode != 0
    assert told in done.stderr and "Traceback" not in done.stderr, done.stderr
