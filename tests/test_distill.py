"""Distilling through the real entry: windows, then a run for each order; resumed equals straight; one teacher still."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import environment
from little_sets import write_codes
from little_teacher import write_teacher

import megajukebox
from megajukebox.data.files import sha256_of
from megajukebox.data.weights import check_fingerprint, read_facts
from megajukebox.monitoring.metrics import read_lines

DISTILL = str(Path(megajukebox.__file__).parent / "distill.py")
PRESET = Path(__file__).parent / "data" / "nano.yaml"
pytestmark = [pytest.mark.timeout(600), pytest.mark.xdist_group("distill")]


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("distill")
    write_teacher(folder / "teacher")
    write_codes(folder / "codes")
    return folder


def distill(given: Path, out: Path, *more: str) -> None:
    command = [sys.executable, DISTILL, "middle", "--teacher", str(given / "teacher"), "--data", str(given / "codes")]
    stage = "training.middle_upsampler"
    small = [f"{stage}.steps=12", f"{stage}.log_every=1", f"{stage}.evaluate_every=3", f"{stage}.save_every=100"]
    told = [*command, "--out", str(out), "--preset", str(PRESET), "--windows", "24", *more, *small]
    done = subprocess.run(told, env=environment(), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.fixture(scope="module")
def straight(given) -> Path:
    before = sha256_of(given / "teacher/model.safetensors")
    distill(given, given / "student", "--order", "1,1", "--order", "0,1", "--keep-going")
    assert sha256_of(given / "teacher/model.safetensors") == before
    check_fingerprint(given / "teacher")
    return given / "student"


def test_each_order_is_a_run_that_says_what_it_is_worth(straight, given) -> None:
    table = json.loads((straight / "student.json").read_text())
    assert [(row["order"], row["steps_per_window"]) for row in table["orders"]] == [("1,1", 7), ("0,1", 4)]
    for row in table["orders"]:
        assert all(row[name] == row[name] for name in ("kl_forward", "kl_forward_ci", "kl_reverse", "kl_reverse_ci"))
        facts = read_facts(straight / row["folder"])
        assert facts["kind"] == "student" and facts["teacher"] == read_facts(given / "teacher")["fingerprint"]
    assert (straight / "DONE").exists() and (straight / table["use"] / "vocabularies.json").exists()


def test_an_order_starts_from_the_one_before(straight, given) -> None:
    first, then = (read_facts(straight / f"order-{o}") for o in ("1-1", "0-1"))
    assert first["started_from"] == read_facts(given / "teacher")["fingerprint"]
    assert then["started_from"] == first["fingerprint"]


def test_divergences_are_logged_in_training(straight) -> None:
    lines = read_lines(straight / "order-1-1/metrics.jsonl")
    assert {"kl_forward", "bits_per_code"} <= set(next(m for m in lines if m["split"] == "train"))
    held_out = [m for m in lines if m["split"] == "held_out"]
    assert len(held_out) == 2 and {"kl_reverse", "kl_reverse_ci", "bits_per_code_of_songs"} <= set(held_out[0])


def test_stopped_and_started_again_ends_as_if_it_had_not_been(straight, given, tmp_path) -> None:
    order = ("--order", "1,1", "--keep-going")
    distill(given, tmp_path / "student", *order, "--stop-after", "2")
    assert not (tmp_path / "student/DONE").exists()
    distill(given, tmp_path / "student", *order)
    one, other = (run / "order-1-1" for run in (straight, tmp_path / "student"))
    assert read_facts(one)["fingerprint"] == read_facts(other)["fingerprint"]


@pytest.mark.slow
def test_on_data_alone_the_teachers_windows_only_judge(straight, given, tmp_path) -> None:
    distill(given, tmp_path / "student", "--order", "0,1", "--data-only", "--keep-going")
    facts = read_facts(tmp_path / "student/order-0-1")
    assert facts["data_only"] and "windows" not in facts
    last = read_lines(tmp_path / "student/order-0-1/metrics.jsonl")[-1]
    assert last["split"] == "held_out" and "kl_forward_ci" in last
