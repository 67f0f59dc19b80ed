"""A dry run prints each rank's place and what it would train, at the scripts' own full size; what would fail is refused.

The scripts run under bash with a `megajukebox` that only writes down how it was called; that call is then made here.
"""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fixtures.paths import FILES, ROOT
from typer.testing import CliRunner

from megajukebox.commands.supervise import main
from megajukebox.common.command_line import command_app
from megajukebox.common.errors import EXIT_FATAL, UserError
from megajukebox.resilience.launch_layout import launch_layout, parse_training
from megajukebox.resilience.sbatch_header import array_tasks, job_variables, sbatch_words
from megajukebox.training.batching import share_batch
from megajukebox.training.engines.ds_config import read_ds_config

# Of each script: nodes that compute, spare ones, ranks of a node, and the recipe it trains with.
FULL_SIZE = {
    "songs": (1, 0, 1, None),
    "vqvae": (32, 0, 8, "vqvae"),
    "codes": (1, 0, 1, None),
    "top_prior": (64, 2, 8, "prior_zero3"),
    "middle_upsampler": (16, 0, 8, "upsampler"),
    "bottom_upsampler": (16, 0, 8, "upsampler"),
    "composer": (1, 0, 8, "upsampler"),
    "distill": (16, 0, 8, "student"),
    "sample": (1, 0, 8, None),
    "score": (1, 0, 1, None),
}
MADE_BEFORE = (  # what the scripts want to be there
    "shards/songs/index.json",
    "shards/codes/index.json",
    "shards/notes/index.json",
    "runs/vqvae/DONE",
    "runs/vqvae/model.json",
    "runs/top_prior/model.json",
    "runs/bottom_upsampler/model.json",
)
STUB = """#!/bin/sh
exec {python} -c 'import json, os, sys; json.dump([sys.argv[1:], dict(os.environ)], open("{calls}", "a"));
print(file=open("{calls}", "a"))' "$@"
"""


class Printed(NamedTuple):
    status: int
    out: str
    refusal: str

    @property
    def places(self) -> list[tuple[int, str, int, str]]:
        """(rank, node, local rank, device) of every line of a rank."""
        line = r"^rank (\d+) on (\S+): local rank (\d+), (CPU|GPU \d+)"
        found = re.findall(line, self.out, re.MULTILINE)
        return [(int(rank), node, int(local), device) for rank, node, local, device in found]

    @property
    def ds_config(self) -> dict[str, Any]:
        start = self.out.index("\n{\n") + 1
        return json.loads(self.out[start : self.out.index("\n}\n", start) + 2])


class Site(NamedTuple):
    """A machine without SLURM on which scripts of slurm/ are started."""

    folder: Path

    def script(self, name: str, *options: str, **variables: str) -> tuple[int, str, list[Any]]:
        """Status and stderr of the script, and the calls of megajukebox that it made: their words and environment."""
        calls = self.folder / "calls"
        calls.write_text("")
        environment = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("SLURM_", "OMP_", "DS_"))
        }
        environment |= {
            "VENV": str(self.folder / "venv"),
            "PYTHONPATH": str(ROOT),
            "PRESET": str(FILES / "nano.yaml"),
            "RUNS": str(self.folder / "runs"),
            "SHARDS": str(self.folder / "shards"),
        }
        done = subprocess.run(
            ["bash", f"slurm/{name}.sh", "--dry-run", *options],
            env=environment | variables,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
        )
        made = [json.loads(line) for line in calls.read_text().splitlines()]
        return done.returncode, done.stderr, made

    def dry_run(self, name: str, *options: str, **variables: str) -> Printed:
        status, stderr, calls = self.script(name, *options, **variables)
        if status:
            return Printed(status, "", stderr)
        ((words, environment),) = calls
        assert words[:2] == ["supervise", "--dry-run"]
        return printed(words[1:], environment)


def printed(words: list[str], environment: dict[str, str]) -> Printed:
    """What `megajukebox supervise` prints, called here."""
    outside = dict.fromkeys([key for key in os.environ if key.startswith("SLURM_")])
    result = CliRunner().invoke(
        command_app(main, "supervise"), words, env=outside | environment, catch_exceptions=False
    )
    return Printed(result.exit_code, result.stdout, result.stderr)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    programs = tmp_path / "venv/bin"
    programs.mkdir(parents=True)
    (programs / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    stub = STUB.format(python=sys.executable, calls=tmp_path / "calls")
    (programs / "megajukebox").write_text(stub)
    for program in programs.iterdir():
        program.chmod(0o755)
    (tmp_path / "calls").touch()
    return Site(tmp_path)


@pytest.fixture
def filled(site: Site) -> Site:
    """The same, and all earlier stages have finished."""
    for name in MADE_BEFORE:
        path = site.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return site


# ---- At the scripts' own full size ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FULL_SIZE)
def test_every_rank_of_every_script_has_its_place(filled: Site, name: str) -> None:
    nodes, spare, per_node, recipe = FULL_SIZE[name]
    ready = {"distill": {"LEVEL": "middle"}}.get(name, {})
    if name == "distill":
        (filled.folder / "runs/middle_upsampler").mkdir()
        (filled.folder / "runs/middle_upsampler/DONE").touch()
    if name == "vqvae":
        (filled.folder / "runs/vqvae/DONE").unlink()
    before = sorted(filled.folder.rglob("*"))
    shown = filled.dry_run(name, **ready)
    assert shown.status == 0, shown.refusal
    assert f"nodes          {nodes}, spare: {spare}" in shown.out
    places = shown.places
    assert [rank for rank, *_ in places] == list(range(nodes * per_node))
    for rank, node, local, device in places:
        number = int(node.removeprefix("node"))
        assert (number, local) == (1 + rank // per_node, rank % per_node)
        assert device == ("CPU" if name == "songs" else f"GPU {local}")
    assert "NCCL_IB_TIMEOUT=22" in shown.out and "OMP_NUM_THREADS=4" in shown.out
    if recipe:
        ranks = nodes * per_node
        assert shown.ds_config == share_batch(read_ds_config(f"{recipe}_v100.json"), ranks)
        assert f"x {ranks} data-parallel ranks = {ranks} samples" in shown.out
        assert "with CUDA, NCCL and gaps" in shown.out and "of 31.7" in shown.out
        assert "a random port of 10000 to 32767" in shown.out
    assert sorted(filled.folder.rglob("*")) == before, "nothing was started or written"


def test_the_command_is_the_one_that_supervise_would_start(filled: Site) -> None:
    shown = filled.dry_run("top_prior", SETTINGS="training.top_prior.steps=7")
    last = ",".join(f"node{number:02d}" for number in range(1, 65))
    assert f"srun --nodes=64 --ntasks=512 --nodelist={last} --kill-on-bad-exit=1" in shown.out
    assert "training.top_prior.steps=7" in shown.out and "7 steps" in shown.out
    assert "preflight      srun --label --unbuffered python" in shown.out
    assert "jobs           60" in shown.out


def test_options_of_sbatch_and_another_recipe_count(filled: Site) -> None:
    options = ("--nodes=3", "--gres=gpu:8")
    shown = filled.dry_run("top_prior", *options, DS_CONFIG="prior_pipeline_v100.json")
    assert shown.status == 0, shown.refusal
    assert "x accumulation 16 x 6 data-parallel ranks (4 pipeline stages) = 96" in shown.out
    stages = re.findall(r"^rank \d+ .* pipeline stage (\d)$", shown.out, re.MULTILINE)
    assert stages == [str(stage) for stage in range(4) for _ in range(6)]


def test_the_pipeline_shows_all_scripts_though_none_has_finished(site: Site) -> None:
    status, stderr, calls = site.script("pipeline", DISTILL="1", DRY_RUN="1")
    assert status == 0, stderr
    runs = [words[words.index("--") - 1] for words, _ in calls]
    folders = ["shards/songs", "runs/vqvae", "shards/codes", "shards/codes", "runs/top_prior"]
    folders += ["runs/middle_upsampler", "runs/bottom_upsampler"]
    folders += ["runs/top_student", "runs/middle_student", "runs/bottom_student"]
    assert runs == [*(str(site.folder / folder) for folder in folders), "samples"]
    assert all(words[:2] == ["supervise", "--dry-run"] for words, _ in calls)
    assert stderr.count("sbatch --parsable") == len(calls)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [name for name, facts in FULL_SIZE.items() if facts[3]])
def test_the_jukebox_fits_the_cards_that_the_scripts_ask_for(filled: Site, name: str) -> None:
    (filled.folder / "runs/top_prior/DONE").touch()
    away = {"RUNS": str(filled.folder / "not/mounted/here")} if name != "distill" else {}
    preset = "composer_large" if name == "composer" else "jukebox_5b_lyrics"
    shown = filled.dry_run(name, PRESET=preset, **away)
    if name == "distill" and shown.status:
        assert "GB free" in shown.refusal, "only the disk of this machine may be too small"
        return
    assert shown.status == 0, shown.refusal
    needed = re.search(r"with CUDA, NCCL and gaps\W+([\d.]+)\W+of 31\.7", shown.out)
    assert needed and 2 < float(needed[1]) < 31.7


# ---- Refusals ------------------------------------------------------------------------------------------------------


def one_line(shown: Printed) -> str:
    assert shown.status == EXIT_FATAL
    first, *mistakes = shown.refusal.strip().splitlines()
    assert all(mistake.startswith("  ") for mistake in mistakes), "a line for each wrong setting"
    return " ".join([first, *mistakes])


def test_what_is_missing_is_refused_behind_the_plan(site: Site) -> None:
    status, stderr, calls = site.script("top_prior")
    assert status == EXIT_FATAL and len(calls) == 1
    assert stderr.strip() == (
        f"megajukebox-top_prior: {site.folder}/shards/codes/index.json is missing:"
        " slurm/codes.sh has not finished"
    )


@pytest.mark.parametrize(
    ("options", "variables", "reason"),
    [
        (["--gres=gpu:4"], {}, "8 tasks of a node share 4 GPUs; sbatch --gres=gpu:8"),
        (["--ntasks-per-node=16"], {}, "PROFILE v100 has 8 GPUs a node and the job 16 tasks"),
        (["--nodes=many"], {}, "--nodes=many is no number"),
        (["--nodes=1", "--ntasks-per-node=6"], {"RECIPE": "prior_pipeline"}, "6 GPUs are not a"),
        ([], {"SETTINGS": "training.top_prior.nonsense=1"}, "nonsense"),
        ([], {"SETTINGS": "training.top_prior.batch=100"}, "cannot share the 100 clips"),
        ([], {"DS_CONFIG": "prior_zero4_v100.json"}, "'prior_zero4_v100.json' is neither a file"),
        ([], {"PROFILE": "v101"}, "profile 'v101' is neither"),
        ([], {"PRESET": "tinny"}, "preset 'tinny' is neither"),
    ],
)
def test_what_would_fail_is_refused_with_one_line(
    filled: Site, options: list[str], variables: dict[str, str], reason: str
) -> None:
    assert reason in one_line(filled.dry_run("top_prior", *options, **variables))


def test_a_model_that_does_not_fit_is_refused_with_what_does(filled: Site) -> None:
    ds_config = read_ds_config("prior_zero3_v100.json") | {"train_micro_batch_size_per_gpu": 8192}
    del ds_config["activation_checkpointing"]
    (filled.folder / "large.json").write_text(json.dumps(ds_config))
    given = {"DS_CONFIG": str(filled.folder / "large.json"), "PRESET": "tiny"}
    shown = filled.dry_run("top_prior", **given)
    line = one_line(shown)
    assert "GiB a GPU are needed and v100-32gb has 31.7; the nearest that fits:" in line
    assert "micro-batch 8192" in shown.out, "the arithmetic is printed all the same"


def test_a_run_folder_that_is_done_or_of_another_stage_is_refused(filled: Site) -> None:
    run = filled.folder / "runs/top_prior"
    (run / "run.yaml").write_text("{stage: vqvae}")
    assert "is of stage vqvae, not top_prior" in one_line(filled.dry_run("top_prior"))
    (run / "run.yaml").unlink()
    (run / "DONE").touch()
    shown = filled.dry_run("top_prior")
    assert "has the file DONE" in one_line(shown) and len(shown.places) == 512


def test_a_run_that_has_begun_keeps_its_batch(filled: Site) -> None:
    record = {"stage": "top_prior", "global_batch": 2048}
    record["ds_config"] = read_ds_config("prior_zero3_v100.json")
    (filled.folder / "runs/top_prior/run.yaml").write_text(json.dumps(record))
    shown = filled.dry_run("top_prior")
    assert "micro-batch 1 x accumulation 4 x 512 data-parallel ranks = 2048 samples" in shown.out


def test_a_disk_that_is_too_small_is_refused(filled: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("usage", (), {"free": 1e6})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    assert "0.001 GB free" in one_line(filled.dry_run("top_prior", PRESET="tiny"))


# ---- Other launchers -----------------------------------------------------------------------------------------------


def training(*launcher: str) -> list[str]:
    entry = str(ROOT / "megajukebox/train.py")
    return [*launcher, entry, "top_prior", "--preset", "tiny", "--data", "x", "--out", "y"]


def test_without_slurm_a_launcher_says_how_many_ranks(tmp_path: Path) -> None:
    words = ["--dry-run", str(tmp_path / "a/run"), "--", *training("deepspeed", "--num_gpus", "2")]
    shown = printed(words, {"DS_ACCELERATOR": "cpu"})
    assert shown.status == 0, shown.refusal
    assert [place[0] for place in shown.places] == [0, 1]
    assert {place[3] for place in shown.places} == {"CPU"}
    assert "GiB a process on CPUs" in shown.out
    assert "x 2 data-parallel ranks" in shown.out and "a random port of 10000 to 32767" in shown.out


def test_a_port_that_is_taken_is_refused(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        launcher = ("deepspeed", "--num_gpus", "2", "--master_port", str(port))
        words = ["--dry-run", str(tmp_path / "run"), "--", *training(*launcher)]
        assert f"port {port} is taken" in one_line(printed(words, {}))


@pytest.mark.parametrize(
    ("command", "nodes", "ranks"),
    [
        (["srun", "x"], 4, 32),
        (["srun", "--ntasks=1", "--nodes=1", "x"], 4, 1),
        (["srun", "-n", "6", "x"], 3, 6),
        (["torchrun", "--nnodes=2", "--nproc_per_node", "4", "x"], 0, 8),
        (["mpirun", "-n", "3", "x"], 0, 3),
        (["deepspeed", "--num_nodes=2", "--num_gpus=8", "x"], 0, 16),
        (["python", "x"], 0, 1),
    ],
)
def test_the_number_of_ranks_is_what_the_launcher_would_start(
    monkeypatch: pytest.MonkeyPatch, command: list[str], nodes: int, ranks: int
) -> None:
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "8")
    names = [f"n{number}" for number in range(nodes)]
    layout = launch_layout(command, names)
    assert layout.ranks == len(list(layout.placements(8))) == ranks


def test_tasks_that_nodes_cannot_share_evenly_are_refused() -> None:
    with pytest.raises(UserError, match="7 tasks are not as many on each of 2 nodes"):
        launch_layout(["srun", "--ntasks=7", "x"], ["n1", "n2"])


def test_what_a_command_trains_is_read_from_its_words() -> None:
    words = ["srun", "-K1", "megajukebox", "train", "vqvae", "--preset=small", "--allow-pipe"]
    words += ["--data", "s3://x", "training.vqvae.steps=5"]
    found = parse_training(words)
    assert found and (found.verb, found.subject) == ("train", "vqvae")
    assert found.options == {"--preset": "small", "--data": "s3://x"}
    assert found.settings == ["training.vqvae.steps=5"]
    assert parse_training(["srun", "megajukebox", "encode", "songs"]) is None
    with pytest.raises(UserError, match="one stage"):
        parse_training(["python", "train.py", "--preset", "tiny"])


# ---- The head of a script ------------------------------------------------------------------------------------------


def test_the_options_of_a_script_are_those_before_its_first_command(tmp_path: Path) -> None:
    script = tmp_path / "own.sh"
    script.write_text(
        "#!/bin/bash\n# about it\n#SBATCH -N 4 --gres=gpu:v100:2 # a comment\n"
        "#SBATCH --array=1-9:2%1\n\n#SBATCH -c7\necho\n#SBATCH --nodes=99\n"
    )
    assert sbatch_words(script) == ["-N", "4", "--gres=gpu:v100:2", "--array=1-9:2%1", "-c7"]
    job = job_variables(script, ["--ntasks-per-node", "2", "--nodes=2-3"])
    assert {name: value for name, value in job.items() if name.startswith("SLURM_")} == {
        "SLURM_JOB_NAME": "own",
        "SLURM_JOB_NUM_NODES": "3",
        "SLURM_NTASKS": "6",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_CPUS_PER_TASK": "7",
        "SLURM_GPUS_ON_NODE": "2",
        "SLURM_ARRAY_TASK_ID": "1",
        "SLURM_ARRAY_TASK_COUNT": "5",
    }


@pytest.mark.parametrize(
    ("text", "tasks"), [("0", (0, 1)), ("0-63", (0, 64)), ("1-60%1", (1, 60)), ("3,7-9", (3, 4))]
)
def test_the_tasks_of_an_array(text: str, tasks: tuple[int, int]) -> None:
    assert array_tasks(text) == tasks


def test_an_array_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match="--array=all"):
        array_tasks("all")
