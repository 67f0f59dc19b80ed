"""Guidance: the formula, on every level and in mixed batches; strength 1 changes nothing; twins are told nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.tiny_jukebox import hearing, write_runs
from fixtures.tiny_models import (
    CODES,
    LYRICS,
    WINDOW,
    little_prior,
    plain_draw,
    sample_level,
    song_conditionings,
)
from torch import Tensor

from megajukebox.common.levels import PRIOR_FOLDERS
from megajukebox.conditioning.schema import SongConditioning
from megajukebox.models.prior import Prior
from megajukebox.sampling.decoding.token_sampling import ClassifierFreeGuidance, TokenSampler
from megajukebox.sampling.jukebox import Jukebox
from megajukebox.sampling.levels.autoregressive import build_level_sampler
from megajukebox.sampling.levels.level_sampler import new_job
from megajukebox.sampling.levels.level_windows import conditioning_batch
from megajukebox.sampling.songs.requests import SongRequest, parse_requests

SCHEDULES = ["factored", "factored_lyrics", "prefix_dense_16"]
SEEDS, SAMPLES, HOP = [5, 6, 7], 300, 0.5


def upper(songs: int, total: int) -> Tensor:
    return torch.randint(CODES, (songs, -(-total // 4)), generator=torch.Generator().manual_seed(3))


def sampled(
    prior: Prior,
    strengths: list[float],
    songs: list[int],
    total: int = 40,
    known: Tensor | None = None,
) -> Tensor:
    """The songs of those numbers, together."""
    draw = plain_draw([SEEDS[s] for s in songs], temperature=1.5)
    given = [song_conditionings(3)[s] for s in songs]
    return sample_level(
        prior, given, upper(3, total)[songs], total, SAMPLES, draw, HOP, known, strengths
    )


def unknown_song(prior: Prior) -> SongConditioning:
    """A song of which nothing is known."""
    return SongConditioning.of(prior.config, {})


def logits_at(
    prior: Prior, song: SongConditioning, above: Tensor, codes: Tensor, t: int, start: int
) -> Tensor:
    """[V] the logits of code `t` of one song, by a full forward pass over its window."""
    batch = conditioning_batch(prior.config, [song], above, [start], SAMPLES, torch.device("cpu"))
    batch["codes"] = torch.nn.functional.pad(codes[None, start:t], (0, WINDOW - (t - start)))
    with torch.no_grad():
        return prior.logits(prior.tokens(batch), prior.conditioning(batch))[
            0, prior.config.prefix_tokens + t - start
        ]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_guided_codes_are_those_of_the_formula_written_out(schedule: str) -> None:
    """Song by song, code by code, each from two full forward passes: told and untold."""
    prior, total, strength = hearing(little_prior(schedule)), 24, 2.5
    codes = sampled(prior, [strength, 1.0, strength], [0, 1, 2], total)
    plain = sampled(prior, [1.0] * 3, [0, 1, 2], total)
    assert torch.equal(codes[1], plain[1]) and not torch.equal(codes[0], plain[0])
    above, draw = upper(3, total), plain_draw(SEEDS, temperature=1.5)
    for song in (0, 2):
        own = TokenSampler(draw.keys_B[song : song + 1], draw.temperature_B[:1])
        made: list[
            int
        ] = []  # below 0: a lyric token where music belongs; the window goes on with it, the next with code 0
        for t in range(total):
            start = 0 if t < WINDOW else total - WINDOW
            made = [max(0, code) for code in made] if t == WINDOW else made
            args = (above[song : song + 1], torch.tensor(made, dtype=torch.long), t, start)
            with_, without = (
                logits_at(prior, x, *args)
                for x in (song_conditionings(3)[song], unknown_song(prior))
            )
            guided = (without + strength * (with_ - without))[None, None]
            made.append(int(own(guided, torch.tensor([[t]])).codes) - prior.config.shift)
            assert codes[song, t] == max(0, made[-1]), f"song {song}, code {t}"


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_strength_1_gives_the_tokens_of_no_guidance(schedule: str) -> None:
    prior = hearing(little_prior(schedule))
    draw = plain_draw(SEEDS, temperature=1.5)
    plain = sample_level(prior, song_conditionings(3), upper(3, 40), 40, SAMPLES, draw, HOP)
    assert torch.equal(sampled(prior, [1.0, 1.0, 1.0], [0, 1, 2]), plain)
    mixed = sampled(prior, [3.0, 1.0, 0.0], [0, 1, 2])
    assert torch.equal(mixed[1], plain[1])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_batch_mates_do_not_matter_to_a_guided_song(schedule: str) -> None:
    prior, strengths = hearing(little_prior(schedule)), [2.0, 1.0, 4.0]
    together = sampled(prior, strengths, [0, 1, 2])
    for song, strength in enumerate(strengths):
        assert torch.equal(sampled(prior, [strength], [song])[0], together[song])


def test_strength_0_is_the_song_that_is_told_nothing() -> None:
    prior = little_prior("factored_lyrics")
    nothing = [unknown_song(prior)] * 3
    plain = sample_level(
        prior, nothing, upper(3, 40), 40, SAMPLES, plain_draw(SEEDS, temperature=1.5), HOP
    )
    assert torch.equal(sampled(prior, [0.0] * 3, [0, 1, 2]), plain)


def test_a_known_beginning_stays_and_progress_counts_each_code_once() -> None:
    prior, counted = little_prior(), []
    known = torch.randint(CODES, (3, 10))
    draw, strengths = plain_draw(SEEDS), [2.0, 1.0, 2.0]
    job = new_job(song_conditionings(3), 40, SAMPLES, draw, HOP, upper(3, 40), strengths, known)
    build_level_sampler(prior, "sequential").sample(job, counted.append)
    assert (
        job.codes_BT.shape == (3, 40)
        and torch.equal(job.codes_BT[:, :10], known)
        and sum(counted) == 3 * 30
    )


def test_twins_draw_what_their_songs_draw() -> None:
    logits = torch.randn(5, 9, generator=torch.Generator().manual_seed(1))
    guided = ClassifierFreeGuidance(
        plain_draw(SEEDS), torch.tensor([0, 2]), torch.tensor([2.0, 0.5])
    )
    position = torch.full((5, 1), 4)
    codes = guided(logits[:, None], position).codes[:, 0]
    by_hand = [2 * logits[0] - logits[3], logits[1], 0.5 * logits[2] + 0.5 * logits[4]]
    assert (
        codes[:3].tolist()
        == plain_draw(SEEDS)(torch.stack(by_hand)[:, None], position[:3]).codes[:, 0].tolist()
    )
    assert codes[3:].tolist() == [codes[0], codes[2]]


def test_what_a_twin_is_told_is_what_training_tells_when_it_drops() -> None:
    nothing = unknown_song(little_prior("factored_lyrics"))
    assert {name: nothing.values[name].tolist() for name in ("artist", "genres")} == {
        "artist": [0],
        "genres": [-1, -1, -1],
    }
    config = little_prior("factored_lyrics").config
    batch = conditioning_batch(config, [nothing], upper(1, 8), [0], 300, torch.device("cpu"))
    assert batch["lyrics"].tolist() == [[0] * LYRICS]


def test_a_stronger_guidance_makes_the_artist_more_likely_to_be_heard() -> None:
    """How much more likely codes are for the artist that was asked than for nobody, by the prior's own judgement."""
    prior, songs, strengths = (
        hearing(little_prior(upsampler_conditioner=None, timing=None)),
        64,
        [0.0, 1.0, 4.0],
    )
    names = {"artist": np.array([1]), "genres": np.array([2, 3, -1])}
    asked = SongConditioning.of(prior.config, names)
    batches = [
        conditioning_batch(
            prior.config, [x] * songs, None, [0] * songs, SAMPLES, torch.device("cpu")
        )
        for x in (asked, unknown_song(prior))
    ]
    gains = []
    for strength in strengths:
        draw = plain_draw(list(range(songs)))
        codes = sample_level(
            prior, [asked] * songs, None, WINDOW, SAMPLES, draw, HOP, guidance=[strength] * songs
        )
        with torch.no_grad():
            told_, untold_ = (prior({**batch, "codes": codes})[0] for batch in batches)
        gains.append(float(untold_ - told_))
    assert gains[0] < gains[1] < gains[2]


def test_a_whole_jukebox_is_guided_level_by_level(tmp_path: Path) -> None:
    box = Jukebox(write_runs(tmp_path / "runs"))
    common = {"artist": "ilune", "genres": "dub", "lyrics": "la la", "seconds": 0.6, "seed": 4}
    plain, off, middle, all_ = (
        box.sample([SongRequest(id=f"song-{n}", guidance=g, **common)])[0]
        for n, g in enumerate([{}, 1.0, {"middle": 3.0}, 3.0])
    )
    for level in PRIOR_FOLDERS:
        assert np.array_equal(plain.codes[level], off.codes[level])
    assert np.array_equal(plain.codes["top"], middle.codes["top"])
    assert not np.array_equal(plain.codes["middle"], middle.codes["middle"])
    assert not np.array_equal(plain.codes["top"], all_.codes["top"])
    assert all_.record()["request"]["guidance"] == {"top": 3.0, "middle": 3.0, "bottom": 3.0}
    requests = [SongRequest(id="a", **common), SongRequest(id="b", guidance={"top": 3.0}, **common)]
    for song, alone in zip(box.sample(requests), (plain, all_)):
        assert np.array_equal(song.codes["top"], alone.codes["top"])


@pytest.mark.parametrize("wrong", [-1, 21, "much", float("nan"), {"treble": 2}])
def test_a_wrong_guidance_is_refused_in_words(wrong: object) -> None:
    good, bad = parse_requests([{"id": "a", "guidance": wrong}, {"id": "b", "guidance": 2}])
    assert [r.id for r in good] == ["b"] and "request a: guidance" in bad[0]
