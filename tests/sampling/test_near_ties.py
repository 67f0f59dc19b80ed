"""Codes that an error of the last bits could decide, wherever it enters: the best two, a filter's edge, much guidance,
little heat. Every way and every batch gives the plain sampler's song."""

import pytest
import torch
from fixtures.tiny_jukebox import hearing
from fixtures.tiny_models import CODES, little_prior, plain_draw, sample_level, song_conditionings
from torch import Tensor

from megajukebox.models.prior import Prior
from megajukebox.sampling.decoding import token_sampling
from megajukebox.sampling.decoding.decoder import PackedPrior
from megajukebox.sampling.decoding.token_sampling import NEAR_TIE_NATS as USUAL
from megajukebox.sampling.decoding.token_sampling import (
    ClassifierFreeGuidance,
    TokenSampler,
    top_k_boundary,
    top_k_filter,
    top_p_boundary,
    top_p_filter,
)
from megajukebox.sampling.levels.autoregressive import DECODINGS

EXACT = [name for name, decoding in DECODINGS.items() if decoding.exact]
SEEDS, TOTAL, SONGS = [3, 4, 5], 24, 3
UPPER = torch.randint(CODES, (SONGS, 12), generator=torch.Generator().manual_seed(3))
# A hundred times what another order of sums does, and looked for so much further: near ties come in every song.
TIE, OFF = 1e-2, 4e-3


def twin_prior() -> Prior:
    """A prior in which codes 0 and 1, 2 and 3, ... are equally likely to the last bit: an odd top-k cuts a pair."""
    prior = little_prior("factored_lyrics", separate_head=True)
    with torch.no_grad():
        prior.head.weight[1:CODES:2] = prior.head.weight[0 : CODES - 1 : 2]
    return prior


def shake(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on every step's logits are off; those of the plain pass are not."""
    monkeypatch.setattr(token_sampling, "NEAR_TIE_NATS", TIE)
    inner, shaken = PackedPrior.logits, torch.Generator().manual_seed(1)

    def rough(self: PackedPrior, h: Tensor, added: Tensor | None) -> Tensor:
        logits = inner(self, h, added)
        return logits + OFF * (2 * torch.rand(logits.shape, generator=shaken) - 1)

    monkeypatch.setattr(PackedPrior, "logits", rough)


def songs_of(prior: Prior, songs: list[int], way: str, setting: dict) -> Tensor:
    strength, filters = (
        setting.get("guidance", 1.0),
        {k: v for k, v in setting.items() if k.startswith("top")},
    )
    draw = plain_draw([SEEDS[s] for s in songs], temperature=setting.get("temperature", 1.0))
    draw = TokenSampler(
        draw.keys_B,
        draw.temperature_B,
        {name: torch.tensor([value] * len(songs)) for name, value in filters.items()},
    )
    given, guidance = [song_conditionings(SONGS)[s] for s in songs], [strength] * len(songs)
    return sample_level(prior, given, UPPER[songs], TOTAL, 500, draw, 0.5, None, guidance, way)


SETTINGS = [
    {"top_k": 3},
    {"top_p": 0.6},
    {"top_k": 5, "top_p": 0.7},
    {"temperature": 0.1},
    {"guidance": 5.0},
    {"temperature": 0.1, "guidance": 5.0, "top_k": 3},
]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_a_song_is_the_same_by_every_way_in_every_batch(
    setting: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    prior = hearing(twin_prior())
    plain = songs_of(prior, [0, 1, 2], "sequential", setting)
    shake(monkeypatch)
    for way in EXACT:
        for songs in ([0], [0, 1, 2]):
            assert torch.equal(songs_of(prior, songs, way, setting), plain[songs]), (
                f"{way}, songs {songs}"
            )


def close_of(
    logits: list[list[float]], temperature: float = 1.0, strength: float | None = None, **filters
) -> bool:
    """Whether a code drawn from those logits (and an untold twin's) counts as a near tie; noise is left out."""
    draw = TokenSampler(torch.zeros(1, dtype=torch.long), torch.tensor([temperature]), filters)
    drawing_ = (
        draw
        if strength is None
        else ClassifierFreeGuidance(draw, torch.tensor([0]), torch.tensor([strength]))
    )
    return bool(
        drawing_(
            torch.tensor(logits)[:, None], torch.zeros(len(logits), 1, dtype=torch.long)
        ).near_tie[0]
    )


def test_tolerance_grows_with_guidance_and_with_cold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gaps of the scaled logits just within and just outside of what their error may be."""
    monkeypatch.setattr(
        token_sampling.gumbel_noise,
        "gumbel",
        lambda key, position, codes: torch.zeros(*position.shape, codes),
    )
    for temperature, strength, magnified in (
        (1.0, None, 1),
        (0.1, None, 1),
        (1.0, 5.0, 9),
        (0.1, 5.0, 9),
        (4.0, 0.5, 1),
    ):
        for share, close in ((0.8, True), (1.3, False)):
            # The greatest logit leads by so much that after guidance and heat the gap is that share of the tolerance.
            tolerance = USUAL * magnified * max(1.0, temperature)
            gap = share * tolerance / (strength or 1.0)
            told_, untold = [1.0 + gap, 1.0, 0.0], [1.0, 1.0, 0.0]
            rows = [told_] if strength is None else [told_, untold]
            assert close_of(rows, temperature, strength) == close, (
                f"{temperature}, {strength}, {share}"
            )
    assert close_of([[100.0009, 100.0, 0.0]]) and not close_of([[10.0009, 10.0, 0.0]]), (
        "large logits are less exact"
    )


def test_a_code_at_the_edge_of_a_filter_is_a_near_tie_only_if_it_could_win(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    two = torch.tensor([2])
    for left_out, close in ((8.0, True), (-8.0, False)):  # the noise of the codes around the cut
        noise = torch.tensor([0.0, left_out, left_out + 1, 0.0])
        monkeypatch.setattr(
            token_sampling.gumbel_noise, "gumbel", lambda *_, noise=noise: noise.clone()[None, None]
        )
        assert close_of([[3.0, 1.0, 1.0 - 0.8 * USUAL, 0.0]], top_k=two) == close
        assert not close_of([[3.0, 1.0, 1.0 - 1.5 * USUAL, 0.0]], top_k=two)
        half = [float(x) for x in torch.tensor([0.5, 0.2, 0.2, 0.1]).log()]
        assert close_of([half], top_p=torch.tensor([0.6])) == close, (
            "which of two equals comes first"
        )
        assert close_of([half], top_p=torch.tensor([0.5])) == close, (
            "whether the first is all that is wanted"
        )
        assert not close_of(
            [[half[0], half[1], half[1] - 0.01, half[3]]], top_p=torch.tensor([0.6])
        )


@pytest.mark.parametrize("error", [1e-3, 0.1])
def test_codes_that_are_not_at_the_edge_stay_what_they_are_when_logits_move(error: float) -> None:
    draw = torch.Generator().manual_seed(2)
    logits = torch.randn(400, 30, generator=draw) * 2
    k, p = torch.randint(0, 31, (400,), generator=draw), torch.rand(400, generator=draw)
    for edge, filtered, limit in (
        (top_k_boundary, top_k_filter, k),
        (top_p_boundary, top_p_filter, p),
    ):
        unsure, kept = (
            edge(logits, limit, torch.full((400,), error)),
            filtered(logits, limit).isfinite(),
        )
        assert 0 < unsure.float().mean() < 0.3
        for _ in range(5):
            moved = logits + error / 2 * (2 * torch.rand(logits.shape, generator=draw) - 1)
            changed = filtered(moved, limit).isfinite() != kept
            assert not (changed & ~unsure).any()
        assert error < 0.1 or changed.any()
