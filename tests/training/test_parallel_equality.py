"""However a prior is spread over processes, it learns the same: ZeRO-1/2/3 and pipelines against one plain process.

Plain SGD at a huge rate makes the weights after one step tell the gradient to the last digits: g = (w - w') / rate.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import environment
from fixtures.parallel_worker import config_of, global_batch
from fixtures.paths import TESTS
from fixtures.tiny_models import little_prior

from megajukebox.common.world import free_port
from megajukebox.models.prior import Prior

WORKER = TESTS / "fixtures" / "parallel_worker.py"
RATE = 1e5
TOLERANCE = 1e-5
ENCODER, PREFIX = "factored_lyrics", "prefix_dense_16"
pytestmark = pytest.mark.timeout(600)


def way(name: str, stage: int = 1, micro: int = 3, recompute: bool = False, **more) -> dict:
    ds_config = {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_clipping": 1e12,
        "optimizer": {"type": "SGD", "params": {"lr": RATE}},
        "zero_allow_untested_optimizer": True,
        # Nothing is too small to be split: else DeepSpeed would keep the whole of this little model everywhere.
        "zero_optimization": {
            "stage": stage,
            **({"stage3_param_persistence_threshold": 0} if stage == 3 else {}),
        },
        "steps_per_print": 1000000000,
    }
    if recompute:
        ds_config["activation_checkpointing"] = {"partition_activations": False}
    if stages := more.pop("stages", None):
        ds_config["pipeline"] = {"stages": stages}
    return {
        "name": name,
        "ds_config": ds_config,
        "schedule": ENCODER,
        "changed": {},
        "awake": True,
        "steps": 1,
        **more,
    }


def launch(tmp_path: Path, ranks: int, ways: list[dict]) -> dict[str, dict[str, np.ndarray]]:
    """Run `ways` on that many processes and read what they left."""
    told = tmp_path / f"ways-{ranks}.json"
    # DeepSpeed cannot make another engine in a process that has had a pipeline.
    told.write_text(json.dumps(sorted(ways, key=lambda way: "pipeline" in way["ds_config"])))
    port = free_port()
    started = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(told), str(tmp_path)],
            env=environment()
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]
    said = [process.communicate(timeout=400)[0] for process in started]
    assert not any(process.returncode for process in started), "\n".join(
        text[-3000:] for text in said
    )
    return {way["name"]: dict(np.load(tmp_path / f"{way['name']}.npz")) for way in ways}


def plain(told: dict) -> tuple[dict[str, float], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """One process, one batch, no DeepSpeed: metrics, first weights, gradients."""
    config = config_of(told["schedule"], **told["changed"])
    torch.manual_seed(7)
    model = little_prior(told["schedule"], **told["changed"]) if told["awake"] else Prior(config)
    before = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    loss, metrics = model(global_batch(config, 0))
    loss.backward()
    gradients = {name: p.grad.numpy().astype(np.float64) for name, p in model.named_parameters()}
    return {"loss": loss.item(), **{k: v.item() for k, v in metrics.items()}}, before, gradients


def check(found: dict[str, np.ndarray], told: dict) -> None:
    metrics, before, gradients = plain(told)
    for name, value in metrics.items():
        assert found[f"seen/{name}"][0] == pytest.approx(value, rel=TOLERANCE), name
    names = {name for name in found if not name.startswith("seen/")}
    assert names == set(before), "the weights leave under other names"
    size = np.sqrt(sum((g**2).sum() for g in gradients.values()))
    assert found["seen/grad_norm"][0] == pytest.approx(size, rel=TOLERANCE)
    wrong = {}
    for name, gradient in gradients.items():
        got = (before[name].astype(np.float64) - found[name]) / RATE
        # A thousandth of the whole is the least that counts: some gradients are zero but for rounding (a key's bias).
        wrong[name] = np.linalg.norm(got - gradient) / max(np.linalg.norm(gradient), 1e-3 * size)
    worst = max(wrong, key=wrong.__getitem__)
    assert wrong[worst] <= TOLERANCE, (worst, wrong[worst])


SEPARATE = {"separate_head": True, "conditions_at_every_position": True}
TWO = [
    way("zero1", 1),
    way("zero2_recompute", 2, recompute=True),
    way("zero3", 3, awake=False),
    way("zero3_recompute", 3, recompute=True, micro=6),
    way("pipe2", stages=2),
    way("pipe2_fresh", stages=2, awake=False),
    way("pipe2_recompute", stages=2, recompute=True, micro=12),
    way("pipe2_separate", stages=2, changed=SEPARATE),
]
FOUR = [
    way("zero1", 1),
    way("zero3_recompute", 3, recompute=True, micro=1),
    way("pipe4", stages=4, micro=4),
    way("pipe4_recompute", stages=4, recompute=True),
    way("pipe2x2", stages=2),
    way("pipe2x2_recompute", stages=2, recompute=True, micro=6),
]


def test_two_processes_learn_what_one_does(tmp_path):
    found = launch(tmp_path, 2, TWO)
    for told in TWO:
        check(found[told["name"]], told)


REST = [
    way("pipe2_prefix", stages=2, schedule=PREFIX, recompute=True),
    way("pipe2_no_lyrics", stages=2, schedule="factored"),
    way(
        "pipe2_untold",
        stages=2,
        schedule="row_column",
        changed={"conditions": {}, "timing": None, "upsampler_conditioner": None},
    ),
    way("pipe2_one_micro", stages=2, micro=1),
    way("zero1_recompute", 1, recompute=True),
    way("zero2", 2),
    way("zero2_one_micro", 2, micro=1),
    way("zero3_prefix", 3, schedule=PREFIX),
]


@pytest.mark.slow
def test_priors_told_in_other_ways_do_too(tmp_path):
    found = launch(tmp_path, 2, REST)
    for told in REST:
        check(found[told["name"]], told)


@pytest.mark.slow
def test_four_processes_learn_what_one_does(tmp_path):
    found = launch(tmp_path, 4, FOUR)
    for told in FOUR:
        check(found[told["name"]], told)
