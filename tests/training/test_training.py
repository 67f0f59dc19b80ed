"""Training through the real entry: resumed equals straight, a kill loses nothing whole, a NaN stops at a named step."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import PRESET, environment

import megajukebox
from megajukebox.common.world import free_port
from megajukebox.records.jsonl_tail import read_lines
from megajukebox.resilience import exit_codes
from megajukebox.training import checkpoint
from megajukebox.training.engines.ds_config import read_ds_config

TRAIN = str(Path(megajukebox.__file__).parent / "train.py")
pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.xdist_group("pipeline"),
]  # one worker trains it once


def command(pipeline: Path, out: Path, ranks: int, *more: str) -> list[str]:
    program = [sys.executable, TRAIN]
    if ranks > 1:
        deepspeed = shutil.which("deepspeed", path=environment()["PATH"])
        port = str(free_port())
        program = [
            str(deepspeed),
            "--log_level",
            "warning",
            "--num_gpus",
            str(ranks),
            "--master_port",
            port,
            TRAIN,
        ]
    data = str(pipeline / "shards/codes")
    return [
        *program,
        "top_prior",
        "--preset",
        str(PRESET),
        "--data",
        data,
        "--out",
        str(out),
        *more,
    ]


def train(pipeline: Path, out: Path, *more: str, ranks: int = 1, expect: int = 0) -> str:
    told = command(pipeline, out, ranks, *more)
    done = subprocess.run(told, env=environment(), capture_output=True, text=True, timeout=200)
    assert (done.returncode == 0) == (expect == 0), done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout + done.stderr


def start(pipeline: Path, out: Path, *more: str, ranks: int = 1) -> subprocess.Popen:
    """Training in the background, as the leader of a process group of its own."""
    told = command(pipeline, out, ranks, *more)
    return subprocess.Popen(
        told, env=environment(), stdout=subprocess.DEVNULL, start_new_session=True
    )


def wait_for(done: Callable[[], object]) -> None:
    deadline = time.monotonic() + 240
    while not done():
        assert time.monotonic() < deadline, "not so after 240 s"
        time.sleep(0.02)


def losses(run: Path) -> list[str]:
    """Every training loss, to the last digit."""
    return [m["loss"].hex() for m in read_lines(run / "metrics.jsonl") if m["split"] == "train"]


def fingerprint(run: Path) -> str:
    return json.loads((run / "model.json").read_text())["fingerprint"]


def test_stopping_at_step_10_and_resuming_equals_20_straight_steps_on_two_ranks(pipeline, tmp_path):
    straight = pipeline / "runs/top_prior"  # the pipeline trained it: 20 steps, 2 ranks, ZeRO-3
    train(pipeline, tmp_path / "run", "--stop-after", "10", ranks=2)
    assert len(losses(tmp_path / "run")) == 10
    train(pipeline, tmp_path / "run", ranks=2)
    assert losses(tmp_path / "run") == losses(straight)
    assert fingerprint(tmp_path / "run") == fingerprint(straight)


@pytest.mark.slow
def test_a_run_killed_without_warning_ends_as_if_it_had_not_been(pipeline, tmp_path):
    started = start(pipeline, tmp_path / "run", ranks=2)
    wait_for(
        lambda: (
            len(read_lines(tmp_path / "run/metrics.jsonl")) >= 7
            and checkpoint.candidates(tmp_path / "run")
        )
    )
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    folder, rejected = checkpoint.newest(tmp_path / "run")
    assert folder is not None and not rejected
    train(pipeline, tmp_path / "run", ranks=2)
    assert fingerprint(tmp_path / "run") == fingerprint(pipeline / "runs/top_prior")
    assert losses(tmp_path / "run") == losses(pipeline / "runs/top_prior")


def test_a_signal_saves_and_leaves(pipeline, tmp_path):
    started = start(pipeline, tmp_path / "run", "training.top_prior.steps=100000")
    wait_for(lambda: len(read_lines(tmp_path / "run/metrics.jsonl")) >= 3)
    started.send_signal(signal.SIGTERM)
    assert started.wait(200) == exit_codes.EXIT_PREEMPTED
    last = read_lines(tmp_path / "run/events.jsonl")[-1]
    assert last["event"] == "stop" and last["signal"] == signal.SIGTERM
    assert checkpoint.read_state(checkpoint.newest(tmp_path / "run")[0])["step"] == last["step"]


def test_a_loss_that_is_not_a_number_stops_the_run_with_the_step_named(pipeline, tmp_path):
    wild = "top.transformer.init_scale=1e37"  # logits beyond float32
    printed = train(pipeline, tmp_path / "run", wild, expect=1)
    assert "steps were skipped, the last one: loss is nan" in printed
    assert read_lines(tmp_path / "run/events.jsonl")[-1]["event"] == "diverged"


def test_another_model_in_the_same_folder_is_refused(pipeline, tmp_path):
    train(pipeline, tmp_path / "run", "--stop-after", "1")
    printed = train(pipeline, tmp_path / "run", "top.transformer.width=16", expect=1)
    assert "another model" in printed and "transformer" in printed
    assert losses(tmp_path / "run") == losses(tmp_path / "run")[:1]


def test_a_batch_that_does_not_multiply_out_is_refused_with_the_number_that_does(
    pipeline, tmp_path
):
    odd = read_ds_config("prior_zero3_cpu.json")
    odd["train_batch_size"] = 7
    (tmp_path / "odd.json").write_text(json.dumps(odd))
    printed = train(pipeline, tmp_path / "run", "--ds-config", str(tmp_path / "odd.json"), expect=1)
    assert "train_batch_size 7" in printed and "set it to 2" in printed
