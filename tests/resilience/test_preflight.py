"""Before ranks train the doctor looks at all of them; who is unfit is left, what is wrong everywhere is a person's."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from fixtures.interrupted_runs import ROOT, environment_of, events, run, training

from megajukebox.common.world import ranks_here
from megajukebox.monitoring.doctor import checks
from megajukebox.records.events import AttemptEnded, PreflightFinished
from megajukebox.records.run_log import RunLog
from megajukebox.resilience import exit_codes, preflight, slurm, spare_nodes, supervisor
from megajukebox.resilience.preflight import PreflightResult, doctor_command, evaluate_reports
from megajukebox.resilience.restart_policy import attempts_without_progress

NODES = ["n1", "n2", "n3", "n4"]
TOGETHER = {
    "host": "n1",
    "findings": [{"about": "all-reduce", "verdict": "good", "what": "1 GB/s", "hosts": []}],
}


def finding(about: str, verdict: str, *hosts: str) -> dict:
    return {"about": about, "verdict": verdict, "what": "so it is", "do": "", "hosts": list(hosts)}


def told(**more: dict) -> list[dict]:
    """The reports of four nodes; `more` is what one of them found besides."""
    return [
        {"host": n, "findings": [finding("versions", "good", n), *([more[n]] if n in more else [])]}
        for n in NODES
    ]


def test_healthy_nodes_are_fit_and_the_speed_of_the_all_reduce_is_told() -> None:
    assert evaluate_reports(told(), TOGETHER, NODES, 0) == PreflightResult(
        {}, "", "all-reduce: 1 GB/s"
    )


def test_what_is_wrong_on_one_node_makes_that_node_unfit() -> None:
    found = evaluate_reports(told(n3=finding("GPUs", "bad", "n3")), TOGETHER, NODES, 2)
    assert found.unfit == {"n3": "GPUs on n3: so it is"} and not found.everywhere


def test_what_the_ranks_found_of_one_another_counts_too() -> None:
    together = {"findings": [finding("results", "bad", "n2")]}
    assert list(evaluate_reports(told(), together, NODES, 2).unfit) == ["n2"]


def test_what_is_wrong_on_all_nodes_alike_is_no_nodes_fault() -> None:
    all_ill = told(**{n: finding("disk of /runs", "bad", n) for n in NODES})
    found = evaluate_reports(all_ill, TOGETHER, NODES, 2)
    assert found.unfit == {} and "disk of /runs" in found.everywhere
    here = evaluate_reports(all_ill[:1], TOGETHER, [], 2)  # a machine without SLURM
    assert here.unfit == {} and "disk of /runs" in here.everywhere
    assert list(evaluate_reports(all_ill[:1], TOGETHER, ["n1"], 2).unfit) == ["n1"], (
        "of one node nobody can tell: try another"
    )


def test_a_wrong_sum_of_all_ranks_is_a_persons() -> None:
    assert (
        "all-reduce"
        in evaluate_reports(
            told(), {"findings": [finding("all-reduce", "bad")]}, NODES, 2
        ).everywhere
    )


def test_a_node_that_tells_nothing_is_unfit_but_not_if_most_do() -> None:
    assert list(evaluate_reports(told()[:3], TOGETHER, NODES, 2).unfit) == ["n4"]
    found = evaluate_reports(told()[:1], {}, NODES, 1)
    assert (
        found.verdict == "good"
        and "3 of 4 nodes reported nothing (status 1): ignored" in found.summary
    )


def test_the_doctor_takes_the_place_of_the_entry_under_the_same_launcher(tmp_path: Path) -> None:
    srun = ["srun", "--kill-on-bad-exit=1", "--label", "python", "/x/megajukebox/train.py", "vqvae"]
    assert doctor_command(srun, tmp_path)[:4] == [
        "srun",
        "--label",
        "python",
        "/x/megajukebox/doctor.py",
    ]
    assert doctor_command(["mpirun", "-n", "2", "megajukebox", "train", "vqvae"], tmp_path)[
        3:5
    ] == [
        "megajukebox",
        "doctor",
    ]
    with pytest.raises(ValueError, match="starts neither megajukebox nor"):
        doctor_command(["srun", "sleep", "1"], tmp_path)


# ---- Who trains ------------------------------------------------------------------------------------------------------


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A job of four nodes; what is taken out of the list is lost."""
    alive = list(NODES)
    monkeypatch.setattr(slurm, "nodes", lambda: NODES)
    monkeypatch.setattr(slurm, "living_nodes", lambda: alive)
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "8")
    return alive


def test_spares_come_in_for_lost_blamed_and_unfit_nodes(tmp_path: Path, job: list[str]) -> None:
    log = RunLog(tmp_path, writes=True)
    assert spare_nodes.active_nodes(tmp_path, 2) == ["n1", "n2"]
    job.remove("n2")
    assert spare_nodes.active_nodes(tmp_path, 2) == ["n1", "n3"]
    log.note(AttemptEnded(kind="retry", nodes=["n1"]))
    assert spare_nodes.active_nodes(tmp_path, 2) == ["n3", "n4"], (
        "once blamed, a node rests while others are there"
    )
    assert spare_nodes.active_nodes(tmp_path, 3) == ["n1", "n3", "n4"], "but it is better than none"
    assert spare_nodes.unhealthy_nodes(tmp_path, job) == []
    log.note(PreflightFinished(verdict="bad", nodes=["n4"]))
    assert (
        spare_nodes.unhealthy_nodes(tmp_path, job) == ["n4"]
        and attempts_without_progress(tmp_path) == 2
    )


def test_srun_is_kept_to_the_team(job: list[str]) -> None:
    srun = ["srun", "--label", "python", "train.py"]
    assert (
        spare_nodes.srun_on(srun, NODES) == srun
        and spare_nodes.srun_on(["deepspeed", "train.py"], ["n1"])[0] == "deepspeed"
    )
    assert spare_nodes.srun_on(srun, ["n1", "n3"])[:4] == [
        "srun",
        "--nodes=2",
        "--ntasks=16",
        "--nodelist=n1,n3",
    ]


# ---- What a node is asked --------------------------------------------------------------------------------------------


def command(folder: Path, name: str, prints: str) -> None:
    """A little program that prints the same always."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\ncat <<'END'\n{prints}\nEND\n")
    (folder / name).chmod(0o755)


GPU = "{}, Tesla V100, 0, 10, 32510, 40, 50, 1300, {}"


@pytest.mark.parametrize(
    ("errors", "needed", "day", "words"),
    [
        ("0", 2, 40, ""),
        ("1", 2, 40, "memory errors on 1"),
        ("0", 8, 40, "2 answer, 8 are needed"),
        ("0", 2, 0, "Xid 79"),
    ],
    ids=["well", "ecc", "missing", "xid"],
)
def test_gpus_that_are_missing_or_broken_are_told(
    tmp_path, monkeypatch, errors, needed, day, words
) -> None:
    command(tmp_path / "bin", "nvidia-smi", f"{GPU.format(0, 0)}\n{GPU.format(1, errors)}")
    when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time.time() - day * 86400 - 60))
    kernel = [
        f"{when},123456+00:00 NVRM: Xid (PCI:0000:3b:00): {number}, pid=1" for number in (79, 13)
    ]
    command(tmp_path / "bin", "dmesg", "\n".join(kernel))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    found = checks.check_gpus(needed)
    assert (found.verdict, words in found.what) == (
        "bad" if words else "good",
        True,
    ) and "13" not in found.what


def test_how_many_ranks_a_machine_has_is_read_from_any_launcher(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert ranks_here() == 1
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "8(x64)")
    assert ranks_here() == 8


def test_a_run_that_would_wait_for_ever_is_not_started_and_a_person_called(tmp_path: Path) -> None:
    """For real, in one process: a killed build has left a lock that every start would wait for."""
    out, lock = tmp_path / "run", tmp_path / "extensions/x/lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    os.utime(lock, (0, 0))
    supervise = [
        sys.executable,
        "-m",
        "megajukebox.cli",
        "supervise",
        "--preflight",
        str(out),
        "--",
    ]
    train = [sys.executable, str(ROOT / "megajukebox/train.py"), *training(tmp_path, out)[1:]]
    assert (
        run([*supervise, *train], environment_of() | {"TORCH_EXTENSIONS_DIR": str(lock.parents[1])})
        == exit_codes.EXIT_FATAL
    )
    (found,) = events(out, "preflight")
    (alert,) = events(out, "alert")
    assert (
        found["verdict"] == "bad"
        and "lock" in alert["reason"]
        and not events(out, "start", "attempt_end")
    )


def test_a_doctor_that_does_not_end_is_killed_so_that_the_decision_comes_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """srun waits for a task whose node or disk does not answer, whatever it is asked."""
    monkeypatch.setattr(supervisor, "FORWARDED_SIGNALS", ())
    monkeypatch.setattr(preflight, "ENDING_SECONDS", 0.2)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    status = supervisor.TrainingProcess().run([sys.executable, "-c", deaf], [], seconds=1.0)
    assert status in (-signal.SIGKILL, -signal.SIGTERM)  # the latter if it had not yet begun
