"""Bad steps do not reach the weights; too many of them end the run: the rules, and the real entry with faults."""

import math
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import environment
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler
from fixtures.paths import TESTS
from fixtures.tiny_runs import codes_and_preset, events, faulty, losses, train, write_ds_config

from megajukebox.records.jsonl_tail import read_lines
from megajukebox.training.engines.collectives import LossScaleAtMinimum, raising_at_min_loss_scale
from megajukebox.training.spike_detection import (
    Rewind,
    SkipReason,
    SpikeDetector,
    SpikeSettings,
    data_step,
    plan_rewind,
    plan_rewind_lower_lr,
    rewind_lr_factor,
)

SHORT = SpikeSettings(window=8, max_skipped_steps=2, skip_window=10)


def after(values: list[float], rules: SpikeSettings = SHORT) -> SpikeDetector:
    """The state after good steps with these losses (and norms ten times smaller)."""
    stability = SpikeDetector(rules)
    for step, value in enumerate(values):
        stability.update(step, value, value / 10, None)
    return stability


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_never_learned_from(loss):
    assert "loss" in str(SpikeDetector().check(loss, 1.0))


@pytest.mark.parametrize("norm", [math.nan, math.inf, -1.0])
def test_a_gradient_that_is_no_number_is_never_learned_from(norm):
    assert "gradient" in str(SpikeDetector().check(1.0, norm))


def test_a_spike_is_over_six_sigma_of_the_steps_before():
    stability = after([4.0, 4.2] * 4)
    assert stability.check(4.69, 0.41) is None
    assert "loss 4.72 spiked" in str(stability.check(4.72, 0.41))
    assert "gradient norm" in str(stability.check(4.1, 0.8))


def test_nothing_is_a_spike_before_the_window_is_full_or_where_it_is_switched_off():
    assert after([4.0] * 7).check(400.0, 40.0) is None
    assert after([4.0] * 8, SpikeSettings(window=8, threshold_std=0)).check(400.0, 40.0) is None


def test_on_a_plateau_a_small_rise_is_no_spike():
    assert after([4.0] * 8).check(4.2, 0.4) is None
    assert after([4.0] * 8).check(4.3, 0.4) is not None


def test_skipped_steps_do_not_move_what_counts_as_usual():
    stability = after([4.0, 4.2] * 4)
    limit = stability.limit(stability.losses)
    stability.update(8, 400.0, 40.0, SkipReason("spike", "spiked"))
    assert stability.limit(stability.losses) == limit and stability.skip_count == 1


def test_more_bad_steps_than_allowed_within_the_window_are_hopeless():
    stability = SpikeDetector(SHORT)
    for step in (0, 4, 9):
        assert not stability.has_diverged
        stability.update(step, math.nan, 1.0, SkipReason("spike", "loss is nan"))
    assert stability.has_diverged
    stability.update(10, 1.0, 1.0, None)
    assert not stability.has_diverged, "the first is out of the window"


def test_a_restored_state_judges_as_the_one_it_is_of():
    stability = after([4.0, 4.2] * 4)
    stability.update(8, math.nan, 1.0, SkipReason("spike", "loss is nan"))
    other = SpikeDetector(SHORT)
    other.restore(stability.state())
    assert other == stability
    other.restore({})
    assert other == SpikeDetector(SHORT)


def test_after_a_jump_training_reads_later_data_once():
    jumps = [Rewind(100, 250), Rewind(300, 20)]
    assert [data_step(step, jumps) for step in (99, 100, 101, 300)] == [99, 350, 351, 570]


@pytest.mark.parametrize(
    ("spiked", "expected"),
    [(350, Rewind(200, 350)), (250, Rewind(100, 350)), (150, Rewind(100, 250)), (90, None)],
)
def test_a_run_goes_back_well_before_the_spike_and_reads_on_behind_it(spiked, expected):
    assert plan_rewind([100, 200, 300], spiked, rewind_steps=100, skip_steps=200) == expected


def test_after_going_back_for_the_rate_data_are_the_same_and_the_rate_is_less():
    jumps = [Rewind(100, 0, 0.5), Rewind(100, 250), Rewind(300, 0, 0.5)]
    assert [rewind_lr_factor(step, jumps) for step in (99, 100, 299, 300)] == [1, 0.5, 0.5, 0.25]
    assert [data_step(step, jumps) for step in (99, 100, 300)] == [99, 350, 550]


@pytest.mark.parametrize(
    ("stuck", "back", "to"), [(350, 100, 200), (301, 0, 300), (300, 0, 200), (150, 100, 100)]
)
def test_a_run_goes_back_to_weights_that_could_still_take_a_step(stuck, back, to):
    assert plan_rewind_lower_lr([100, 200, 300], stuck, back, 0.5) == Rewind(to, 0, 0.5)


def test_a_run_that_was_stuck_from_its_first_checkpoint_on_has_nothing_to_go_back_to():
    assert plan_rewind_lower_lr([100, 200], 100, 0, 0.5) is None


def test_a_step_that_is_taken_ends_being_stuck():
    stability = after([4.0] * 3)
    stability.note_not_taken(3)
    stability.update(4, math.inf, 1.0, SkipReason("nan", "loss is inf"))
    stability.note_not_taken(5)
    assert stability.first_overflow_step == 3 and SpikeDetector(SHORT).first_overflow_step is None
    stability.update(6, 4.0, 0.4, None)
    assert stability.first_overflow_step is None


# ---- The real entry, with faults ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def little(tmp_path_factory):
    return codes_and_preset(
        tmp_path_factory.mktemp("little"), save_every=4, steps=8, spike_window=3
    )


def way(folder: Path, name: str) -> Path:
    """ZeRO-3, or a pipeline of two stages, one micro-batch a step."""
    if name == "pipeline":
        return write_ds_config(folder, "prior_pipeline_cpu.json", gradient_accumulation_steps=1)
    return write_ds_config(
        folder, "prior_zero3_cpu.json", zero_optimization={"stage": int(name[-1])}
    )


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("zero3", marks=pytest.mark.slow),
        "pipeline",
        pytest.param("zero0", marks=pytest.mark.slow),
    ],
)
def test_a_bad_step_leaves_no_trace_in_the_weights_whatever_was_wrong(little, tmp_path, name):
    """Three kinds of bad, each at step 5, each seen by one rank alone: all end as if that step had been left out."""
    ends = []
    for kind in ("nan_loss", "nan_gradient", "spike"):
        faulty(little, tmp_path / kind, f"{kind} 5-5 1", ds_config=way(tmp_path, name))
        [event] = events(tmp_path / kind, "step_skipped")
        batch = yaml.safe_load((tmp_path / kind / "run.yaml").read_text())["global_batch"]
        assert event["step"] == 5 and event["sample_range"] == [4 * batch, 5 * batch]
        assert event["ranks"] == ([1] if kind == "nan_loss" else [])
        lost = losses(tmp_path / kind)
        ends.append([loss.hex() for loss in lost[:4] + lost[5:]])
        assert all(math.isfinite(loss) for loss in lost[:4] + lost[5:]) and len(lost) == 8
    assert ends[0] == ends[1] == ends[2]


@pytest.mark.timeout(600)
def test_too_many_bad_steps_end_the_run_for_a_person_and_keep_its_checkpoint(little, tmp_path):
    run, ds_config = tmp_path / "run", way(tmp_path, "zero3")
    said = faulty(
        little,
        run,
        "nan_loss 6-99 0",
        "training.top_prior.bad_steps=1",
        ds_config=ds_config,
        expect=93,
    )
    assert "2 of the last 100 steps were skipped, the last one: loss is nan" in said
    assert events(run, "diverged")[-1]["step"] == 7 and [
        e["step"] for e in events(run, "step_skipped")
    ] == [6, 7]
    train(*little, run, "--ds-config", str(ds_config), ranks=2)
    assert events(run, "resume")[-1]["step"] == 4, "the last good checkpoint is as it was"
    assert len(losses(run)) == 8


@pytest.mark.timeout(600)
def test_a_lasting_spike_takes_the_run_back_and_past_the_data(little, tmp_path):
    run, ds_config = tmp_path / "run", way(tmp_path, "zero3")
    rules = ["bad_steps=1", "rewinds=1", "rewind_steps=3", "rewind_jump=2", "save_every=2"]
    settings = [f"training.top_prior.{rule}" for rule in rules]
    said = faulty(little, run, "spike 6-99 0", *settings, ds_config=ds_config, expect=75)
    assert "rewound, start again" in said
    [event] = events(run, "rewind")
    assert (event["to_step"], event["skip_steps"]) == (2, 5), (
        "the spike began at step 6: from step 2, which is 3 before, past it"
    )
    assert {p.name for p in (run / "checkpoints").glob("*.rewound")} == {
        "step-00000004.rewound",
        "step-00000006.rewound",
    }
    train(*little, run, "--ds-config", str(ds_config), *settings, ranks=2)
    assert events(run, "resume")[-1]["step"] == 2 and len(losses(run)) == 8
    straight = tmp_path / "straight"
    train(*little, straight, "--ds-config", str(ds_config), *settings, ranks=2)
    assert losses(run)[:2] == losses(straight)[:2]
    assert (
        losses(run)[2] == pytest.approx(losses(straight)[7], rel=0.2)
        and losses(run)[2] != losses(straight)[2]
    )


CODEBOOKS = """
import torch
from fixtures.tiny_models import vqvae_config
from megajukebox.models.vqvae import VQVAE
from megajukebox.training.engines import collectives
from megajukebox.resilience.exit_codes import leave_now
from megajukebox.training.batching import share_batch
from megajukebox.training.engines.zero import ZeroEngine

collectives.start()
torch.manual_seed(0)
adam = {"type": "AdamW", "params": {"lr": 0.01, "torch_adam": True}}
engine = ZeroEngine(VQVAE(vqvae_config()), share_batch({"train_micro_batch_size_per_gpu": 2, "optimizer": adam}, 1))
audio = torch.randn(2, 128 * 16, 1)
engine.step([{"audio": audio}], 1.0)
before = {name: value.clone() for name, value in engine.module.state_dict().items()}
audio[1, 7] = float("nan")
metrics = engine.step([{"audio": audio}], 1.0)
assert metrics["step_skipped"] == 1 and engine.reason, metrics
for name, value in engine.module.state_dict().items():
    assert torch.equal(value, before[name]), name
audio[1, 7] = 0.5
assert engine.step([{"audio": audio}], 1.0)["step_skipped"] == 0
assert any(not torch.equal(value, before[name]) for name, value in engine.module.named_buffers())
before = {name: value.clone() for name, value in engine.module.state_dict().items()}
assert engine.loss_here({"audio": audio}) == engine.loss_here({"audio": audio})
for name, value in engine.module.state_dict().items():
    assert torch.equal(value, before[name]), name
assert all(p.grad is None or not p.grad.any() for p in engine.module.parameters())
collectives.stop()
leave_now(0)  # as the entries do
"""


def test_codebooks_that_learn_in_the_forward_pass_are_put_back_and_stay_when_a_loss_is_only_computed():
    told = environment() | {"PYTHONPATH": f"{TESTS}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(
        [sys.executable, "-c", CODEBOOKS], env=told, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]


class Scaling(SimpleNamespace):
    """An engine of DeepSpeed, as far as its loss scale goes; ZeRO's has no `loss_scale_config`."""

    def is_gradient_accumulation_boundary(self) -> bool:
        return self.last


def test_the_lowest_fp16_scale_has_a_name():
    """DeepSpeed's own scaler raises a nameless exception there."""
    scaler = DynamicLossScaler(
        1.0, 100, 1.0, 1, False, raise_error_at_min_scale=True, dtype=torch.float16
    )
    zero = Scaling(optimizer=SimpleNamespace())
    with (
        pytest.raises(LossScaleAtMinimum, match="lowest fp16 loss scale"),
        raising_at_min_loss_scale(zero),
    ):
        scaler.update_scale(True)
    with pytest.raises(RuntimeError, match="something else"), raising_at_min_loss_scale(zero):
        raise RuntimeError("something else")


@pytest.mark.parametrize(
    ("scale", "last", "raised"), [(1.0, True, True), (2.0, True, False), (1.0, False, False)]
)
def test_without_zero_an_overflow_at_the_lowest_scale_is_told_at_the_end_of_a_step(
    scale, last, raised
):
    scaling = SimpleNamespace(dynamic_loss_scale=True, cur_scale=scale, min_loss_scale=1.0)
    engine = Scaling(
        optimizer=SimpleNamespace(loss_scale_config=scaling, overflow=False), last=last
    )
    with (
        pytest.raises(LossScaleAtMinimum) if raised else nullcontext(),
        raising_at_min_loss_scale(engine),
    ):
        engine.optimizer.overflow, scaling.cur_scale = True, 1.0


@pytest.mark.timeout(600)
@pytest.mark.parametrize("stage", [3, pytest.param(0, marks=pytest.mark.slow)])
def test_a_run_at_the_lowest_fp16_scale_goes_back_and_on_at_half_the_rate_once(
    little, tmp_path, stage
):
    """30 overflows, from the sixth step of either start on: the scale falls from 65536 to 1 in 16 of them."""
    run, fp16 = (
        tmp_path / "run",
        {"enabled": True, "initial_scale_power": 16, "hysteresis": 1, "min_loss_scale": 1},
    )
    zero = {"stage": stage, "stage3_param_persistence_threshold": 0}
    ds_config = write_ds_config(tmp_path, "prior_zero3_cpu.json", fp16=fp16, zero_optimization=zero)
    rules = [
        f"training.top_prior.{rule}" for rule in ("steps=40", "rewind_steps=1", "spike_sigmas=0")
    ]
    said = faulty(little, run, "overflow 6-35 0", *rules, ds_config=ds_config, expect=75, ranks=1)
    assert (
        "lowest fp16 loss scale; went back to step 4, from there 0.5 times the learning rate; start again"
        in said
    )
    [rewind], [alert] = events(run, "rewind"), events(run, "alert")
    assert (rewind["step"], rewind["to_step"], rewind["skip_steps"], rewind["lr_factor"]) == (
        6,
        4,
        0,
        0.5,
    )
    kept = {folder.name.split(".")[0] for folder in (run / "checkpoints").glob("step-*")}
    assert kept == {f"step-{step:08d}" for step in (4, 12, 16, 20)}, (
        "the last three, and the one from before"
    )
    assert alert["step"] == 22 and "lowest fp16 loss scale" in alert["reason"]
    before = trained(run)
    assert max(before) == 21 and len({m["loss_scale"] for m in before.values()}) > 10

    said = faulty(little, run, "overflow 6-35 0", *rules, ds_config=ds_config, expect=93, ranks=1)
    assert (
        "lower the learning rate, or set fp16.min_loss_scale, at step 26" in said
        and len(events(run, "rewind")) == 1
    )
    after = trained(run)
    assert {after[step]["learning_rate"] for step in range(1, 5)} == {0.004}
    assert {after[step]["learning_rate"] for step in range(5, 26)} == {0.002}
    assert after[5]["loss"] == before[5]["loss"], "the same clips and weights as at the first time"
    assert after[6]["loss"] != before[6]["loss"] and after[6]["loss"] == pytest.approx(
        before[6]["loss"], rel=0.01
    )
    assert after[9]["loss_scale"] == 65536, "four steps taken after it went back"


def trained(run: Path) -> dict[int, dict]:
    """What is logged of each training step, by its number."""
    return {m["step"]: m for m in read_lines(run / "metrics.jsonl") if m["split"] == "train"}
