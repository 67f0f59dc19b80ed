"""The VQ-VAE: lengths, levels that share nothing, the straight-through gradient, losses by their formulas."""

import numpy as np
import pytest
import torch
from fixtures.tiny_models import little_vqvae, vqvae_config
from pydantic import ValidationError
from torch import Tensor

from megajukebox.models.convnet import set_channels_last
from megajukebox.models.losses import (
    STFT,
    Bandwidth,
    ReconstructionLoss,
    distance,
    reconstruction,
    spectral_convergence,
)
from megajukebox.models.vqvae import VQVAE, VQVAEConfig

HOPS = {"bottom": 8, "middle": 32, "top": 128}


@pytest.mark.parametrize("codes", [1, 2, 5, 16])
@pytest.mark.parametrize("level", HOPS)
def test_decoding_what_was_encoded_keeps_the_length(level: str, codes: int) -> None:
    model, hop = little_vqvae(), HOPS[level]
    audio = torch.randn(3, codes * hop, 1)
    encoded = model.encode(audio, level)
    assert encoded.shape == (3, codes) and encoded.dtype == torch.int64
    assert model.decode(encoded, level).shape == audio.shape


def test_hops_are_products_of_the_strides() -> None:
    assert VQVAEConfig(sample_rate=44100).hops == HOPS
    assert vqvae_config(down=(2, 1), stride=(2, 4), multipliers=(1, 1)).hops == {
        "bottom": 4,
        "top": 16,
    }
    assert vqvae_config(down=(5,), stride=(2,), multipliers=(1,)).hops == {"top": 32}


@pytest.mark.parametrize("stride", [(2, 2, 4), (4, 2, 2), (6, 2, 2)])
def test_other_even_strides_keep_lengths_too(stride: tuple[int, ...]) -> None:
    model = little_vqvae(down=(1, 1, 2), stride=stride)
    for level, hop in model.config.hops.items():
        audio = torch.randn(1, 3 * hop, 1)
        assert model.decode(model.encode(audio, level), level).shape == audio.shape


def test_audio_that_is_not_a_whole_number_of_codes_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"audio of 130 samples is not a whole number of top codes \(hop 128\)"
    ):
        little_vqvae().encode(torch.zeros(1, 130, 1), "top")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"stride": (2, 3, 2)}, "odd entry"),
        ({"down": (3, 2)}, "one entry a level"),
        ({"down": (1,) * 4, "stride": (2,) * 4, "multipliers": (1,) * 4}, "at most 3"),
        ({"codebook_size": 70000}, "codebook_size"),
        ({"codebook_decay": 1.0}, "codebook_decay"),
        ({"witdh": 3}, "witdh"),
    ],
)
def test_a_vqvae_that_cannot_be_is_refused_with_the_field_named(changed: dict, told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        vqvae_config(**changed)


def test_levels_share_nothing() -> None:
    """Every weight of the middle level changed: the middle changes, the others are the same to the bit."""
    model, audio = little_vqvae(), torch.randn(1, 1024, 1)
    before = {level: model.decode(model.encode(audio, level), level) for level in HOPS}
    with torch.no_grad():
        for weight in [
            *model.levels["middle"].parameters(),
            model.levels["middle"].codebook.vectors,
        ]:
            weight.add_(torch.randn_like(weight))
    after = {level: model.decode(model.encode(audio, level), level) for level in HOPS}
    assert [level for level in HOPS if not torch.equal(before[level], after[level])] == ["middle"]


def test_the_gradient_passes_straight_through_the_codes() -> None:
    """The decoder's gradient arrives at the encoder's output unchanged, and the commitment pulls it to its code."""
    level = little_vqvae().levels["top"]
    audio, seen = torch.randn(2, 512, 1), []
    level.encoder.register_forward_hook(
        lambda module, args, out: (seen.append(out), out.retain_grad())[0]
    )
    made, commit, _ = level(audio)
    x = seen[0]
    codes, _ = level.codebook.nearest(x.detach().transpose(1, 2).flatten(0, 1))
    q = level.codebook.lookup(codes).unflatten(0, (2, -1)).transpose(1, 2).requires_grad_()
    torch.testing.assert_close(made, level.decoder(q).transpose(1, 2), rtol=1e-4, atol=1e-5)
    made.square().sum().backward(retain_graph=True)
    wanted = torch.autograd.grad(level.decoder(q).square().sum(), q)[0]
    torch.testing.assert_close(x.grad, wanted, rtol=1e-4, atol=1e-5)
    x.grad = None
    commit.backward()
    torch.testing.assert_close(x.grad, 2 * (x - q).detach() / x.numel())


def test_training_learns_the_codebook_and_evaluation_does_not() -> None:
    model, batch = little_vqvae(), {"audio": torch.randn(2, 1024, 1)}
    before = {name: x.clone() for name, x in model.named_buffers()}
    model(batch)
    assert all(torch.equal(x, before[name]) for name, x in model.named_buffers())
    model.train()(batch)
    moved = {name for name, x in model.named_buffers() if not torch.equal(x, before[name])}
    assert moved == {
        f"levels.{level}.codebook.{x}" for level in HOPS for x in ("vectors", "sums", "counts")
    }


def test_the_loss_is_the_sum_over_levels_of_reconstruction_and_commitment() -> None:
    model, audio = little_vqvae(commit=0.25), torch.randn(2, 1024, 1)
    loss, metrics = model({"audio": audio})
    expected = 0.0
    for name, level in model.levels.items():
        x = level.encoder(audio.transpose(1, 2))
        codes, _ = level.codebook.nearest(x.transpose(1, 2).flatten(0, 1))
        commit = (level.codebook.lookup(codes) - x.transpose(1, 2).flatten(0, 1)).square().mean()
        made = model.decode(model.encode(audio, name), name)
        recon = reconstruction(
            model.config.loss, audio[..., 0], made[..., 0], model.config.bandwidth
        )
        assert metrics[f"{name}/reconstruction"].item() == pytest.approx(recon.item(), rel=1e-4)
        assert metrics[f"{name}/commit"].item() == pytest.approx(commit.item(), rel=1e-4)
        assert metrics[f"{name}/fit"].item() == pytest.approx(commit.item() * 4, rel=1e-4)
        assert metrics[f"{name}/prenorm"].item() == pytest.approx(
            (x - x.mean()).norm().item() / x.numel() ** 0.5, rel=1e-4
        )
        snr = (
            10
            * torch.log10(audio.square().sum((1, 2)) / (audio - made).square().sum((1, 2))).mean()
        )
        assert metrics[f"{name}/snr_db"].item() == pytest.approx(snr.item(), rel=1e-4)
        expected += recon.item() + 0.25 * commit.item()
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_a_vqvae_that_trains_gets_better() -> None:
    torch.manual_seed(0)
    model = VQVAE(vqvae_config()).train()
    time = torch.arange(1024) / 1000
    batch = {
        "audio": torch.stack([torch.sin(2 * torch.pi * hz * time) for hz in (20, 31, 47, 60)])[
            ..., None
        ]
    }
    adam = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        loss, _ = model(batch)
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


BANDWIDTH = Bandwidth(l2=0.5, l1=0.3, spectral=7.0)
SETTINGS = vqvae_config().loss


def magnitudes(stft: STFT, x: Tensor) -> np.ndarray:
    """|STFT| of x [T] frame by frame, as section 4.3 of the specification says it."""
    padded = np.pad(x.double().numpy(), stft.fft // 2, mode="reflect")
    window = np.zeros(stft.fft)
    left = (stft.fft - stft.window) // 2
    window[left : left + stft.window] = 0.5 - 0.5 * np.cos(
        2 * np.pi * np.arange(stft.window) / stft.window
    )
    starts = range(0, len(padded) - stft.fft + 1, stft.hop)
    return np.abs(np.stack([np.fft.rfft(padded[s : s + stft.fft] * window) for s in starts]))


def test_distances_equal_their_formulas() -> None:
    torch.manual_seed(1)
    x, y = torch.randn(3, 300), torch.randn(3, 300)
    d = (y - x).double()
    norms = {
        s: np.mean([np.linalg.norm(magnitudes(s, a) - magnitudes(s, b)) for a, b in zip(x, y)])
        for s in (SETTINGS.stft, *SETTINGS.stfts)
    }
    expected = {
        "l1": d.abs().mean().item() / 0.3,
        "l2": d.square().mean().item() / 0.5,
        "linf": np.mean([sorted(item)[-64:] for item in d.square().tolist()]) / 0.5,
        "spectral": norms[SETTINGS.stft] / 7.0,
        "multispectral": np.mean([norms[s] for s in SETTINGS.stfts]) / 7.0,
    }
    for term, value in expected.items():
        assert distance(SETTINGS, term, x, y, BANDWIDTH).item() == pytest.approx(value, rel=1e-4), (
            term
        )
    mixed = ReconstructionLoss(
        **SETTINGS.model_dump() | {"l1": 0.5, "l2": 2.0, "linf": 0.25, "spectral": 3.0}
    )
    weights = {"l1": 0.5, "l2": 2.0, "linf": 0.25, "spectral": 3.0, "multispectral": 1.0}
    total = sum(w * expected[term] for term, w in weights.items())
    assert reconstruction(mixed, x, y, BANDWIDTH).item() == pytest.approx(total, rel=1e-4)


def test_spectral_convergence_is_a_share_of_the_truth_and_silence_counts_as_nothing() -> None:
    x, y, stft = torch.randn(2, 300), torch.randn(2, 300), SETTINGS.stft
    pairs = [(magnitudes(stft, a), magnitudes(stft, b)) for a, b in zip(x, y)]
    expected = np.mean([np.linalg.norm(a - b) / np.linalg.norm(a) for a, b in pairs])
    assert spectral_convergence(stft, x, y).item() == pytest.approx(expected, rel=1e-4)
    assert spectral_convergence(stft, torch.zeros(1, 300), y[:1]).item() == 0.0
    assert spectral_convergence(stft, x, x).item() == 0.0


def test_a_spectrum_is_the_same_where_every_operation_must_be_deterministic() -> None:
    """There the wave is mirrored at its ends by us: torch's padding has no deterministic gradient on GPUs."""
    stft = STFT(fft=64, hop=16, window=48)
    wave = torch.randn(2, 300, requires_grad=True)
    seen = []
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic)
        try:
            magnitude = stft.magnitude(wave)
            [gradient] = torch.autograd.grad(magnitude.square().sum(), wave)
        finally:
            torch.use_deterministic_algorithms(False)
        seen.append((magnitude, gradient))
    assert torch.equal(seen[0][0], seen[1][0])
    torch.testing.assert_close(seen[0][1], seen[1][1])


def test_channels_may_lie_together_or_apart() -> None:
    model = little_vqvae()
    audio = torch.randn(2, 256, 1)
    expected = model({"audio": audio})[0]
    strides: list[int] = []  # from channel to channel, at the decoder's first layer
    first = model.level("top").decoder.layers.get_submodule("0")
    first.register_forward_pre_hook(lambda _, given: strides.append(given[0].stride(1)))
    for channels_last in (False, True):
        set_channels_last(model, channels_last)
        torch.testing.assert_close(model({"audio": audio})[0], expected, rtol=1e-5, atol=1e-6)
    assert strides[0] > 1 and strides[1] == 1


def test_silence_has_a_finite_gradient() -> None:
    y = torch.zeros(1, 300, requires_grad=True)
    reconstruction(SETTINGS, torch.zeros(1, 300), y, BANDWIDTH).backward()
    assert y.grad is not None and y.grad.isfinite().all()
