"""float16 under torch_autocast (the VQ-VAE on V100s): overflows are seen, and the loss scale is no part of a norm."""

import json
import math

import pytest
from conftest import PRESET
from fixtures.paths import TESTS
from fixtures.tiny_runs import command, finish, start_ranks

from megajukebox.records.jsonl_tail import read_lines

WORKER = str(TESTS / "fixtures" / "loss_scaler_worker.py")
WINDOW = 6  # of the spike detector, in the worker


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict:
    """What two ranks saw; both must have seen the same."""
    out = tmp_path_factory.mktemp("scaler")
    codes, said = finish(start_ranks([WORKER, str(out)], ranks=2))
    assert codes == [0, 0], said[-3000:]
    first, second = ((out / f"rank{rank}.json").read_text() for rank in range(2))
    assert first == second, "ranks disagree about what a step was"
    return json.loads(first)


def test_overflows_at_the_start_are_seen_and_lower_the_scale(report):
    first = report["start"][0]
    assert first["overflowed"] and not first["reason"] and not first["moved"]
    assert first["metrics"]["loss_scale"] == 32768 and first["metrics"]["overflows"] == 1
    taken = [step for step in report["start"] if not step["overflowed"]]
    assert all(step["moved"] and not step["reason"] for step in taken) and taken
    overflows = len(report["start"]) - len(taken)
    assert taken[-1]["metrics"]["overflows"] == overflows
    assert taken[-1]["metrics"]["loss_scale"] == 65536 / 2**overflows


def test_an_overflow_puts_the_codebooks_back(report):
    assert all(step["codebooks_kept"] for step in report["start"] if step["overflowed"])
    assert not any(step["codebooks_kept"] for step in report["start"] if not step["overflowed"])


def test_the_norm_is_that_of_the_gradient_without_the_scale(report):
    assert report["norm_in_float16"] == pytest.approx(report["norm_in_float32"], rel=0.02)


def test_a_doubling_of_the_scale_is_no_spike(report):
    """With norms that hardly vary a factor of two would be far over six sigma."""
    steps = report["doubling"]
    scales = [step["metrics"]["loss_scale"] for step in steps]
    assert scales[-1] == 4 * scales[0], "it doubled twice"
    norms = [step["metrics"]["grad_norm"] for step in steps]
    assert max(norms) < 1.5 * min(norms) and report["history"] >= WINDOW
    assert not any(step["reason"] or step["overflowed"] for step in steps)


def test_a_doubling_that_overflows_leaves_no_infinity_in_the_history(report):
    assert report["overflowing_doubling"]["overflowed"]
    assert report["overflowing_doubling"]["metrics"]["grad_norm"] == math.inf
    assert math.isfinite(report["limit_after"]), "an infinite mean would make nothing a spike"


def test_a_clip_that_overflows_the_forward_pass_on_one_rank_is_a_bad_step(report):
    loud = report["loud"]
    assert loud["reason"] == "nan" and loud["metrics"]["step_skipped"] == 1
    assert not loud["overflowed"] and not loud["moved"] and loud["codebooks_kept"]
    assert loud["metrics"]["loss_scale"] == report["before_loud"], "a smaller scale would not help"
    assert not report["after_loud"]["reason"] and report["after_loud"]["codebooks_finite"]


def test_the_scale_goes_on_where_a_checkpoint_left_it(report):
    straight, resumed = report["straight"], report["resumed"]
    assert [step["metrics"] for step in resumed] == [step["metrics"] for step in straight]
    scales = [step["metrics"]["loss_scale"] for step in straight]
    assert scales[-1] == 2 * scales[0], "it doubled where the run without a stop did"


def test_a_checkpoint_without_scale_is_read_and_its_scaled_norms_are_forgotten(report):
    assert report["old_checkpoint"] == {"scale": 65536, "losses": WINDOW, "norms": 0}


def test_an_overflow_at_the_lowest_scale_ends_the_attempt(report):
    assert report["at_two"] == {"overflowed": True, "loss_scale": 1.0}
    assert "lowest fp16 loss scale" in report["at_one"]


def test_norms_under_fp16_weights_without_zero_have_no_scale_either(report):
    """DeepSpeed does not scale their loss; if it begins to, the norm must not begin to grow with the scale."""
    assert report["norms_by_scale"] == pytest.approx([0.5, 0.5], rel=1e-3)


def test_metrics_are_exchanged_once_a_step_after_the_last_backward_pass(report):
    """Whatever is read from a GPU before waits for it, and leaves it without work until the next pass is queued."""
    assert report["order"] == ["backward", "backward", "exchange"]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.xdist_group("pipeline")
def test_a_vqvae_stopped_in_float16_ends_as_one_that_ran_through(pipeline, tmp_path):
    runs = {"straight": [["--stop-after", "8"]], "stopped": [["--stop-after", "4"]] * 2}
    for name, starts in runs.items():
        for more in starts:
            told = command(pipeline / "shards/songs", PRESET, tmp_path / name, stage="vqvae")
            told += ["--ds-config", "vqvae_v100.json", "training.vqvae.log_every=1"]
            told += ["training.vqvae.steps=8", *more]
            codes, said = finish(start_ranks(told, ranks=1))
            assert codes == [0], said[-3000:]
    rows = {}
    for name in runs:
        logged = [m for m in read_lines(tmp_path / name / "metrics.jsonl") if m["split"] == "train"]
        rows[name] = [(m["step"], m["loss"].hex(), m["loss_scale"], m["overflows"]) for m in logged]
    assert rows["stopped"] == rows["straight"] and len(rows["straight"]) == 8
    assert rows["straight"][-1][3] > 0, "some steps overflowed at first"
