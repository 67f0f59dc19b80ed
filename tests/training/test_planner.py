"""`plan`: the numbers are those of hand arithmetic, and what cannot be done is refused with the nearest that can."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from megajukebox.commands.plan import main
from megajukebox.common.command_line import command_app
from megajukebox.common.errors import EXIT_FATAL
from megajukebox.models.prior import Prior
from megajukebox.training.config import load_preset
from megajukebox.training.planner.activation_trace import (
    AllocationLedger,
    TracedPass,
    TraceSetting,
    training_pass,
)
from megajukebox.training.planner.dummy_batches import windows
from megajukebox.training.planner.fit import DoesNotFit, check_fits, check_whole, memory_need
from megajukebox.training.planner.forecast import DAY, failures, pace
from megajukebox.training.planner.gpus import GIB, GPU, gpu_named
from megajukebox.training.planner.memory import Weights, gradients_grow, moments
from megajukebox.training.planner.plan import Assumptions, plan
from megajukebox.training.planner.recipe import recipe
from megajukebox.training.planner.workload import fullest, weights_of
from megajukebox.training.stages import planned_stage, workload_of

ADAM = {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}}
HALF = {"fp16": {"enabled": True}}
WEIGHTS, RUN = (
    Weights(total=1000, largest=100, small=40),
    TracedPass(activations=5000, peak=6000, flops=1),
)
FLOAT32 = TraceSetting("float32", "float32", recompute=False, fused=True, cpu=True, gradients=False)


def told(zero: int, micro: int = 1, **more: object) -> dict:
    zero_optimization = {"stage": zero, "reduce_bucket_size": 10, "overlap_comm": False}
    zero_optimization |= (
        {"stage3_max_live_parameters": 200, "stage3_prefetch_bucket_size": 50} if zero == 3 else {}
    )
    zero_optimization |= {"stage3_param_persistence_threshold": 1} if zero == 3 else {}
    return {
        "train_micro_batch_size_per_gpu": micro,
        "optimizer": ADAM,
        "zero_optimization": zero_optimization,
        **more,
    }


def parts(ds_config: dict, ranks: int, moment: str) -> dict:
    return moments(recipe(ds_config, ranks), WEIGHTS, ranks, RUN, on_gpu=True)[moment]


WITH_LYRICS = [
    "top.transformer.schedule=factored_lyrics",
    "top.transformer.depth=8",
    "top.lyrics={tokens: 48, encoder: {width: 64, depth: 3, heads: 1, blocks: 8}}",
]


def tiny() -> tuple:
    """The tiny top prior, told lyrics: (subject, its configuration)."""
    of = workload_of(load_preset("tiny", WITH_LYRICS), "top_prior")
    return of, of.model_config


# ---- What a pass needs -----------------------------------------------------------------------------------------------


def test_activations_are_the_bytes_that_autograd_really_saves():
    of, config = tiny()
    model, saved = Prior(config), {}
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def note(x: torch.Tensor) -> torch.Tensor:
        if x.untyped_storage().data_ptr() not in parameters:
            saved[x.untyped_storage().data_ptr()] = (x.untyped_storage().nbytes(), x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        loss = model(windows(config, 2))[0]
    predicted = training_pass(of.build, of.batch, 2, FLOAT32).activations
    assert loss.isfinite()
    assert predicted == pytest.approx(sum(size for size, _ in saved.values()), rel=0.02)


def test_recomputing_keeps_one_hidden_state_a_block_instead_of_all_that_is_in_it():
    of, config = tiny()
    kept, recomputed = (
        training_pass(of.build, of.batch, 1, FLOAT32._replace(recompute=r)) for r in (False, True)
    )
    shape = config.transformer
    hidden = 4 * config.window * shape.width
    assert kept.activations - recomputed.activations > 5 * hidden * shape.depth
    assert recomputed.activations > hidden * shape.depth
    assert recomputed.flops == kept.flops, "the forward pass is the same"


def test_flops_of_a_block_are_twice_its_weights_for_each_code_and_the_attention():
    of, config = tiny()
    deeper = workload_of(
        load_preset("tiny", [*WITH_LYRICS, "top.transformer.depth=9"]), "top_prior"
    )
    more = (
        training_pass(deeper.build, deeper.batch, 1, FLOAT32).flops
        - training_pass(of.build, of.batch, 1, FLOAT32).flops
    )
    width, state = config.transformer.width, config.transformer.attention_width
    row = config.window // config.transformer.blocks
    dense = 2 * config.window * (width * 3 * state + state * width + 2 * width * width)
    assert more == dense + 2 * 2 * config.window * row * state  # the ninth layer sees its row


def test_a_frozen_vqvae_is_computed_once_and_a_refiner_three_times():
    """The VQ-VAE of a refiner's step has no backward pass; what is left is the refiner's own products."""
    preset = load_preset("tiny", ["refiner.level=bottom"])
    of = workload_of(preset, "refiner")
    traced = training_pass(of.build, of.batch, 1, FLOAT32)
    with torch.device("meta"):
        model = of.build()
        clip = of.batch(1)["audio"]
        vqvae = model.vqvae_on(torch.device("meta"))
        with AllocationLedger([]) as ledger:
            codes = vqvae.encode(clip, "bottom")
            vqvae.decode(codes, "bottom")
    assert traced.frozen_flops == ledger.flops > 0
    assert traced.flops > traced.frozen_flops
    of_vqvae = workload_of(preset, "vqvae")
    assert training_pass(of_vqvae.build, of_vqvae.batch, 1, FLOAT32).frozen_flops == 0


def test_half_precision_halves_the_activations_of_a_vqvae_under_autocast():
    waves = ["vqvae.targets={}", "vqvae.spectrum=null"]  # spectra stay in float32
    of = workload_of(load_preset("tiny", waves), "vqvae")
    whole = training_pass(of.build, of.batch, 1, FLOAT32._replace(cpu=False))
    half = training_pass(of.build, of.batch, 1, FLOAT32._replace(cpu=False, precision="float16"))
    assert 0.45 < half.activations / whole.activations < 0.7


# ---- Memory by hand: 1000 weights, activations 5000 bytes, 1000 more at the fullest ----------------------------------


def test_without_zero_float32_holds_weights_gradients_and_two_moments():
    update = parts(told(0), 4, "update")
    assert (update["weights"], update["gradients"], update["optimizer"]) == (4000, 4000, 8000)
    assert parts(told(0), 4, "backward")["activations"] == 5000


def test_zero_1_shares_out_float32_weights_and_moments():
    held = parts(told(1, **HALF), 4, "backward")
    assert (held["weights"], held["optimizer"], held["buffers"]) == (2000, 12 * 250, 2 * 10)


def test_zero_2_also_shares_out_gradients():
    assert parts(told(2, **HALF), 4, "backward")["gradients"] == 2 * 250


def test_zero_3_holds_its_share_and_the_layers_that_are_gathered():
    held = parts(told(3, **HALF), 4, "backward")
    assert (held["gradients"], held["optimizer"]) == (2 * 250, 12 * 250)
    assert held["weights"] == 2 * 40 + 2 * 250 + 2 * 200, (
        "small tensors whole, a share, and the live layers"
    )
    assert held["buffers"] == 2 * 10 + 2 * 100, (
        "the bucket, and what is on its way: at least the largest tensor"
    )


def test_an_offloaded_optimizer_is_not_on_the_gpu():
    config = told(3, **HALF)
    config["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
    assert parts(config, 4, "backward")["optimizer"] == 0


def test_gradients_of_the_first_micro_batch_are_there_when_the_second_begins():
    assert gradients_grow(recipe(told(1), 2)) and not gradients_grow(
        recipe(told(1, gradient_accumulation_steps=2), 2)
    )
    assert parts(told(1, gradient_accumulation_steps=2), 2, "backward")["gradients"] == 4000


def test_the_first_stage_of_a_pipeline_keeps_a_micro_batch_for_each_stage():
    config = told(1, pipeline={"stages": 4}, gradient_accumulation_steps=8)
    assert parts(config, 1, "backward")["activations"] == 5000
    few = told(1, pipeline={"stages": 4}, gradient_accumulation_steps=2)
    assert parts(few, 1, "backward")["activations"] == 2500


@pytest.mark.parametrize(
    ("sizes", "count", "most"), [([1, 1, 1, 1], 2, 2), ([5, 1, 1, 1], 2, 5), ([3, 3, 4], 2, 6)]
)
def test_layers_are_dealt_out_evenly_in_order(sizes, count, most):
    assert fullest(sizes, count) == most


def test_released_presets_have_the_released_numbers_of_parameters():
    preset = load_preset("jukebox_5b")
    assert weights_of(workload_of(preset, "top_prior"), 1, 0).total == 5_060_452_800
    assert weights_of(workload_of(preset, "bottom_upsampler"), 1, 0).total == 981_298_176
    assert weights_of(workload_of(preset, "vqvae"), 1, 0).total == 1_485_763


# ---- Time and failures -----------------------------------------------------------------------------------------------


def test_a_step_takes_its_flops_over_the_share_of_the_peak():
    gpu = GPU("g", 1.0, {"float32": 10.0}, 1.0, 1.0)
    step = pace(recipe(told(0), 1), 1, 2e12, 10, gpu, mfu=0.5)
    assert step.step == pytest.approx(2e12 / 5e12) and step.network == 0


def test_a_pipeline_waits_while_it_fills_and_drains():
    gpu = GPU("g", 1.0, {"float32": 1.0}, 1.0, 1e6)
    config = told(1, pipeline={"stages": 4}, gradient_accumulation_steps=8)
    step = pace(recipe(config, 4), 4, 4e12, 10, gpu, mfu=1.0)
    assert (step.compute, step.waiting) == (pytest.approx(8 + 3), pytest.approx(3))


def test_zero_3_moves_the_weights_twice_and_the_gradients_once_for_each_micro_batch():
    gpu = GPU("g", 1.0, {"float16": 1e9}, 1.0, 1.0)
    step = pace(recipe(told(3, **HALF), 16), 16, 1.0, 10**9, gpu, mfu=1.0)
    assert step.network == pytest.approx(3 * 2 * 15 / 16) and step.bound_by == "network"


def test_gradients_that_are_summed_in_float32_move_and_hold_more():
    gpu = GPU("g", 1.0, {"bfloat16": 1e9}, 1.0, 1.0)
    short = told(3, bf16={"enabled": True})
    wide = short | {"communication_data_type": "fp32"}
    networks = [pace(recipe(way, 16), 16, 1.0, 10**9, gpu, 1.0).network for way in (short, wide)]
    assert networks[1] == pytest.approx(networks[0] * (2 + 2 + 4) / (2 + 2 + 2))
    zero_1 = told(1, bf16={"enabled": True}, communication_data_type="fp32")
    assert pace(recipe(zero_1, 16), 16, 1.0, 10**9, gpu, 1.0).network == pytest.approx(
        (2 + 4) * 15 / 16
    )
    traced = TracedPass(0, 0, 0)
    buffers = []
    for way in (short, wide):
        parts = moments(recipe(way, 16), Weights(10**9, 1, 0), 16, traced, on_gpu=True)
        buffers.append(parts["update"]["buffers"])
    assert buffers[1] - buffers[0] == 4 * recipe(wide, 16).bucket


@pytest.mark.parametrize(
    ("rate", "expected", "ettr"), [(3, 5.4, 99.1), (6.5, 11.6, 98.6), (16, 28.7, 97.4)]
)
def test_failures_of_jukebox_s_top_prior(rate, expected, ettr):
    seen = failures(nodes=64, days=28, rate=rate, save=10, restart=900)
    assert (round(seen.expected, 1), round(100 * seen.ettr, 1)) == (expected, ettr)
    assert seen.interval == pytest.approx((2 * 10 * DAY * 1000 / (rate * 64)) ** 0.5)


@pytest.mark.parametrize("rate", [3, 6.5, 16])
@pytest.mark.parametrize(("save", "restart"), [(10, 900), (1, 180)])
def test_the_share_of_time_in_training_is_that_of_a_simulated_run(rate, save, restart):
    """Many years of failures at random moments: each costs a restart and what was not yet in a checkpoint."""
    seen = failures(nodes=64, days=28, rate=rate, save=save, restart=restart)
    lives = np.random.default_rng(0).exponential(
        DAY * 1000 / (rate * 64), 200_000
    )  # seconds between two failures
    saved = np.floor(np.maximum(0, lives - restart) / (seen.interval + save)) * seen.interval
    assert saved.sum() / lives.sum() == pytest.approx(seen.ettr, abs=0.003) and seen.ettr > 0.97


# ---- Refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "gpu", "why"),
    [
        ({"bf16": {"enabled": True}}, "v100-32gb", "does not compute in bfloat16.*float16"),
        (
            {"train_batch_size": 9, "gradient_accumulation_steps": 1},
            "v100-32gb",
            "train_batch_size 9.*set it to 8",
        ),
        (
            {"gradient_acumulation_steps": 2},
            "v100-32gb",
            "did you mean 'gradient_accumulation_steps'",
        ),
        (
            {"pipeline": {"stages": 3}},
            "v100-32gb",
            "8 GPUs are not a multiple of pipeline.stages 3; 9 are",
        ),
        (
            {"pipeline": {"stages": 2}, "zero_optimization": {"stage": 3}},
            "v100-32gb",
            "ZeRO-1: set it to 1",
        ),
        (
            {"fp16": {"enabled": True}, "bf16": {"enabled": True}},
            "h100-80gb",
            "fp16 and bf16; keep one",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_with_the_way_out(config, gpu, why):
    config = told(1) | config
    with pytest.raises(ValueError, match=why):
        preset = load_preset("tiny")
        stage = planned_stage(preset, "top_prior")
        plan(preset, stage, 8, gpu_named(gpu), config, "x.json", Assumptions())


def test_gpus_come_in_whole_nodes():
    with pytest.raises(ValueError, match="100 GPUs are not whole nodes of 8; 96 are"):
        check_whole(100, 1, 8)


def test_a_pipeline_longer_than_the_model_is_refused():
    with pytest.raises(ValueError, match=r"pipeline.stages 16 is more than the 10 layers"):
        weights_of(tiny()[0], 16, 0)


def test_what_does_not_fit_names_the_nearest_that_does():
    of, way = tiny()[0], recipe(told(0, micro=8), 8)
    small = gpu_named("v100-32gb")._replace(
        memory=memory_need(of, way, 8, gpu_named("v100-32gb")).total / GIB - 0.1
    )
    with pytest.raises(
        DoesNotFit,
        match=r"the nearest that fits: (.*activation_checkpointing|.*train_micro_batch_size)",
    ):
        check_fits(of, way, 8, small)
    with pytest.raises(DoesNotFit, match="take a GPU with more memory"):
        check_fits(of, way, 8, small._replace(memory=0.5))


def test_the_nearest_way_really_fits():
    of, v100 = tiny()[0], gpu_named("v100-32gb")
    kept, saved = (
        memory_need(of, recipe(told(0, **more), 8), 8, v100)
        for more in ({}, {"activation_checkpointing": {}})
    )
    between = (saved.total + kept.total) / 2 / GIB
    with pytest.raises(
        DoesNotFit, match=rf"fits: activation_checkpointing \({saved.total / GIB:.1f} GiB\)"
    ):
        check_fits(of, recipe(told(0), 8), 8, v100._replace(memory=between))


# ---- The entry -------------------------------------------------------------------------------------------------------


def entry(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(command_app(main, "plan"), list(arguments))
    return done.exit_code, done.output + str(done.exception or "")


def test_the_entry_tells_a_stage_as_json():
    code, output = entry(
        "tiny", "--stage", "vqvae", "--gpus", "2", "--json", "training.vqvae.clip=4096"
    )
    made = json.loads(output)
    assert (
        code == 0
        and made["parameters"] == weights_of(workload_of(load_preset("tiny"), "vqvae"), 1, 0).total
    )
    assert made["samples_per_step"] == 16 and made["days"] == pytest.approx(
        made["steps"] * made["step_seconds"] / DAY
    )


@pytest.mark.slow
def test_fewer_gpus_than_jukebox_had_are_told_how_to_have_its_step():
    asked = ("jukebox_5b", "--stage", "middle_upsampler", "--gpus", "16")
    code, output = entry(*asked)
    assert code == 0 and "16 samples" in output and "training.middle_upsampler.batch=128" in output
    code, output = entry(*asked, "training.middle_upsampler.batch=128")
    assert code == 0 and "1 x 8 a rank, 128 samples" in output and "Jukebox's GPUs" not in output
    assert (
        "cannot share the 128 clips"
        in entry(*asked[:-1], "48", "training.middle_upsampler.batch=128")[1]
    )


def test_the_entry_refuses_in_one_line():
    code, output = entry("tiny", "--stage", "top_prior", "--gpus", "9")
    assert (
        code == EXIT_FATAL
        and "plan: top_prior with prior_zero1_cpu.json: 9 GPUs are not whole nodes" in output
    )


def test_options_under_their_old_names_do_the_same():
    old = entry(
        "tiny", "--stage", "vqvae", "--gpus", "2", "--share", "0.2", "--ds", "vqvae_fp32.json"
    )
    new = entry(
        "tiny", "--stage", "vqvae", "--gpus", "2", "--mfu", "0.2", "--ds-config", "vqvae_fp32.json"
    )
    assert old[0] == new[0] == 0
    assert "option --share is now --mfu" in old[1] and "20.0% of the peak (as given)" in new[1]
    without_hints = old[1].split("megajukebox: option")[0]
    assert without_hints.splitlines()[-3:] == new[1].splitlines()[-3:]


def test_a_run_that_fails_faster_than_it_comes_back_never_ends() -> None:
    assert failures(nodes=50_000, days=28.3, rate=16, save=10, restart=900).ettr == 0
    assert failures(nodes=10**9, days=28.3, rate=16, save=10, restart=900).ettr == 0
