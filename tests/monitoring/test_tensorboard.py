"""Runs on TensorBoard: every number, recording and event, once, read back from its own files."""

import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from fixtures.fake_runs import PretendRun
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megajukebox.data.audio import write_wav
from megajukebox.monitoring.exporters import tensorboard
from megajukebox.monitoring.exporters.tensorboard import Copier, TensorBoard, spectrogram_image


def told(folder: Path) -> EventAccumulator:
    read = EventAccumulator(
        str(folder), size_guidance={"scalars": 0, "audio": 0, "images": 0, "tensors": 0}
    )
    read.Reload()
    return read


def record(run: PretendRun, step: int, name: str = "top.wav") -> Path:
    path = run.folder / "samples" / f"step-{step:08d}" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_wav(
        path, np.sin(np.arange(8000) * 2 * np.pi * 1000 / 8000).astype(np.float32) * 0.5, 8000
    )
    return path


def test_scalars_audio_and_spectrograms_are_read_back_as_they_were(tmp_path: Path) -> None:
    run = PretendRun(tmp_path / "runs" / "vqvae").start().train(100)
    run.log.metrics(100, "held_out", {"loss": 7.0})
    record(run, 50)
    command = [
        sys.executable,
        "-m",
        "megajukebox.commands.publish_metrics",
        str(tmp_path / "runs"),
        "--tensorboard",
        str(tmp_path / "boards"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "1 runs copied" in done.stdout, done.stderr
    read = told(tmp_path / "boards" / "vqvae")
    losses = read.Scalars("train/loss")
    assert [s.step for s in losses] == [1, *range(10, 101, 10)] and losses[
        -1
    ].value == pytest.approx(5, abs=0.1)
    assert (
        losses[-1].wall_time == pytest.approx(run.now - 2, abs=5)
        and read.Scalars("held_out/loss")[0].value == 7
    )
    (sound,) = read.Audio("top")
    assert (sound.step, sound.sample_rate) == (50, 8000) and len(sound.encoded_audio_string) > 16000
    (image,) = read.Images("top/spectrogram")
    assert image.height == 256 and image.width > 20


def test_what_is_new_is_copied_once(tmp_path: Path) -> None:
    run = PretendRun(tmp_path / "run").start().train(150)
    copier = Copier(run.folder, TensorBoard(tmp_path / "board"))
    assert copier.copy() > 0 and copier.copy() == 0
    run.die().start().train(20)  # rewrites the metrics
    copier.copy()
    record(run, 120)
    assert copier.copy() == 1
    steps = [s.step for s in told(tmp_path / "board").Scalars("train/loss")]
    assert (
        steps.count(110) == 2 and steps.count(100) == steps.count(90) == 1
    )  # 110 was trained twice


def test_a_recording_outside_the_run_or_broken_is_left_out(tmp_path: Path) -> None:
    run = PretendRun(tmp_path / "run").start().train(10)
    outside = PretendRun(tmp_path / "other")
    link = run.folder / "samples" / "step-00000001" / "x.wav"
    link.parent.mkdir(parents=True)
    link.symlink_to(record(outside, 1))
    (link.parent / "y.wav").write_bytes(b"RIFF no recording")
    Copier(run.folder, TensorBoard(tmp_path / "board")).copy()
    assert told(tmp_path / "board").Tags()["audio"] == []


def test_secrets_of_events_stay_at_home(tmp_path: Path) -> None:
    run = PretendRun(tmp_path / "run").start()
    with (run.folder / "events.jsonl").open(
        "a"
    ) as file:  # as an older version would have written it
        file.write('{"time": 1, "event": "stop", "step": 1, "reason": "https://u:hunter2@host"}\n')
    Copier(run.folder, TensorBoard(tmp_path / "board")).copy()
    assert not [path for path in (tmp_path / "board").iterdir() if b"hunter2" in path.read_bytes()]


def test_a_tone_is_one_bright_line_at_its_frequency() -> None:
    tone = np.sin(np.arange(16000) * 2 * np.pi * 500 / 8000).astype(np.float32)
    brightness = spectrogram_image(tone, 8000).sum(2).mean(1)
    assert abs((255 - brightness.argmax()) * 8000 / 1024 - 500) < 16


def test_weights_and_biases_hears_each_step_once_and_in_order(tmp_path: Path, monkeypatch) -> None:
    logged: list[tuple[int, dict]] = []
    run = types.SimpleNamespace(log=lambda values, step: logged.append((step, dict(values))))
    configs: list[dict] = []
    fake = types.SimpleNamespace(init=lambda **given: configs.append(given) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    pretend = PretendRun(tmp_path / "run").start().train(30)
    Copier(
        pretend.folder, tensorboard.WeightsAndBiases("p", "run", tmp_path, {"api_key": "hunter2"})
    ).copy()
    assert [step for step, _ in logged] == [1, 10, 20, 30] and logged[-1][1][
        "train/learning_rate"
    ] == 1e-3
    assert configs[0]["mode"] == "offline" and configs[0]["config"] == {"api_key": "[hidden]"}
