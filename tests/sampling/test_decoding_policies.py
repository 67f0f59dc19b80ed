"""Every exact way of sampling gives the codes of the plain sequential one; what is known stays."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.tiny_models import (
    CODES,
    WINDOW,
    little_prior,
    plain_draw,
    prior_batch,
    sample_level,
    song_conditionings,
    window_task,
)
from torch import Tensor

from megajukebox.models.prior import Prior
from megajukebox.sampling.decoding import token_sampling
from megajukebox.sampling.decoding import window_sampler as window_module
from megajukebox.sampling.decoding.decoder import PackedPrior
from megajukebox.sampling.decoding.window_sampler import sample_window, sample_window_speculative
from megajukebox.sampling.levels.autoregressive import DECODINGS, build_level_sampler
from megajukebox.sampling.levels.level_sampler import LevelJob, new_job

SCHEDULES = ["factored", "factored_lyrics", "prefix_dense_16", "factored_dense"]
EXACT = [
    ("speculative", {"num_draft_tokens": 3}),
    ("jacobi", {"num_draft_tokens": 3}),
    ("jacobi", {"num_draft_tokens": 9}),
    ("jacobi_windows", {"num_draft_tokens": 9}),
    ("cuda_graph", {}),
]  # rows are 4 codes
UPPER = torch.randint(CODES, (3, 12), generator=torch.Generator().manual_seed(3))


def sampled(prior: Prior, way: str, total: int = 44, songs: int = 2, **settings) -> Tensor:
    draw = plain_draw([7, 8, 9][:songs], temperature=2.0)
    return sample_level(
        prior, song_conditionings(songs), UPPER[:songs], total, 500, draw, 0.5, way=way, **settings
    )


@pytest.mark.parametrize(("way", "settings"), EXACT)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_an_exact_way_gives_the_codes_of_the_sequential_one(
    schedule: str, way: str, settings: dict
) -> None:
    prior = little_prior(schedule)
    for songs, guidance in ((1, None), (2, None), (2, [3.0, 1.0])):
        plain = sampled(prior, "sequential", songs=songs, guidance=guidance)
        assert torch.equal(sampled(prior, way, songs=songs, guidance=guidance, **settings), plain)


def test_guesses_save_passes() -> None:
    """Of the passes that decide; a guess that is right is one less."""
    prior, passes = little_prior(), []
    packed = PackedPrior(prior)
    draw, batch = plain_draw([1], temperature=0.1), prior_batch(prior.config, songs=1)
    right = sample_window(packed, window_task(prior, batch, draw, 0, WINDOW))

    def guess(decoder, window, t: int, end: int) -> int:
        passes.append(t)
        window.tokens_BT[:, t:end] = right[:, t:end]
        return end

    for ahead, first in ((4, [0, 4, 8, 12]), (6, [0, 6, 12]), (16, [0])):  # a row is 4
        passes.clear()
        found = sample_window_speculative(
            packed, window_task(prior, batch, draw, 0, WINDOW), guess, num_draft_tokens=ahead
        )
        assert torch.equal(found, right) and passes == first


def test_blocks_are_short_where_guesses_are_wrong_and_long_where_they_are_right() -> None:
    prior, sizes = little_prior(window=64), []
    packed, batch = PackedPrior(prior), prior_batch(little_prior(window=64).config, songs=1)
    draw = plain_draw([1], temperature=0.1)
    right = sample_window(packed, window_task(prior, batch, draw, 0, 64))

    def guess(decoder, window, t: int, end: int, off: int = 0) -> int:
        sizes.append(end - t)
        window.tokens_BT[:, t:end] = (right[:, t:end] + off) % CODES
        return end

    for off, expected in ((0, [64]), (1, [64, 57, 50])):
        sizes.clear()
        task = window_task(prior, batch, draw, 0, 64)
        found = sample_window_speculative(
            packed, task, partial(guess, off=off), num_draft_tokens=64
        )
        assert torch.equal(found, right) and sizes[: len(expected)] == expected
    assert sizes[25] == 8


def infilled(prior: Prior, way: str, known: Tensor, codes: Tensor) -> LevelJob:
    draw = plain_draw([7, 8], temperature=2.0)
    job = new_job(song_conditionings(2), codes.shape[1], 500, draw, 0.5, UPPER[:2])
    job.codes_BT[:], job.known_BT[:], job.prompt_BT[:] = codes, known, known
    build_level_sampler(prior, way).sample(job, lambda count: None)
    return job


@pytest.mark.parametrize("way", DECODINGS)
def test_what_is_known_stays_wherever_it_lies(way: str) -> None:
    torch.manual_seed(2)
    prior, codes = little_prior("factored_lyrics"), torch.randint(CODES, (2, 44))
    known = torch.ones(2, 44, dtype=torch.bool)
    known[0, 9:14], known[1, 20:31], known[1, 43:] = False, False, False
    job = infilled(prior, way, known, codes)
    assert torch.equal(job.codes_BT[known], codes[known]) and not torch.equal(job.codes_BT, codes)
    assert job.known_BT.all()


@pytest.mark.parametrize("way", DECODINGS)
def test_an_interrupted_level_goes_on_to_the_same_codes(way: str) -> None:
    """Stopped anywhere, with what was done by then as known, however that lies."""
    prior = little_prior("factored_lyrics")
    whole = sampled(prior, way)

    class Stopped(Exception):
        pass

    for most in (1, 20, 50):
        job, done = (
            new_job(
                song_conditionings(2), 44, 500, plain_draw([7, 8], temperature=2.0), 0.5, UPPER[:2]
            ),
            [],
        )

        def stop(count: int, done: list = done, most: int = most) -> None:
            done.append(count)
            if sum(done) >= most:
                raise Stopped

        with pytest.raises(Stopped):
            build_level_sampler(prior, way).sample(job, stop)
        assert 0 < sum(done) == int(job.known_BT.sum()) < 88
        build_level_sampler(prior, way).sample(job, done.append)
        assert torch.equal(job.codes_BT, whole) and sum(done) == 88


def test_windows_at_once_are_the_prior_s_own_after_their_run_up() -> None:
    """Each window's codes are those of a level that begins with its run-up."""
    prior = little_prior()
    codes = sampled(prior, "parallel_windows", total=44, run_up=0.25)
    assert torch.equal(codes[:, :WINDOW], sampled(prior, "sequential", total=WINDOW))
    assert not torch.equal(codes, sampled(prior, "sequential", total=44))
    assert torch.equal(
        codes, sampled(prior, "parallel_windows", total=44, run_up=0.25, max_rows=1)
    ), "rows do not matter"


def test_a_near_tie_is_decided_by_the_plain_pass_in_every_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With every code declared a near tie, the plain pass of each song alone decides all of them."""
    prior, asked = little_prior("factored_lyrics"), []
    plain = sampled(prior, "sequential")
    decide = window_module.reference_tokens
    monkeypatch.setattr(token_sampling, "NEAR_TIE_NATS", 1e9)
    monkeypatch.setattr(
        window_module, "reference_tokens", lambda *args: asked.append(args[1]) or decide(*args)
    )
    for way in ("sequential", "speculative", "jacobi"):
        asked.clear()
        assert torch.equal(sampled(prior, way, guidance=[1.0, 1.0]), plain)
        assert len(asked) >= 88 and all(len(rows) == 1 for rows in asked)


def test_a_shifted_sum_cannot_change_a_song(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits off by as much as another order of sums puts them leave every code as it was."""
    prior = little_prior()
    plain = sampled(prior, "sequential", songs=3)
    inner = PackedPrior.logits
    shaken = torch.Generator().manual_seed(1)

    def rough(self, h, added):
        logits = inner(self, h, added)
        return logits + 2e-5 * torch.rand(logits.shape, generator=shaken)

    monkeypatch.setattr(PackedPrior, "logits", rough)
    for _ in range(3):
        assert torch.equal(sampled(prior, "sequential", songs=3), plain)


def test_variations_take_in_their_beginning_once(monkeypatch: pytest.MonkeyPatch) -> None:
    prior, one = little_prior("factored_lyrics"), song_conditionings(1)
    known, draw = (
        torch.randint(CODES, (1, 10)).expand(3, -1),
        plain_draw([1, 2, 3], temperature=2.0),
    )
    upper = UPPER[:1].expand(3, -1)
    apart = [
        sample_level(
            prior,
            song_conditionings(1),
            upper[:1],
            40,
            500,
            plain_draw([seed], temperature=2.0),
            0.5,
            known[:1],
        )
        for seed in (1, 2, 3)
    ]
    taken = []
    monkeypatch.setattr(
        window_module.WindowDecoder,
        "prefill",
        spied(window_module.WindowDecoder.prefill, lambda x: taken.append(len(x))),
    )
    together = sample_level(prior, one * 3, upper, 40, 500, draw, 0.5, known)
    assert torch.equal(together, torch.cat(apart)) and taken[0] == 1


def spied(function, spy):
    def wrapper(self, tokens, *rest):
        spy(tokens)
        return function(self, tokens, *rest)

    return wrapper


def test_an_unknown_way_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="sequential, speculative"):
        build_level_sampler(little_prior(), "quick")


def test_int8_says_that_it_is_not_exact_and_stays_near(tmp_path: Path) -> None:
    prior = little_prior()
    rough = build_level_sampler(prior, "sequential", int8=True)
    assert (
        not rough.exact
        and build_level_sampler(prior, "speculative").exact
        and not build_level_sampler(prior, "parallel_windows").exact
    )
    batch = prior_batch(prior.config, songs=1)
    draw = plain_draw([1], temperature=0.5)
    exact = sample_window(PackedPrior(prior), window_task(prior, batch, draw, 0, WINDOW))
    near = sample_window(PackedPrior(prior, int8=True), window_task(prior, batch, draw, 0, WINDOW))
    assert np.mean(exact.numpy() == near.numpy()) > 0.3
