"""Distilling through the real entry: windows, then a run for each order; resumed equals straight; one teacher still."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import environment
from fixtures.paths import FILES
from fixtures.tiny_shards import write_codes
from fixtures.tiny_teacher import write_teacher

import megajukebox
from megajukebox.common.files import sha256_of
from megajukebox.common.model_files import check_fingerprint, load_into, read_facts
from megajukebox.common.world import free_port
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.stream.batches import held_out_batches
from megajukebox.data.stream.teacher_dataset import TeacherWindows
from megajukebox.distillation.divergence import forward_gap
from megajukebox.models.student import Student, StudentConfig
from megajukebox.records.jsonl_tail import read_lines
from megajukebox.resilience.exit_codes import EXIT_FATAL

DISTILL = str(Path(megajukebox.__file__).parent / "distill.py")
PRESET = FILES / "nano.yaml"
pytestmark = [pytest.mark.timeout(600), pytest.mark.xdist_group("distill")]


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("distill")
    write_teacher(folder / "teacher")
    write_codes(folder / "codes")
    return folder


def by_deepspeed(ranks: int) -> list[str]:
    return [
        "deepspeed",
        "--log_level",
        "warning",
        "--num_gpus",
        str(ranks),
        "--master_port",
        str(free_port()),
    ]


def distill(given: Path, out: Path, *more: str, ranks: int = 1, expect: int = 0) -> str:
    launcher = [sys.executable] if ranks == 1 else by_deepspeed(ranks)
    command = [
        *launcher,
        DISTILL,
        "middle",
        "--teacher",
        str(given / "teacher"),
        "--data",
        str(given / "codes"),
    ]
    stage = "training.middle_upsampler"
    small = [
        f"{stage}.steps=12",
        f"{stage}.log_every=1",
        f"{stage}.evaluate_every=3",
        f"{stage}.save_every=100",
    ]
    told = [*command, "--out", str(out), "--preset", str(PRESET), "--windows", "24", *more, *small]
    done = subprocess.run(told, env=environment(), capture_output=True, text=True, timeout=400)
    assert done.returncode == expect, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def straight(given) -> Path:
    before = sha256_of(given / "teacher/model.safetensors")
    distill(given, given / "student", "--order", "1,1", "--order", "0,1", "--keep-going")
    assert sha256_of(given / "teacher/model.safetensors") == before
    check_fingerprint(given / "teacher")
    return given / "student"


def test_each_order_is_a_run_that_says_what_it_is_worth(straight, given) -> None:
    table = json.loads((straight / "student.json").read_text())
    assert [(row["order"], row["steps_per_window"]) for row in table["orders"]] == [
        ("1,1", 7),
        ("0,1", 4),
    ]
    for row in table["orders"]:
        assert all(
            row[name] == row[name]
            for name in ("kl_forward", "kl_forward_ci", "kl_reverse", "kl_reverse_ci")
        )
        facts = read_facts(straight / row["folder"])
        assert (
            facts["kind"] == "student"
            and facts["teacher"] == read_facts(given / "teacher")["fingerprint"]
        )
    assert (straight / "DONE").exists() and (straight / table["use"] / "vocabularies.json").exists()


def test_every_order_starts_from_the_teacher(straight, given) -> None:
    first, then = (read_facts(straight / f"order-{o}") for o in ("1-1", "0-1"))
    assert (
        first["started_from"]
        == then["started_from"]
        == read_facts(given / "teacher")["fingerprint"]
    )


def test_divergences_are_logged_in_training(straight) -> None:
    lines = read_lines(straight / "order-1-1/metrics.jsonl")
    assert {"kl_forward", "bits_per_code"} <= set(next(m for m in lines if m["split"] == "train"))
    held_out = [m for m in lines if m["split"] == "held_out"]
    assert len(held_out) == 2 and {"kl_reverse", "kl_reverse_ci", "bits_per_code_of_songs"} <= set(
        held_out[0]
    )


@pytest.mark.slow
def test_stopped_and_started_again_ends_as_if_it_had_not_been(straight, given, tmp_path) -> None:
    order = ("--order", "1,1", "--keep-going")
    distill(given, tmp_path / "student", *order, "--stop-after", "2")
    assert not (tmp_path / "student/DONE").exists()
    distill(given, tmp_path / "student", *order)
    one, other = (run / "order-1-1" for run in (straight, tmp_path / "student"))
    assert read_facts(one)["fingerprint"] == read_facts(other)["fingerprint"]


def worth(out: Path, order: str) -> float:
    """KL(teacher || student) of the weights that lie in the student's folder, measured anew."""
    student = Student(StudentConfig(**read_facts(out / order)["config"]))
    load_into(student, out / order)
    held = held_out_batches(
        TeacherWindows(ShardSet(str(out / "windows"))), micro_batch=32, limit=128
    )
    return float(torch.cat([forward_gap(student.eval(), batch) for batch in held]).mean())


def said(out: Path) -> float:
    return json.loads((out / "student.json").read_text())["orders"][-1]["kl_forward"]


def test_what_the_table_says_is_said_of_the_weights_that_are_kept(
    straight, given, tmp_path
) -> None:
    """With a moving average it is the average that is kept, and so the average is judged."""
    assert said(straight) == pytest.approx(worth(straight, "order-0-1"), abs=1e-5)
    averaged = (
        "--order",
        "1,1",
        "training.middle_upsampler.ema_decay=0.9",
        "training.middle_upsampler.lr_scale=20",
    )
    distill(given, tmp_path / "student", *averaged)
    assert said(tmp_path / "student") == pytest.approx(
        worth(tmp_path / "student", "order-1-1"), abs=1e-5
    )


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"causal": False}, "saw what comes later; distil it again"),
        ({"known_before": 0.25}, "holds a finished student that is not {'known_before': 0.5}"),
    ],
)
def test_a_finished_student_that_was_taught_otherwise_is_not_taken_for_this_one(
    straight, given, tmp_path, changed: dict, why: str
) -> None:
    out = tmp_path / "student"
    shutil.copytree(straight, out)
    path = out / "order-0-1" / "model.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, "config": facts["config"] | changed}))
    before = ShardSet(str(out / "windows")).fingerprint
    told = distill(given, out, "--order", "0,1", expect=EXIT_FATAL)
    assert why in told
    assert ShardSet(str(out / "windows")).fingerprint == before


@pytest.mark.slow
def test_two_ranks_share_the_windows_and_the_training_and_stopped_end_as_if_they_had_not_been(
    straight, given, tmp_path
) -> None:
    """Everything at once: two processes of the launcher, guided lessons, an average of the weights, a stop."""
    told = (
        "--order",
        "1,1",
        "--guidance",
        "2",
        "--keep-going",
        "training.middle_upsampler.ema_decay=0.5",
    )
    distill(given, tmp_path / "through", *told, ranks=2)
    distill(given, tmp_path / "stopped", *told, "--stop-after", "2", ranks=2)
    assert not (tmp_path / "stopped/DONE").exists()
    distill(given, tmp_path / "stopped", *told, ranks=2)
    one, other = (read_facts(tmp_path / name / "order-1-1") for name in ("through", "stopped"))
    assert (
        one["fingerprint"]
        == other["fingerprint"]
        != read_facts(straight / "order-1-1")["fingerprint"]
    )
    assert one["teacher_sampling"] == {"temperature": 0.99, "guidance": 2.0}
    assert said(tmp_path / "stopped") == pytest.approx(
        worth(tmp_path / "stopped", "order-1-1"), abs=1e-4
    )
    # One process makes the same windows, so the work was shared and nothing else changed.
    distill(given, tmp_path / "alone", *told, "--stop-after", "1")
    sets = [ShardSet(str(tmp_path / name / "windows")).fingerprint for name in ("through", "alone")]
    assert sets[0] == sets[1]


@pytest.mark.slow
def test_on_data_alone_the_teachers_windows_only_judge_and_in_a_chain_orders_follow_each_other(
    given, tmp_path
) -> None:
    distill(
        given,
        tmp_path / "student",
        "--order",
        "1,1",
        "--order",
        "0,1",
        "--data-only",
        "--keep-going",
        "--chain",
    )
    first, facts = (read_facts(tmp_path / f"student/order-{o}") for o in ("1-1", "0-1"))
    assert facts["started_from"] == first["fingerprint"] != first["started_from"]
    assert facts["data_only"] and "windows" not in facts
    last = read_lines(tmp_path / "student/order-0-1/metrics.jsonl")[-1]
    assert last["split"] == "held_out" and "kl_forward_ci" in last
