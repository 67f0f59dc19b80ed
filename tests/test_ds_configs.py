"""Every JSON in ds_configs/ is one that DeepSpeed accepts, and every preset names one that is there."""

import deepspeed
import pytest

from megajukebox.training.batching import share_batch
from megajukebox.training.config import PRESETS, load_preset
from megajukebox.training.parallel import DS_CONFIGS, read_ds_config

NAMES = sorted(path.name for path in DS_CONFIGS.glob("*.json"))


@pytest.mark.parametrize("name", NAMES)
def test_deepspeed_accepts_it(name):
    config = read_ds_config(name)
    known = deepspeed.runtime.config.DeepSpeedConfig(share_batch(config, 1))
    assert known.zero_optimization_stage == config["zero_optimization"]["stage"]
    assert config["optimizer"]["params"]["torch_adam"], "without it DeepSpeed compiles an optimizer at the first start"


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
