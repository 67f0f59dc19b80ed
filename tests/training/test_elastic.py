"""A run goes on with more or fewer processes than before: by itself, on the same data in the same order."""

import json
from pathlib import Path

import pytest
from fixtures.tiny_runs import as_of, codes_and_preset, events, losses, train, write_ds_config

from megajukebox.training.batching import batch_of_run, share_batch

pytestmark = [pytest.mark.timeout(600), pytest.mark.xdist_group("elastic")]
ADAM = {"type": "AdamW", "params": {"lr": 0.004, "betas": [0.9, 0.95], "torch_adam": True}}


@pytest.fixture(scope="module")
def little(tmp_path_factory):
    return codes_and_preset(tmp_path_factory.mktemp("little"))


def run_of(little, folder: Path, name: str, **changed) -> tuple[Path, str]:
    """A finished run of 8 steps on two processes, saved at 4 and 8, and the ds_config it had."""
    path = str(
        write_ds_config(folder, name, optimizer=ADAM, gradient_accumulation_steps=None, **changed)
    )
    run = folder / "run"
    train(*little, run, "--ds-config", path, ranks=2)
    return run, path


@pytest.fixture(scope="module")
def zero3(little, tmp_path_factory):
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0}
    folder = tmp_path_factory.mktemp("zero3")
    return run_of(
        little, folder, "prior_zero3_cpu.json", train_batch_size=12, zero_optimization=zero
    )


@pytest.fixture(scope="module")
def pipeline(little, tmp_path_factory):
    return run_of(
        little, tmp_path_factory.mktemp("pipe"), "prior_pipeline_cpu.json", train_batch_size=12
    )


def goes_on(little, before: tuple[Path, str], ranks: int, tmp_path: Path) -> None:
    run, ds_config = before
    copy = as_of(run, 4, tmp_path / "copy")
    train(*little, copy, "--ds-config", ds_config, ranks=ranks)
    assert losses(copy)[:4] == losses(run)[:4] and len(losses(copy)) == 8
    assert losses(copy, 4) == pytest.approx(losses(run, 4), rel=1e-5)
    assert events(copy, "resume")[-1]["step"] == 4
    facts = [json.loads((folder / "model.json").read_text()) for folder in (run, copy)]
    assert facts[0]["step"] == facts[1]["step"] == 8
    assert not list((copy / "checkpoints").glob("*.universal")), (
        "what was made for the change is gone"
    )


@pytest.mark.parametrize(
    "ranks", [1, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]
)
def test_zero3_goes_on_with_another_number_of_processes(little, zero3, ranks, tmp_path):
    goes_on(little, zero3, ranks, tmp_path)


def test_a_preset_s_batch_is_that_of_all_processes_together(little, zero3, tmp_path):
    run, plain = (
        tmp_path / "run",
        str(write_ds_config(tmp_path, "prior_zero3_cpu.json", optimizer=ADAM)),
    )
    train(*little, run, "--ds-config", plain, "training.top_prior.batch=12")
    assert losses(run) == pytest.approx(losses(zero3[0]), rel=1e-5), (
        "the same 12 clips a step, one after another"
    )
    done = train(
        *little,
        run,
        "--ds-config",
        plain,
        "training.top_prior.batch=6",
        "training.top_prior.steps=9",
        expect=93,
    )
    assert "is of a run with 12 clips a step, not 6; leave out what changes that" in done
    assert (run / "DONE").exists()
    train(*little, run, "--ds-config", plain, "training.top_prior.steps=10", "--stop-after", "1")
    assert len(losses(run)) == 9, "a start that was refused changes nothing"
    assert not (run / "DONE").exists(), "a run that trains on is not done"


@pytest.mark.parametrize("ranks", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_a_pipeline_goes_on_with_another_number_of_stages(little, pipeline, ranks, tmp_path):
    goes_on(little, pipeline, ranks, tmp_path)


def test_another_way_of_training_is_refused_with_the_way_out(little, zero3, tmp_path):
    copy = as_of(zero3[0], 4, tmp_path / "copy")
    other = write_ds_config(
        tmp_path, "prior_pipeline_cpu.json", train_batch_size=12, gradient_accumulation_steps=None
    )
    said = train(*little, copy, "--ds-config", str(other), expect=93)
    assert "another way of training" in said and "--from" in said


@pytest.mark.parametrize(
    ("readers", "micro", "accumulation"),
    [(1, 3, 4), (2, 3, 2), (3, 2, 2), (4, 3, 1), (6, 2, 1), (12, 1, 1)],
)
def test_the_batch_of_a_run_is_kept_whatever_the_number_of_processes(readers, micro, accumulation):
    shared = share_batch(
        {"train_micro_batch_size_per_gpu": 3, "gradient_accumulation_steps": 2}, readers, total=12
    )
    assert shared["train_batch_size"] == 12 == micro * accumulation * readers
    assert (shared["train_micro_batch_size_per_gpu"], shared["gradient_accumulation_steps"]) == (
        micro,
        accumulation,
    )


def test_processes_that_cannot_share_the_batch_are_refused_with_those_that_can():
    with pytest.raises(
        ValueError, match=r"5 processes cannot share the 12 .*use one of 1, 2, 3, 4, 6, 12"
    ):
        share_batch({"train_micro_batch_size_per_gpu": 3}, 5, total=12)


def test_a_new_run_may_name_its_batch_and_leave_the_accumulation_out():
    assert share_batch({"train_micro_batch_size_per_gpu": 4, "train_batch_size": 6}, 2) == {
        "train_micro_batch_size_per_gpu": 3,
        "gradient_accumulation_steps": 1,
        "train_batch_size": 6,
    }


@pytest.mark.parametrize(
    ("total", "readers", "right"), [(8, 2, True), (9, 2, False), (16, 2, False)]
)
def test_numbers_that_do_not_multiply_out_are_refused(total, readers, right):
    config = {
        "train_batch_size": total,
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 2,
    }
    if right:
        assert share_batch(config, readers)["train_batch_size"] == 8
    else:
        with pytest.raises(ValueError, match=f"train_batch_size {total}.*set it to 8"):
            share_batch(config, readers)


def test_a_run_whose_ds_config_asks_for_another_batch_is_not_silently_kept():
    record = {"global_batch": 12, "ds_config": {"train_micro_batch_size_per_gpu": 3}}
    assert batch_of_run(record, {"train_micro_batch_size_per_gpu": 3, "optimizer": {}}) == 12
    assert batch_of_run(record, {"train_micro_batch_size_per_gpu": 2}) == 0
