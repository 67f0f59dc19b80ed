"""Who this process is, whichever launcher started it."""

import os

import pytest

from megajukebox.training.launch import SOURCES, World, world

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
    started_by({"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "1"})
    started_by({"RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "4", **ADDRESS})
    assert world() == World(rank=3, local_rank=3, size=4)


def test_without_a_launcher_one_process_is_the_whole_world() -> None:
    assert world() == World(rank=0, local_rank=0, size=1)
    assert os.environ["MASTER_ADDR"] == "127.0.0.1" and int(os.environ["MASTER_PORT"]) > 1000


@pytest.mark.parametrize("missing", ADDRESS)
def test_several_processes_without_a_meeting_place_are_refused(started_by, missing: str) -> None:
    started_by({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"})
    started_by({name: value for name, value in ADDRESS.items() if name != missing})
    with pytest.raises(
        ValueError, match="2 processes were started by RANK without MASTER_ADDR and MASTER_PORT; export both"
    ):
        world()
