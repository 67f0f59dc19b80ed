"""benchmarks/gpu_day.py: every part runs without a GPU at a small size, and one that goes wrong costs its own row."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import environment
from fixtures.paths import ROOT

sys.path.append(str(ROOT / "benchmarks"))

from fixtures.fake_gpu_parts import PID_FILE
from gpu_day import PARTS, Part, run_day
from gpu_parts.results import DONE, FAILED, SKIPPED, TIMED_OUT, DayResults, Figure, PartResult
from gpu_parts.table import SMALL, table

MOST_FILES = 8
LARGEST_FILE = 16 * 2**20
FAKES = "fixtures.fake_gpu_parts"
LONG = 60.0  # seconds that a fake part may take: more than it does


@pytest.mark.timeout(900)
def test_every_part_of_the_day_runs_at_a_small_size(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/gpu_day.py", "--small", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    results = DayResults.load(tmp_path / "gpu_day.json")
    for part in PARTS:
        row = results.parts[part.name]
        assert row.status == DONE, "\n".join([part.name, row.reason, *row.last_lines])
        assert row.figures or row.facts, part.name  # profiles are facts: kernels and their times
    assert done.returncode == 0, done.stderr
    files = [path for path in tmp_path.iterdir() if path.is_file()]
    assert len(files) < MOST_FILES  # one more is the caller's own log
    assert max(path.stat().st_size for path in files) <= LARGEST_FILE


def day(folder: Path, *parts: Part, deadline: float = 1000.0, before=None) -> DayResults:
    run_day(list(parts), folder, deadline, small=False, before=before)
    return DayResults.load(folder / "gpu_day.json")


def test_parts_that_go_wrong_cost_a_row_each(tmp_path: Path) -> None:
    results = day(
        tmp_path,
        Part("failing", f"{FAKES}:failing", LONG),
        Part("killed", f"{FAKES}:killed", LONG),
        Part("misspelt", f"{FAKES}:missing", LONG),
        Part("good", f"{FAKES}:good", LONG),
    )
    rows = results.parts
    assert [row.status for row in rows.values()] == [FAILED, FAILED, FAILED, DONE]
    assert rows["failing"].last_lines[-1] == "RuntimeError: out of luck"
    assert len(rows["failing"].last_lines) == 20
    assert rows["killed"].reason == "killed by SIGKILL"
    assert "missing" in rows["misspelt"].last_lines[-1]
    for name in ("failing", "killed"):  # what was measured before stays
        assert [figure.values for figure in rows[name].figures] == [[1.0]]
    assert rows["good"].figures[0].values == [3.0, 3.0]
    text = (tmp_path / "gpu_day.txt").read_text()
    assert "speed" in text and "killed: failed killed by SIGKILL" in text


def test_a_small_day_compares_with_no_machine() -> None:
    figure = Figure("a step", "ms", [3.25], floor=17.5, plan=18.5, target=19.5)
    for small in (False, True):
        results = DayResults({"small": small}, {"part": PartResult(DONE, figures=[figure])})
        text = table(results)
        assert "3.25" in text
        assert (SMALL in text) == small
        for number in ("17.5", "18.5", "19.5"):
            assert (number in text) != small


def test_a_part_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    results = day(
        tmp_path, Part("hanging", f"{FAKES}:hanging", 6.0), Part("good", f"{FAKES}:good", LONG)
    )
    row = results.parts["hanging"]
    assert row.status == TIMED_OUT and row.reason == "over its limit of 12 s"
    assert row.figures[0].name == "before it hangs"
    assert results.parts["good"].status == DONE
    assert not is_running(int((tmp_path / PID_FILE).read_text()))


def is_running(pid: int) -> bool:
    """Whether a process is there, and is no zombie that nobody has waited for."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state != "Z"


def test_a_part_that_does_not_fit_the_rest_of_the_time_is_skipped(tmp_path: Path) -> None:
    results = day(
        tmp_path,
        Part("long", f"{FAKES}:hanging", 500.0),
        Part("good", f"{FAKES}:good", LONG),
        deadline=100.0,
    )
    assert results.parts["long"].status == SKIPPED
    assert results.parts["long"].reason.startswith("usually takes 500 s, 9")
    assert results.parts["good"].status == DONE


def test_what_an_earlier_day_finished_is_taken_from_it(tmp_path: Path) -> None:
    good = Part("good", f"{FAKES}:good", LONG)
    failing = Part("failing", f"{FAKES}:failing", LONG)
    earlier = day(tmp_path / "first", good, failing)
    earlier.parts["good"].figures[0].values = [7.0, 7.0]
    repeated = Part("failing", f"{FAKES}:good", LONG)
    results = day(tmp_path / "second", good, repeated, before=earlier)
    assert results.parts["good"].figures[0].values == [7.0, 7.0]
    assert results.parts["failing"].status == DONE
