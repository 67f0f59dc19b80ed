"""A trained prior gets sections and memory without a change of its numbers."""

from types import SimpleNamespace
from typing import Any

import torch
from fixtures.tiny_models import awake, prior_batch, prior_settings

from megajukebox.models.conditioners import ALIGNED
from megajukebox.models.prior import Prior, PriorConfig
from megajukebox.training.prior_task import with_new_conditions

ALIGNED_SETTINGS: dict[str, dict[str, Any]] = {
    "sections": {"dropout": 0.15},
    "memory": {"dropout": 0.15, "margin": 4, "width": 8, "depth": 2},
}


def test_sections_and_memory_grow_from_zero() -> None:
    config = PriorConfig(**prior_settings("factored", level="top", upsampler_conditioner=None))
    trained = awake(Prior(config))
    settings: Any = SimpleNamespace(aligned=ALIGNED_SETTINGS)
    grown_config = with_new_conditions(config, settings)
    assert grown_config.aligned["memory"].codebook_size == config.codebook_size
    assert with_new_conditions(grown_config, settings) is grown_config, "a second time it has them"
    grown = Prior(grown_config)
    missing, unexpected = grown.load_state_dict(trained.state_dict(), strict=False)
    assert not unexpected and all(name.startswith("aligned.") for name in missing)
    batch = prior_batch(config)
    told = dict(batch)
    for name, own in grown_config.aligned.items():
        told[name] = ALIGNED[name].example(own, 2, config.window)
    plain = trained.logits(batch["codes"], trained.conditioning(batch))
    assert torch.equal(grown.logits(batch["codes"], grown.conditioning(told)), plain)
    assert with_new_conditions(config, SimpleNamespace(aligned={})) is config
