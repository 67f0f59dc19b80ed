"""A prior with sections and memory: nothing at its start, nothing where nothing returns; sampled the same in any batch."""

from typing import Any

import numpy as np
import pytest
import torch
from fixtures.tiny_models import CODES, awake, plain_draw, prior_batch, prior_settings, sample_level

from megajukebox.common.errors import UserError
from megajukebox.conditioning.schema import ConditionResources, SongConditioning, conditions_of
from megajukebox.conditioning.section_conditions import SongReturns
from megajukebox.conditioning.song_sections import LabelledSection, SectionReturn
from megajukebox.models.conditioners import ALIGNED, MemoryConditioner
from megajukebox.models.prior import Prior, PriorConfig
from megajukebox.sampling.levels import level_windows
from megajukebox.sampling.levels.decoding_policy import DecodingPolicy

SECONDS_A_CODE = 0.004  # of the tiny level
MEMORY = {"margin": 6, "width": 8, "depth": 3, "codebook_size": CODES, "jitter_seconds": 0.0}
BOTH: dict[str, Any] = {"sections": {"bins": 4, "max_seconds": 0.1}, "memory": MEMORY}
TOTAL = 56  # codes, of which the last 20 return


def config_of(**changed: Any) -> PriorConfig:
    """A top level, told labels and timing alone."""
    settings = prior_settings("factored", level="top", upsampler_conditioner=None)
    return PriorConfig(**{**settings, **changed})


def song(config: PriorConfig, returning: bool = True) -> SongConditioning:
    """A song whose codes from 36 on return from code 8 on."""
    conditions = conditions_of(config, ConditionResources())
    values = SongConditioning(conditions, {}).null().values
    if returning:
        chorus = (8 * SECONDS_A_CODE, 28 * SECONDS_A_CODE)
        again = (36 * SECONDS_A_CODE, 56 * SECONDS_A_CODE)
        sections = (LabelledSection("chorus", *chorus, "x"), LabelledSection("chorus", *again, "x"))
        returns = SongReturns((SectionReturn(*again, chorus[0]),))
        values = {**values, "sections": sections, "memory": returns}
    return SongConditioning(conditions, values)


def prior_of(**changed: Any) -> Prior:
    torch.manual_seed(0)
    return Prior(config_of(**changed))


def codes(
    prior: Prior, songs: list[SongConditioning], seeds: list[int], **more: Any
) -> torch.Tensor:
    total = more.pop("total", TOTAL)
    draw = plain_draw(seeds, "top")
    return sample_level(prior, songs, None, total, total * 4, draw, 0.25, **more)


def test_both_start_at_zero_and_learn() -> None:
    plain = prior_of()
    grown = prior_of(aligned=BOTH)
    batch = prior_batch(plain.config)
    told = dict(batch)
    for name, settings in grown.config.aligned.items():
        told[name] = ALIGNED[name].example(settings, 2, plain.config.window)
    loss, _ = grown(told)
    assert torch.equal(loss, plain(batch)[0]), "to the last bit"
    loss.backward()
    assert grown.aligned["memory"].project.weight.grad.any()
    assert grown.aligned["sections"].tables[0].weight.grad.any()


def test_memory_adds_nothing_where_nothing_is_remembered() -> None:
    prior = awake(prior_of(aligned=BOTH))
    module = prior.aligned["memory"]
    assert isinstance(module, MemoryConditioner)
    memory = ALIGNED["memory"].example(prior.config.aligned["memory"], 2, prior.config.window)
    memory[:, 10:14] = 0
    added = module(memory)
    assert added.shape == (2, prior.config.window, prior.config.transformer.width)
    assert not added[:, 4:8].any() and added[:, 8:].any(dim=-1).float().mean() > 0.7
    assert not module(torch.zeros_like(memory)).any()


def test_a_song_without_returns_is_that_of_a_prior_without_memory() -> None:
    grown = awake(prior_of(aligned=BOTH))
    plain = prior_of()
    plain.load_state_dict({n: w for n, w in grown.state_dict().items() if "aligned" not in n})
    alone = codes(plain.eval(), [song(plain.config)], [3])
    assert torch.equal(codes(grown, [song(grown.config, returning=False)], [3]), alone)
    assert not torch.equal(codes(grown, [song(grown.config)], [3]), alone), "told, it follows"


def test_codes_do_not_depend_on_the_batch_or_on_where_it_was_interrupted() -> None:
    prior = awake(prior_of(aligned=BOTH))
    shared = song(prior.config)
    other = song(prior.config, returning=False)
    together = codes(prior, [shared, other, shared], [1, 2, 3])
    for row, (one, seed) in enumerate([(shared, 1), (other, 2), (shared, 3)]):
        assert torch.equal(codes(prior, [one], [seed])[0], together[row])
    for known in (10, 41, 50):  # in the middle of the second chorus
        resumed = codes(prior, [shared], [1], known=together[:1, :known])
        assert torch.equal(resumed[0], together[0]), known


@pytest.mark.parametrize("way", ["speculative", "jacobi", "jacobi_windows"])
def test_every_exact_way_samples_the_same_codes(way: str) -> None:
    prior = awake(prior_of(aligned=BOTH))
    songs = [song(prior.config), song(prior.config)]
    assert torch.equal(codes(prior, songs, [1, 2], way=way), codes(prior, songs, [1, 2]))


def test_memory_asks_for_a_window_of_codes_however_long_the_song(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = config_of(aligned=BOTH)
    prior = awake(Prior(config))
    asked: list[int] = []
    read = level_windows.codes_between

    def counted(codes_T: torch.Tensor, first: int, end: int) -> np.ndarray:
        asked.append(end - first)
        return read(codes_T, first, end)

    monkeypatch.setattr(level_windows, "codes_between", counted)
    most = []
    for total in (200, 2000):
        chorus = 100 * SECONDS_A_CODE
        value = SongReturns((SectionReturn(chorus, total * SECONDS_A_CODE, 0.0),))
        long = song(config)
        long = SongConditioning(long.conditions, {**long.values, "memory": value})
        asked.clear()
        known = torch.zeros(1, total - 30, dtype=torch.long)
        codes(prior, [long], [1], total=total, known=known)
        most.append(max(asked))
    assert most[0] == most[1] <= config.window + 2 * MEMORY["margin"]


def test_variations_that_remember_different_codes_share_no_prefill() -> None:
    prior = awake(prior_of(aligned=BOTH))
    shared = song(prior.config)
    both = codes(prior, [shared, shared], [5, 6])
    assert torch.equal(both[1], codes(prior, [shared], [6])[0])


def test_memory_is_for_the_top_and_for_windows_in_order() -> None:
    with pytest.raises(ValueError, match="memory is for the top"):
        PriorConfig(**prior_settings("factored", aligned={"memory": MEMORY}))
    with pytest.raises(ValueError, match="the level has 11 codes"):
        config_of(aligned={"memory": {**MEMORY, "codebook_size": 5}})
    policy = DecodingPolicy(exact=False, decoding="parallel_windows")
    cpu = torch.device("cpu")
    with pytest.raises(UserError, match="choose --no-exact"):
        policy.decoding_of("top", 1, config_of(aligned={"memory": MEMORY}), cpu)
    assert policy.decoding_of("top", 1, config_of(), cpu) == "parallel_windows"
