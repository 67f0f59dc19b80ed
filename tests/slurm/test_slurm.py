"""slurm/*.sh for real: a cluster of four claimed nodes is started here and the scripts' own #SBATCH lines submitted."""

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from conftest import environment
from fixtures.interrupted_runs import NANO, PATIENCE, ROOT, events, fingerprint, losses, pids, steps
from fixtures.paths import FAULT_SITE
from fixtures.slurm_cluster import Cluster, missing
from fixtures.tiny_teacher import write_teacher

from megajukebox.common.model_files import read_facts

pytestmark = [pytest.mark.timeout(900), pytest.mark.xdist_group("faults")]
SMALL = ("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1")
GPUS = {
    "vqvae": 256,
    "top_prior": 512,
    "middle_upsampler": 128,
    "bottom_upsampler": 128,
    "distill": 128,
    "refiner": 8,
    "sample": 8,
}
SPARE = {"top_prior": 2}  # nodes


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    lacking = missing()
    if lacking:
        assert "CI" not in os.environ, (
            f"continuous integration must have SLURM: {lacking} is missing"
        )
        pytest.skip(
            f"SLURM is not installed here ({', '.join(lacking)}): apt-get install slurm-wlm munge"
        )
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    made.environment |= {k: v for k, v in environment().items() if k != "PATH"}
    made.environment["PATH"] = f"{environment()['PATH']}:/usr/sbin:/sbin"
    try:
        made.start()
        yield made
    finally:
        made.stop()


def variables(data: Path, runs: Path, **more: str) -> dict[str, str]:
    """What slurm/cluster.sh reads, for the smallest prior on CPUs."""
    told = {
        "PROFILE": "cpu",
        "PRESET": str(NANO),
        "SHARDS": str(data.parent),
        "RUNS": str(runs),
        "PREFLIGHT": "",
    }
    return (
        told
        | {"VENV": str(Path(shutil.which("megajukebox", path=environment()["PATH"])).parents[1])}
        | more
    )


def submit(
    cluster: Cluster, data: Path, runs: Path, *options: str, stage: str = "top_prior", **more: str
) -> str:
    runs.mkdir(exist_ok=True)
    told = variables(data, runs, **more) | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(FAULT_SITE)])
    }
    options = (*SMALL, f"--output={runs}/log-%A.txt", *options)
    return cluster.sbatch(f"slurm/{stage}.sh", *options, cwd=ROOT, **told)


def same_as(straight: Path, out: Path) -> bool:
    return losses(out) == losses(straight) and fingerprint(out) == fingerprint(straight)


# ---- At full size, without starting anything -------------------------------------------------------------------------


@pytest.mark.parametrize("stage", GPUS)
def test_at_full_size_every_stage_asks_for_the_gpus_of_jukeboxs_run(cluster, tmp_path, stage):
    options = ("--hold", "--partition=big", f"--output={tmp_path}/log")
    job = cluster.sbatch(f"slurm/{stage}.sh", *options, cwd=ROOT)
    told = cluster.ask("scontrol", "show", "job", job)
    cluster.ask("scancel", job)
    nodes = int(re.search(r"NumNodes=(\d+)", told)[1])
    assert int(re.search(r"NumTasks=(\d+)", told)[1]) == nodes * 8 and "gres:gpu:8" in told
    assert (nodes - SPARE.get(stage, 0)) * 8 == GPUS[stage]
    assert "JobState=PENDING" in told and "Requeue=1" in told


@pytest.mark.parametrize(
    "script", sorted((ROOT / "slurm").glob("*.sh")), ids=lambda path: path.stem
)
def test_every_script_is_sound_and_its_head_says_command_cost_and_what_to_expect(script):
    subprocess.run(["bash", "-n", str(script)], check=True)
    head = "".join(
        line for line in script.read_text().splitlines(keepends=True)[:25] if line.startswith("#")
    )
    if script.stem != "cluster":
        assert (
            re.search(rf"slurm/{script.name}", head) and "# Costs " in head and "# Expect " in head
        )


def words_of(script: str, folder: Path, **variables: str) -> list[str]:
    """What a script of slurm/ gives `megajukebox`, without SLURM."""
    stubs = folder / "venv" / "bin"
    stubs.mkdir(parents=True)
    python = shutil.which("python", path=environment()["PATH"])
    programs = {
        "megajukebox": 'printf "%s\\n" "$@"',
        "srun": 'shift; exec "$@"',
        "python": f'exec {python} "$@"',
    }
    for name, program in programs.items():
        (stubs / name).write_text(f"#!/bin/sh\n{program}\n")
        (stubs / name).chmod(0o755)
    env = environment() | {"PROFILE": "cpu", "VENV": str(stubs.parent), "RUNS": str(folder)}
    done = subprocess.run(
        ["bash", f"slurm/{script}.sh"],
        env=env | variables,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", ["REFERENCE", "AGAINST"])
def test_a_run_is_scored_against_each_reference_also_by_its_name_of_version_0_1(name, tmp_path):
    (tmp_path / "model.json").touch()
    words = words_of("score", tmp_path, RUN=str(tmp_path), EVERY="0", **{name: "a/codes b/songs"})
    start = words.index("--reference")
    assert words[start : start + 4] == ["--reference", "a/codes", "--reference", "b/songs"]


@pytest.mark.parametrize("name", ["DISTILL_OPTIONS", "LESSON"])
def test_distill_takes_further_options_also_by_their_name_of_version_0_1(name, tmp_path):
    (tmp_path / "top_prior").mkdir()
    (tmp_path / "top_prior" / "DONE").touch()
    words = words_of("distill", tmp_path, **{name: "--windows 24 --keep-going"})
    start = words.index("--windows")
    assert words[start : start + 3] == ["--windows", "24", "--keep-going"]


def test_a_refiner_of_its_level_is_trained_on_every_set_behind_its_vqvae(tmp_path):
    (tmp_path / "vqvae").mkdir()
    (tmp_path / "vqvae" / "model.json").touch()
    for name in ("a", "b"):
        (tmp_path / name / "songs").mkdir(parents=True)
        (tmp_path / name / "songs" / "index.json").touch()
    sets = f"{tmp_path}/a:3 {tmp_path}/b"
    words = words_of("refiner", tmp_path, LEVEL="middle", SHARDS=sets, SETTINGS="refiner.width=8")
    out = f"{tmp_path}/refiner_middle"
    assert words[0] == "supervise" and words[words.index("--") - 1] == out
    start = words.index("refiner")
    assert words[start - 1].endswith("megajukebox/train.py")
    given = dict(zip(words[start + 1 :: 2], words[start + 2 :: 2]))
    assert given["--vqvae"] == f"{tmp_path}/vqvae" and given["--out"] == out
    data = [words[n + 1] for n, word in enumerate(words) if word == "--data"]
    assert data == [f"{tmp_path}/a/songs:3", f"{tmp_path}/b/songs"]
    assert words[-2:] == ["refiner.width=8", "refiner.level=middle"]


def test_the_pipeline_is_submitted_as_a_chain_of_dependencies(cluster, tmp_path):
    told = variables(
        tmp_path / "shards/codes",
        tmp_path / "runs",
        SBATCH_ARGS=f"--hold --output={tmp_path}/log -p big",
    )
    command = ["bash", str(ROOT / "slurm/pipeline.sh")]
    env = cluster.environment | told | {"DISTILL": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    listed = cluster.ask("squeue", "-h", "-o", "%A|%j|%E").splitlines()
    jobs = {}
    for number, name, after in (line.split("|") for line in reversed(listed)):
        jobs.setdefault(name.removeprefix("megajukebox-"), []).append(
            (number, set(re.findall(r"\d{1,6}(?=[_(])", after)))
        )
    cluster.ask("scancel", "--me")
    number = {name: [n for n, _ in found] for name, found in jobs.items()}
    after = {name: [a for _, a in found] for name, found in jobs.items()}
    assert set(jobs) == {
        *GPUS,
        "songs",
        "codes",
        "distill_top",
        "distill_middle",
        "distill_bottom",
    } - {"distill", "refiner"}  # scripts of their own, which the chain does not start
    first, index = sorted(number["codes"], key=int)
    assert after["songs"] == [set()] and after["vqvae"] == [{number["songs"][0]}]
    assert sorted(after["codes"], key=sorted) == sorted([{number["vqvae"][0]}, {first}], key=sorted)
    for stage in ("top_prior", "middle_upsampler", "bottom_upsampler"):
        assert after[stage] == [{index}]
    assert after["distill_top"] == [{number["top_prior"][0]}]
    assert after["sample"] == [
        {number[s][0] for s in ("top_prior", "middle_upsampler", "bottom_upsampler")}
    ]


def test_a_dry_run_in_a_job_names_its_nodes_and_starts_nothing(cluster, data, tmp_path):
    runs = tmp_path / "runs"
    cluster.wait_for(lambda: cluster.idle() == 4, 180)
    job = submit(cluster, data, runs, "--nodes=3", "--no-kill", DRY_RUN="1", NODES="2")
    cluster.wait_for(lambda: cluster.ended(job), 2 * PATIENCE)
    log = (runs / f"log-{job}.txt").read_text()
    places = re.findall(r"^rank (\d) on (n\d): local rank 0, CPU", log, re.MULTILINE)
    assert [rank for rank, _ in places] == ["0", "1"] and len({node for _, node in places}) == 2
    assert "nodes          2, spare: 1" in log and "nodelist=" in log
    assert "ranks meet at  127.0.0.1, a random port of" in log
    assert "x 2 data-parallel ranks" in log
    assert log.count("nothing is started") == 1, "the other jobs of the array are cancelled"
    assert not (runs / "top_prior").exists()


def test_the_scripts_show_on_a_login_node_what_they_would_start(cluster, data, tmp_path):
    """At their own full size; SLURM is asked whether it would take the job, which none is."""
    told = variables(data, tmp_path / "runs", PROFILE="v100", PYTHONPATH=str(ROOT))
    command = ["bash", "slurm/top_prior.sh", "--dry-run", "--partition=nowhere"]
    done = subprocess.run(
        command, env=cluster.environment | told, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\nrank ") == 512 and "SLURM says" in done.stdout
    assert "invalid partition specified: nowhere" in done.stdout
    assert not cluster.ask("squeue", "-h", "--me", "--name=megajukebox-top_prior", "-o", "%A %T")


# ---- Runs on two nodes -----------------------------------------------------------------------------------------------


def test_asked_to_stop_before_its_time_is_up_a_run_goes_on_in_the_next_job_to_the_same_end(
    cluster,
    data,
    straight,
    tmp_path,
):
    """The signal is the one that --signal=B:USR1@900 sends, to the batch script alone, as SLURM does at the limit."""
    runs, out = tmp_path / "runs", tmp_path / "runs/top_prior"
    job = submit(cluster, data, runs, FAULT="slow=0.2", FAULT_MARKS=str(tmp_path))
    cluster.wait_for(lambda: steps(out) >= 7, PATIENCE)
    cluster.ask("scancel", "--signal=USR1", "--batch", f"{job}_1")
    cluster.wait_for(lambda: cluster.ended(job), 2 * PATIENCE)
    (stop,) = events(out, "stop")
    assert stop["reason"] == "signal SIGUSR1" and 7 <= stop["step"] < 40
    (first, second) = events(out, "start", "resume")
    assert second["event"] == "resume" and second["step"] == stop["step"], (
        "not a step is trained twice"
    )
    assert first["job"] != second["job"] and first["ranks"] == 2
    assert [event["kind"] for event in events(out, "attempt_end")] == ["stopped", "done"]
    assert (out / "DONE").exists() and same_as(straight, out)
    queue = json.loads((out / "slurm_chain.json").read_text())
    assert (queue["array"], queue["queued"], queue["queued_seconds"]) == (job, 58, 58 * 86400), (
        "of 60, two have run"
    )
    assert 86000 < queue["end_time"] - queue["time"] <= 86400
    print("seconds from the signal to training again:", second["time"] - stop["time"])


def test_settings_that_cannot_be_right_hold_the_chain_for_a_person(cluster, data, tmp_path):
    runs, out = tmp_path / "runs", tmp_path / "runs/top_prior"
    job = submit(cluster, data, runs, "--nodes=1", SETTINGS="training.top_prior.nonsense=1")
    cluster.wait_for(lambda: events(out, "alert"), PATIENCE)
    cluster.wait_for(lambda: "R" not in cluster.ask("squeue", "-h", "-j", job, "-o", "%t"), 60)
    assert cluster.ask("squeue", "-h", "-j", job, "-o", "%t %r") == "PD JobHeldUser"
    assert len(events(out, "attempt_end")) == 1, "starting again would not help"
    assert "nonsense" in (runs / f"log-{job}.txt").read_text()
    cluster.ask("scancel", job)


def test_a_lost_node_is_replaced_and_what_still_runs_on_it_does_no_harm(
    cluster, data, straight, tmp_path
):
    runs, out = tmp_path / "runs", tmp_path / "runs/top_prior"
    cluster.wait_for(lambda: cluster.idle() == 4, 180)
    job = submit(cluster, data, runs, FAULT="slow=2", FAULT_MARKS=str(tmp_path))
    cluster.wait_for(lambda: steps(out) >= 7, PATIENCE)
    before, lost = pids(out), time.time()
    second = cluster.ask("squeue", "-h", "-j", job, "-t", "R", "-o", "%N")
    node = cluster.ask("scontrol", "show", "hostnames", second).split()[1]
    cluster.stop_node(node)
    cluster.wait_for(lambda: events(out, "resume"), 2 * PATIENCE)
    (tmp_path / "hurry").touch()
    resumed = events(out, "resume")[0]
    print("seconds from the loss of a node to training again:", resumed["time"] - lost)
    nodes = cluster.ask("scontrol", "show", "hostnames", resumed["nodes"]).split()
    assert node not in nodes
    cluster.wait_for((out / "DONE").exists, PATIENCE)
    assert same_as(straight, out)
    cluster.wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in before), 180)
    cluster.start_node(node)
    cluster.ask("scancel", job)


def test_a_run_is_scored_beside_its_training_and_the_job_asks_for_the_next_one(
    cluster, data, straight, tmp_path
):
    run = tmp_path / "run"
    run.mkdir()
    for path in straight.iterdir():
        if path.suffix in (".json", ".yaml", ".model", ".safetensors"):
            shutil.copy(path, run)
    told = variables(data, tmp_path, RUN=str(run), REFERENCE=str(data), EVERY="6") | {
        "PYTHONPATH": str(ROOT)
    }
    job = cluster.sbatch(
        "slurm/score.sh", f"--output={tmp_path}/log", "--cpus-per-task=1", cwd=ROOT, **told
    )
    cluster.wait_for(lambda: cluster.ended(job), 2 * PATIENCE)
    assert (run / "scores.jsonl").exists() and (run / "score/index.html").exists(), (
        tmp_path / "log"
    ).read_text()
    waiting = cluster.ask("squeue", "-h", "--me", "--name=megajukebox-score", "-o", "%A").split()
    assert len(waiting) == 1, "the run is not DONE, so a next job waits for its hour"
    cluster.ask("scancel", *waiting)


SICK = """#!/bin/sh
[ "$SLURMD_NODENAME" = {node} ] && errors=3 || errors=0
echo "0, Tesla V100, 0, 10, 32510, 40, 50, 1300, $errors"
"""


@pytest.mark.slow
def test_spare_nodes_take_the_places_of_a_sick_and_of_a_lost_one_within_the_job(
    cluster, data, straight, tmp_path
):
    """Two of four nodes train: the doctor finds memory errors on the second, later the one in its place is lost."""
    runs, out = tmp_path / "runs", tmp_path / "runs/top_prior"
    cluster.wait_for(lambda: cluster.idle() == 4, 180)
    (tmp_path / "nvidia-smi").write_text(SICK.format(node="n2"))
    (tmp_path / "nvidia-smi").chmod(0o755)
    told = {"PATH": f"{cluster.environment['PATH']}:{tmp_path}", "NODES": "2", "PREFLIGHT": "1"}
    told |= {"FAULT": "slow=2", "FAULT_MARKS": str(tmp_path)}
    job = submit(cluster, data, runs, "--nodes=4", "--no-kill", **told)
    cluster.wait_for(lambda: steps(out) >= 7, PATIENCE)
    before = pids(out)
    cluster.stop_node("n3")
    lost = time.time()
    cluster.wait_for(lambda: events(out, "resume"), 2 * PATIENCE)
    resumed = events(out, "resume")[0]
    print("seconds from the loss of a node to training again on a spare:", resumed["time"] - lost)
    (tmp_path / "hurry").touch()
    cluster.wait_for((out / "DONE").exists, PATIENCE)
    assert {event["job"] for event in events(out, "start", "resume")} == {
        events(out, "start")[0]["job"]
    }, "one job"
    assert [(e["nodes"], e["replaced"]) for e in events(out, "spare_swap")] == [
        (["n3"], ["n2"]),
        (["n4"], ["n3"]),
    ]
    first = events(out, "preflight")[0]
    assert first["nodes"] == ["n2"] and "memory errors" in first["reason"]
    assert [event["nodes"] for event in events(out, "node_excluded")] == [["n2"]]
    assert same_as(straight, out)
    cluster.wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in before), 180)
    cluster.start_node("n3")
    cluster.ask("scancel", job)


@pytest.mark.slow
def test_requeued_by_an_operator_a_run_goes_on_in_the_next_job(cluster, data, straight, tmp_path):
    runs, out = tmp_path / "runs", tmp_path / "runs/top_prior"
    job = submit(cluster, data, runs, FAULT="slow=0.2", FAULT_MARKS=str(tmp_path))
    cluster.wait_for(lambda: steps(out) >= 7, PATIENCE)
    cluster.ask("scontrol", "requeue", f"{job}_1")
    cluster.wait_for((out / "DONE").exists, 2 * PATIENCE)
    assert len(events(out, "start", "resume")) == 2 and same_as(straight, out)
    cluster.ask("scancel", job)


@pytest.mark.slow
def test_without_a_chain_a_job_that_runs_out_of_time_requeues_itself(
    cluster, data, straight, tmp_path
):
    """--time and --signal as a site might set them: SLURM itself sends the signal."""
    runs, out = tmp_path / "runs", tmp_path / "runs/top_prior"
    options = ("--array=1", "--time=2", "--signal=B:USR1@60")
    job = submit(cluster, data, runs, *options, FAULT="slow=2", FAULT_MARKS=str(tmp_path))
    cluster.wait_for((out / "DONE").exists, 3 * PATIENCE)
    assert events(out, "requeue") and {e["reason"] for e in events(out, "stop")} == {
        "signal SIGUSR1"
    }
    assert events(out, "resume")[0]["restarts"] == "1" and same_as(straight, out)
    cluster.ask("scancel", job)


@pytest.mark.slow
def test_a_node_on_which_ranks_died_twice_is_left(cluster, data, straight, tmp_path):
    runs, out = tmp_path / "runs", tmp_path / "runs/top_prior"
    cluster.wait_for(lambda: cluster.idle() == 4, 180)
    submit(cluster, data, runs, FAULT="slow=0.1 kill=1@7 kill=1@13", FAULT_MARKS=str(tmp_path))
    cluster.wait_for((out / "DONE").exists, 3 * PATIENCE)
    (left,) = events(out, "node_excluded")
    (bad,) = left["nodes"]
    last = events(out, "resume")[-1]
    assert bad not in cluster.ask("scontrol", "show", "hostnames", last["nodes"]).split()
    assert same_as(straight, out)


@pytest.mark.slow
def test_a_student_is_distilled_through_the_death_of_a_rank(cluster, data, tmp_path):
    """distill.sh with a tiny teacher: several runs in one folder, begun again by the job itself."""
    runs, out = tmp_path / "runs", tmp_path / "runs/middle_student"
    write_teacher(runs / "middle_upsampler")
    (runs / "middle_upsampler/DONE").touch()
    small = [
        f"training.middle_upsampler.{s}"
        for s in ("steps=16", "log_every=1", "evaluate_every=4", "save_every=2")
    ]
    told = {
        "LEVEL": "middle",
        "DISTILL_OPTIONS": "--windows 24 --order 0,1 --keep-going",
        "SETTINGS": " ".join(small),
    }
    submit(
        cluster, data, runs, stage="distill", FAULT="kill=1@5", FAULT_MARKS=str(tmp_path), **told
    )
    cluster.wait_for(lambda: len(events(out, "attempt_end")) == 2, 3 * PATIENCE)
    assert [event["kind"] for event in events(out, "attempt_end")] == ["retry", "done"]
    (order,) = json.loads((out / "student.json").read_text())["orders"]
    student = out / order["folder"]
    assert events(student, "resume")[0]["step"] == 4 and steps(student) == 8, (
        "half of the teacher's steps"
    )
    assert read_facts(student)["teacher"] == read_facts(runs / "middle_upsampler")["fingerprint"]


@pytest.mark.slow
def test_from_songs_to_samples_through_the_whole_chain(cluster, tmp_path):
    """pipeline.sh with the demo's songs: nine songs in, one song out, every stage a job of its own."""
    shards, runs = tmp_path / "shards", tmp_path / "runs"
    (tmp_path / "songs.yaml").write_text("- {id: mine, seconds: 0.5, seed: 1}\n")
    told = variables(
        shards / "codes",
        runs,
        SONGS="demo:9",
        PRESET=str(ROOT / "tests/fixtures/files/mini.yaml"),
        PROCESSES="1",
    )
    told |= {
        "SBATCH_ARGS": f"{' '.join(SMALL)} --output={tmp_path}/%x-%A_%a.log",
        "CODES_ARRAY": "0-1",
    }
    told |= {
        "REQUESTS": str(tmp_path / "songs.yaml"),
        "OUT": str(tmp_path / "samples"),
        "PYTHONPATH": str(ROOT),
    }
    told |= {"SETTINGS": "training.top_prior.steps=4"}
    command = ["bash", str(ROOT / "slurm/pipeline.sh")]
    subprocess.run(command, env=cluster.environment | told, check=True, timeout=120)
    cluster.wait_for(lambda: not cluster.ask("squeue", "-h", "--me"), 4 * PATIENCE)
    assert (tmp_path / "samples/mine.wav").exists(), sorted(tmp_path.glob("*.log"))
    for stage in ("vqvae", "top_prior", "middle_upsampler", "bottom_upsampler"):
        assert (runs / stage / "DONE").exists()
