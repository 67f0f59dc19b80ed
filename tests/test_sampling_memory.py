"""The bound of memory is one: caches are what the formula says, a batch stays within it, too little is refused."""

import pytest
import torch
from little_models import little_prior, plain_draw, prior_batch, window_task

from megajukebox.models.attention import SCHEDULES
from megajukebox.sampling.autoregressive import sampler_of
from megajukebox.sampling.decoder import decoding
from megajukebox.sampling.memory import bound, cache_numbers, largest_batch
from megajukebox.sampling.window import sample_window


@pytest.mark.parametrize("schedule", SCHEDULES)
@torch.no_grad()
def test_caches_hold_what_the_formula_says(schedule: str) -> None:
    prior = little_prior(schedule)
    batch = prior_batch(prior.config, songs=3)
    with decoding(prior, prior.conditioning(batch), 3) as decoder:
        both = [(layer.memory, getattr(layer, "before", None)) for layer in decoder.layers]
        held = [x.numel() for pair in both for x in pair if x is not None]
    assert sum(held) == 3 * cache_numbers(prior.config)


def test_the_largest_batch_is_the_one_that_just_fits() -> None:
    config = little_prior().config
    limit = bound(config, 5, torch.float32, cpu=True)
    assert largest_batch([config], 16, limit, torch.float32, cpu=True) == 5
    assert largest_batch([config], 3, limit, torch.float32, cpu=True) == 3
    assert largest_batch([config], 16, limit, torch.float32, cpu=True, guided=True) == 2
    with pytest.raises(ValueError, match="too little for one song"):
        largest_batch([config], 16, 1000, torch.float32, cpu=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("schedule", ["factored", "factored_lyrics", "prefix_dense_16"])
def test_graphs_on_a_gpu_give_the_codes_of_steps_one_by_one(schedule: str) -> None:
    prior = little_prior(schedule).cuda()
    batch = prior_batch(prior.config)
    cuda = {k: {n: x.cuda() for n, x in v.items()} if isinstance(v, dict) else v.cuda() for k, v in batch.items()}
    draw, prefix = plain_draw([1, 2], temperature=2.0).of(torch.tensor([0, 1])), prior.config.prefix_tokens
    draw = type(draw)(draw.keys_B.cuda(), draw.temperature_B.cuda())
    tasks = [window_task(prior, cuda, draw, prefix, prior.config.length) for _ in range(2)]
    for task in tasks:
        task.first_B = task.first_B.cuda()
    rows, steps = (sampler_of(prior, way) for way in ("rows", "sequential"))
    plain = sample_window(steps.packed, tasks[0])  # type: ignore[attr-defined]
    assert torch.equal(rows.way_of(tasks[1])(rows.packed, tasks[1]), plain)  # type: ignore[attr-defined]
