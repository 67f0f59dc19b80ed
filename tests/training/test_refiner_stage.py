"""The stage `refiner`: it leaves the VQ-VAE as it is, resumes bit for bit, and refuses what does not fit."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from fixtures import tiny_runs
from fixtures.paths import FILES
from fixtures.tiny_shards import write_songs

from megajukebox.common.errors import UserError
from megajukebox.common.files import sha256_of
from megajukebox.common.model_files import load_weights, read_facts, save_weights
from megajukebox.models.vqvae import VQVAE
from megajukebox.records.jsonl_tail import read_lines
from megajukebox.training.config import Preset, load_preset
from megajukebox.training.refiner_critics import (
    AdversarialSettings,
    Critics,
    critics_loss,
    fooling_loss,
)
from megajukebox.training.refiner_settings import refiner_config
from megajukebox.training.refiner_task import check_clip
from megajukebox.training.refiner_training import RefinerTraining, with_neighbours

STEPS = 4
pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def preset(tmp_path: Path) -> Path:
    settings = yaml.safe_load((FILES / "nano.yaml").read_text())
    settings["refiner"] = {"level": "middle", "width": 8, "dilations": [1]}
    settings["refiner"]["loss"] = {"window_seconds": [0.046, 0.023]}
    settings["training"]["refiner"] = {
        **settings["training"]["vqvae"],
        "ds_config": "refiner_cpu.json",
        "steps": STEPS,
        "evaluation": {"held_out": 0.3, "batches": 1, "every": STEPS},
    }
    path = tmp_path / "nano.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def new_vqvae(preset: Preset) -> VQVAE:
    torch.manual_seed(0)
    model = VQVAE(preset.vqvae)
    for level in preset.levels:
        model.level(level).codebook.vectors.normal_()
    return model


@pytest.fixture
def vqvae_run(preset: Path, tmp_path: Path) -> Path:
    """A VQ-VAE of random weights, under a licence."""
    loaded = load_preset(str(preset))
    model = new_vqvae(loaded)
    run = tmp_path / "vqvae"
    save_weights(run, "vqvae", loaded.vqvae, model.state_dict(), 1, licence="for listening only")
    return run


def test_the_frozen_vqvae_keeps_every_bit_and_the_refiner_learns(preset: Path) -> None:
    loaded = load_preset(str(preset))
    vqvae = new_vqvae(loaded)
    before = {name: value.clone() for name, value in vqvae.state_dict().items()}
    config = refiner_config(loaded.refiner, vqvae.config)
    model = RefinerTraining(config, loaded.refiner.loss, vqvae)
    assert not any("levels" in name for name in model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    audio = torch.randn(2, 2048, 1, generator=torch.Generator().manual_seed(1)) * 0.1
    model.train()
    losses = []
    for _ in range(5):
        loss, _ = model({"audio": audio})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    for name, value in vqvae.state_dict().items():
        assert torch.equal(value, before[name]), name
    model.eval()
    _, report = model({"audio": audio})
    assert report["middle/log_magnitude_db"] < report["middle_decoder/log_magnitude_db"]


def test_codes_are_replaced_by_near_ones_in_the_share_asked() -> None:
    torch.manual_seed(0)
    vectors = torch.arange(40.0)[:, None]
    codes = torch.randint(40, (50, 100))
    replaced = with_neighbours(codes, vectors, 0.05)
    moved = replaced != codes
    assert 0.03 < moved.float().mean() < 0.07
    assert (replaced - codes).abs().max() <= 8


@pytest.mark.parametrize("adversarial", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_resumes_bit_for_bit_and_says_what_it_refines(
    preset: Path, vqvae_run: Path, tmp_path: Path, adversarial: bool
) -> None:
    songs = write_songs(tmp_path / "songs")
    digest = sha256_of(vqvae_run / "model.safetensors")

    def train(out: Path, *more: str, expect: int = 0) -> str:
        command = tiny_runs.command(
            songs, preset, out, "--vqvae", str(vqvae_run), *second, *more, stage="refiner"
        )
        codes, output = tiny_runs.finish(tiny_runs.start_ranks(command, 1))
        assert codes == [expect], output
        return output

    second: list[str] = []
    if adversarial:  # from a run of the first stage
        train(tmp_path / "first", "--stop-after", "2")
        second = ["--from", str(tmp_path / "first"), "refiner.adversarial.weight=0.1"]
        second += ["refiner.adversarial.channels=2", "refiner.adversarial.periods=[2]"]
        second += ["refiner.adversarial.window_seconds=[0.023]"]
    straight = tmp_path / "straight"
    train(straight)
    stopped = tmp_path / "stopped"
    train(stopped, "--stop-after", "2")
    train(stopped)
    ours, our_weights = load_weights(stopped)
    theirs, their_weights = load_weights(straight)
    assert ours["step"] == theirs["step"] == STEPS
    for name in their_weights:
        assert torch.equal(our_weights[name], their_weights[name]), name
    assert not any(name.startswith("critics") for name in their_weights)
    assert ours["kind"] == "refiner" and ours["level"] == "middle"
    assert ours["vqvae"] == read_facts(vqvae_run)["fingerprint"]
    assert ours["licence"] == "for listening only"
    assert sha256_of(vqvae_run / "model.safetensors") == digest
    held_out = [
        line for line in read_lines(straight / "metrics.jsonl") if line["split"] == "held_out"
    ]
    assert "middle_decoder/log_magnitude_db" in held_out[-1]
    heard = {path.stem for path in straight.glob("samples/step-*/*.wav")}
    assert heard == {"original", "middle", "refined_middle"}
    other = tmp_path / "other"
    facts = json.loads((vqvae_run / "model.json").read_text())
    other.mkdir()
    (other / "model.json").write_text(json.dumps({**facts, "kind": "prior"}))
    command = tiny_runs.command(
        songs, preset, tmp_path / "x", "--vqvae", str(other), stage="refiner"
    )
    codes, output = tiny_runs.finish(tiny_runs.start_ranks(command, 1))
    assert codes == [93] and "holds a prior, not a VQ-VAE" in output


def test_a_clip_shorter_than_a_spectrum_is_refused(preset: Path) -> None:
    loaded = load_preset(str(preset), ["refiner.loss.window_seconds=[0.186]"])
    with pytest.raises(UserError, match=r"clip 1024 is shorter than a spectrum of 0.186 s \(2048"):
        check_clip(1024, loaded)


def test_discriminators_and_refiner_train_in_one_step_and_not_each_other(preset: Path) -> None:
    loaded = load_preset(str(preset))
    vqvae = new_vqvae(loaded)
    config = refiner_config(loaded.refiner, vqvae.config)
    adversarial = AdversarialSettings(
        weight=1.0, channels=2, periods=(2, 3), window_seconds=(0.023,)
    )
    torch.manual_seed(0)
    model = RefinerTraining(config, loaded.refiner.loss, vqvae, adversarial)
    torch.nn.init.normal_(model.output.weight, std=0.01)
    audio = torch.randn(2, 2048, 1, generator=torch.Generator().manual_seed(1)) * 0.1
    model.eval()  # nothing is drawn
    decoded, codes = model.decoded(audio)
    x = audio.squeeze(-1)
    total, _ = model({"audio": audio})
    together = torch.autograd.grad(total, list(model.parameters()))
    names = [name for name, _ in model.named_parameters()]

    refined = model.refine(decoded, codes)
    loss, _ = model._distances(x, refined)
    fooling = fooling_loss(model.critics(x), model.critics(refined), adversarial.feature_matching)
    judging = critics_loss(model.critics(x), model.critics(refined.detach()))
    for number, (name, parameter) in enumerate(model.named_parameters()):
        own = judging if name.startswith("critics.") else loss + fooling
        (apart,) = torch.autograd.grad(own, parameter, retain_graph=True)
        torch.testing.assert_close(together[number], apart, rtol=1e-4, atol=1e-6, msg=name)
    assert any(name.startswith("critics.") for name in names)


def test_discriminators_learn_to_tell_noise_from_tones() -> None:
    torch.manual_seed(0)
    critics = Critics(AdversarialSettings(weight=1.0, channels=4, periods=(2, 3)), 11025)
    time = torch.arange(4096) / 11025
    real = torch.sin(2 * torch.pi * torch.tensor([[220.0], [330.0]]) * time)
    optimizer = torch.optim.AdamW(critics.parameters(), 1e-2)
    losses = []
    for _ in range(15):
        fake = real + 0.1 * torch.randn(2, 4096)
        loss = critics_loss(critics(real), critics(fake))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
