"""Training in half precision by `torch_autocast`: weights and codebooks stay float32, losses near those of float32."""

import json
import subprocess
import sys

import pytest
from conftest import environment

from megajukebox.training.engines.collectives import read_ds_config

# One process a run: what autocast DeepSpeed uses is global to it.
PROGRAM = """
import json, sys
import torch
from megajukebox.training.engines import collectives
from megajukebox.resilience.exit_codes import leave_now
from megajukebox.training.batching import share_batch
from megajukebox.training.config import load_preset
from megajukebox.training.settings import TrainingSettings
from megajukebox.training.engines.factory import build_engine
from megajukebox.training.stages import workload_of

told = json.loads(sys.stdin.read())
collectives.start()
of = workload_of(load_preset("tiny", told["changes"]), told["stage"])
settings = TrainingSettings(ds_config="", steps=1)
engine = build_engine(of.model_config, of.build, share_batch(told["ds_config"], 1), settings)
torch.manual_seed(0)
batches = [of.batch(2)]
losses = [engine.step(batches, 1.0)["loss"] for _ in range(told["steps"])]
kinds = sorted({str(t.dtype) for t in [*engine.module.parameters(), *engine.module.buffers()] if t.is_floating_point()})
print(json.dumps({"losses": losses, "kinds": kinds}))
collectives.stop()
leave_now(0)  # as the entries do
"""
SMALL = {
    "vqvae": ["training.vqvae.clip=4096", "vqvae.depth=2"],
    "top_prior": [
        "top.window=128",
        "top.transformer.blocks=8",
        "top.transformer.depth=4",
        "top.transformer.width=64",
        "top.transformer.schedule=factored_lyrics",
        "top.lyrics={tokens: 48, encoder: {width: 64, depth: 3, heads: 1, blocks: 8}}",
    ],
}


def trained(stage: str, ds_config: dict, steps: int = 6) -> dict:
    told = {
        "changes": SMALL[stage],
        "stage": stage,
        "ds_config": ds_config,
        "steps": steps,
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(told),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("stage", "name"), [("vqvae", "vqvae_cpu_bf16.json"), ("top_prior", "prior_cpu_bf16.json")]
)
def test_losses_in_bfloat16_stay_near_those_of_float32(stage, name):
    half = read_ds_config(name)
    half["optimizer"]["params"]["lr"] = (
        1e-3  # the VQ-VAE's own is too high for one batch again and again
    )
    whole = {key: value for key, value in half.items() if key != "torch_autocast"}
    rounded, exact = trained(stage, half), trained(stage, whole)
    assert rounded["kinds"] == ["torch.float32"]
    assert rounded["losses"] != exact["losses"], "nothing was rounded"
    assert rounded["losses"] == pytest.approx(exact["losses"], rel=0.05)
    assert rounded["losses"][-1] < rounded["losses"][0]


def test_a_vqvae_learns_in_float16_once_its_loss_scale_has_come_down():
    seen = trained("vqvae", read_ds_config("vqvae_v100.json"), steps=30)
    assert seen["kinds"] == ["torch.float32"]
    assert seen["losses"][-1] < 0.9 * seen["losses"][0]
