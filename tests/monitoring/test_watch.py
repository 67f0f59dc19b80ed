"""The one screen, and its exit code for cron."""

import io
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fixtures.fake_runs import PretendRun
from rich.console import Console

from megajukebox.common.errors import EXIT_FATAL
from megajukebox.monitoring.collect.run_reader import Runs
from megajukebox.monitoring.exporters.terminal import screen, sparkline
from megajukebox.records.events import HangDetected


def shown(folder: Path, now: float, width: int = 200) -> str:
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=False).print(
        screen(Runs([folder]).read(now), now, width)
    )
    return out.getvalue()


def watch(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "megajukebox.commands.watch", str(folder), *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=200)


def live(folder: Path, **changed) -> PretendRun:
    """A run whose last step was made now."""
    run = PretendRun(folder, now=time.time() - 330, **changed)
    return run.start(init=1).train(320).beat()


def test_a_row_answers_the_questions_in_their_order(tmp_path: Path) -> None:
    run = PretendRun(tmp_path / "tiny" / "top_prior").start().train(320).beat()
    text = shown(tmp_path, run.now)
    assert "nothing is wrong" in text
    for words in (
        "tiny/top_prior",
        "training",
        "320/1,000 32%",
        "11 min",
        "512 tok/s",
        "goodput",
        "20 s ago",
        "x1.00",
    ):
        assert words in text, words


def test_a_run_that_ended_between_two_rows_of_metrics_stands_at_its_end(tmp_path: Path) -> None:
    """As runs of before wrote it: six steps, of which only the first was logged."""
    run = PretendRun(tmp_path / "done", steps=6).start().train(6).end()
    assert [state.step for state in Runs([tmp_path]).read(run.now)] == [6]
    assert "6/6 100%" in shown(tmp_path, run.now)
    stopped = PretendRun(tmp_path / "stopped", steps=40, now=run.now).start().train(14).save()
    stopped.end("stop", signal=15)
    assert "14/40 35%" in shown(tmp_path, stopped.now)
    stopped.start().train(3)
    assert "20/40" not in shown(tmp_path, stopped.now)


def test_a_row_tells_of_communication_and_of_the_queue(tmp_path: Path) -> None:
    run = PretendRun(tmp_path / "run").start().train(320, communication_seconds=0.25).beat()
    queue = {
        "time": run.now,
        "array": "1",
        "queued": 3,
        "schema": 2,
        "end_time": run.now + 7200,
        "queued_seconds": 1e6,
    }
    (run.folder / "slurm_chain.json").write_text(json.dumps(queue))
    assert "25%" in shown(tmp_path, run.now) and "2 h 0 min +3" in shown(tmp_path, run.now)


def test_what_is_wrong_comes_with_what_to_do_and_where_to_read_on(tmp_path: Path) -> None:
    run = PretendRun(tmp_path / "run").start().train(320).beat(r1={"time": 1.0})
    text = shown(tmp_path, run.now)
    assert "1 to act on now" in text and "rank 1 on node1" in text and "do: check that node" in text
    assert "docs/RUNBOOK.md#jukeboxranksilent" in text


def test_the_last_events_are_told_newest_first_without_the_usual(tmp_path: Path) -> None:
    run = PretendRun(tmp_path / "run").start().train(320)
    run.log.event(HangDetected(step=320, reason="rank 3 was in step for 400 s"))
    lately = shown(tmp_path, run.now).split("Lately")[1]
    assert "hang at step 320: rank 3" in lately and "save" not in lately
    assert lately.index("hang") < lately.index("start at step 0")


def test_names_and_reasons_are_shown_as_they_are_and_move_no_cursor(tmp_path: Path) -> None:
    run = PretendRun(tmp_path / "[red]bold[/red]\x1b[2J").start().train(10)
    run.log.event(
        HangDetected(step=1, reason="\x1b]0;owned\x07[link=x]y[/link]\nmore password=hunter2")
    )
    text = shown(tmp_path, run.now)
    assert "[red]bold[/red]?[2J" in text and "[link=x]y[/link]?more" in text
    assert "\x1b" not in text and "\x07" not in text and "hunter2" not in text


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_screen_fits_any_terminal(tmp_path: Path, width: int) -> None:
    run = (
        PretendRun(tmp_path / "a_run_with_a_long_name" / "middle_upsampler")
        .start()
        .train(320)
        .beat(r1={"time": 1.0})
    )
    assert max(map(len, shown(tmp_path, run.now, width).splitlines())) <= width


def test_a_sparkline_shows_the_course() -> None:
    assert sparkline([1, 2, 3, 4, 5, 6, 7, 8]) == "▁▂▃▄▅▆▇█"
    assert sparkline([]) == "" and sparkline([1, 1]) == "▁▁"


def test_the_exit_code_tells_cron_how_bad_it_is(tmp_path: Path) -> None:
    nothing = watch(tmp_path, "--once")
    assert nothing.returncode == 1 and "no run is here: is the path right?" in nothing.stdout
    live(tmp_path / "good")
    assert watch(tmp_path, "--once").returncode == 0
    live(tmp_path / "slow", data_seconds=0.5)
    assert watch(tmp_path, "--once").returncode == 1
    live(tmp_path / "ill").train(10, loss=float("nan")).beat()
    done = watch(tmp_path, "--once")
    assert done.returncode == 2 and "the loss is nan" in done.stdout


def test_the_json_holds_what_the_screen_shows(tmp_path: Path) -> None:
    live(tmp_path / "run").train(10, loss=float("nan")).beat()
    done = watch(tmp_path, "--json")
    (told,) = json.loads(done.stdout)
    assert (
        done.returncode == 2
        and told["step"] == 330
        and told["problems"][0]["alert"] == "JukeboxLossNaN"
    )


def test_a_missing_folder_is_told_in_one_line(tmp_path: Path) -> None:
    done = watch(tmp_path / "nowhere", "--once")
    assert (
        done.returncode == EXIT_FATAL
        and done.stderr.count("\n") == 1
        and "is not a folder" in done.stderr
    )
