"""A folder below runs/ that somebody made to blind the watchers: it is said to be unreadable, and the others are shown."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures.fake_runs import PretendRun
from fixtures.fuzzing import mutated

from megajukebox.commands import watch
from megajukebox.commands.exporter import Exporter
from megajukebox.explorer.loaders.runs import read_runs
from megajukebox.explorer.site_builder import write_runs
from megajukebox.monitoring.alerts import diagnose
from megajukebox.monitoring.collect import run_reader
from megajukebox.monitoring.collect.run_reader import Runs, find_runs
from megajukebox.monitoring.exporters import prometheus
from megajukebox.monitoring.exporters.terminal import as_json, screen
from megajukebox.monitoring.exporters.webhooks import News
from megajukebox.records import jsonl_tail
from megajukebox.records.jsonl_tail import Tail

ROW = json.dumps({"schema": 2, "step": 1, "time": 1.0, "split": "train", "loss": 1.0}) + "\n"


def number_without_end(run: Path) -> None:
    (run / "run.yaml").write_text(f"stage: 0x{'f' * 5000}\n")


def base_60(run: Path) -> None:
    (run / "run.yaml").write_text(f"stage: {':'.join(['1'] * 50_000)}\n")


def aliases(run: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for depth in range(1, 10):
        lines.append(f"a{depth}: &a{depth} [{', '.join([f'*a{depth - 1}'] * 10)}]")
    (run / "run.yaml").write_text("\n".join(lines) + "\n")


def deep(run: Path) -> None:
    (run / "run.yaml").write_text("stage: " + "[" * 50_000)


def large_settings(run: Path) -> None:
    (run / "run.yaml").write_text("stage: x\n" + "#" * (1 << 20))


def settings_pipe(run: Path) -> None:
    os.mkfifo(run / "run.yaml")


def metrics_pipe(run: Path) -> None:
    os.mkfifo(run / "metrics.jsonl")


def events_pipe(run: Path) -> None:
    (run / "metrics.jsonl").write_text(ROW)
    os.mkfifo(run / "events.jsonl")


def endless_metrics(run: Path) -> None:
    (run / "metrics.jsonl").symlink_to("/dev/zero")


def endless_events(run: Path) -> None:
    (run / "metrics.jsonl").write_text(ROW)
    (run / "events.jsonl").symlink_to("/dev/zero")


def linked_settings(run: Path) -> None:
    (run.parent.parent / "secret").write_text("password: hunter2\n")
    (run / "run.yaml").symlink_to(run.parent.parent / "secret")


def sparse_metrics(run: Path) -> None:
    with (run / "metrics.jsonl").open("w") as file:
        file.truncate(1 << 40)


UNREADABLE = [
    number_without_end,
    aliases,
    deep,
    large_settings,
    settings_pipe,
    metrics_pipe,
    events_pipe,
    endless_metrics,
    endless_events,
    linked_settings,
    sparse_metrics,
]


@pytest.fixture
def good(tmp_path: Path) -> PretendRun:
    run = PretendRun(tmp_path / "runs" / "good", now=time.time() - 330)
    return run.start(init=1).train(320).beat()


def hostile(good: PretendRun, attack: Callable[[Path], None]) -> Path:
    folder = good.folder.with_name("evil")
    folder.mkdir()
    attack(folder)
    return folder


@pytest.mark.parametrize("attack", UNREADABLE)
def test_a_scrape_has_all_of_the_good_run_and_says_which_is_unreadable(
    good: PretendRun, attack: Callable[[Path], None]
) -> None:
    runs = good.folder.parent
    alone = prometheus.page(prometheus.run_families(Runs([runs]).read(good.now))).decode()
    hostile(good, attack)
    watched = Runs([runs])
    for _ in range(2):  # a second look, after what was remembered of the first
        text = prometheus.page(prometheus.run_families(watched.read(good.now))).decode()
        assert 'megajukebox_run_unreadable{run="evil"} 1.0' in text
        assert 'megajukebox_run_unreadable{run="good"} 0.0' in text
        measured = [line for line in alone.splitlines() if 'run="good"' in line]
        missing = set(measured) - set(text.splitlines())
        assert not [line for line in missing if not line.startswith("megajukebox_fs_free")]
        assert "hunter2" not in text


@pytest.mark.parametrize("attack", UNREADABLE)
def test_watch_shows_the_good_run_and_says_what_is_wrong_with_the_other(
    good: PretendRun, attack: Callable[[Path], None]
) -> None:
    hostile(good, attack)
    states = Runs([good.folder.parent]).read(good.now)
    by_name = {record["run"]: record for record in as_json(states)}
    assert by_name["good"]["status"] == "training" and not by_name["good"]["problems"]
    assert by_name["evil"]["status"] == "unreadable"
    first = next(p for p in by_name["evil"]["problems"] if p["alert"] == "JukeboxRunUnreadable")
    assert "cannot be read" in first["what"] and "hunter2" not in first["what"]
    assert watch.exit_code(states) == 1
    screen(states, good.now)


@pytest.mark.parametrize("attack", [number_without_end, metrics_pipe, endless_events])
def test_the_command_ends_by_itself_with_the_row_and_the_exit_code_of_a_warning(
    good: PretendRun, attack: Callable[[Path], None]
) -> None:
    hostile(good, attack)
    command = [sys.executable, "-m", "megajukebox.commands.watch", str(good.folder.parent)]
    done = subprocess.run([*command, "--once"], capture_output=True, text=True, timeout=100)
    assert done.returncode == 1, done.stderr
    assert "unreadable" in done.stdout and "320/1,000" in done.stdout


@pytest.mark.parametrize("attack", UNREADABLE)
def test_the_pages_have_the_good_run_and_say_which_is_unreadable(
    good: PretendRun, attack: Callable[[Path], None], tmp_path: Path
) -> None:
    hostile(good, attack)
    listed = {run.name: run for run in write_runs([good.folder.parent], tmp_path / "site")}
    assert listed["good"].state.status == "training" and not listed["good"].problems
    assert listed["evil"].state.status == "unreadable"
    for name in ("good", "evil"):
        assert f"run/{name}.html" in (tmp_path / "site/runs.html").read_text()
    text = (tmp_path / "site/run/evil.html").read_text()
    assert "unreadable" in text and "hunter2" not in text


def test_a_stage_that_is_no_number_is_a_text(good: PretendRun) -> None:
    base_60(hostile(good, lambda run: None))
    (evil, _) = Runs([good.folder.parent]).read(good.now)
    assert evil.problem == "" and evil.stage.startswith("1:1:1")


def test_a_run_that_is_a_link_to_other_storage_is_read_as_before(good: PretendRun) -> None:
    scratch = good.folder.parent.parent / "scratch"
    good.folder.rename(scratch)
    good.folder.symlink_to(scratch)
    (state,) = Runs([good.folder.parent]).read(good.now)
    assert (state.name, state.status, state.step) == ("good", "training", 320)


def test_folders_that_link_to_themselves_are_looked_into_once(tmp_path: Path) -> None:
    (tmp_path / "runs/x").mkdir(parents=True)
    for number in range(400):
        (tmp_path / f"runs/x/link{number}").symlink_to(tmp_path / "runs/x")
        (tmp_path / f"runs/link{number}").symlink_to("/")
    (tmp_path / "runs/long").symlink_to("x" * 300)  # stat() fails, with more than "not there"
    PretendRun(tmp_path / "runs/y/good")
    started = time.process_time()
    assert list(find_runs(tmp_path / "runs", 4)) == [tmp_path / "runs/y/good"]
    assert time.process_time() - started < 5  # cubic it took 20 minutes


def test_a_link_does_not_take_the_name_of_a_run(tmp_path: Path) -> None:
    PretendRun(tmp_path / "runs/good")
    (tmp_path / "runs/a").mkdir()
    (tmp_path / "runs/a/evil").symlink_to(tmp_path / "runs/good")
    assert list(find_runs(tmp_path / "runs", 4)) == [tmp_path / "runs/good"]


def test_a_look_takes_so_much_of_a_growing_file_and_the_next_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [json.dumps({"step": step}) for step in range(1000)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    monkeypatch.setattr(jsonl_tail, "MAX_LOOK_BYTES", 2000)
    monkeypatch.setattr(jsonl_tail, "BLOCK_BYTES", 300)
    tail = Tail(tmp_path / "metrics.jsonl")
    steps: list[int] = []
    looks = 0
    while not looks or tail.unread:
        records, replaced = tail.new()
        steps += [record["step"] for record in records]
        assert replaced == (looks == 0)
        looks += 1
    assert steps == list(range(1000)) and looks > 5 and tail.lost == 0


def test_a_line_too_long_for_a_record_is_lost_also_where_a_block_holds_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl_tail, "MAX_LINE_BYTES", 100)
    line = json.dumps({"step": 1, "x": [{}] * 100})
    (tmp_path / "metrics.jsonl").write_text(f'{line}\n{{"step": 2}}\n')
    tail = Tail(tmp_path / "metrics.jsonl")
    assert list(tail.new()[0]) == [{"step": 2}] and tail.lost == 1


def test_a_run_that_is_not_read_to_its_end_says_so_until_it_is(
    good: PretendRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl_tail, "MAX_LOOK_BYTES", 500)
    monkeypatch.setattr(run_reader, "MAX_FIRST_LOOKS", 2)
    runs = Runs([good.folder.parent])
    (state,) = runs.read(good.now)
    assert "bytes are not read yet" in state.problem and state.status == "unreadable"
    for _ in range(50):
        (state,) = runs.read(good.now)
    assert state.problem == "" and state.step == 320


def test_a_crash_of_watch_has_an_exit_code_of_its_own(
    good: PretendRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(watch, "screen", broken)
    with pytest.raises(SystemExit) as exit_:
        watch.main([good.folder.parent], once=True)
    assert exit_.value.code == watch.CRASHED == 3
    assert "a bug of ours" in capsys.readouterr().err


# ---- Fuzz -------------------------------------------------------------------------------------------------------------

SETTINGS = [
    "stage: top_prior\npreset: {training: {top_prior: {steps: 10}}}\n",
    "preset: [1]\nmodel: 3\nds_config: x\n",
    "{1: a, b: c, 2001-01-01: d}\n",
    "made_by: {version: [1], commit: {a: b}}\nstage: {a: 1}\n",
    "preset: {name: [x], training: {x: {steps: .nan, checkpointing: {every: a}}}}\nstage: x\n",
    "model: {codes: 1e999, down: [1, a], stride: [2, 3], sample_rate: x}\n",
]
VALUES = [None, True, 0, -1, 10**1000, 1e308, -1e308, "x", "9" * 500, [], [1, [2]], {}, {"a": 1}]
KEYS = (
    *("schema", "event", "time", "step", "split", "loss", "step_seconds", "data_seconds", "kind"),
    *("rank", "host", "phase", "phase_since", "own_seconds", "stage", "generation", "bad_samples"),
    *("seconds", "reason", "ranks", "losses", "files", "queued", "end_time", "top/used", "metrics"),
    *("time_step_seconds", "time_x_seconds", "phase_seconds", "counts", "code", "audio"),
)
EVENTS = ["start", "resume", "save", "skip_step", "hang", "steps_recomputed", "bad_sample", "x", 3]


def record(draw: random.Random) -> bytes:
    made = {key: draw.choice(VALUES) for key in draw.sample(KEYS, draw.randrange(12))}
    if draw.random() < 0.5:
        made["event"] = draw.choice(EVENTS)
    if draw.random() < 0.5:
        made |= {"schema": 2, "time": time.time() - draw.random() * 100, "step": draw.randrange(99)}
    line = json.dumps(made).encode()
    return mutated(line, draw) if draw.random() < 0.3 else line


def write_fuzzed(run: Path, draw: random.Random) -> None:
    """A run folder in which everything may be anything."""
    for folder in ("heartbeats", "exits", "checkpoints/step-00000010"):
        (run / folder).mkdir(parents=True, exist_ok=True)
    settings = draw.choice(SETTINGS).encode()
    files = {"run.yaml": mutated(settings, draw) if draw.random() < 0.5 else settings}
    for name in ("metrics.jsonl", "events.jsonl", "scores.jsonl"):
        files[name] = b"\n".join(record(draw) for _ in range(draw.randrange(12)))
    for name in ("heartbeats/rank-00000.json", "exits/rank-00000.json", "slurm_chain.json"):
        files[name] = record(draw)
    files["checkpoints/step-00000010/manifest.json"] = record(draw)
    files["model.json"] = record(draw)
    for name, content in files.items():
        (run / name).write_bytes(content)
        os.utime(run / name, (draw.random() * 1e9, draw.random() * 1e9))


def look(runs: Runs, news: News, site: Path | None) -> None:
    """All that looks at runs, once; the good run must be whole in each."""
    states = runs.read()
    text = prometheus.page(Exporter(runs).collect()).decode()
    assert 'megajukebox_step{run="good"} 320.0' in text
    assert {record["run"] for record in as_json(states)} == {"good", "evil"}
    screen(states, time.time())
    news.of(states)
    assert watch.exit_code(states) in (0, 1, 2)
    if site is not None:
        (listed,) = [run for run in write_runs(runs.folders, site) if run.name == "good"]
        assert listed.state.step == 320


@pytest.mark.parametrize(
    "count", [150, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)
def test_no_content_of_a_run_folder_stops_the_watchers(good: PretendRun, count: int) -> None:
    draw = random.Random(count)
    evil = good.folder.with_name("evil")
    runs, news = Runs([good.folder.parent]), News()
    for number in range(count):
        write_fuzzed(evil, draw)
        site = good.folder.parent.parent / "site" if number % 10 == 0 else None
        look(runs, news, site)


def test_a_bug_in_a_view_of_one_run_is_a_row_that_says_so(
    good: PretendRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    PretendRun(good.folder.with_name("evil"))
    states = Runs([good.folder.parent]).read(good.now)
    target = type(states[0]).target.fget
    assert target is not None

    def broken(run: object) -> object:
        if getattr(run, "name", "") == "evil" and not getattr(run, "problem", ""):
            raise ZeroDivisionError("a bug of ours")
        return target(run)

    monkeypatch.setattr(type(states[0]), "target", property(broken))
    text = prometheus.page(prometheus.run_families(states)).decode()
    assert 'megajukebox_target_steps{run="good"} 1000.0' in text
    assert 'megajukebox_run_unreadable{run="evil"} 1.0' in text
    (evil, well) = as_json(states)
    assert evil["status"] == "unreadable" and well["status"] == "training"
    assert not diagnose(states[1])
    assert {run.name for run in read_runs([good.folder.parent])} == {"evil", "good"}
