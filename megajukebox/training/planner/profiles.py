"""GPU profiles: one YAML a kind of GPU, from which plans, ds_configs, micro-batches and environment
follow.

    python -m megajukebox.training.planner.profiles v100     # as shell assignments, for slurm/cluster.sh

A new kind of GPU is a new file in megajukebox/profiles, or a YAML anywhere that is named by its
path.
"""

import os
import re
import shlex
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from megajukebox.common.errors import EXIT_FATAL, UserError
from megajukebox.common.untrusted_files import parse_yaml, read_given
from megajukebox.common.validation_errors import mistakes

PROFILES = Path(__file__).parents[2] / "profiles"

Precision = Literal["float32", "float16", "bfloat16"]


class ProfileSettings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CardSettings(ProfileSettings):
    """One card of a kind."""

    memory_gib: float = Field(gt=0, description="as its driver reports it")
    bandwidth_tb_per_second: float = Field(gt=0, description="of its memory")
    peak_tflops: dict[str, float] | None = Field(
        None, description="where they are not those of the profile"
    )


class NodeSettings(ProfileSettings):
    """The machine that the cards stand in."""

    gpus: int = Field(ge=0, description="cards of one node; SLURM's gres")
    network_gb_per_second: float = Field(
        ge=0, description="between two nodes, each way, all cards of a node together"
    )


class MFUSettings(ProfileSettings):
    """The share of the peak that `plan` assumes for priors."""

    top_prior: float = Field(gt=0, le=1)
    other_stages: float = Field(gt=0, le=1)
    source: str = Field(description="where the two come from")


class GPUProfile(ProfileSettings):
    """A kind of GPU: what it can do, and how each recipe of ds_configs/ uses it."""

    name: str = Field(pattern="^[a-z0-9-]+$")
    cards: dict[str, CardSettings]
    default_card: str | None = Field(None, description="the card that `plan --profile` takes")
    peak_tflops: dict[str, float] = Field(
        description="the maker's dense figures; a precision that is missing is not offered"
    )
    driver_name: str | None = Field(None, description="regular expression of the driver's name")
    slower_boards: dict[str, dict[str, float]] = Field(
        {}, description="peaks of boards with lower clocks, by regular expression of their name"
    )
    flash_attention: bool = Field(
        description="fused attention for any size of head, not only for multiples of 8"
    )
    mfu: MFUSettings | None = None
    node: NodeSettings
    environment: dict[str, str] = Field(description="exported by slurm/cluster.sh")
    precision: Precision = Field(description="that training computes in")
    mixed_precision: Literal["weights", "autocast"] | None = Field(
        None, description="how a short precision is reached, where it is not the recipe's way"
    )
    sampling_precision: Precision
    uses_preset_ds_config: bool = Field(
        False, description="slurm/cluster.sh leaves the preset's own ds_config"
    )
    recipes: dict[str, dict[str, Any]] = Field(
        description="for each recipe of ds_configs/ the top-level keys that differ; null removes one"
    )
    _path: Path | None = PrivateAttr(None)  # of a profile that was named by its path

    @model_validator(mode="after")
    def _is_consistent(self) -> "GPUProfile":
        for peaks in (self.peak_tflops, *self.slower_boards.values()):
            for precision in peaks:
                if precision not in get_args(Precision):
                    known = ", ".join(get_args(Precision))
                    raise ValueError(f"peaks of {precision!r} are unknown; it is one of {known}")
        if self.cards and self.default_card not in self.cards:
            raise ValueError(f"default_card is none of the cards {', '.join(self.cards)}")
        if self.cards and self.precision not in self.peak_tflops:
            raise ValueError(f"peak_tflops has no {self.precision}, the precision of the profile")
        if self.cards and self.mfu is None:
            raise ValueError("mfu is missing: the share of the peak that `plan` assumes")
        return self

    def ds_config_name(self, recipe: str) -> str:
        """What names `recipe` with this profile wherever a ds_config is asked for."""
        return f"{recipe}@{self._path}" if self._path else f"{recipe}_{self.name}.json"


def profile_names() -> list[str]:
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def load_profile(name: str) -> GPUProfile:
    """The profile called `name`, or in the YAML file at that path.

    Raises:
        UserError: there is none, or it is not valid; names the field.
    """
    is_path = name.endswith((".yaml", ".yml"))
    path = Path(name) if is_path else PROFILES / f"{name}.yaml"
    if not os.path.isfile(path):  # which says no to a name that is too long
        known = ", ".join(profile_names())
        raise UserError(f"profile {name!r} is neither a YAML file nor one of {known}")
    try:
        profile = GPUProfile.model_validate(parse_yaml(read_given(path), allow_aliases=True))
    except ValidationError as error:  # which is a ValueError too
        lines = "".join(f"\n  {mistake}" for mistake in mistakes(error, GPUProfile))
        raise UserError(f"{path} is not a valid profile:{lines}") from None
    except ValueError as error:
        raise UserError(f"{path} is not YAML that reads in one way: {error}") from None
    if is_path:
        profile._path = path
    return profile


@lru_cache(1)
def shipped_profiles() -> tuple[GPUProfile, ...]:
    """Every profile in megajukebox/profiles."""
    return tuple(load_profile(name) for name in profile_names())


def peak_of_device(driver_name: str) -> dict[str, float]:
    """TFLOP/s by precision of the card that its driver calls `driver_name`; {} for an unknown one."""
    for profile in shipped_profiles():
        for pattern, peaks in profile.slower_boards.items():
            if re.search(pattern, driver_name):
                return peaks
        if profile.driver_name and re.search(profile.driver_name, driver_name):
            return profile.peak_tflops
    return {}


def profile_of_device(driver_name: str) -> str:
    """The name of the profile of the card that its driver calls `driver_name`.

    Raises:
        UserError: no profile is of that card.
    """
    for profile in shipped_profiles():
        if profile.driver_name and re.search(profile.driver_name, driver_name):
            return profile.name
    known = ", ".join(profile_names())
    raise UserError(
        f"GPU {driver_name!r} is of no profile ({known}); choose one: --ds-config RECIPE@PROFILE"
    )


def shell_assignments(profile: GPUProfile) -> str:
    """What slurm/cluster.sh evaluates: the environment, and the facts that its functions use."""
    exports = [f"export {key}={shlex.quote(value)}" for key, value in profile.environment.items()]
    if profile.cards:  # every verb then refuses to run on a CPU, unless that is asked for
        exports.append("export DS_ACCELERATOR=${DS_ACCELERATOR:-cuda}")
    ds_config = "" if profile.uses_preset_ds_config else str(profile._path or profile.name)
    facts = [
        f"PROFILE_DS_CONFIG={shlex.quote(ds_config)}",
        f"PROFILE_SAMPLING_PRECISION={profile.sampling_precision}",
        f"PROFILE_GPUS_PER_NODE={profile.node.gpus}",
    ]
    return "\n".join(exports + facts)


if __name__ == "__main__":
    try:
        print(shell_assignments(load_profile(sys.argv[1])))
    except UserError as error:
        print(f"PROFILE: {error}", file=sys.stderr)
        sys.exit(EXIT_FATAL)
