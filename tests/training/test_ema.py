"""The moving average of the weights is what is exported, however DeepSpeed holds the weights themselves."""

import json
import os
import subprocess
import sys

import pytest
from conftest import environment
from fixtures.paths import TESTS

WAYS = """
import json, sys
import torch
from deepspeed.accelerator import get_accelerator
from fixtures.tiny_models import prior_batch, prior_settings
from megajukebox.models.prior import Prior, PriorConfig
from megajukebox.training.settings import TrainingSettings
from megajukebox.training.engines import collectives
from megajukebox.training.engines.factory import build_engine

get_accelerator().is_fp16_supported = lambda: True  # a CPU computes in it, slowly
collectives.start()
config = PriorConfig(**prior_settings())
for way in json.loads(sys.argv[1]):
    told = {"train_micro_batch_size_per_gpu": 2, "train_batch_size": 2, **way}
    torch.manual_seed(0)
    engine = build_engine(config, lambda: Prior(config), told, TrainingSettings(ds_config="", steps=1, ema_decay=0.75))
    masters = lambda: torch.cat([master.detach().flatten().clone() for master in engine.masters.held()])
    average = masters()
    for step in range(4):
        engine.step([prior_batch(config, seed=step)], 1.0)
        average = 0.75 * average + 0.25 * masters()
    exported = {name: pending.make() for name, pending in engine.weights().items()}
    found = torch.cat([exported[name].flatten() for name, p in engine.module.named_parameters() if p.requires_grad])
    assert (found - masters()[: len(found)]).abs().max() > 1e-4, "an average that is the weights would prove nothing"
    torch.testing.assert_close(found, average[: len(found)], rtol=1e-4, atol=1e-5, msg=lambda m: f"{way}: {m}")
collectives.stop()
"""


@pytest.mark.parametrize(
    "adam",
    [
        {"torch_adam": True},  # a master for each weight
        pytest.param(
            {}, marks=pytest.mark.slow, id="DeepSpeed's own, compiled first"
        ),  # one flat master a group
    ],
)
def test_what_is_exported_is_the_average_of_the_masters_in_every_way_of_training(
    adam: dict,
) -> None:
    optimizer = {"type": "AdamW", "params": {"lr": 0.01, **adam}}
    halves = {"bf16": {"enabled": True}}, {"fp16": {"enabled": True, "initial_scale_power": 4}}
    ways = [
        {"zero_optimization": {"stage": stage}, "optimizer": optimizer, **half}
        for stage in (0, 1)
        for half in ({}, *halves)
    ]
    told = environment() | {"PYTHONPATH": f"{TESTS}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-c", WAYS, json.dumps(ways)]
    done = subprocess.run(command, env=told, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
