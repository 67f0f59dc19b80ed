"""One window: cached decoding is the full forward pass, token for token, and draws what the prior says."""

import math

import pytest
import torch
from fixtures.tiny_models import (
    CODES,
    LYRICS,
    WINDOW,
    little_prior,
    plain_draw,
    prior_batch,
    song_of,
    window_task,
)
from torch import Tensor

from megajukebox.models.attention import SCHEDULES
from megajukebox.models.prior import Prior
from megajukebox.sampling.decoding import gumbel_noise
from megajukebox.sampling.decoding.decoder import PackedPrior, window_decoder
from megajukebox.sampling.decoding.token_sampling import TokenSampler, top_k_filter, top_p_filter
from megajukebox.sampling.decoding.window_sampler import sample_window, sample_window_slowly

PREFIX = {"lyrics": {"tokens": LYRICS, "size": 7, "mode": "prefix"}}
CASES = [
    *((name, {}) for name in SCHEDULES),
    ("factored", PREFIX),
    ("row_column", {"conditions": {}}),
    ("factored", {"separate_head": True}),
    ("factored", {"timing": None, "upsampler_conditioner": None}),
]


@pytest.mark.parametrize(("schedule", "changed"), CASES, ids=str)
@torch.no_grad()
def test_cached_logits_equal_those_of_the_full_forward_pass(schedule: str, changed: dict) -> None:
    prior = little_prior(schedule, **changed)
    batch = prior_batch(prior.config, songs=3)
    assert_cached_equals_full(
        prior, batch, [0, 1, 2, 3, 4, 5, 7, 8, 9, 11, 12, 15, prior.config.length - 1]
    )


@pytest.mark.parametrize("rows", [1, 2, 8, 16])
@pytest.mark.parametrize("schedule", ["factored", "factored_lyrics", "factored_dense"])
@torch.no_grad()
def test_cached_logits_equal_the_full_ones_however_the_window_is_folded(
    schedule: str, rows: int
) -> None:
    shape = little_prior(schedule).config.transformer.model_dump()
    prior = little_prior(schedule, transformer=shape | {"blocks": rows})
    assert_cached_equals_full(prior, prior_batch(prior.config), range(WINDOW))


def assert_cached_equals_full(prior: Prior, batch: dict, beginnings: list[int] | range) -> None:
    """For every length of a known beginning: taken in at once, then steps of some positions to the window's end.

    Several positions, of one row or more, are tried with other tokens first, and only the first half of them is kept.
    """
    given, tokens, packed = prior.conditioning(batch), prior.tokens(batch), PackedPrior(prior)
    full, other = prior.logits(tokens, given), tokens.roll(1, 0).roll(3, 1)
    assert full.std(dim=1).mean() > 0.5, "logits that do not vary would prove nothing"
    for known, size in ((known, size) for known in beginnings for size in (1, 3, 7)):
        with window_decoder(prior, given, len(tokens)) as decoder:
            if known:
                decoder.prefill(tokens[:, :known])
            t = known
            while t < tokens.shape[1]:
                new = min(size, tokens.shape[1] - t)
                if new > 1:
                    decoder.step(packed, torch.cat([tokens[:, :t], other[:, t:]], dim=1), t, new)
                logits = decoder.step(packed, tokens, t, new)
                error = (logits - full[:, t : t + new]).abs().max() / full.abs().max()
                assert error < 2e-6, f"{known} known, position {t}, {new} at once"
                t += -(-new // 2)


@pytest.mark.parametrize(("schedule", "changed"), CASES, ids=str)
def test_the_cached_sampler_draws_the_same_codes_as_the_slow_one(
    schedule: str, changed: dict
) -> None:
    prior = little_prior(schedule, **changed)
    batch = prior_batch(prior.config)
    tokens, prefix, packed = prior.tokens(batch), prior.config.prefix_tokens, PackedPrior(prior)
    draw = plain_draw(
        [4, -9], temperature=3.0, top_k=torch.tensor([0, 6]), top_p=torch.tensor([0.9, 0.0])
    )
    for known, until in (
        (prefix, prefix + WINDOW),
        (prefix + 5, prefix + 14),
        (prefix + 8, prefix + 9),
    ):
        slow = sample_window_slowly(window_task(prior, batch, draw, known, until, first=40))
        assert torch.equal(
            sample_window(packed, window_task(prior, batch, draw, known, until, first=40)), slow
        )
        assert torch.equal(slow[:, :known], tokens[:, :known]) and torch.equal(
            slow[:, until:], tokens[:, until:]
        )


@torch.no_grad()
def test_songs_with_one_beginning_take_it_in_once_with_the_same_memory() -> None:
    prior = little_prior("factored_lyrics")
    batch = song_of(prior_batch(prior.config, songs=3), torch.tensor([0, 1, 0, 1, 1]))
    given, tokens, packed = prior.conditioning(batch), prior.tokens(batch), PackedPrior(prior)
    with window_decoder(prior, given, 5) as apart, window_decoder(prior, given, 5) as shared:
        apart.prefill(tokens[:, :6])
        shared.prefill(tokens[:2, :6], torch.tensor([0, 1, 0, 1, 1]))
        for t in range(6, WINDOW):
            torch.testing.assert_close(
                shared.step(packed, tokens, t), apart.step(packed, tokens, t)
            )


@pytest.mark.parametrize("schedule", ["factored", "factored_lyrics", "prefix_dense_16"])
def test_batch_mates_do_not_matter(schedule: str) -> None:
    prior = little_prior(schedule)
    batch, prefix = prior_batch(prior.config, songs=3), prior.config.prefix_tokens
    end, packed = prefix + WINDOW, PackedPrior(prior)

    def sampled(songs: dict, draw: TokenSampler) -> Tensor:
        return sample_window(packed, window_task(prior, songs, draw, prefix + 2, end))

    seeds = [11, 22, 33]
    keys = gumbel_noise.noise_keys(seeds, "middle")
    filters = {"top_k": torch.tensor([0, 3, 8]), "top_p": torch.tensor([0.0, 0.7, 0.9])}
    sampler = TokenSampler(keys, torch.tensor([2.0, 0.5, 4.0]), filters)
    together = sampled(batch, sampler)
    for song in range(len(seeds)):
        assert torch.equal(
            sampled(song_of(batch, song), sampler.select(torch.tensor([song])))[0],
            together[song],
        )


def test_the_same_place_in_the_song_gets_the_same_noise_from_any_window() -> None:
    """A window from code 0 and one from code 6 draw with the same noise where they overlap."""
    flat = torch.zeros(2, WINDOW, CODES)
    draw, prior = plain_draw([1, 2]), little_prior()
    batch = prior_batch(prior.config)
    hot = TokenSampler(draw.keys_B, torch.full((2,), 1e9))  # so hot that the noise alone decides
    early, late = (
        sample_window(PackedPrior(prior), window_task(prior, batch, hot, 0, WINDOW, first))
        for first in (0, 6)
    )
    assert torch.equal(early[:, 6:], late[:, :-6]) and not torch.equal(early, late)
    assert torch.equal(early, draw(flat, torch.arange(WINDOW).expand(2, -1)).codes)


@torch.no_grad()
def test_caches_are_made_once_and_never_grow() -> None:
    prior = little_prior("factored_lyrics")
    batch = prior_batch(prior.config)
    packed = PackedPrior(prior)
    with window_decoder(prior, prior.conditioning(batch), 2) as decoder:
        memory = [
            (id(layer.memory), layer.memory.data_ptr(), layer.memory.shape)
            for layer in decoder.layers
        ]
        decoder.prefill(batch["codes"][:, :6])
        for t in range(6, WINDOW):
            decoder.step(packed, batch["codes"], t)
        assert memory == [
            (id(layer.memory), layer.memory.data_ptr(), layer.memory.shape)
            for layer in decoder.layers
        ]
    assert not hasattr(decoder, "layers") or not decoder.layers, (
        "the memory is gone after the block"
    )


def test_progress_is_told_after_every_row() -> None:
    prior, told = little_prior(), []
    window = window_task(prior, prior_batch(prior.config), plain_draw([1, 2]), 3, 13)
    sample_window(PackedPrior(prior), window, told.append)
    assert told == [4, 8, 12, 13]


def slowly_filtered(logits: list[float], k: int, p: float) -> list[bool]:
    """Which codes stay, one by one: the k-th greatest and its equals; then while what stands before is at most p."""
    ranked = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    stay = [i for i in ranked if not k or logits[i] >= logits[ranked[min(k, len(logits)) - 1]]]
    weights = {i: math.exp(logits[i] - max(logits)) for i in stay}
    before, kept = 0.0, set()
    for i in stay:
        if not p or before <= p:
            kept.add(i)
        before += weights[i] / sum(weights.values())
    return [i in kept for i in range(len(logits))]


TIES = [
    [0.0] * 8,
    [1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0],
    [3.0, 3.0, 1.0, 1.0, 1.0, -2.0, -2.0, 0.0],
]


@pytest.mark.parametrize("k", [0, 1, 2, 3, 5, 8, 100])
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.625, 0.9, 1.0])
def test_filters_keep_what_the_plain_filters_keep(k: int, p: float) -> None:
    torch.manual_seed(0)
    logits = torch.cat([torch.tensor(TIES), torch.randn(5, 8) * 3])
    top_k, top_p = torch.full((8,), k), torch.full((8,), p)
    kept = top_p_filter(top_k_filter(logits, top_k), top_p).isfinite()
    assert kept.tolist() == [slowly_filtered(row, k, p) for row in logits.tolist()]


def test_each_song_has_filters_of_its_own_and_kept_logits_stay() -> None:
    logits = torch.tensor([[0.5, 2.0, 1.0, 0.0]]).repeat(3, 1)
    filtered = top_k_filter(logits, torch.tensor([1, 0, 2]))
    assert filtered.isfinite().sum(1).tolist() == [1, 4, 2]
    assert torch.equal(filtered[filtered.isfinite()], logits[filtered.isfinite()])


def test_the_greatest_code_alone_is_drawn_when_one_is_left() -> None:
    logits = torch.randn(50, 9, generator=torch.Generator().manual_seed(1))
    for filters in (
        {"top_k": torch.ones(50, dtype=torch.long)},
        {"top_p": torch.full((50,), 1e-6)},
    ):
        position = torch.full((50, 1), 3)
        drawn = plain_draw(list(range(50)), **filters)(logits[:, None], position).codes
        assert torch.equal(drawn[:, 0], logits.argmax(1))


def test_codes_are_drawn_as_often_as_their_probability_says() -> None:
    logits, songs = torch.tensor([2.0, 0.0, 1.0, -1.0, -4.0]), 20_000
    draw = plain_draw(list(range(songs)), temperature=0.7)
    drawn = draw(logits.expand(songs, 1, -1), torch.full((songs, 1), 5)).codes[:, 0]
    counts = torch.bincount(drawn, minlength=5).double()
    expected = songs * torch.softmax(logits.double() / 0.7, 0)
    assert (
        (counts - expected).square() / expected
    ).sum() < 18.5  # chi squared of 4 degrees, 99.9 %


SONGS = 500
PLAIN = {"codebook_size": 32, "window": 64, "timing": None, "upsampler_conditioner": None}


def surprisal(temperature: float, k: int = 0, p: float = 0.0) -> float:
    """Z of the surprisal of sampled codes under the temperature 1: standard normal if the sampler is true.

    Each code's surprisal -log p minus its entropy is a martingale difference, whatever was drawn before.
    """
    shape = {**little_prior().config.transformer.model_dump(), "blocks": 8, "init_scale": 18.0}
    prior = little_prior(transformer=shape, **PLAIN)
    batch = prior_batch(prior.config, songs=SONGS)
    filters = {"top_k": torch.full((SONGS,), k), "top_p": torch.full((SONGS,), p)}
    draw = plain_draw(list(range(SONGS)), temperature=temperature, **filters)
    with torch.no_grad():
        given = prior.conditioning(batch)
        codes = sample_window(PackedPrior(prior), window_task(prior, batch, draw, 0, 64))
        logits = prior.logits(codes, given).flatten(0, 1)
    every = [torch.full((len(logits),), x) for x in (k, p)]
    log_p = top_p_filter(top_k_filter(logits, every[0]), every[1]).double().log_softmax(1)
    weight, log_p = log_p.exp(), log_p.nan_to_num(neginf=0.0)
    entropy = -(weight * log_p).sum(1)
    variance = (weight * log_p.square()).sum(1) - entropy.square()
    surprise = -log_p.gather(1, codes.flatten()[:, None])[:, 0]
    return float((surprise - entropy).sum() / variance.sum().sqrt())


@pytest.mark.parametrize("filters", [(0, 0.0), (6, 0.0), (0, 0.8)], ids=["plain", "top_k", "top_p"])
def test_sampled_codes_are_as_surprising_as_the_prior_says(filters: tuple[int, float]) -> None:
    assert abs(surprisal(1.0, *filters)) < 3.5


@pytest.mark.parametrize("temperature", [0.95, 1.05])
def test_a_temperature_that_is_5_percent_off_is_found_out(temperature: float) -> None:
    assert abs(surprisal(temperature)) > 4
