"""Saving: in the background as at once, never half, and weights exported only when it is their turn."""

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from fixtures.interrupted_runs import (
    alone,
    by_deepspeed,
    environment_of,
    events,
    fingerprint,
    losses,
    run,
    start,
    wait_until,
)
from fixtures.tiny_runs import codes_and_preset, train, write_ds_config
from pydantic import ValidationError

from megajukebox.records.jsonl_tail import read_lines
from megajukebox.resilience.exit_codes import TerminateRun
from megajukebox.resilience.fencing import FencingToken
from megajukebox.training import checkpoint
from megajukebox.training.checkpointing.saver import prepare_folder
from megajukebox.training.engines.checkpoint_engine import CheckpointStorage
from megajukebox.training.previews import PreviewSettings
from megajukebox.training.settings import CheckpointSettings, TrainingSettings

pytestmark = [pytest.mark.timeout(600), pytest.mark.xdist_group("faults")]
WAYS = {
    "zero3": (
        "prior_zero3_cpu.json",
        2,
        {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}},
    ),
    "pipeline": ("prior_pipeline_cpu.json", 2, {}),
    "one process": ("prior_zero3_cpu.json", 1, {"zero_optimization": {"stage": 0}}),
}


@pytest.fixture(scope="module")
def little(tmp_path_factory):
    return codes_and_preset(
        tmp_path_factory.mktemp("little"), log_every=1, steps=6, save_every=2, ema_decay=0.5
    )


def contents(out: Path) -> dict[str, bytes]:
    """Every file of every checkpoint, and the exported weights."""
    found = [*sorted(out.glob("checkpoints/step-*/**/*")), out / "model.safetensors"]
    return {str(path.relative_to(out)): path.read_bytes() for path in found if path.is_file()}


@pytest.mark.parametrize(
    "way", [pytest.param("zero3"), pytest.param("pipeline", marks=pytest.mark.slow), "one process"]
)
def test_what_is_written_while_training_goes_on_is_to_the_byte_what_would_be_written_at_once(
    little, way, tmp_path
):
    """The disk is so slow that weights have long changed when they are written."""
    name, ranks, changed = WAYS[way]
    ds_config = str(write_ds_config(tmp_path, name, **changed))
    at_once, later = tmp_path / "at_once", tmp_path / "later"
    train(
        *little,
        at_once,
        "training.top_prior.save_in_background=false",
        "--ds-config",
        ds_config,
        ranks=ranks,
    )
    with pytest.MonkeyPatch.context() as patched:
        for name, value in environment_of("slow_disk=0.2", tmp_path).items():
            patched.setenv(name, value)
        train(*little, later, "--ds-config", ds_config, ranks=ranks)
    assert (
        [e["step"] for e in events(later, "save")]
        == [e["step"] for e in events(at_once, "save")]
        == [2, 4, 6]
    )
    assert losses(later) == losses(at_once)
    assert contents(later).keys() == contents(at_once).keys() and contents(later) == contents(
        at_once
    )
    moments = {
        m["step"]: m["time"] for m in read_lines(later / "metrics.jsonl") if m["split"] == "train"
    }
    assert events(later, "save")[0]["time"] > moments[3], (
        "a step was trained before the checkpoint was final"
    )


def test_a_run_killed_while_its_checkpoint_is_being_written_has_the_one_before_and_ends_as_it_should(
    data, straight, tmp_path
):
    out = tmp_path / "run"
    process = start(by_deepspeed(data, out), environment_of("slow_disk=0.1 slow=0.2", tmp_path))
    wait_until(lambda: events(out, "save"))
    half = out / "checkpoints" / "step-00000010.g0001.partial/state"
    wait_until(lambda: half.is_dir() and any(file.stat().st_size for file in half.iterdir()))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert half.is_dir() and [folder.name for folder in checkpoint.candidates(out)] == [
        "step-00000005"
    ]
    assert run(by_deepspeed(data, out)) == 0
    assert [e["step"] for e in events(out, "resume")] == [5]
    assert losses(out) == losses(straight) and fingerprint(out) == fingerprint(straight)
    assert not list(out.glob("checkpoints/*.partial"))


def test_a_stop_waits_for_what_is_being_written_and_saves_where_it_stands(data, tmp_path):
    out = tmp_path / "run"
    assert (
        run(alone(data, out, "--stop-after", "6"), environment_of("slow_disk=0.3", tmp_path)) == 0
    )
    assert [(e["event"], e["step"]) for e in events(out, "save", "stop")] == [
        ("save", 5),
        ("save", 6),
        ("stop", 6),
    ]
    assert all(checkpoint.verify(folder) is None for folder in checkpoint.candidates(out))


def test_a_disk_that_refuses_in_the_background_is_noted_when_the_writing_is_over(tmp_path):
    storage = CheckpointStorage([])
    storage.begin(background=True)
    storage.save({"big": b"0" * 100_000}, "/dev/full")
    assert "No space left" in (storage.finish() or "") and not storage.busy and storage.stored == {}


def test_a_start_that_was_thought_dead_does_not_clear_away_what_a_newer_one_is_writing(tmp_path):
    old, new = FencingToken.acquire(tmp_path), FencingToken.acquire(tmp_path)
    theirs = checkpoint.partial(tmp_path, 5, new.number)
    theirs.mkdir(parents=True)
    late = SimpleNamespace(folder=tmp_path, fencing_token=old)
    with pytest.raises(TerminateRun, match="another start"):
        prepare_folder(late, checkpoint.partial(tmp_path, 5, old.number), export=False)
    assert theirs.exists()


# ---- Exported weights -----------------------------------------------------------------------------------------------


def test_weights_are_exported_at_the_first_save_in_their_turn_at_the_end_and_when_asked(
    data, tmp_path
):
    out = tmp_path / "run"
    settings = ["steps=20", "save_every=2", "export_every=9"]
    assert run(alone(data, out, *settings, "--stop-after", "12")) == 0
    assert [(e["step"], e["exported"]) for e in events(out, "save")] == [
        (2, 2),
        *((n, 2) for n in (4, 6, 8)),
        (10, 10),
        (12, 10),
    ]
    (out / "SAVE").touch()
    assert run(alone(data, out, *settings)) == 0
    saves = [(e["step"], e["exported"]) for e in events(out, "save")][6:]
    assert saves == [(12, 12), (14, 12), (16, 12), (18, 18), (20, 20)]
    assert json.loads((out / "model.json").read_text())["step"] == 20


def preview_settings(every: int) -> TrainingSettings:
    """Of a run that exports its weights every 100 steps."""
    return TrainingSettings(
        ds_config="",
        steps=10,
        previews=PreviewSettings(every=every),
        checkpointing=CheckpointSettings(export_every=100),
    )


def test_samples_along_training_are_refused_where_nothing_would_be_exported_for_them():
    with pytest.raises(
        ValidationError,
        match=r"previews.every 50 needs exported weights, but checkpointing.export_every is 100",
    ):
        preview_settings(50)
    assert preview_settings(100)
