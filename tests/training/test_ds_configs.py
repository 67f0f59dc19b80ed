"""Recipes and profiles make what DeepSpeed accepts, the files of 0.1.0 among it; presets name what there is."""

import json

import deepspeed
import pytest
import torch
from fixtures.paths import FILES

from megajukebox.common.errors import UserError
from megajukebox.training.batching import share_batch
from megajukebox.training.config import PRESETS, load_preset
from megajukebox.training.engines.ds_config import (
    DS_CONFIGS,
    ds_config_name_for,
    ds_config_names,
    read_ds_config,
    recipe_names,
)
from megajukebox.training.planner.ds_config_schema import KEYS
from megajukebox.training.planner.fit import check_fits, check_precision
from megajukebox.training.planner.gpus import GIB, gpu_named
from megajukebox.training.planner.profiles import load_profile, shipped_profiles
from megajukebox.training.planner.recipe import recipe
from megajukebox.training.stages import planned_stage, workload_of

NAMES = ds_config_names()
# Keys that recipes got since.
SINCE_0_1_0 = {
    "prior_zero3_hopper": {"communication_data_type": "fp32"},
    "prior_pipeline_hopper": {"communication_data_type": "fp32"},
    "upsampler_hopper": {"communication_data_type": "fp32"},
}
FILES_OF_0_1_0 = sorted((FILES / "ds_configs_0_1").glob("*.json"))


@pytest.mark.parametrize("name", NAMES)
def test_deepspeed_accepts_it(name):
    config = read_ds_config(name)
    known = deepspeed.runtime.config.DeepSpeedConfig(share_batch(config, 1))
    assert known.zero_optimization_stage == config["zero_optimization"]["stage"]
    assert config["optimizer"]["params"]["torch_adam"], (
        "without it DeepSpeed compiles an optimizer at the first start"
    )
    assert set(config) <= set(KEYS), "DeepSpeed ignores a key that it does not know"


# ---- The files of 0.1.0 ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES_OF_0_1_0, ids=lambda path: path.stem)
def test_what_is_rendered_equals_the_file_of_0_1_0_of_that_name(path):
    assert len(FILES_OF_0_1_0) == 18
    expected = json.loads(path.read_text()) | SINCE_0_1_0.get(path.stem, {})
    assert read_ds_config(path.name) == expected


def test_paths_of_files_that_are_gone_still_name_them(tmp_path):
    by_name = read_ds_config("prior_zero3_v100.json")
    assert read_ds_config("ds_configs/prior_zero3_v100.json") == by_name
    assert read_ds_config(str(DS_CONFIGS / "prior_zero3_v100.json")) == by_name
    with pytest.raises(UserError, match="neither a file nor one of"):
        read_ds_config(str(tmp_path / "prior_zero3_v100.json"))


def test_a_file_of_the_users_own_comes_before_the_name_of_a_recipe(tmp_path, monkeypatch):
    (tmp_path / "prior_zero3_v100.json").write_text('{"train_micro_batch_size_per_gpu": 7}')
    monkeypatch.chdir(tmp_path)
    assert read_ds_config("prior_zero3_v100.json") == {"train_micro_batch_size_per_gpu": 7}


# ---- Names -----------------------------------------------------------------------------------------------------------


def test_a_recipe_and_a_profile_are_named_in_two_ways():
    assert read_ds_config("upsampler@hopper") == read_ds_config("upsampler_hopper.json")


def test_a_configuration_moves_to_another_kind_of_gpu_and_those_for_cpus_stay():
    hopper = load_profile("hopper")
    assert ds_config_name_for("upsampler_v100.json", hopper) == "upsampler_hopper.json"
    assert (
        ds_config_name_for("upsampler_hopper.json", load_profile("v100")) == "upsampler_v100.json"
    )
    assert ds_config_name_for("prior_zero3_cpu.json", hopper) == "prior_zero3_cpu.json"
    assert ds_config_name_for("vqvae_fp32.json", hopper) == "vqvae_fp32.json"


@pytest.mark.parametrize("preset", sorted(path.stem for path in PRESETS.glob("*.yaml")))
def test_every_stage_of_a_preset_names_one_that_is_there(preset):
    for settings in load_preset(preset).training.values():
        assert settings.ds_config in NAMES


def test_a_missing_one_is_named_with_those_that_exist():
    with pytest.raises(UserError, match=r"'nowhere.json'.*prior_zero3_cpu.json"):
        read_ds_config("nowhere.json")
    with pytest.raises(
        UserError, match=r"profile v100 has no recipe 'prior_offload'; it has vqvae"
    ):
        read_ds_config("prior_offload@v100")
    with pytest.raises(
        UserError, match=r"'v1000' is neither a YAML file nor one of a100, consumer, cpu"
    ):
        read_ds_config("prior_zero3@v1000")


def test_every_recipe_of_a_profile_is_there():
    for profile in shipped_profiles():
        assert set(profile.recipes) <= set(recipe_names()), profile.name


def test_a_key_that_deepspeed_would_ignore_is_refused(tmp_path):
    (tmp_path / "typo.json").write_text('{"train_micro_batch_size_per_gpus": 1}')
    with pytest.raises(UserError, match="did you mean 'train_micro_batch_size_per_gpu'"):
        read_ds_config(str(tmp_path / "typo.json"))


# ---- What they ask for -----------------------------------------------------------------------------------------------

RECIPES = {
    "vqvae": "vqvae",
    "refiner": "refiner",
    "top_prior": "prior_zero3",
    "middle_upsampler": "upsampler",
    "bottom_upsampler": "upsampler",
}


@pytest.mark.parametrize("gpu", ["v100-32gb", "a100-80gb", "h100-80gb"])
@pytest.mark.parametrize("stage", sorted(RECIPES))
def test_plan_accepts_the_released_presets_at_jukebox_s_sizes(stage, gpu):
    preset, device = load_preset("jukebox_5b"), gpu_named(gpu)
    name = ds_config_name_for(preset.stage(stage).ds_config, device.profile)
    assert name == f"{RECIPES[stage]}_{device.profile.name}.json"
    gpus = planned_stage(preset, stage).default_gpus
    way = recipe(share_batch(read_ds_config(name), gpus), gpus)
    check_precision(way, device)
    needed = check_fits(workload_of(preset, stage), way, gpus, device)
    assert needed.total < device.memory * GIB


@pytest.mark.parametrize(
    "gpu",
    [
        "v100-32gb",
        pytest.param("a100-80gb", marks=pytest.mark.slow),
        pytest.param("h100-80gb", marks=pytest.mark.slow),
    ],
)
def test_plan_accepts_the_pipelines(gpu):
    device = gpu_named(gpu)
    way = recipe(read_ds_config(device.profile.ds_config_name("prior_pipeline")), 128)
    check_precision(way, device)
    assert way.pipeline == 4 and way.samples(128) == 512, "as many windows a step as Jukebox"
    assert check_fits(workload_of(load_preset("jukebox_5b"), "top_prior"), way, 128, device)


@pytest.mark.parametrize("recipe_name", recipe_names())
def test_float16_is_scaled_and_is_the_v100_s_alone(recipe_name):
    for profile in shipped_profiles():
        if recipe_name in profile.recipes and profile.cards:
            config = read_ds_config(profile.ds_config_name(recipe_name))
            autocast = config.get("torch_autocast", {}).get("dtype")
            if profile.name == "v100":  # torch_autocast brings torch's GradScaler
                assert config.get("fp16", {}).get("loss_scale_window") or autocast == "float16"
                assert "bf16" not in config
            else:
                assert config.get("bf16", {}).get("enabled") or autocast == "bfloat16"


@pytest.mark.parametrize("profile", ["hopper", "a100"])
@pytest.mark.parametrize("recipe_name", ["prior_zero3", "prior_pipeline", "upsampler"])
def test_gradients_in_bfloat16_are_summed_in_float32(recipe_name, profile):
    config = share_batch(read_ds_config(f"{recipe_name}_{profile}.json"), 1)
    known = deepspeed.runtime.config.DeepSpeedConfig(config)
    assert known.communication_data_type == torch.float32


def test_float16_by_autocast_is_refused_where_deepspeed_would_clip_scaled_gradients(tmp_path):
    refused = "does not go with zero_optimization.stage 3: use fp16 instead, or dtype bfloat16"
    with pytest.raises(UserError, match=refused):
        read_ds_config("prior_zero3_cpu_fp16.json")
    own = read_ds_config("vqvae_v100.json")
    (tmp_path / "own.json").write_text(json.dumps(own | {"zero_optimization": {"stage": 1}}))
    with pytest.raises(UserError, match="stage 1"):
        read_ds_config(str(tmp_path / "own.json"))


def test_what_deepspeed_takes_out_of_a_ds_config_is_in_the_next_one_that_is_read():
    before = read_ds_config("prior_zero3_cpu.json")
    taken = read_ds_config("prior_zero3_cpu.json")
    taken["optimizer"]["params"].clear()
    taken["zero_optimization"]["stage"] = 0
    assert read_ds_config("prior_zero3_cpu.json") == before
