"""What looking for silent corruption costs, in shares of a step: on the GPU if there is one.

    python benchmarks/corruption.py                                                       # tiny, a minute and a half
    python benchmarks/corruption.py --preset jukebox_5b --stage top_prior --ds-config prior_zero3_hopper.json    # a GPU
    deepspeed --num_gpus 2 benchmarks/corruption.py --stage top_prior

Every step compares this rank's 16-bit weights with its masters, every `checks.replica_check_every` steps all that ranks
hold alike is hashed, every `checks.recompute_check_every` steps one micro-batch is computed twice.
benchmarks/results/corruption.json keeps the newest figures of each device, preset, stage, precision and number of ranks.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from train_step import device_name, keep, synchronize

from megajukebox.training.batching import share_batch
from megajukebox.training.config import Preset, load_preset
from megajukebox.training.engines import collectives
from megajukebox.training.engines.factory import build_engine
from megajukebox.training.engines.pipeline import reader
from megajukebox.training.engines.zero import ZeroEngine
from megajukebox.training.planner.recipe import recipe
from megajukebox.training.settings import TrainingSettings
from megajukebox.training.stages import workload_of

RESULT = Path(__file__).parent / "results" / "corruption.json"


def main(
    settings: Annotated[
        list[str] | None, typer.Argument(help="Changes to the preset: key.sub=value ...")
    ] = None,
    preset: Annotated[
        str, typer.Option(help="A name in megajukebox/presets, or a YAML file.")
    ] = "tiny",
    stage: Annotated[str, typer.Option(help="Which stage.")] = "top_prior",
    ds_config: Annotated[
        str | None, typer.Option(help="Another JSON, from ds_configs/ or a path.")
    ] = None,
    repeats: Annotated[
        int, typer.Option(min=1, help="Steps measured, after two that are not.")
    ] = 10,
    local_rank: Annotated[
        int, typer.Option("--local_rank", hidden=True, help="The deepspeed launcher gives it.")
    ] = 0,
) -> None:
    """Measure a step, and the checks beside it."""
    chosen, place = load_preset(preset, settings), collectives.start()
    as_given = collectives.read_ds_config(ds_config or chosen.stage(stage).ds_config)
    ways = (
        [as_given]
        if place.size > 1 or ds_config
        else [as_given, as_given | {"bf16": {"enabled": True}}]
    )
    rows = [measured(chosen, stage, way, repeats) for way in ways]
    collectives.stop()
    if place.rank == 0:
        print(json.dumps(rows, indent=1))
        keep(rows, RESULT, "precision")


def measured(preset: Preset, stage: str, as_given: dict, repeats: int) -> dict[str, Any]:
    of, place, usual = workload_of(preset, stage), collectives.start(), preset.stage(stage).checks
    ds_config = share_batch(as_given, reader(place, as_given).size)
    way = recipe(ds_config, place.size)
    engine = build_engine(
        of.model_config, of.build, ds_config, TrainingSettings(ds_config="", steps=1)
    )
    batches = [of.batch(way.micro) for _ in range(way.accumulation)]
    step = median(engine, repeats, lambda: engine.step(batches, 1.0))
    compare = median(engine, repeats, engine.masters.compare)
    hashing = median(engine, repeats, engine.replicated_hash)
    loss = median(engine, repeats, lambda: engine.loss_here(batches[0]))
    return {
        "device": device_name(engine.device),
        "ranks": place.size,
        "preset": preset.name,
        "stage": stage,
        "precision": way.precision,
        "parameters": sum(p.numel() for p in of.build().parameters()),
        "step_seconds": step,
        "compare_seconds": compare,
        "hash_seconds": hashing,
        "loss_seconds": loss,
        "compare_share": compare / step,
        "hash_share": hashing / step / usual.replica_check_every,
        "recompute_share": 2 * loss / step / usual.recompute_check_every,
    }


def median(engine: ZeroEngine, repeats: int, work: Callable[[], object]) -> float:
    """Seconds of `work`, after two times that do not count."""
    seconds = []
    for _ in range(repeats + 2):
        synchronize(engine.device)
        begun = time.perf_counter()
        work()
        synchronize(engine.device)
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds[2:])


if __name__ == "__main__":
    typer.run(main)
