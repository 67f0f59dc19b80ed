"""Real training runs of seconds: `train.py` on made-up codes, on as many processes as asked, without a launcher."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml
from conftest import environment
from little_sets import write_codes

import megajukebox
from megajukebox.monitoring.metrics import read_lines
from megajukebox.training.launch import free_port

TRAIN = Path(megajukebox.__file__).parent / "train.py"
DS_CONFIGS = TRAIN.parent.parent / "ds_configs"


def start_ranks(
    command: list[str], ranks: int, own: dict[int, list[str]] | None = None, **variables: str
) -> list[subprocess.Popen]:
    """`command` once for each rank, each told its place as a launcher would; `own`: what is told to one alone."""
    place = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    common, own = environment() | place | variables, own or {}
    return [
        subprocess.Popen(
            [sys.executable, *command, *own.get(rank, [])], env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )
        for rank in range(ranks)
    ]  # fmt: skip


def finish(started: list[subprocess.Popen], timeout: float = 300) -> tuple[list[int], str]:
    """Exit status of every rank, and what all of them printed."""
    said = [process.communicate(timeout=timeout)[0] for process in started]
    return [process.returncode for process in started], "\n".join(said)


def write_preset(folder: Path, **training) -> Path:
    """The nano preset, its top prior deep enough for four stages, with these settings of its training."""
    preset = yaml.safe_load((Path(__file__).parent / "data" / "nano.yaml").read_text())
    preset["top"]["transformer"] |= {"depth": 3, "init_scale": 5}
    preset["training"]["top_prior"] |= {"steps": 8, "save_every": 4, "evaluate_every": 8, **training}
    path = folder / "little.yaml"
    path.write_text(yaml.safe_dump(preset))
    return path


def write_ds_config(folder: Path, name: str, **changed) -> Path:
    """A file of ds_configs/ with other entries, such as `zero_optimization={"stage": 1}`. None takes one away."""
    config = json.loads((DS_CONFIGS / name).read_text()) | changed
    path = folder / f"little_{len(list(folder.glob('little_*.json')))}_{name}"
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return path


def codes_and_preset(folder: Path, **training) -> tuple[Path, Path]:
    return write_codes(folder / "codes"), write_preset(folder, **training)


def command(data: Path, preset: Path, out: Path, *more: str, stage: str = "top_prior") -> list[str]:
    return [str(TRAIN), stage, "--preset", str(preset), "--data", str(data), "--out", str(out), *more]


def train(data: Path, preset: Path, out: Path, *more: str, ranks: int = 1, expect: int = 0) -> str:
    """Train to the end and return what was printed; every rank must end with status `expect`."""
    codes, said = finish(start_ranks(command(data, preset, out, *more), ranks))
    assert codes == [expect] * ranks, (codes, said[-4000:])
    return said


def faulty(
    little: tuple[Path, Path], out: Path, fault: str, *more: str, ds_config: Path, expect: int = 0, ranks: int = 2
) -> str:
    """`train` with a fault of bad_step_train.py; all ranks must end with status `expect`."""
    told = command(*little, out, "--ds-config", str(ds_config), *more)
    codes, said = finish(start_ranks([str(Path(__file__).parent / "bad_step_train.py"), *told[1:]], ranks, FAULT=fault))
    assert codes == [expect] * ranks, (codes, said[-4000:])
    return said


def losses(run: Path, first: int = 0) -> list[float]:
    """The loss of every training step after step `first`."""
    return [m["loss"] for m in read_lines(run / "metrics.jsonl") if m["split"] == "train" and m["step"] > first]


def events(run: Path, name: str) -> list[dict]:
    return [event for event in read_lines(run / "events.jsonl") if event["event"] == name]


def as_of(run: Path, step: int, copy: Path) -> Path:
    """A copy of a finished run as it was when it had saved `step`: later checkpoints are gone."""
    shutil.copytree(run, copy)
    (copy / "DONE").unlink(missing_ok=True)
    for folder in (copy / "checkpoints").glob("step-????????"):
        if int(folder.name.split("-")[1]) > step:
            shutil.rmtree(folder)
    assert os.listdir(copy / "checkpoints")
    return copy
