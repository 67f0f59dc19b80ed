"""Provenance: the version, commit and command that made an output, written beside all of them."""

import subprocess
import sys
from pathlib import Path

import megajukebox
from megajukebox.common.redaction import redact_arguments


def made_by(command: str | None = None) -> dict[str, str | None]:
    """{"version", "commit", "command"}; without `command` the one that started this process.

    The commit ends in `-dirty` if files differ from it, and is None outside a repository.
    The program's name goes without its folder, which is private to the machine, its arguments
    without secrets.
    """
    if command is None:
        command = redact_arguments([Path(sys.argv[0]).name, *sys.argv[1:]])
    source = Path(megajukebox.__file__).resolve().parents[1]
    commit = None
    # A package installed into the environment of somebody else's repository is not of that
    # repository's commit: hence the look at the top level.
    if git(source, "rev-parse", "--show-toplevel") == str(source):
        commit = git(source, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    return {"version": megajukebox.__version__, "commit": commit, "command": command}


def git(folder: Path, *words: str) -> str | None:
    """The output of git, or None where git is missing, too slow, or fails."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None if answer.returncode == 0 else None
