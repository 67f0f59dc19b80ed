"""A refiner of an imported VQ-VAE: codes and decoder stay what they are, its licence comes along, it learns."""

from pathlib import Path

import pytest
import torch
from fixtures.reference_forward import decode, encode
from fixtures.reference_shapes import TINY_VQVAE, checkpoint

from megajukebox.common.errors import UserError
from megajukebox.common.files import sha256_of
from megajukebox.common.model_files import read_facts, save_weights
from megajukebox.interop.jukebox_weights import import_weights
from megajukebox.models.chunked_codec import decode_long, encode_long, refine_long
from megajukebox.models.refiner import load_refiner
from megajukebox.models.vqvae import load_vqvae
from megajukebox.training.refiner_settings import RefinerSettings, refiner_config
from megajukebox.training.refiner_training import RefinerTraining

RATE = 44_100
SETTINGS = RefinerSettings.model_validate(
    {
        "level": "bottom",
        "width": 8,
        "dilations": (1,),
        "loss": {"window_seconds": (0.023,), "gain_db": 0},
    }
)


@pytest.fixture
def imported(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """The run of a checkpoint in OpenAI's layout, and the checkpoint's own tensors."""
    torch.manual_seed(0)
    content = checkpoint(TINY_VQVAE)
    for tensor in content["model"].values():
        tensor.mul_(2)
    torch.save(content, tmp_path / "vqvae.pth.tar")
    runs = import_weights([tmp_path / "vqvae.pth.tar"], tmp_path / "runs", {})
    return next(iter(runs.values())), content["model"]


def test_an_imported_vqvae_is_refined_and_stays_what_it_was(
    imported: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    run, state = imported
    digest = sha256_of(run / "model.safetensors")
    vqvae, facts = load_vqvae(run, RATE)
    config = refiner_config(SETTINGS, vqvae.config)
    model = RefinerTraining(config, SETTINGS.loss, vqvae)
    audio = 0.1 * torch.randn(16_384, generator=torch.Generator().manual_seed(1))
    codes = encode_long(vqvae, audio, "bottom")
    assert torch.equal(codes[None], encode(state, TINY_VQVAE, 0, audio[None]))
    theirs = decode(state, TINY_VQVAE, 0, codes[None])[0]
    fresh = refine_long(vqvae, model.eval(), codes)
    torch.testing.assert_close(fresh, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))
    assert torch.equal(fresh, decode_long(vqvae, codes, "bottom"))  # to the bit

    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    losses = []
    for _ in range(6):
        loss, _ = model.train()({"audio": audio[None, :, None]})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    licence = {"vqvae": facts["fingerprint"], "licence": facts["licence"]}
    save_weights(tmp_path / "refiner", "refiner", config, model.state_dict(), 6, **licence)
    refiner, stored = load_refiner(tmp_path / "refiner", facts)
    assert stored["licence"] == facts["licence"] and "non-commercial" in stored["licence"]
    assert not torch.equal(refine_long(vqvae, refiner, codes), fresh)
    assert torch.equal(encode_long(vqvae, audio, "bottom"), codes)
    assert torch.equal(decode_long(vqvae, codes, "bottom"), fresh)
    assert sha256_of(run / "model.safetensors") == digest
    with pytest.raises(UserError, match="refines another VQ-VAE"):
        load_refiner(tmp_path / "refiner", {**facts, "fingerprint": "0" * 64})


def test_an_import_is_mono_and_wave_whatever_its_preset(
    imported: tuple[Path, dict[str, torch.Tensor]],
) -> None:
    config = read_facts(imported[0])["config"]
    assert config["channels"] == 1 and config["targets"] == {}
