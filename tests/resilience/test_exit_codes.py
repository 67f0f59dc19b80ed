"""A process ends with the status that was decided, whatever its streams and libraries do at that moment."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from megajukebox.monitoring.support_bundle import contents
from megajukebox.resilience import exit_codes

pytestmark = pytest.mark.cold_start  # about the end of a new process

# What torch's threads did now and then to a process that had already done its work: they ended it with a signal.
PROGRAM = """
import atexit, os, sys
from pathlib import Path
from megajukebox.common.errors import UserError
from megajukebox.resilience.exit_codes import TerminateRun, exit_guard, within
atexit.register(os.abort)
with exit_guard(Path(sys.argv[1]), "train") as end:
    end.generation = 1
    {body}
"""


def status(run: Path, body: str, **streams: object) -> int:
    environment = {"PATH": "", "WORLD_SIZE": "2", "PYTHONPATH": ":".join(filter(None, sys.path))}
    command = [sys.executable, "-c", PROGRAM.format(body=body), str(run)]
    return subprocess.run(command, env=environment, timeout=200, **streams).returncode  # type: ignore[call-overload]


def record(run: Path) -> dict:
    return json.loads((run / "exits/rank-00000.json").read_text())


@pytest.mark.parametrize(
    ("kind", "code"), [("done", exit_codes.EXIT_OK), ("stopped", exit_codes.EXIT_PREEMPTED)]
)
def test_the_status_of_a_rank_is_not_what_its_libraries_make_of_it_at_exit(
    tmp_path: Path, kind: str, code: int
):
    assert (
        status(
            tmp_path, f"end.exit_class = {kind!r}; print('all saved')", stdout=subprocess.DEVNULL
        )
        == code
    )
    assert record(tmp_path)["exit_class"] == kind


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("raise UserError('bad settings')", exit_codes.EXIT_FATAL),
        ("import numpy as np; np.zeros(3) + np.zeros(4)", exit_codes.EXIT_BUG),
        ("raise TerminateRun('fenced', 'replaced')", exit_codes.EXIT_FENCED),
        ("raise RuntimeError('Connection closed by peer')", exit_codes.EXIT_RETRY),
        ("print('all saved'); end.exit_class = 'stopped'", exit_codes.EXIT_PREEMPTED),
    ],
)
def test_a_log_that_cannot_be_written_changes_no_status(tmp_path: Path, body: str, code: int):
    """The file that a job prints to lies on the same full disk as the run."""
    with open("/dev/full", "w") as full:
        assert status(tmp_path, body, stdout=full, stderr=full) == code
    assert record(tmp_path)["code"] == code


def test_a_wait_that_is_too_long_ends_even_if_nobody_hears_why(tmp_path: Path):
    with open("/dev/full", "w") as full:
        body = "with within(0.2, 'they did not meet'): import time; time.sleep(60)"
        assert status(tmp_path, body, stdout=full, stderr=full) == exit_codes.EXIT_RETRY


def test_a_bug_of_numpys_is_no_mistake_of_the_users_and_keeps_its_traceback(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        PROGRAM.format(body="import numpy; numpy.zeros(3) + numpy.zeros(4)"),
    ]
    environment = {"PATH": "", "PYTHONPATH": ":".join(filter(None, sys.path))}
    done = subprocess.run(
        [*command, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == exit_codes.EXIT_BUG and "Traceback" in done.stderr
    end = record(tmp_path)
    assert end["exit_class"] == "bug" and "could not be broadcast" in end["reason"]
    assert "numpy.zeros(3) + numpy.zeros(4)" in end["traceback"] or "Traceback" in end["traceback"]
    bundle = dict(contents(tmp_path))
    assert "could not be broadcast" in bundle["exits/rank-00000.json"]


def test_a_mistake_of_the_users_is_one_line(tmp_path: Path) -> None:
    body = "raise UserError('train_batch_size 3 is not 2 x 2; set it to 4')"
    command = [sys.executable, "-c", PROGRAM.format(body=body), str(tmp_path)]
    environment = {"PATH": "", "PYTHONPATH": ":".join(filter(None, sys.path))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == exit_codes.EXIT_FATAL
    assert done.stderr == "train: train_batch_size 3 is not 2 x 2; set it to 4\n"
    assert record(tmp_path)["exit_class"] == "config" and "traceback" not in record(tmp_path)
