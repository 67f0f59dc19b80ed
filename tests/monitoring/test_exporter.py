"""The exporter: what it says of a run, what it refuses, and that nothing in a run folder can break it or its page."""

import math
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from fixtures.fake_runs import PretendRun
from prometheus_client.parser import text_string_to_metric_families

from megajukebox.commands.exporter import Exporter
from megajukebox.common.errors import EXIT_FATAL
from megajukebox.monitoring.collect.host import GPU_FIGURES, Gpu, Machine, gpus
from megajukebox.monitoring.collect.run_reader import Runs
from megajukebox.monitoring.collect.run_state import AlertThresholds
from megajukebox.monitoring.exporters import prometheus
from megajukebox.monitoring.exporters.metrics_server import (
    MetricsServer,
    application,
    parse_address,
    read_token,
)
from megajukebox.monitoring.legacy_names import LEGACY_METRICS
from megajukebox.monitoring.metrics import METRICS

HERE = Machine("here", 1e9, [])


def page(folder: Path, now: float | None = None) -> str:
    return prometheus.page(prometheus.families(Runs([folder]).read(now), HERE)).decode()


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Parsed by Prometheus's own client: name and labels -> value."""
    found = text_string_to_metric_families(text)
    return {
        (s.name, tuple(sorted(s.labels.items()))): s.value
        for family in found
        for s in family.samples
    }


def value(text: str, family: str, /, **labels: str) -> float:
    """Of the one sample of that name with these labels among its own."""
    found = [
        (dict(given), v)
        for (name, given), v in samples(text).items()
        if name == f"megajukebox_{family}"
    ]
    (only,) = [v for given, v in found if labels.items() <= given.items()]
    return only


@pytest.fixture
def run(tmp_path: Path) -> PretendRun:
    made = PretendRun(tmp_path / "runs" / "tiny" / "top_prior", data_seconds=0.25)
    return made.start().train(250, loss_scale=1024.0).beat()


def test_a_run_says_where_it_stands(run: PretendRun, tmp_path: Path) -> None:
    text = page(tmp_path / "runs", run.now)
    told = {
        name: value(text, name, run="tiny/top_prior")
        for name in ("step", "target_steps", "loss_scale", "ranks")
    }
    assert told == {"step": 250, "target_steps": 1000, "loss_scale": 1024, "ranks": 2}
    assert value(text, "status", status="training") == 1
    assert value(text, "eta_seconds") == pytest.approx(750 * 1.25)
    assert value(text, "tokens_total") == pytest.approx(250 * 512)
    assert value(text, "data_wait_ratio") == pytest.approx(0.2)
    assert value(text, "last_checkpoint_step") == 200 and value(text, "checkpoints_valid") == 2
    assert value(text, "goodput_ratio", window="total") == pytest.approx(
        250 / (20 + 4 + 250 * 1.25)
    )
    assert value(text, "time_seconds_total", phase="init") == 20
    assert value(text, "step_seconds_count") == 26


def test_the_parts_of_a_step_add_up_and_saves_have_their_share(tmp_path: Path) -> None:
    run = PretendRun(tmp_path / "run", step_seconds=1.0, data_seconds=0.25).start()
    text = page(
        tmp_path,
        run.train(250, communication_seconds=0.3).beat(r1={"communication_seconds": 0.4}).now,
    )
    parts = {
        p: value(text, "step_part_seconds", part=p)
        for p in ("data_wait", "communication", "forward_backward")
    }
    assert parts == pytest.approx(
        {"data_wait": 0.25, "communication": 0.3, "forward_backward": 0.7}
    )
    assert value(text, "step_part_seconds", part="save") == pytest.approx(
        2 * 2 / 249
    )  # two of 2 s in steps 1 to 250
    assert value(text, "rank_communication_seconds", rank="1", host="node1") == 0.4


def test_every_family_is_named_and_has_a_unit_as_prometheus_wants_it() -> None:
    for row in METRICS:
        assert re.fullmatch(r"[a-z][a-z_]+", row.name) and row.help.endswith(".")
        assert "run" not in row.labels
        assert not row.name.endswith("_total"), f"{row.name}: the client adds _total to a counter"


def test_a_vqvae_says_how_its_codebooks_fare(tmp_path: Path) -> None:
    book = {"top/usage": 8.0, "top/used": 8.0, "top/entropy": math.log(8)}
    PretendRun(tmp_path / "vqvae", stage="vqvae").start().train(10, **book)
    text = page(tmp_path)
    assert value(text, "codebook_usage_ratio", level="top") == 0.25
    assert value(text, "codebook_dead_codes", level="top") == 24
    assert value(text, "codebook_entropy", level="top") == pytest.approx(3)


def test_what_has_no_family_of_its_own_is_exported_by_its_name(tmp_path: Path) -> None:
    PretendRun(tmp_path / "run").start().train(10, **{"a new metric": 7.0})
    assert value(page(tmp_path), "other", name="a new metric") == 7


def test_a_run_that_is_being_written_is_followed_without_reading_it_again(tmp_path: Path) -> None:
    run, runs = PretendRun(tmp_path / "run"), Runs([tmp_path])
    run.start().train(100)
    assert runs.read(run.now)[0].step == 100
    size = (run.folder / "metrics.jsonl").stat().st_size
    with (run.folder / "metrics.jsonl").open("r+b") as file:
        file.write(b"X" * (size // 2))  # what was read is not looked at again
    run.train(50)
    state = runs.read(run.now)[0]
    assert state.step == 150 and state.unreadable == 0


def test_a_resumed_run_that_rewrote_its_metrics_is_read_again(tmp_path: Path) -> None:
    run, runs = PretendRun(tmp_path / "run"), Runs([tmp_path])
    run.start().train(150)
    assert runs.read(run.now)[0].step == 150
    run.die().start()
    assert runs.read(run.now)[0].step == 100
    assert value(page(tmp_path, run.now), "restarts_total", reason="crash") == 1
    assert value(page(tmp_path, run.now), "recomputed_steps_total") == 50


def test_a_run_of_an_older_version_is_told_as_far_as_it_goes(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "metrics.jsonl").write_text('{"step": 3, "loss": 1.5}\n')
    text = page(tmp_path)
    assert value(text, "loss", run="old") == 1.5 and value(text, "step") == 3


HOSTILE = [
    'x"} 1\nmegajukebox_step{run="forged',
    "<img src=x onerror=alert(1)>",
    "back\\slash\\",
    "new\nline",
    "ключ ♫",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_run_name_stays_one_label(tmp_path: Path, name: str) -> None:
    PretendRun(tmp_path / name.replace("/", "_")).start().train(10)
    steps = {
        labels: v for (n, labels), v in samples(page(tmp_path)).items() if n == "megajukebox_step"
    }
    assert steps == {(("run", name.replace("/", "_")),): 10}


def test_a_name_that_is_not_text_does_not_break_the_page(tmp_path: Path) -> None:
    os.mkdir(os.fsencode(tmp_path) + b"/bad\xff")
    (tmp_path / os.fsdecode(b"bad\xff") / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    assert value(page(tmp_path), "step", run="bad?") == 1


@pytest.mark.parametrize(
    "lines",
    [
        b"[1, 2]\nnull\n\xff\xfe\n{\n" + b"[" * 100_000 + b"\n",
        b'{"step": "7", "loss": [1], "time": "x"}\n{"step": 1e999, "loss": true, "time": {}}\n{"step": null}\n',
        b'{"step": 5, "loss": NaN, "time": -1e300, "split": ["x"], "step_seconds": -1e400}\n',
        b'{"step": 9, "time": 1e18, "' + b"k" * 5000 + b'": 1' + b"0" * 400 + b"}\n",
    ],
    ids=["not objects", "wrong types", "not numbers", "huge"],
)
def test_whatever_the_files_hold_the_page_is_whole(tmp_path: Path, lines: bytes) -> None:
    good = PretendRun(tmp_path / "good").start().train(10)
    bad = PretendRun(tmp_path / "bad").start().train(10).beat()
    for name in (
        "metrics.jsonl",
        "events.jsonl",
        "run.yaml",
        "heartbeats/rank-00000.json",
        "DONE",
        "slurm_chain.json",
    ):
        (bad.folder / name).write_bytes(lines)
    (bad.folder / "exits").mkdir()
    (bad.folder / "exits" / "rank-00000.json").write_bytes(lines)
    text = page(tmp_path, good.now)
    assert value(text, "step", run="good") == 10
    assert "\x00" not in text and samples(text)


def test_reading_a_run_changes_nothing_in_it(run: PretendRun, tmp_path: Path) -> None:
    def everything() -> dict[Path, tuple[int, int]]:
        return {
            p: (p.stat().st_mtime_ns, p.stat().st_size)
            for p in sorted((tmp_path / "runs").rglob("*"))
        }

    before = everything()
    page(tmp_path / "runs")
    assert everything() == before


def test_a_rank_that_is_slow_or_silent_is_named(tmp_path: Path) -> None:
    run = PretendRun(tmp_path / "run", ranks=4).start().train(200)
    run.beat(
        r2={"own_seconds": 1.6},
        r0={"own_seconds": 1.0},
        r1={"own_seconds": 1.0},
        r3={"time": run.now - 70},
    )
    state = Runs([tmp_path], AlertThresholds(silent=60)).read(run.now)[0]
    assert state.slowdowns[2] == pytest.approx(1.6) and [r.host for r in state.silent_ranks] == [
        "node3"
    ]
    assert value(page(tmp_path, run.now), "rank_silent", rank="3", host="node3") == 1


# --- what listens


@pytest.mark.parametrize("listen", ["127.0.0.1:9464", "localhost:0", "[::1]:9464", "127.5.5.5:80"])
def test_loopback_needs_no_token(listen: str) -> None:
    assert parse_address(listen, None)[1] == int(listen.rpartition(":")[2])


@pytest.mark.parametrize(
    "listen", ["0.0.0.0:9464", "[::]:9464", "10.0.0.5:9464", "node1:9464", ":9464"]
)
def test_another_address_needs_a_token(listen: str) -> None:
    with pytest.raises(ValueError, match="--token-file"):
        parse_address(listen, None)
    assert parse_address(listen, "0123456789abcdef")


@pytest.mark.parametrize(
    ("text", "mode", "told"), [("short", 0o600, "5 characters"), ("x" * 20, 0o644, "chmod 600")]
)
def test_a_weak_or_open_token_is_refused(tmp_path: Path, text: str, mode: int, told: str) -> None:
    path = tmp_path / "token"
    path.write_text(text)
    path.chmod(mode)
    with pytest.raises(ValueError, match=told):
        read_token(path)


def serve(token: str | None = None) -> tuple[MetricsServer, str]:
    server = MetricsServer(("127.0.0.1", 0), application(Exporter(runs=None), token))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_address[1]}"


def status(url: str, token: str | None = None, method: str = "GET") -> int:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, headers=headers, method=method), timeout=100
        ) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_only_the_metrics_are_served_and_nothing_can_be_changed() -> None:
    server, url = serve()
    assert status(f"{url}/metrics") == 200
    for path in (
        "/../../etc/passwd",
        "/metrics/../etc/passwd",
        "//etc/passwd",
        "/%2e%2e/etc/passwd",
        "/runs/x/run.yaml",
    ):
        assert status(f"{url}/{path}") == 404
    for method in ("POST", "PUT", "DELETE"):
        assert status(f"{url}/metrics", method=method) == 405
    server.shutdown()


def test_with_a_token_nothing_is_told_without_it() -> None:
    server, url = serve("s" * 20)
    assert [status(f"{url}/metrics", token) for token in (None, "wrong", "s" * 19, "s" * 20)] == [
        401,
        401,
        401,
        200,
    ]
    server.shutdown()


# --- the entry


def exporter(*arguments: str, expect: int = 0) -> str:
    command = [sys.executable, "-m", "megajukebox.commands.exporter", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == expect, done.stderr
    return done.stderr


def test_names_of_version_1_are_exported_when_asked_for(run: PretendRun, tmp_path: Path) -> None:
    """Dashboards that were not changed yet go on for one version."""
    states = Runs([tmp_path / "runs"]).read(run.now)
    plain = prometheus.page(prometheus.families(states, HERE)).decode()
    both = prometheus.page(prometheus.families(states, HERE, legacy_names=True)).decode()
    assert value(both, "steps_total") == value(both, "step") == 250
    assert value(both, "checkpoint_valid_count") == value(both, "checkpoints_valid") == 2
    assert value(both, "needs_person") == 0 and value(both, "generation") == 1
    before = {name for name, _ in samples(both)} - {name for name, _ in samples(plain)}
    assert before <= {
        f"megajukebox_{old.name}{'_total' if old.kind == 'counter' else ''}"
        for old in LEGACY_METRICS
    }
    assert len(before) >= 8


def test_promtool_finds_nothing_to_say_against_the_names(run: PretendRun, tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (apt-get install prometheus)")
    gpu = Gpu(0, "V100", {figure.name: 1.0 for figure in GPU_FIGURES})
    states = Runs([tmp_path / "runs"]).read(run.now)
    text = prometheus.page(prometheus.families(states, Machine("here", 1e9, [gpu])))
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_entry_writes_a_text_file_for_node_exporter(run: PretendRun, tmp_path: Path) -> None:
    exporter(str(tmp_path / "runs"), "--textfile", str(tmp_path), "--once")
    text = (tmp_path / "megajukebox.prom").read_text()
    assert value(text, "step") == 250 and value(text, "exporter_info") == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere"], "is not a folder"),
        (["--listen", "0.0.0.0:9464"], "can be reached from other machines"),
        (["--listen", "9464"], "is not an address and a port"),
        (["--textfile", "nowhere", "--once"], "is not a folder"),
        (["--webhook-file", "nowhere"], "cannot be read"),
    ],
    ids=str,
)
def test_the_entry_refuses_in_one_line(arguments: list[str], told: str) -> None:
    said = exporter(*arguments, expect=EXIT_FATAL)
    assert told in said and said.count("\n") == 1


def test_gpus_are_told_by_nvidia_smi(tmp_path: Path, monkeypatch) -> None:
    smi = tmp_path / "nvidia-smi"
    row = "0, Tesla V100-SXM2-32GB, 97, 30123, 32768, 65, 287.5, 1530, [N/A]"
    smi.write_text(
        f"#!/bin/sh\ncase $1 in --query-gpu=index,name,*) echo '{row}'; echo 'garbage';; esac\n"
    )
    smi.chmod(smi.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (gpu,) = gpus()
    assert gpu.model == "Tesla V100-SXM2-32GB" and gpu.figures[
        "utilization_ratio"
    ] == pytest.approx(0.97)
    assert (
        gpu.figures["memory_used_bytes"] == 30123 * 2**20
        and "ecc_uncorrected_errors" not in gpu.figures
    )
    text = prometheus.page(prometheus.families([], Machine("node7", 1.0, [gpu]))).decode()
    assert value(text, "gpu_temperature_celsius", node="node7", gpu="0") == 65
