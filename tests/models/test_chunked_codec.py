"""Encoding and decoding in chunks: the same as in one piece, for any chunk and any length."""

import pytest
import torch
from fixtures.tiny_models import little_vqvae
from torch import Tensor, nn

from megajukebox.models.chunked_codec import decode_long, encode_long, reach
from megajukebox.models.vqvae import VQVAE

HOPS = {"bottom": 8, "middle": 32, "top": 128}
CHUNKS = [0.0, 0.128, 0.5, 1.024, 3.3, 100.0]


@pytest.fixture(scope="module")
def model() -> VQVAE:
    return little_vqvae()


@pytest.mark.parametrize("samples", [0, 100, 128, 1000, 6400, 9999])
@pytest.mark.parametrize("level", HOPS)
def test_codes_of_chunks_are_the_codes_of_the_whole(model: VQVAE, level: str, samples: int) -> None:
    audio = torch.randn(samples, generator=torch.Generator().manual_seed(samples))
    length = samples // 128 * 128
    whole = (
        model.encode(audio[None, :length, None], level)[0]
        if length
        else torch.zeros(0, dtype=torch.long)
    )
    for chunk in CHUNKS:
        assert torch.equal(encode_long(model, audio, level, chunk), whole), chunk


@pytest.mark.parametrize("codes", [0, 1, 2, 7, 50, 333])
@pytest.mark.parametrize("level", HOPS)
def test_audio_of_chunks_is_the_audio_of_the_whole(model: VQVAE, level: str, codes: int) -> None:
    given = torch.randint(16, (codes,), generator=torch.Generator().manual_seed(codes))
    whole = model.decode(given[None], level)[0, :, 0] if codes else torch.zeros(0)
    for chunk in CHUNKS:
        made = decode_long(model, given, level, chunk)
        assert made.shape == (codes * HOPS[level],)
        torch.testing.assert_close(made, whole, rtol=1e-5, atol=1e-5)


def positive(layers: nn.Module) -> nn.Module:
    """`layers` in which every weight adds: what an input can reach at all, it then does reach."""
    with torch.no_grad():
        for weight in layers.parameters():
            weight.copy_(weight.abs() + 0.1)
    return layers.double()


def changed(layers: nn.Module, x: Tensor, place: int) -> tuple[int, int]:
    """First and last step of the output of `layers` that hear of a change of the input [1, C, T] at `place`."""
    other = x.clone()
    other[:, :, place] *= 2
    with torch.no_grad():
        heard = (layers(x) != layers(other))[0].any(0).nonzero().flatten()
    return int(heard[0]), int(heard[-1])


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("level", HOPS)
def test_an_encoder_hears_nothing_beyond_its_reach_and_something_near_it(
    level: str, depth: int
) -> None:
    encoder, hop = positive(little_vqvae(depth=depth).levels[level].encoder), HOPS[level]
    far = reach(encoder)
    place = (far // hop + 2) * hop
    for at in (place, place + hop // 2, place + hop - 1):
        first, last = changed(encoder, torch.ones(1, 1, 2 * place + hop, dtype=torch.float64), at)
        # Code c stands for the samples c * hop ... (c + 1) * hop - 1.
        heard = max(at - ((first + 1) * hop - 1), last * hop - at)
        assert far / 2 < heard <= far, (level, at)


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("level", HOPS)
def test_a_decoder_hears_nothing_beyond_its_reach_and_something_near_it(
    level: str, depth: int
) -> None:
    decoder, hop = positive(little_vqvae(depth=depth).levels[level].decoder), HOPS[level]
    far = reach(decoder)
    place = far + 3
    first, last = changed(decoder, torch.ones(1, 4, 2 * place + 1, dtype=torch.float64), place)
    heard = max(place - first // hop, last // hop - place)
    assert far / 2 < heard <= far
