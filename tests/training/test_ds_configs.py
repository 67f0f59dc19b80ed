"""Every JSON in ds_configs/ is one that DeepSpeed accepts, and every preset names one that is there."""

import deepspeed
import pytest

from megajukebox.training.batching import share_batch
from megajukebox.training.config import PRESETS, load_preset
from megajukebox.training.engines.collectives import DS_CONFIGS, read_ds_config
from megajukebox.training.planner.fit import check_fits, check_precision
from megajukebox.training.planner.gpus import GIB, gpu_named
from megajukebox.training.planner.plan import default_gpus, ds_config_for
from megajukebox.training.planner.recipe import KEYS, recipe
from megajukebox.training.planner.workload import workload_of

NAMES = sorted(path.name for path in DS_CONFIGS.glob("*.json"))


@pytest.mark.parametrize("name", NAMES)
def test_deepspeed_accepts_it(name):
    config = read_ds_config(name)
    known = deepspeed.runtime.config.DeepSpeedConfig(share_batch(config, 1))
    assert known.zero_optimization_stage == config["zero_optimization"]["stage"]
    assert config["optimizer"]["params"]["torch_adam"], (
        "without it DeepSpeed compiles an optimizer at the first start"
    )
    assert set(config) <= set(KEYS), "DeepSpeed ignores a key that it does not know"


@pytest.mark.parametrize("name", [n for n in NAMES if "v100" in n])
def test_no_v100_configuration_asks_for_bf16(name):
    assert "bf16" not in read_ds_config(name)


@pytest.mark.parametrize("preset", sorted(path.stem for path in PRESETS.glob("*.yaml")))
def test_every_stage_of_a_preset_names_one_that_is_there(preset):
    for settings in load_preset(preset).training.values():
        assert settings.ds_config in NAMES


def test_a_missing_file_is_named_with_those_that_exist():
    with pytest.raises(ValueError, match=r"'nowhere.json'.*prior_zero3_cpu.json"):
        read_ds_config("nowhere.json")


STAGES = {
    "vqvae": "vqvae",
    "top_prior": "prior_zero3",
    "middle_upsampler": "upsampler",
    "bottom_upsampler": "upsampler",
}


@pytest.mark.parametrize("gpu", ["v100-32gb", "h100-80gb"])
@pytest.mark.parametrize("stage", sorted(STAGES))
def test_plan_accepts_the_released_presets_at_jukebox_s_sizes(stage, gpu):
    preset, device = load_preset("jukebox_5b"), gpu_named(gpu)
    name = ds_config_for(preset.stage(stage).ds_config, device)
    assert name == f"{STAGES[stage]}_{'v100' if gpu.startswith('v100') else 'hopper'}.json"
    way = recipe(share_batch(read_ds_config(name), default_gpus(stage)), default_gpus(stage))
    check_precision(way, device)
    assert (
        check_fits(workload_of(preset, stage), way, default_gpus(stage), device).total
        < device.memory * GIB
    )


@pytest.mark.parametrize("name", [n for n in NAMES if "pipeline" in n and "cpu" not in n])
def test_plan_accepts_the_pipelines(name):
    device = gpu_named("v100-32gb" if "v100" in name else "h100-80gb")
    way = recipe(read_ds_config(name), 128)
    check_precision(way, device)
    assert way.pipeline == 4 and way.samples(128) == 512, "as many windows a step as Jukebox"
    assert check_fits(workload_of(load_preset("jukebox_5b"), "top_prior"), way, 128, device)


@pytest.mark.parametrize("name", NAMES)
def test_float16_is_scaled_and_bfloat16_is_hopper_s(name):
    config = read_ds_config(name)
    if "v100" in name:
        scaled = (
            config.get("fp16", {}).get("loss_scale_window")
            or config["torch_autocast"]["dtype"] == "float16"
        )
        assert scaled, "torch_autocast brings torch's GradScaler"
    if "hopper" in name:
        assert (
            config.get("bf16", {}).get("enabled") or config["torch_autocast"]["dtype"] == "bfloat16"
        )


def test_a_key_that_deepspeed_would_ignore_is_refused(tmp_path):
    (tmp_path / "typo.json").write_text('{"train_micro_batch_size_per_gpus": 1}')
    with pytest.raises(ValueError, match="did you mean 'train_micro_batch_size_per_gpu'"):
        read_ds_config(str(tmp_path / "typo.json"))
