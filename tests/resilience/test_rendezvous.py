"""Where ranks meet: at a port that nobody can reckon, another at each start, whatever the launcher."""

import sys
from pathlib import Path

import pytest
from fixtures.paths import ROOT

from megajukebox.common.world import PORTS
from megajukebox.resilience import supervisor
from megajukebox.resilience.launch_layout import safe_path, with_random_port
from megajukebox.resilience.supervisor import TrainingProcess, rendezvous

TRAIN = str(ROOT / "megajukebox/train.py")
RECKONED = {str(20_000 + (4711 * 37 + start * 101) % 12_000) for start in range(20)}


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setattr(supervisor.slurm, "address", lambda node: f"{node}.cluster")


def test_each_start_in_a_job_meets_at_another_port_that_its_number_does_not_tell(job: None) -> None:
    places = [rendezvous(["n7", "n8"]) for _ in range(20)]
    assert {place["MASTER_ADDR"] for place in places} == {"n7.cluster"}
    ports = {place["MASTER_PORT"] for place in places}
    assert len(ports) > 15 and len(ports & RECKONED) < 3
    assert all(PORTS[0] <= int(port) < PORTS[1] for port in ports)


def test_outside_a_job_the_launcher_lets_ranks_meet() -> None:
    assert rendezvous([]) == {}


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (["deepspeed", "--num_gpus", "2", TRAIN, "vqvae"], "--master_port"),
        (["/venv/bin/deepspeed", "--num_nodes", "2", TRAIN, "vqvae"], "--master_port"),
        (["torchrun", "--nproc-per-node=2", TRAIN, "vqvae"], "--master-port"),
    ],
)
def test_a_launcher_with_a_port_of_its_own_gets_another_at_each_start(
    command: list[str], option: str
) -> None:
    first, second = with_random_port(command), with_random_port(command)
    assert first[0] == command[0] and first[1] == option and first[3:] == command[1:]
    assert PORTS[0] <= int(first[2]) < PORTS[1] and (
        first != second or first != with_random_port(command)
    )


@pytest.mark.parametrize(
    "command",
    [
        ["deepspeed", "--master_port", "1234", TRAIN, "vqvae"],
        ["deepspeed", "--master_port=1234", TRAIN, "vqvae"],
        ["torchrun", "--rdzv-endpoint=n1:1234", TRAIN],
        ["torchrun", "--standalone", TRAIN],
        ["torchrun", "--nnodes=2", "--nproc-per-node=8", TRAIN],
        ["srun", "megajukebox", "train", "vqvae"],
        ["mpirun", "-n", "2", "megajukebox", "train", "vqvae"],
        ["megajukebox", "train", "vqvae"],
    ],
)
def test_what_names_its_port_or_needs_none_stays_as_it_is(command: list[str]) -> None:
    assert with_random_port(command) == command


def test_only_entries_of_ours_are_started_without_the_folder_on_the_search_path() -> None:
    for command in (
        ["deepspeed", TRAIN],
        ["srun", "megajukebox", "train"],
        ["python", "x/doctor.py"],
    ):
        assert safe_path(command) == {"PYTHONSAFEPATH": "1"}
    assert safe_path(["python", "my_experiment.py"]) == {}


def test_what_supervise_starts_has_the_port_in_its_environment(
    job: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor.signal, "signal", lambda *_: None)
    monkeypatch.setattr(supervisor.spare_nodes, "srun_on", lambda command, nodes: command)
    script = tmp_path / "train.py"
    script.write_text(
        "import os; print(*map(os.environ.get, ['MASTER_ADDR', 'MASTER_PORT', 'PYTHONSAFEPATH']))"
    )
    child = TrainingProcess()
    seen = []
    for number in range(3):
        out = tmp_path / f"out{number}"
        command = ["sh", "-c", f"{sys.executable} $0 > {out}", str(script)]
        assert child.run(command, ["n1"]) == 0
        seen.append(out.read_text().split())
    assert {(address, safe) for address, _, safe in seen} == {("n1.cluster", "1")}
    assert len({port for _, port, _ in seen}) > 1
