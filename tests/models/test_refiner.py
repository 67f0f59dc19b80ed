"""A refiner: the decoder itself at its start, exact seams, the same at any volume; and it takes noise away."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from megajukebox.common.errors import UserError
from megajukebox.common.model_files import read_facts, save_weights
from megajukebox.models.chunked_codec import decode_long, refine_long
from megajukebox.models.refiner import Refiner, RefinerConfig, load_refiner
from megajukebox.models.vqvae import VQVAE, VQVAEConfig

RATE = 1000


def vqvae() -> VQVAE:
    torch.manual_seed(0)
    shape = {"sample_rate": RATE, "width": 8, "depth": 1, "code_width": 4, "codebook_size": 16}
    config = VQVAEConfig(**shape)
    model = VQVAE(config).eval()
    for level in config.levels:
        model.level(level).codebook.vectors.normal_()
    return model


def config(level: str, hop: int, **changed) -> RefinerConfig:
    shape = {"window": 64, "frame_hop": 16, "width": 8, "dilations": (1, 2), "hidden_ratio": 2}
    codes = {"sample_rate": RATE, "codebook_size": 16, "code_width": 4}
    return RefinerConfig(level=level, hop=hop, **{**shape, **codes, **changed})


def trained(level: str, hop: int, **changed) -> Refiner:
    """A refiner whose last layer is no longer zero."""
    torch.manual_seed(1)
    refiner = Refiner(config(level, hop, **changed)).eval()
    torch.nn.init.normal_(refiner.output.weight, std=0.1)
    return refiner


def codes_of(seconds: float, hop: int) -> Tensor:
    return torch.randint(
        16, (int(seconds * RATE) // hop,), generator=torch.Generator().manual_seed(2)
    )


@pytest.mark.parametrize("level, hop", [("bottom", 8), ("middle", 32), ("top", 128)])
def test_a_new_refiner_is_the_decoder_itself_to_the_last_bit(level: str, hop: int) -> None:
    model = vqvae()
    refiner = Refiner(config(level, hop)).eval()
    codes = codes_of(3, hop)
    decoded = decode_long(model, codes, level)
    assert torch.equal(refiner.refine(decoded[None], codes[None])[0], decoded)
    assert torch.equal(refine_long(model, refiner, codes), decoded)


@pytest.mark.parametrize("level, hop", [("bottom", 8), ("middle", 32), ("top", 128)])
def test_pieces_are_the_whole_up_to_rounding(level: str, hop: int) -> None:
    """Of a length that is no whole number of frames at the bottom."""
    model = vqvae()
    refiner = trained(level, hop)
    codes = codes_of(7.77, hop)
    whole = refine_long(model, refiner, codes, chunk_seconds=100)
    assert len(whole) == len(codes) * hop
    assert not torch.allclose(whole, decode_long(model, codes, level))
    pieces = refine_long(model, refiner, codes, chunk_seconds=0.3)
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-5)


def test_a_sample_depends_on_nothing_beyond_the_reach() -> None:
    refiner = trained("bottom", 8)
    reach = refiner.config.reach
    decoded = torch.randn(1, 4 * reach, generator=torch.Generator().manual_seed(3)) * 0.1
    codes = torch.zeros(1, 4 * reach // 8, dtype=torch.long)
    before = refiner.refine(decoded, codes)
    changed = decoded.clone()
    changed[:, 2 * reach] += 1
    moved = (refiner.refine(changed, codes) - before).abs()[0] > 1e-6
    first, last = moved.nonzero().min(), moved.nonzero().max()
    assert 2 * reach - first <= reach and last - 2 * reach <= reach
    assert last - first > reach  # the bound is no wild guess


def test_a_quiet_song_is_refined_as_a_loud_one() -> None:
    refiner = trained("bottom", 8)
    decoded = torch.randn(1, 4000, generator=torch.Generator().manual_seed(3)) * 0.1
    codes = codes_of(4, 8)[None]
    loud = refiner.refine(decoded, codes) - decoded
    quiet = refiner.refine(decoded / 10, codes) - decoded / 10
    torch.testing.assert_close(10 * quiet, loud, rtol=1e-2, atol=1e-4)


def test_codes_reach_the_refined_audio() -> None:
    refiner = trained("bottom", 8)
    decoded = torch.randn(1, 2000, generator=torch.Generator().manual_seed(3)) * 0.1
    one, other = torch.zeros(1, 250, dtype=torch.long), torch.ones(1, 250, dtype=torch.long)
    assert not torch.allclose(refiner.refine(decoded, one), refiner.refine(decoded, other))


def test_silence_stays_finite() -> None:
    refined = trained("bottom", 8).refine(torch.zeros(1, 800), torch.zeros(1, 100).long())
    assert refined.isfinite().all() and refined.abs().max() < 1e-2


def test_sizes_that_do_not_fit_the_codes_are_refused() -> None:
    with pytest.raises(ValueError, match="frame_hop 24 and the middle hop 32 are no multiples"):
        config("middle", 32, frame_hop=24, window=96)
    with pytest.raises(ValueError, match="window 24 is odd, or less than two frames of 16"):
        config("middle", 32, window=24)


def test_a_refiner_of_another_vqvae_is_refused(tmp_path: Path) -> None:
    model = vqvae()
    save_weights(tmp_path / "vqvae", "vqvae", model.config, model.state_dict(), 1)
    facts = read_facts(tmp_path / "vqvae")
    refiner = trained("bottom", 8)
    run = tmp_path / "refiner_bottom"
    weights = refiner.state_dict()
    save_weights(run, "refiner", refiner.config, weights, 1, vqvae=facts["fingerprint"])
    loaded, _ = load_refiner(run, facts)
    assert loaded.config == refiner.config
    assert torch.equal(loaded.output.weight, refiner.output.weight)
    with pytest.raises(UserError, match="refines another VQ-VAE"):
        load_refiner(run, {**facts, "fingerprint": "0" * 64})
    with pytest.raises(UserError, match="holds a vqvae, not a refiner"):
        load_refiner(tmp_path / "vqvae", facts)
    assert json.loads((run / "model.json").read_text())["vqvae"] == facts["fingerprint"]
