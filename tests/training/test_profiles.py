"""GPU profiles: what is wrong in one is named, and a new one is one file, which plan, ds_config and SLURM take."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml
from conftest import environment
from fixtures.paths import FILES, ROOT
from typer.testing import CliRunner

from megajukebox.commands.plan import main
from megajukebox.common.command_line import command_app
from megajukebox.common.errors import UserError
from megajukebox.training.engines.ds_config import read_ds_config
from megajukebox.training.planner.profiles import load_profile, profile_names

NEW = FILES / "l40s.yaml"  # the file that a newcomer writes

# What slurm/top_prior.sh and sample.sh make of a profile, without SLURM.
SCRIPT = """
source slurm/cluster.sh || exit 93
ds_option prior_zero3
echo "${NCCL_P2P_DISABLE:-} ${NCCL_IB_TIMEOUT:-} ${DS_ACCELERATOR:-} $OMP_NUM_THREADS"
echo "$PROFILE_SAMPLING_PRECISION"
"""


def sourced(profile: str, **variables: str) -> subprocess.CompletedProcess:
    own = environment()
    venv = Path(own["PATH"].split(":")[0]).parent
    own = {name: own[name] for name in own if name not in ("DS_ACCELERATOR", "OMP_NUM_THREADS")}
    own |= {"PROFILE": profile, "VENV": str(venv), **variables}
    return subprocess.run(
        ["bash", "-c", SCRIPT], env=own, cwd=ROOT, capture_output=True, text=True, timeout=120
    )


# ---- A new kind of GPU is one file -----------------------------------------------------------------------------------


def test_plan_takes_a_new_profile():
    options = ["--profile", str(NEW), "--stage", "bottom_upsampler", "--gpus", "4", "--json"]
    done = CliRunner().invoke(command_app(main, "plan"), ["jukebox_5b", *options])
    assert done.exit_code == 0, done.output
    made = json.loads(done.output)
    assert (made["gpu"], made["gpus"], made["nodes"]) == ("l40s-48gb", 4, 1)
    assert made["ds_config"] == f"upsampler@{NEW}" and made["samples_per_step"] == 2 * 4
    assert made["share_from"] == "a guess" and made["memory"]["available"] == 44.5


def test_a_ds_config_is_rendered_for_a_new_profile():
    config = read_ds_config(f"prior_zero3@{NEW}")
    hopper = read_ds_config("prior_zero3_hopper.json")
    assert config["train_micro_batch_size_per_gpu"] == 1 and config["bf16"] == {"enabled": True}
    assert config["gradient_accumulation_steps"] == 2
    assert config["zero_optimization"] == hopper["zero_optimization"]


def test_slurm_takes_a_new_profile():
    done = sourced(str(NEW))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"--ds-config prior_zero3@{NEW}", "1  cuda 4", "bfloat16"]


# ---- SLURM -----------------------------------------------------------------------------------------------------------


def test_slurm_s_environment_follows_from_the_profile():
    on_v100 = sourced("v100").stdout.splitlines()
    assert on_v100 == ["--ds-config prior_zero3@v100", " 22 cuda 4", "float16"]
    assert sourced("cpu").stdout.splitlines() == ["  cpu 1", "float32"], "the preset's ds_config"
    named = sourced("hopper", DS_CONFIG="prior_pipeline_hopper.json").stdout.splitlines()
    assert named[0] == "--ds-config prior_pipeline_hopper.json"


def test_slurm_refuses_an_unknown_profile_and_a_job_with_more_tasks_than_gpus():
    done = sourced("v1000")
    assert done.returncode == 93 and "'v1000' is neither a YAML file nor one of a100" in done.stderr
    done = sourced(str(NEW), SLURM_NTASKS_PER_NODE="8")
    assert done.returncode == 93 and "sbatch --ntasks-per-node=4 --gres=gpu:4" in done.stderr


# ---- What is wrong in one --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", profile_names())
def test_a_profile_that_comes_with_the_package_has_the_name_of_its_file(name):
    assert load_profile(name).name == name


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"presicion": "float16"}, "presicion is no setting; did you mean precision"),
        ({"precision": "float8"}, "precision: "),
        ({"default_card": "l40"}, "default_card is none of the cards l40s-48gb"),
        ({"peak_tflops": {"float32": 91.6}}, "peak_tflops has no bfloat16"),
        ({"mfu": None}, "mfu is missing"),
        ({"node": {"gpus": -1, "network_gb_per_second": 1}}, "node.gpus"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_a_mistake_in_a_profile_is_named(tmp_path, change, complaint):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(NEW.read_text()) | change))
    with pytest.raises(UserError, match=complaint):
        load_profile(str(path))
