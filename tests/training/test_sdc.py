"""Silent corruption is found and the rank named: in what ranks hold alike, what one holds alone, what they compute."""

import json
import math
import os
import subprocess
import sys

import pytest
import torch
from conftest import environment
from fixtures.paths import TESTS
from fixtures.tiny_runs import codes_and_preset, events, faulty, losses, write_ds_config

from megajukebox.training.engines.master_weights import differing
from megajukebox.training.engines.tensor_hash import hashed
from megajukebox.training.sdc import (
    RecomputedLoss,
    mismatched_losses,
    mismatched_ranks,
    nondeterministic,
)


@pytest.mark.parametrize(
    ("hashes", "stages", "odd"),
    [
        ([5, 5, 5], 1, []),
        ([5, 6, 5], 1, [1]),
        ([5, 6], 1, [0, 1]),
        ([5, 5, 7, 7], 2, []),
        ([5, 5, 5, 7, 8, 7], 2, [4]),
    ],
)
def test_the_rank_with_other_weights_than_most_of_its_stage_is_named(hashes, stages, odd):
    assert mismatched_ranks(hashes, stages) == odd


@pytest.mark.parametrize("place", [0, 5, 2**22 + 1])
def test_one_flipped_bit_changes_the_sum_wherever_it_is(place):
    weights = torch.arange(2**20 + 9, dtype=torch.float32)  # two parts, the second not whole
    flipped = weights.clone()
    flipped.view(torch.uint8)[place] ^= 1
    exact = sum(
        int(byte) * (2 * i + 1) for i, byte in enumerate(weights[:3].view(torch.uint8).tolist())
    )
    assert hashed([weights[:3]]) == exact
    assert (
        hashed([weights, weights[:3]])
        == (hashed([weights]) + exact) % 2**63
        != hashed([flipped, weights[:3]])
    )


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bit", range(16))
def test_any_flipped_bit_of_a_16_bit_weight_is_found(kind, bit):
    master = torch.tensor([0.3, 0.0, -2.5, math.nan])
    weights = master.to(kind)
    assert differing(master, weights) == 0
    weights.view(torch.int16)[:3] ^= -(2**15) if bit == 15 else 2**bit
    assert differing(master, weights) == 3


@pytest.mark.parametrize(("bit", "found"), [(0, 0), (15, 1), (16, 1), (22, 1), (30, 1), (31, 1)])
def test_a_flipped_bit_of_a_master_is_found_where_it_changes_what_it_is_rounded_to(bit, found):
    master = torch.tensor([0.3])
    weights = master.to(torch.bfloat16)
    master.view(torch.int32)[0] ^= -(2**31) if bit == 31 else 2**bit
    assert differing(master, weights) == found


def results(
    *losses: float | tuple[float, float], kind: str = "gpu", tolerance: float = 0.0
) -> list[RecomputedLoss]:
    both = [loss if isinstance(loss, tuple) else (loss, loss) for loss in losses]
    return [RecomputedLoss(*pair, kind, tolerance) for pair in both]


def near(loss: float) -> float:
    return math.nextafter(loss, math.inf)


@pytest.mark.parametrize(
    ("got", "odd"),
    [
        (results(5.0, 5.0, 5.0), []),
        (results(5.0, near(5.0), 5.0), [1]),
        (results(5.0, near(5.0)), [0, 1]),
        (results((5.0, near(5.0)), 5.0), [0]),
        (results(5.0, (near(5.0), 5.0), 5.0, 6.0), [1, 3]),
        (results(5.0, 5.0, 6.0, 6.0), [0, 1, 2, 3]),
        (results(5.0, 5.0) + results(6.0, 6.0, 7.0, kind="other gpu"), [4]),
        (results(math.nan, math.nan), []),
        (results(math.nan, 5.0, 5.0), [0]),
        (results(5.0, 5.00001, 5.00004, 5.1, tolerance=1e-5), [3]),
        (results(5.0), []),
        ([], []),
    ],
)
def test_who_gets_another_loss_than_most_of_its_kind_or_two_at_once_is_named(got, odd):
    assert mismatched_losses(got) == odd


TWICE = (5.0, near(5.0))


@pytest.mark.parametrize(
    ("got", "doubt"),
    [
        (results(TWICE, TWICE, 5.0), True),
        (results(TWICE, 5.0, 5.0), False),
        (results(5.0, 6.0, 7.0, 8.0), True),
        (results(5.0, 5.0, 6.0), False),
        (results(TWICE), True),
        (results(5.0, 6.0), False),
        (results(TWICE, 5.0), False),
        (results(TWICE, TWICE), True),
        (results((5.0, 5.1), (5.0, 5.1), (5.0, 5.1), tolerance=1e-5), False),
    ],
)
def test_where_most_exact_devices_do_not_repeat_nobody_is_blamed(got, doubt):
    assert nondeterministic(got, mismatched_losses(got)) == doubt


WAYS = """
import json, sys
import torch
from fixtures.tiny_models import prior_batch, prior_settings
from megajukebox.models.prior import Prior, PriorConfig
from megajukebox.training.settings import TrainingSettings
from megajukebox.training.engines import collectives
from megajukebox.training.engines.factory import build_engine

collectives.start()
config = PriorConfig(**prior_settings())
adam = {"type": "AdamW", "params": {"lr": 0.01, "torch_adam": True}}
for way in json.loads(sys.argv[1]):
    way = {"train_micro_batch_size_per_gpu": 2, "train_batch_size": 2, "optimizer": adam, **way}
    ema = 0.9 if way.pop("ema", False) else 0.0
    engine = build_engine(config, lambda: Prior(config), way, TrainingSettings(ds_config="", steps=1, ema_decay=ema))
    engine.masters.watched = True
    held = sum(weights.numel() for _, weights in engine.masters.pairs())
    expected = sum(getattr(p, "ds_numel", p.numel()) for p in engine.module.parameters())
    assert held >= expected if "float32" not in way else held == 0, (way, held, expected)
    for step in range(3):
        engine.step([prior_batch(config, seed=step)], 1.0)
    assert engine.masters.found() == 0, way
    for which in (0, 1) if held else ():
        pair = next(engine.masters.pairs())
        pair[which].view(-1).view([torch.int32, torch.int16][which])[5] ^= 1 << [18, 2][which]
        engine.step([prior_batch(config, seed=step)], 1.0)
        assert engine.masters.found() == 1 + which, (way, which, engine.masters.found())
    engine.step([prior_batch(config, seed=step)], 1.0)
    engine.masters.compare()
    assert engine.masters.found() == (2 if held else 0), "a step writes all 16-bit weights anew"
collectives.stop()
"""
BF16, FP16 = {"bf16": {"enabled": True}}, {"fp16": {"enabled": True}}


@pytest.mark.slow
def test_every_way_of_training_in_16_bit_finds_what_flips_between_two_steps_in_either_copy():
    offload = {"stage": 3, "offload_optimizer": {"device": "cpu"}}
    ways = [BF16 | {"zero_optimization": {"stage": stage}} for stage in (0, 1, 2, 3)]
    ways += [BF16 | {"zero_optimization": {"stage": 1}, "data_types": {"grad_accum_dtype": "fp32"}}]
    ways += [
        BF16 | {"zero_optimization": {"stage": 3}, "ema": True},
        BF16 | {"zero_optimization": offload},
    ]
    told = environment() | {"PYTHONPATH": f"{TESTS}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-c", WAYS, json.dumps(ways)]
    done = subprocess.run(command, env=told, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]


# ---- The real entry, with faults ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def little(tmp_path_factory):
    return codes_and_preset(tmp_path_factory.mktemp("little"), save_every=4, steps=8)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_one_flipped_bit_in_one_rank_is_found_and_the_rank_named(little, tmp_path):
    ds_config = write_ds_config(tmp_path, "prior_zero3_cpu.json", zero_optimization={"stage": 0})
    said = faulty(
        little,
        tmp_path / "run",
        "flip 5-5 1",
        "training.top_prior.check_every=2",
        ds_config=ds_config,
        expect=75,
    )
    assert "silent corruption" in said and events(tmp_path / "run", "alert")[-1]["step"] == 6
    assert events(tmp_path / "run", "save")[-1]["step"] == 4


@pytest.mark.timeout(600)
def test_one_flipped_mantissa_bit_of_what_one_rank_holds_alone_is_found_and_that_rank_named(
    little, tmp_path
):
    """It flips while step 5 is computed, and that step writes all 16-bit weights anew: the check after step 6 tells."""
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0}
    ds_config = write_ds_config(
        tmp_path, "prior_zero3_cpu.json", bf16={"enabled": True}, zero_optimization=zero
    )
    every = "training.top_prior.check_every=2"
    said = faulty(
        little, tmp_path / "run", "flip_share 5-5 1", every, ds_config=ds_config, expect=75
    )
    assert "16-bit weights of ranks [1] on" in said and "(silent corruption)" in said
    [alert] = events(tmp_path / "run", "alert")
    assert (
        alert["step"] == 6 and alert["hosts"] and events(tmp_path / "run", "save")[-1]["step"] == 4
    )


@pytest.mark.timeout(600)
def test_a_rank_that_multiplies_wrongly_is_named(little, tmp_path):
    ds_config, every = (
        write_ds_config(tmp_path, "prior_zero3_cpu.json"),
        "training.top_prior.recompute_every=2",
    )
    said = faulty(
        little,
        tmp_path / "run",
        "wrong_matmul 3-3 1",
        every,
        ds_config=ds_config,
        expect=75,
        ranks=3,
    )
    assert "ranks [1] on" in said and "(silent corruption)" in said
    [alert] = events(tmp_path / "run", "alert")
    assert alert["step"] == 4, "at step 2 all was well"
    first, wrong, third = alert["losses"]
    assert first == third != wrong and wrong[0] == wrong[1]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["prior_zero3_cpu.json", "prior_pipeline_cpu.json"])
def test_a_machine_that_is_wrong_now_and_then_is_named_where_there_is_no_majority(
    little, tmp_path, name
):
    """Two ranks under ZeRO-3: the other is steady. A pipeline of both is one: it disagrees with itself."""
    ds_config, every = write_ds_config(tmp_path, name), "training.top_prior.recompute_every=2"
    said = faulty(
        little, tmp_path / "run", "unsteady_matmul 3-3 1", every, ds_config=ds_config, expect=75
    )
    assert f"ranks {'[0, 1]' if 'pipeline' in name else '[1]'} on" in said


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("name", "ranks", "changed"),
    [
        ("prior_zero3_cpu.json", 2, {"bf16": {"enabled": True}}),
        ("prior_zero3_cpu.json", 3, {}),
        ("prior_pipeline_cpu.json", 4, {"pipeline": {"stages": 2}}),
    ],
)
def test_checks_find_nothing_in_a_healthy_run_and_change_no_bit_of_it(
    little, tmp_path, name, ranks, changed
):
    ds_config, ends = write_ds_config(tmp_path, name, gradient_accumulation_steps=1, **changed), []
    for every in (0, 1):
        settings = [f"training.top_prior.{check}_every={every}" for check in ("check", "recompute")]
        run = tmp_path / f"every-{every}"
        faulty(little, run, "none 0-0 0", *settings, ds_config=ds_config, ranks=ranks)
        assert not events(run, "alert")
        ends.append([loss.hex() for loss in losses(run)])
    assert ends[0] == ends[1] and len(ends[0]) == 8
