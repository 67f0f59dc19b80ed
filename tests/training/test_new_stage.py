"""A stage is a row of a table and a task: train, plan, demo and presets know it without being told.

tests/fixtures/decoder_stage.py is what a newcomer writes: a module with the task, a row in training/stages.py and a
name in training/config.py, besides settings in a preset.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import environment
from fixtures.paths import FILES, ROOT, TESTS
from fixtures.tiny_shards import write_songs

from megajukebox.common.errors import UserError
from megajukebox.common.model_files import load_weights
from megajukebox.records.jsonl_tail import read_lines
from megajukebox.training.config import STAGE_NAMES, load_preset
from megajukebox.training.stages import STAGES, stage_named, stages_of

WITH_DECODER = str(TESTS / "fixtures" / "decoder_stage.py")
SCRIPT = """
import sys
from pathlib import Path
import fixtures.decoder_stage
from megajukebox.commands.demo import stages
print(*(stage.name for stage in stages(Path("demo"), "demo:1", sys.argv[1], 1, [])), sep=",")
"""

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def preset(tmp_path: Path) -> Path:
    """The nano preset with settings of a stage `decoder`."""
    settings = yaml.safe_load((FILES / "nano.yaml").read_text())
    vqvae = settings["training"]["vqvae"]
    settings["training"]["decoder"] = {**vqvae, "steps": 2, "clip": 4096}
    path = tmp_path / "with_decoder.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def run(*words: str) -> str:
    paths = [str(ROOT), str(TESTS)]
    done = subprocess.run(
        [sys.executable, *words],
        env=environment() | {"PYTHONPATH": ":".join(paths)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, (done.stdout[-2000:], done.stderr[-4000:])
    return done.stdout


def test_the_rows_are_those_that_presets_may_train() -> None:
    assert tuple(stage.name for stage in STAGES) == STAGE_NAMES
    assert [stage.level for stage in STAGES] == [None, None, "top", "middle", "bottom", None]
    assert [stage.name for stage in stages_of(load_preset("tiny"))] == list(STAGE_NAMES)
    with pytest.raises(
        UserError, match="stage 'drummer' is unknown; choose one of vqvae, refiner, top_"
    ):
        stage_named("drummer")


def test_a_preset_with_a_stage_that_has_no_row_is_refused(preset: Path) -> None:
    with pytest.raises(UserError, match=r"unknown stages \['decoder'\]"):
        load_preset(str(preset))


def test_a_new_stage_is_trained(preset: Path, tmp_path: Path) -> None:
    songs, out = write_songs(tmp_path / "songs"), tmp_path / "decoder"
    words = ["train", "decoder", "--preset", str(preset), "--data", str(songs), "--out", str(out)]
    run(WITH_DECODER, *words)
    assert yaml.safe_load((out / "run.yaml").read_text())["stage"] == "decoder"
    steps = [line["step"] for line in read_lines(out / "metrics.jsonl") if line["split"] == "train"]
    assert steps == [1, 2]
    facts, weights = load_weights(out)
    assert facts["step"] == 2 and any("decoder" in name for name in weights)


def test_a_new_stage_is_planned_and_part_of_the_demo(preset: Path) -> None:
    asked = ["--stage", "decoder", "--gpus", "8", "--json"]
    plan = json.loads(run(WITH_DECODER, "plan", str(preset), *asked))
    assert plan["stage"] == "decoder" and plan["steps"] == 2
    names = run("-c", SCRIPT, str(preset)).strip().split(",")
    assert names[:4] == ["prepare", "train vqvae", "train decoder", "encode"]
