"""The term of log magnitudes: it hears what norms of linear magnitudes do not, and costs nothing where it is off."""

import numpy as np
import pytest
import torch

from megajukebox.models.losses import (
    STFT,
    Bandwidth,
    ReconstructionLoss,
    distance,
    log_spectral,
    reconstruction,
)

STFT_SMALL = STFT(fft=256, hop=64, window=256)


def white(seed: int, level: float) -> torch.Tensor:
    return level * torch.randn(2, 4000, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("gain", [0.25, 3.0])
def test_volume_is_its_logarithm_whatever_the_loudness(gain: float) -> None:
    for level in (0.3, 0.003):
        x = white(0, level)
        found = float(log_spectral(STFT_SMALL, x, gain * x))
        assert found == pytest.approx(abs(np.log(gain)), rel=0.02)


def test_hiss_under_a_tone_is_heard_by_logarithms_and_hardly_by_norms() -> None:
    time = torch.arange(4000) / 4000
    x = 0.5 * torch.sin(2 * torch.pi * 500 * time)[None] + white(0, 1e-5)[:1]
    hissing = x + white(1, 1e-3)[:1]
    louder = 1.02 * x
    config = ReconstructionLoss(stfts=(STFT_SMALL,))
    norms = [float(distance(config, "multispectral", x, y, Bandwidth())) for y in (hissing, louder)]
    logs = [float(distance(config, "log_spectral", x, y, Bandwidth())) for y in (hissing, louder)]
    assert norms[0] < norms[1] and logs[0] > 20 * logs[1]


def test_silence_gives_no_infinite_gradient() -> None:
    x = torch.zeros(1, 4000)
    y = torch.zeros(1, 4000, requires_grad=True)
    log_spectral(STFT_SMALL, x, y).backward()
    assert y.grad is not None and y.grad.isfinite().all()


def test_the_term_is_off_by_default_and_adds_its_weight_where_it_is_on() -> None:
    x, y = white(0, 0.1), white(1, 0.1)
    off = ReconstructionLoss(stfts=(STFT_SMALL,))
    on = off.model_copy(update={"log_spectral": 0.5})
    assert off.log_spectral == 0
    added = reconstruction(on, x, y, Bandwidth()) - reconstruction(off, x, y, Bandwidth())
    assert float(added) == pytest.approx(0.5 * float(log_spectral(STFT_SMALL, x, y)), rel=1e-3)
