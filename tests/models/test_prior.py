"""The prior: no code knows the future, everything it is told matters, and its loss is that of the specification."""

import math

import pytest
import torch
import torch.nn.functional as F
from fixtures.tiny_models import (
    ENCODER,
    LYRICS,
    WINDOW,
    little_prior,
    prior_batch,
    prior_settings,
    song_of,
)
from pydantic import ValidationError
from torch import Tensor

from megajukebox.models.attention import SCHEDULES
from megajukebox.models.prior import Prior, PriorConfig

PREFIX = {"lyrics": {"tokens": LYRICS, "size": 7, "mode": "prefix"}}
CASES = [(name, {}) for name in SCHEDULES] + [("factored", PREFIX), ("dense", PREFIX)]


def logits_of(prior: Prior, batch: dict) -> Tensor:
    with torch.no_grad():
        return prior.logits(prior.tokens(batch), prior.conditioning(batch))


def positions_changed(before: Tensor, after: Tensor) -> list[int]:
    return (before != after).any(dim=-1).any(dim=0).nonzero().flatten().tolist()


@pytest.mark.parametrize(("schedule", "changed"), CASES, ids=str)
def test_a_future_code_never_changes_a_past_logit(schedule: str, changed: dict) -> None:
    """Token t changed: the logits up to t stay, bit by bit, and those of t + 1 move."""
    prior = little_prior(schedule, **changed)
    batch = prior_batch(prior.config, songs=1)
    given, tokens = prior.conditioning(batch), prior.tokens(batch)
    length = tokens.shape[1]
    altered = tokens.repeat(length, 1)
    altered.diagonal().copy_((altered.diagonal() + 1) % prior.config.codebook_size)
    many = type(given)(*(None if x is None else x.expand(length, -1, -1) for x in given))
    with torch.no_grad():
        before, after = prior.logits(tokens.repeat(length, 1), many), prior.logits(altered, many)
    for t in range(length):
        changed_at = positions_changed(before[t : t + 1], after[t : t + 1])
        assert changed_at[:1] == ([t + 1] if t + 1 < length else []), (
            f"token {t} changes the logits of {changed_at}"
        )


@pytest.mark.parametrize("schedule", ["factored", "factored_lyrics", "prefix_dense_16"])
def test_every_condition_changes_the_logits_of_every_code(schedule: str) -> None:
    prior = little_prior(schedule)
    batch = prior_batch(prior.config)
    before, prefix = logits_of(prior, batch), prior.config.prefix_tokens
    artist = {**batch["conditions"], "artist": (batch["conditions"]["artist"] + 1) % 5}
    bag = {**batch["conditions"], "genres": torch.tensor([[0, 3, -1], [2, -1, -1]])}
    for changed in (
        {"conditions": artist},
        {"conditions": bag},
        {"timing": batch["timing"] + 4 * 31},
    ):
        after = logits_of(prior, {**batch, **changed})
        # The labels are the first position's content: a factored prior hears of them where its layers reach back to it.
        assert len(positions_changed(before[:, prefix:], after[:, prefix:])) >= WINDOW - 1, changed


@pytest.mark.parametrize("code", range(WINDOW // 4))
def test_a_code_above_changes_the_logits_of_its_own_time(code: int) -> None:
    prior = little_prior()
    batch = prior_batch(prior.config)
    upper = batch["upper_codes"].clone()
    upper[:, code] = (upper[:, code] + 1) % prior.config.codebook_size
    after = logits_of(prior, {**batch, "upper_codes": upper})
    assert set(range(code * 4, code * 4 + 4)) <= set(
        positions_changed(logits_of(prior, batch), after)
    )


@pytest.mark.parametrize(
    "schedule", ["factored_lyrics", "factored_lyrics_10", "lyrics_after_18", "prefix_dense_16"]
)
def test_lyrics_change_the_logits_of_every_code(schedule: str) -> None:
    prior = little_prior(schedule)
    batch = prior_batch(prior.config)
    other = {**batch, "lyrics": (batch["lyrics"] + 1) % 7}
    before, after = (logits_of(prior, b)[:, prior.config.prefix_tokens :] for b in (batch, other))
    assert positions_changed(before, after) == list(range(WINDOW))


def test_an_empty_slot_of_a_bag_adds_nothing() -> None:
    prior = little_prior()
    assert prior.labels is not None
    tables = {name: table.weight for name, table in prior.labels.tables.items()}
    start = prior.labels({"artist": torch.tensor([[3]]), "genres": torch.tensor([[5, -1, 2]])})
    torch.testing.assert_close(
        start[0, 0], tables["artist"][3] + tables["genres"][5] + tables["genres"][2]
    )


@pytest.mark.parametrize("schedule", ["factored", "factored_lyrics", "prefix_dense_16"])
def test_a_song_is_the_same_alone_and_among_others(schedule: str) -> None:
    prior = little_prior(schedule)
    batch = prior_batch(prior.config, songs=3)
    together = logits_of(prior, batch)
    for song in range(3):
        torch.testing.assert_close(
            logits_of(prior, song_of(batch, song))[0], together[song], rtol=1e-5, atol=1e-4
        )


def cross_entropy_in_bits(logits: Tensor, tokens: Tensor) -> float:
    """The plain sum, one token at a time."""
    places = [(b, t) for b in range(tokens.shape[0]) for t in range(tokens.shape[1])]
    total = sum(
        math.log2(F.softmax(logits[b, t].double(), 0)[tokens[b, t]].item()) for b, t in places
    )
    return -total / len(places)


def test_without_lyrics_the_loss_is_the_mean_bits_of_the_codes() -> None:
    prior = little_prior()
    batch = prior_batch(prior.config)
    loss, metrics = prior(batch)
    assert loss.item() == pytest.approx(
        cross_entropy_in_bits(logits_of(prior, batch), batch["codes"]), rel=1e-5
    )
    assert metrics == {"bits_per_code": loss}


def test_with_a_lyrics_encoder_the_loss_is_weighed_by_the_share_of_positions() -> None:
    prior = little_prior("factored_lyrics")
    batch = prior_batch(prior.config)
    loss, metrics = prior(batch)
    music = cross_entropy_in_bits(logits_of(prior, batch), batch["codes"])
    assert prior.lyrics is not None
    words = cross_entropy_in_bits(prior.lyrics.head(prior.lyrics(batch["lyrics"])), batch["lyrics"])
    assert metrics["bits_per_code"].item() == pytest.approx(music, rel=1e-5)
    assert metrics["bits_per_lyric"].item() == pytest.approx(words, rel=1e-5)
    share = LYRICS / (LYRICS + WINDOW)
    assert loss.item() == pytest.approx(0.4 * words * share + music * (1 - share), rel=1e-5)


def test_with_a_lyric_prefix_one_sequence_gives_both_terms_of_the_loss() -> None:
    prior = little_prior("prefix_dense_16")
    batch = prior_batch(prior.config)
    loss, _ = prior(batch)
    logits = logits_of(prior, batch)
    assert logits.shape == (2, LYRICS + WINDOW, 7 + prior.config.codebook_size)
    words = cross_entropy_in_bits(logits[:, :LYRICS], batch["lyrics"])
    music = cross_entropy_in_bits(logits[:, LYRICS:], batch["codes"] + 7)
    share = LYRICS / (LYRICS + WINDOW)
    assert loss.item() == pytest.approx(0.4 * words * share + music * (1 - share), rel=1e-5)


def test_the_head_is_the_token_table_unless_it_is_separate() -> None:
    tied, own = little_prior(), little_prior(separate_head=True)
    assert tied.head.weight is tied.input.tokens.weight
    assert own.head.weight is not own.input.tokens.weight
    weights_of = {prior: sum(p.numel() for p in prior.parameters()) for prior in (tied, own)}
    assert weights_of[own] - weights_of[tied] == own.head.weight.numel()


def test_only_a_tied_head_hears_the_conditioning_again() -> None:
    h, added = torch.randn(1, 3, 8), torch.randn(1, 3, 8)
    tied, own = little_prior(), little_prior(separate_head=True)
    torch.testing.assert_close(tied.predict(h, added), (h + added) @ tied.head.weight.t())
    torch.testing.assert_close(own.predict(h, added), h @ own.head.weight.t())


def test_a_new_prior_starts_with_lyrics_layers_that_change_nothing() -> None:
    torch.manual_seed(0)
    prior = Prior(PriorConfig(**prior_settings("factored_lyrics")))
    batch = prior_batch(prior.config)
    other = {**batch, "lyrics": (batch["lyrics"] + 1) % 7}
    assert torch.equal(logits_of(prior, batch), logits_of(prior, other))


SHAPE = prior_settings()["transformer"]
REFUSED = [
    ({"level": "treble"}, "level"),
    ({"window": 0}, "window"),
    ({"codebook_size": 1}, "codebook_size"),
    ({"windw": 16}, "windw"),
    ({"window": 18, "upsampler_conditioner": None}, "blocks 4 does not divide the 18 positions"),
    (
        {"upsampler_conditioner": {"width": 6, "depth": 2, "down": 5}},
        "window 16 is not a multiple of 32",
    ),
    ({"transformer": {**SHAPE, "heads": 3}}, "heads 3 does not divide the attention width 8"),
    ({"transformer": {**SHAPE, "schedule": "zigzag"}}, "schedule 'zigzag' is unknown"),
    (
        {"transformer": {**SHAPE, "depth": 4, "schedule": "factored_lyrics"}},
        "'factored_lyrics' needs a lyrics encoder",
    ),
    (
        {"transformer": {**SHAPE, "depth": 16, "schedule": "prefix_dense_16"}},
        "needs lyrics with mode prefix",
    ),
    ({**PREFIX, "conditions": {}}, "mode prefix need conditions"),
    ({"lyrics": {"tokens": 8, "size": 7, "mode": "suffix"}}, "lyrics.mode"),
]


@pytest.mark.parametrize(("changed", "told"), REFUSED, ids=[told for _, told in REFUSED])
def test_a_prior_that_cannot_be_is_refused_with_the_field_named(changed: dict, told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        PriorConfig(**prior_settings() | changed)


@pytest.mark.parametrize("encoder", [None, {**ENCODER, "blocks": 3}])
def test_an_encoder_that_does_not_fit_its_lyrics_is_refused(encoder: dict | None) -> None:
    lyrics = {"tokens": 8, "size": 7, "encoder": encoder}
    with pytest.raises(
        ValidationError,
        match=r"lyrics.encoder is missing, or its blocks do not divide lyrics.tokens",
    ):
        PriorConfig(**prior_settings("factored_lyrics", lyrics=lyrics))


def test_a_prefix_layer_sees_the_lyrics_and_up_to_a_row_more_as_in_the_1b_model() -> None:
    shape = {**prior_settings("prefix_dense_16")["transformer"], "blocks": 64}
    lyrics = {"tokens": 384, "size": 79, "mode": "prefix"}
    config = PriorConfig(
        **prior_settings("prefix_dense_16", window=6144, transformer=shape, lyrics=lyrics)
    )
    assert (config.length, config.attended_prefix, config.shift) == (6528, 448, 79)
    assert {block.attention.prefix for block in little_prior("prefix_dense_16").blocks} == {12}
