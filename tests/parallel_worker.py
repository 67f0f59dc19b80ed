"""One rank of the parity tests: trains the same made-up batches under each way of training it is told.

    RANK=0 WORLD_SIZE=2 ... python tests/parallel_worker.py ways.json out/

For every way `out/<name>.npz` holds the losses of all steps and every weight after them, written by rank 0.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from little_models import little_prior, prior_batch, prior_settings

from megajukebox.models.prior import Prior, PriorConfig
from megajukebox.training.config import TrainingSettings
from megajukebox.training.engines import parallel
from megajukebox.training.engines.choosing import engine_of
from megajukebox.training.engines.pipeline import reader
from megajukebox.training.survival.exits import leave_now

BATCH = 12  # divided by 1, 2, 3, 4


def config_of(schedule: str, **changed) -> PriorConfig:
    return PriorConfig(**prior_settings(schedule, **changed))


def global_batch(config: PriorConfig, step: int) -> dict:
    return prior_batch(config, songs=BATCH, seed=100 + step)


def part(batch: dict, first: int, count: int) -> dict:
    return {k: part(v, first, count) if isinstance(v, dict) else v[first : first + count] for k, v in batch.items()}


def micro_batches(batch: dict, place, micro: int) -> list[dict]:
    """This rank's share of a global batch, in order, as the stream deals it out."""
    share = BATCH // place.size
    first = place.rank * share
    return [part(batch, first + at, micro) for at in range(0, share, micro)]


def train(way: dict, place, out: Path) -> None:
    config = config_of(way["schedule"], **way.get("changed", {}))
    ds_config = way["ds_config"]
    read = reader(place, ds_config)
    ds_config["gradient_accumulation_steps"] = BATCH // read.size // ds_config["train_micro_batch_size_per_gpu"]
    # A layer that reads lyrics starts as the identity: awake, so that gradients reach the lyric encoder through it.
    awake = dict(little_prior(way["schedule"], **way.get("changed", {})).named_parameters())
    settings = TrainingSettings(ds_config="", steps=way["steps"], seed=7, **way.get("settings", {}))
    engine = engine_of(config, lambda: Prior(config), ds_config, settings, weights=awake if way["awake"] else None)
    micro = ds_config["train_micro_batch_size_per_gpu"]
    seen: dict[str, list[float]] = {}
    for step in range(way["steps"]):
        for name, value in engine.step(micro_batches(global_batch(config, step), read, micro), 1.0).items():
            seen.setdefault(name, []).append(value)
    batch = part(global_batch(config, 99), read.rank * micro, micro)
    seen |= {f"held_out_{name}": [value] for name, value in engine.evaluate(batch).items()}
    made = {name: pending.make().numpy() for name, pending in engine.weights().items()}
    if place.rank == 0:
        np.savez(out / f"{way['name']}.npz", **made, **{f"seen/{n}": np.array(v) for n, v in seen.items()})


def main() -> None:
    ways, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    place = parallel.start()
    torch.set_num_threads(1)
    for way in ways:
        train(way, place, out)
    parallel.stop()
    leave_now(0)


if __name__ == "__main__":
    main()
