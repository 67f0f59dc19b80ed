"""The doctor: each illness is named with what to do; ranks are examined together, and one that is silent is told."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fixtures.patched_cuda import patched_cuda

from megajukebox import doctor as entry
from megajukebox.common.world import free_port
from megajukebox.monitoring.doctor import checks, network
from megajukebox.monitoring.doctor.network import RankReport, compare
from megajukebox.training.engines.ds_config import read_ds_config

ENTRY = [sys.executable, "-m", "megajukebox.doctor"]


def doctor(
    *arguments: str,
    ranks: int = 1,
    silent: tuple[int, ...] = (),
    dies: tuple[int, ...] = (),
    unfit: tuple[int, ...] = (),
    **variables: str,
) -> list[subprocess.Popen]:
    """The entry on some ranks as srun would start them; those in `silent` never come, those in `dies` only come,
    those in `unfit` are told to use a GPU that they do not have.
    """
    place = (
        {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        if ranks > 1
        else {}
    )
    started = []
    for rank in (rank for rank in range(ranks) if rank not in silent):
        mine = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        environment |= {**place, **mine, **variables}
        if rank in unfit:
            environment["DS_ACCELERATOR"] = "cuda"
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        command = [sys.executable, "-c", DIES] if rank in dies else [*ENTRY, *arguments, "--json"]
        started.append(subprocess.Popen(command, env=environment, **pipes))
    return started


def findings(process: subprocess.Popen) -> dict[str, dict[str, str]]:
    out, err = process.communicate(timeout=120)
    assert out, err
    return {finding["about"]: finding for finding in json.loads(out)}


def shards(folder: Path) -> Path:
    folder.mkdir()
    (folder / "a.tar").write_bytes(b"abc")
    sha = checks.sha256_of(folder / "a.tar")
    (folder / "index.json").write_text(
        json.dumps({"shards": [{"name": "a.tar", "bytes": 3, "sha256": sha}]})
    )
    return folder


def test_a_healthy_machine_is_told_so(tmp_path: Path) -> None:
    variables = {"TORCH_EXTENSIONS_DIR": str(tmp_path)}
    (process,) = doctor(
        "--run", str(tmp_path / "new"), "--data", str(shards(tmp_path / "songs")), **variables
    )
    told = findings(process)
    assert not {name: f for name, f in told.items() if f["verdict"] == "bad"} and len(told) == 7
    assert torch.__version__ in told["versions"]["what"]


def test_ranks_are_examined_together(tmp_path: Path) -> None:
    first, second = doctor("--data", str(shards(tmp_path / "songs")), ranks=2)
    told = findings(first)
    assert second.wait(120) == 0
    assert {"all-reduce", "computing", "results", "clocks", "agreement"} <= set(told)
    assert told["agreement"]["verdict"] == told["results"]["verdict"] == "good"
    assert "2 ranks" in told["all-reduce"]["what"]


def test_a_rank_without_a_fit_device_is_named_before_all_wait_for_each_other() -> None:
    """It is told to use a GPU, and its torch has none: NCCL and gloo would wait for each other."""
    first, second = doctor("--seconds", "100", ranks=2, unfit=(1,))
    told = findings(first)["ranks"]
    assert told["verdict"] == "bad" and "ranks 1 on" in told["what"]
    assert "compute on no device, the others on cpu" in told["what"]
    assert first.returncode == 2 and second.wait(60) == 0


def test_ranks_on_another_kind_of_device_are_named() -> None:
    alike = [("node1", "cuda")] * 6
    assert network.mixed_devices(alike) == ""
    told = network.mixed_devices([*alike, ("node2", "cpu"), ("node2", "cpu")])
    assert told == "ranks 6, 7 on node2 compute on cpu, the others on cuda"
    assert "no rank has a device" in network.mixed_devices([("node1", network.NO_DEVICE)] * 2)


@pytest.mark.parametrize(
    ("variables", "needed"),
    [
        ({"DS_ACCELERATOR": "cpu", "LOCAL_WORLD_SIZE": "8", "WORLD_SIZE": "8"}, 0),
        ({"LOCAL_WORLD_SIZE": "8", "WORLD_SIZE": "64"}, 8),
        ({"DS_ACCELERATOR": "cuda"}, 1),
        ({"SLURM_JOB_ID": "7", "SLURM_STEP_TASKS_PER_NODE": "8(x64)"}, 8),
        ({"SLURM_JOB_ID": "7", "SLURM_GPUS_PER_TASK": "h100:1", "LOCAL_WORLD_SIZE": "8"}, 1),
        ({}, 0),  # a laptop with the CPU build
    ],
    ids=["cpu", "ranks", "asked", "slurm", "one-visible", "laptop"],
)
def test_a_node_without_gpus_is_bad_unless_the_cpu_is_asked_for(
    monkeypatch, variables: dict[str, str], needed: int
) -> None:
    for name in ("DS_ACCELERATOR", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(checks, "version", lambda name: "2.13.0+cpu")
    assert checks.needed_gpus() == needed
    monkeypatch.setattr(checks, "gpus", list)  # a dead driver, a hanging nvidia-smi, none at all
    found = checks.check_gpus(checks.needed_gpus())
    assert found.verdict == ("bad" if needed else "good")
    assert not needed or f"0 answer, {needed} are needed" in found.what


def test_the_doctor_says_what_a_card_cannot_do(monkeypatch) -> None:
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    with patched_cuda(count=8) as cuda:
        device, fitness = entry.check_device(3, {})
        assert fitness.verdict == "good" and cuda.current == [torch.device("cuda", 3)] == [device]
    with patched_cuda(count=8, capability=(7, 0), name="Tesla V100"):
        device, fitness = entry.check_device(3, {})
        assert device is None and "no kernels for Tesla V100" in fitness.what
    with patched_cuda(count=8, capability=(7, 0), built_for=["sm_70"], name="Tesla V100"):
        assert entry.check_device(0, {"fp16": {"enabled": True}})[1].verdict == "good"
        _, fitness = entry.check_device(0, read_ds_config("prior_zero3_hopper.json"))
        assert fitness.verdict == "bad" and "bfloat16" in fitness.what


def test_a_rank_that_does_not_come_is_named() -> None:
    (first, _) = processes = doctor("--seconds", "20", ranks=3, silent=(2,))
    told = findings(first)["ranks"]
    assert told["verdict"] == "bad" and "1 of 3 ranks did not come within 20 s: 2" in told["what"]
    assert first.returncode == 2
    for process in processes:
        process.kill()


DIES = "import os; from megajukebox.monitoring.doctor import network; network.meet(100, 'cpu'); os._exit(0)"


def test_a_rank_that_dies_while_it_is_examined_is_no_healthy_start() -> None:
    """A status of 1 would say "worth a look", that of an abort nothing at all."""
    first, dying = doctor(ranks=2, dies=(1,))
    told = findings(first)["ranks"]
    assert told["verdict"] == "bad" and told["what"] and first.returncode == 2
    dying.communicate(timeout=120)


def reports(number: int = 8) -> list[RankReport]:
    return [
        RankReport(
            rank, f"node{rank // 4}", 1000.0, 0.1, {"torch": "2.13"}, {"run.yaml": "ab"}, 5.0
        )
        for rank in range(number)
    ]


@pytest.mark.parametrize(
    ("change", "about", "words"),
    [
        ({"compute_seconds": 0.2}, "computing", "rank 5 on node1 x2.00"),
        ({"checksum": 9.0}, "results", "rank 5 on node1"),
        ({"clock": 1030.0}, "clocks", "node1 +30 s"),
        (
            {"versions": {"torch": "2.12"}},
            "agreement",
            "rank 5 on node1 has torch 2.12, most have 2.13",
        ),
        ({"digests": {"run.yaml": "missing"}}, "agreement", "has run.yaml missing"),
    ],
    ids=["slow", "wrong", "clock", "version", "file"],
)
def test_a_rank_unlike_the_others_is_named(change: dict, about: str, words: str) -> None:
    told = reports()
    assert {finding.verdict for finding in compare(told)} == {"good"}
    told[5] = replace(told[5], **change)
    (ill,) = [finding for finding in compare(told) if finding.verdict != "good"]
    assert ill.about == about and words in ill.what and ill.do


def test_the_fixed_work_gives_the_same_sum_every_time() -> None:
    assert network.compute(torch.device("cpu")) == network.compute(torch.device("cpu"))


def test_a_stale_lock_of_an_extension_is_found(tmp_path: Path) -> None:
    lock = tmp_path / "py311_cpu" / "fused_adam" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    assert checks.check_locks(tmp_path).verdict == "good"  # somebody builds now
    os.utime(lock, (time.time() - 7200, time.time() - 7200))
    assert (
        checks.check_locks(tmp_path).verdict == "bad"
        and str(lock) in checks.check_locks(tmp_path).what
    )


def test_a_disk_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    told = checks.check_disk(tmp_path / "not" / "there", test_bytes=1 << 20)
    assert "free" in told.what and "/s" in told.what and not list(tmp_path.iterdir())


def test_a_disk_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(
        checks, "throughput", lambda *_: (_ for _ in ()).throw(OSError(30, "Read-only file system"))
    )
    assert "Read-only" in checks.check_disk(tmp_path).what


def test_a_disk_without_room_for_checkpoints_is_told(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(checks, "SLOW_DISK", 0.0)  # a busy disk may be slow besides
    (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    manifest = {"files": {"x": {"bytes": 10**18}}}
    (tmp_path / "checkpoints" / "step-00000001" / "manifest.json").write_text(json.dumps(manifest))
    assert "a checkpoint takes" in checks.check_disk(tmp_path, 1 << 20).what


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "missing or cut"), (b"ab", "missing or cut"), (b"abd", "another checksum")],
    ids=str,
)
def test_spoilt_shards_are_named(tmp_path: Path, content: bytes | None, words: str) -> None:
    folder = shards(tmp_path / "songs")
    assert checks.check_shards(folder).verdict == "good"
    (folder / "a.tar").unlink()
    if content is not None:
        (folder / "a.tar").write_bytes(content)
    told = checks.check_shards(folder)
    assert told.verdict == "bad" and words in told.what and "a.tar" in told.what


def test_a_run_that_must_not_be_started_says_why(tmp_path: Path) -> None:
    assert checks.check_run(tmp_path).verdict == "good"
    (tmp_path / "exits").mkdir()
    (tmp_path / "exits" / "rank-00000.json").write_text(
        '{"code": 93, "reason": "the mount is broken"}'
    )
    assert "the mount is broken" in checks.check_run(tmp_path).what
    (tmp_path / "STOP").touch()
    assert "STOP" in checks.check_run(tmp_path).what
