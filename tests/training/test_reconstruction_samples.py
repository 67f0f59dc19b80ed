"""Recordings along training: which steps leave them, and what they hold."""

from pathlib import Path
from types import SimpleNamespace

import soundfile
import torch
from fixtures.tiny_models import little_vqvae

from megajukebox.training.reconstruction_samples import (
    is_due,
    reconstructions,
    write_reconstructions,
)


def test_they_come_ever_more_rarely(tmp_path: Path) -> None:
    made = []
    for step in range(100, 400_001, 100):
        if is_due(tmp_path, step):
            (tmp_path / "samples" / f"step-{step:08d}").mkdir(parents=True)
            made.append(step)
    assert made[:5] == [100, 200, 300, 400, 500] and 30 < len(made) < 45


def test_every_level_is_heard_beside_the_original(tmp_path: Path) -> None:
    model = little_vqvae().train()
    task = SimpleNamespace(held_out=lambda: [{"audio": torch.rand(2, 256, 1) * 3 - 1.5}])
    engine = SimpleNamespace(module=model, stage=0)
    for rank in (1, 0):
        write_reconstructions(
            SimpleNamespace(rank=rank, folder=tmp_path / str(rank)), task, engine, 100
        )  # type: ignore[arg-type]
    files = sorted((tmp_path / "0" / "samples" / "step-00000100").iterdir())
    assert [path.stem for path in files] == ["bottom", "middle", "original", "top"] and not (
        tmp_path / "1"
    ).exists()
    assert {soundfile.info(path).frames for path in files} == {512} and model.training


def test_reconstructions_leave_the_model_as_it_was() -> None:
    model = little_vqvae().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    reconstructions(model, torch.rand(1, 256, 1))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
