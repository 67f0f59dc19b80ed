"""Communication is told apart from computing: it grows on the ranks that wait, and the slow rank is named."""

import json
import statistics
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import environment
from fixtures.fake_runs import PretendRun
from fixtures.interrupted_runs import ROOT, by_deepspeed, finish, start

from megajukebox.monitoring.alerts import straggler
from megajukebox.monitoring.collect.run_reader import Runs
from megajukebox.monitoring.collect.step_breakdown import describe_step, step_parts
from megajukebox.monitoring.collect.stragglers import slowdowns
from megajukebox.records.heartbeat import Heartbeat
from megajukebox.records.jsonl_tail import read_lines
from megajukebox.training.engines.comm_timing import CALLS, Communication
from megajukebox.training.engines.ds_config import read_ds_config

pytestmark = pytest.mark.timeout(600)


def slowed(data: Path, out: Path, *settings: str, ranks: int = 2) -> Path:
    """A run of the smallest prior whose rank 1 is slow in its forward pass from step 10 on."""
    command = by_deepspeed(data, out, *settings, ranks=ranks)
    entry = command.index(str(ROOT / "megajukebox/train.py"))
    command[entry : entry + 1] = [str(ROOT / "tests/fixtures/faulty_train.py"), "slow_forward"]
    env = environment() | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    assert finish(start(command, env)) == 0, out.with_suffix(".txt").read_text()[-3000:]
    return out


@pytest.mark.slow
def test_with_zero3_the_others_wait_in_collectives_and_the_slow_rank_is_named(
    data: Path, tmp_path: Path
) -> None:
    (run,) = Runs([slowed(data, tmp_path / "run", "steps=24", "save_every=1000")]).read()
    lines = read_lines(run.folder / "metrics.jsonl")
    spent = {
        line["step"]: line["communication_seconds"] for line in lines if line["split"] == "train"
    }
    healthy, waiting = (
        statistics.median(spent[n] for n in steps) for steps in (range(3, 11), range(12, 25))
    )
    assert waiting > healthy + 0.1
    seconds = {rank.rank: rank.communication_seconds or 0.0 for rank in run.ranks}
    assert seconds[0] > seconds[1] + 0.1
    assert run.slowdowns[1] > 1.15 and run.slowdowns[0] == 1
    parts = step_parts(run)
    assert sum(
        parts[name] for name in ("data_wait", "communication", "forward_backward")
    ) == pytest.approx(run.value("step_seconds"))
    assert max(parts, key=lambda name: parts[name]) == "communication" and "communication" in str(
        describe_step(run)
    )


@pytest.mark.slow
def test_in_pipelines_side_by_side_the_slow_rank_is_named_among_those_of_its_stage(
    data: Path, tmp_path: Path
) -> None:
    settings = ("steps=24", "save_every=1000", *two_stages(tmp_path))
    (run,) = Runs([slowed(data, tmp_path / "run", *settings, ranks=4)]).read()
    assert [rank.stage for rank in run.ranks] == [0, 0, 1, 1]
    assert max(run.slowdowns, key=lambda rank: run.slowdowns[rank]) == 1 and run.slowdowns[1] > 1.15


def two_stages(folder: Path) -> list[str]:
    ds_config = read_ds_config("prior_pipeline_cpu.json")
    path = folder / "two_stages.json"
    path.write_text(json.dumps(ds_config | {"pipeline": {"stages": 2}}))
    return [f"ds_config={path}"]


# --- by itself


@pytest.fixture
def alone(tmp_path: Path):
    """A world of one."""
    if not dist.is_initialized():
        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
        yield
        dist.destroy_process_group()
    else:
        yield


def test_calls_are_timed_inside_only_and_waits_for_them_too(alone) -> None:
    clock, before = (
        Communication(torch.device("cpu")),
        {name: getattr(dist, name) for name in CALLS},
    )
    with clock.timed():
        dist.all_reduce(torch.ones(4))
        work = dist.all_reduce(torch.ones(4), async_op=True)
        assert clock.seconds() > 0
        work.wait()
        assert clock.seconds() > 0 and work.is_completed()
        box = [None]
        dist.all_gather_object(box, {"a": 1})
        assert box == [{"a": 1}]
    assert {name: getattr(dist, name) for name in CALLS} == before
    clock.seconds()
    dist.all_reduce(torch.ones(4))
    assert clock.seconds() == 0


def test_a_collective_that_fails_leaves_everything_as_it_was(alone) -> None:
    clock, before = Communication(torch.device("cpu")), dist.broadcast
    with pytest.raises(Exception), clock.timed():  # noqa: B017
        dist.broadcast(torch.ones(4), src=7)
    assert dist.broadcast is before
    clock.seconds()
    with clock.timed():
        time.sleep(0.01)
    assert clock.seconds() < 0.01


# --- who is slow


def rank(number: int, own: float, step: float = 1.0, stage: int = 0) -> Heartbeat:
    return Heartbeat(rank=number, host="h", step=1, step_seconds=step, own_seconds=own, stage=stage)


def test_a_slow_rank_is_told_by_how_much_it_lengthens_a_step() -> None:
    found = slowdowns([rank(0, 0.5, 0.9), rank(1, 0.8, 0.9), rank(2, 0.5, 0.9), rank(3, 0.5, 0.9)])
    assert found == pytest.approx({0: 1, 1: 1.5, 2: 1, 3: 1})  # 0.6 s with another in its place


def test_little_own_time_beside_much_communication_is_no_slow_rank() -> None:
    assert max(slowdowns([rank(0, 0.02), rank(1, 0.04)]).values()) < 1.05


def test_stages_with_more_work_than_others_are_not_slow() -> None:
    assert slowdowns([rank(0, 0.2), rank(1, 0.9, stage=1)]) == {}
    four = [rank(0, 0.2), rank(1, 0.2), rank(2, 0.9, stage=1), rank(3, 0.9, stage=1)]
    assert set(slowdowns(four).values()) == {1.0}


@pytest.mark.parametrize("own", [0.0, -5.0, 1e300])
def test_whatever_heartbeats_say_a_ratio_can_be_told(own: float) -> None:
    assert (
        len(
            slowdowns(
                [rank(0, own), rank(1, 0.0), rank(2, 0.5, step=-1.0), rank(3, 0.5, step=1e-300)]
            )
        )
        == 3
    )


def test_a_run_that_is_over_has_no_straggler(tmp_path: Path) -> None:
    run = PretendRun(tmp_path / "run").start().train(20)
    run.beat(r1={"own_seconds": 1.0}, r0={"own_seconds": 0.5})
    assert "rank 1 on node1" in str(straggler(Runs([tmp_path]).read(run.now)[0]))
    run.end("done")
    assert straggler(Runs([tmp_path]).read(run.now)[0]) is None
