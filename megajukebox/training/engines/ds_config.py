"""DeepSpeed's configuration: a recipe of ds_configs/ with what a GPU profile fills in, or a JSON of
the user's own.

A recipe is a way of training (ZeRO-3, a pipeline, ...); a profile says what differs by card. Names
that are understood:

    prior_zero3_v100.json           recipe and profile; as files of these names used to lie in ds_configs/
    prior_zero3_cpu_bf16.json       the same in another precision: fp32, fp16 or bf16
    prior_zero3@site/mi300.yaml     recipe and a profile by its path
    mine.json                       a file: a complete configuration
"""

import copy
import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from pydantic import Field, ValidationError

from megajukebox.common.device import VARIABLE, accelerator, why_no_cuda
from megajukebox.common.errors import UserError
from megajukebox.common.untrusted_files import parse_json, read_given
from megajukebox.common.validation_errors import mistakes
from megajukebox.training.planner.profiles import (
    GPUProfile,
    Precision,
    ProfileSettings,
    load_profile,
    shipped_profiles,
)
from megajukebox.training.planner.recipe import check_ds_config

DS_CONFIGS = Path(__file__).parents[3] / "ds_configs"
SHORT_NAMES: dict[str, Precision] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
# Names of 0.1.0 that are not recipe_profile.json; presets and run.yaml of old runs have them.
ALIASES = {
    "prior_cpu_bf16.json": "prior_zero3_cpu_bf16.json",
    "vqvae_fp32.json": "vqvae_v100_fp32.json",
}
# DeepSpeed's defaults, spelled out: the scale starts at 2^16 and doubles after 1000 steps without
# an overflow.
FP16 = {
    "enabled": True,
    "initial_scale_power": 16,
    "loss_scale_window": 1000,
    "hysteresis": 2,
    "min_loss_scale": 1,
}
STEPS_PER_PRINT = 1_000_000_000  # never: run_log.py writes the metrics


class DsRecipe(ProfileSettings):
    """A way of training, whatever the card."""

    mixed_precision: Literal["weights", "autocast"] = Field(
        description="weights: fp16/bf16 of DeepSpeed, with float32 master weights;"
        " autocast: weights stay float32, products are rounded"
    )
    ds_config: dict[str, Any] = Field(description="DeepSpeed's keys, without those of the profile")
    with_bfloat16: dict[str, Any] = Field({}, description="further keys where it is in bfloat16")


class DsConfigName(NamedTuple):
    """What a name like prior_zero3_cpu_bf16.json says."""

    recipe: str
    profile: GPUProfile
    precision: Precision | None  # None: the profile's


def read_ds_config(name: str) -> dict:
    """The configuration of that name, or in the JSON at that path.

    Raises:
        UserError: it is unknown, does not parse, or has a key or value that does not go with our training.
    """
    path = Path(name)
    if not os.path.isfile(path):  # which says no to a name that is too long
        return render(parse_name(name))
    try:
        ds_config = parse_json(read_given(path))
    except ValueError as error:
        raise UserError(f"{path} is no JSON that reads in one way: {error}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from None
    if not isinstance(ds_config, dict):
        raise UserError(
            f"{path} holds {type(ds_config).__name__}; write {{...}} with DeepSpeed's keys"
        )
    check_ds_config(ds_config, str(path))
    return ds_config


def require_optimizer(ds_config: dict, name: str) -> None:
    """Refuse to train with a ds_config that says no optimizer: DeepSpeed would build an engine without one.

    Raises:
        UserError: names the ds_config and the key.
    """
    if "type" not in ds_config.get("optimizer", {}):
        raise UserError(
            f"{name}: optimizer.type is missing; write"
            ' "optimizer": {"type": "AdamW", "params": {"lr": ..., "torch_adam": true}}'
        )


def recipe_names() -> list[str]:
    return sorted(path.stem for path in DS_CONFIGS.glob("*.yaml"))


def ds_config_names() -> list[str]:
    """Every recipe with every profile that has it, and the names of 0.1.0."""
    names = set(ALIASES)
    for profile in shipped_profiles():
        names.update(profile.ds_config_name(recipe) for recipe in profile.recipes)
    return sorted(names)


def parse_name(name: str) -> DsConfigName:
    """Recipe, profile and precision of a name. Raises UserError with those that are known."""
    recipe, at, reference = name.partition("@")
    if at:
        return DsConfigName(recipe, load_profile(reference), None)
    path = Path(name)  # ds_configs/prior_zero3_v100.json is what its name says, wherever one stands
    plain = path.name if path.parent.name in ("", DS_CONFIGS.name) else name
    stem = ALIASES.get(plain, plain).removesuffix(".json")
    precision: Precision | None = None
    for suffix, short in SHORT_NAMES.items():
        if stem.endswith(f"_{suffix}"):
            precision = short
            stem = stem.removesuffix(f"_{suffix}")
    for profile in shipped_profiles():
        recipe = stem.removesuffix(f"_{profile.name}")
        if recipe != stem and recipe in profile.recipes:
            return DsConfigName(recipe, profile, precision)
    known = ", ".join(ds_config_names())
    raise UserError(f"ds_config {name!r} is neither a file nor one of {known}")


def require_gpu(name: str) -> None:
    """Refuse to train with the configuration of a GPU on a CPU.

    Raises:
        UserError: `name` has a profile with cards, and there is no GPU. DS_ACCELERATOR=cpu allows it.
    """
    if accelerator() == "cuda" or os.environ.get(VARIABLE) == "cpu" or os.path.isfile(name):
        return
    profile = parse_name(name).profile
    if profile.cards:
        raise UserError(
            f"ds_config {name} is for GPUs ({profile.name}), and {why_no_cuda()}; or choose a"
            f" configuration for CPUs, or set {VARIABLE}=cpu"
        )


def render(name: DsConfigName) -> dict[str, Any]:
    """The JSON that DeepSpeed is given: the recipe, its precision, and what the profile replaces or
    removes.

    Raises:
        UserError: there is no such recipe, it is not valid, or the profile does not have it.
    """
    path = DS_CONFIGS / f"{name.recipe}.yaml"
    if not path.is_file():
        known = ", ".join(recipe_names())
        raise UserError(f"recipe {name.recipe!r} is none of ds_configs/: {known}")
    try:
        recipe = DsRecipe.model_validate(yaml.safe_load(path.read_text()))
    except ValidationError as error:
        lines = "".join(f"\n  {mistake}" for mistake in mistakes(error, DsRecipe))
        raise UserError(f"{path} is not a valid recipe:{lines}") from None
    profile = name.profile
    if name.recipe not in profile.recipes:
        known = ", ".join(profile.recipes)
        raise UserError(f"profile {profile.name} has no recipe {name.recipe!r}; it has {known}")
    precision = name.precision or profile.precision
    rendered = {**recipe.ds_config, "steps_per_print": STEPS_PER_PRINT}
    mixed_precision = profile.mixed_precision or recipe.mixed_precision
    if precision != "float32" and mixed_precision == "autocast":
        rendered |= {"torch_autocast": {"enabled": True, "dtype": precision}}
    elif precision == "float16":
        rendered |= {"fp16": FP16}
    elif precision == "bfloat16":
        rendered |= {"bf16": {"enabled": True}}
    if precision == "bfloat16":
        rendered |= recipe.with_bfloat16
    rendered |= profile.recipes[name.recipe]
    ds_config = {key: value for key, value in rendered.items() if value is not None}
    check_ds_config(ds_config, f"{name.recipe}@{profile.name}")
    # Profiles are read once a process, and DeepSpeed takes entries out of what it is given.
    return copy.deepcopy(ds_config)


def ds_config_name_for(name: str, profile: GPUProfile) -> str:
    """The name of the same recipe with the GPUs of `profile`.

    Files, configurations for CPUs and those in a precision of their own stay as they are.
    """
    if os.path.isfile(name):
        return name
    parsed = parse_name(name)
    if parsed.precision or not parsed.profile.cards:
        return name
    return profile.ds_config_name(parsed.recipe)
