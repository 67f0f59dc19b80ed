"""One optimizer step of any stage: seconds, tokens a second, share of a measured product's speed, peak memory, and who
spends the time. Made-up batches; on the GPU if there is one.

    python benchmarks/train_step.py                                        # every stage of tiny, about two minutes
    python benchmarks/train_step.py --preset jukebox_5b --stage top_prior --ds-config prior_zero3_hopper.json    # a GPU
    python benchmarks/train_step.py --preset jukebox_5b --stage top_prior top.transformer.depth=4    # a slice of it
    deepspeed --num_gpus 2 benchmarks/train_step.py --stage top_prior

The share is model FLOPs (three forward passes, as `plan` counts them; what is recomputed is not counted) a second over
what a large matrix product in the same precision reaches on this device. Time outside forward, backward and update is
ours: moving the batch, averaging metrics over ranks, the loop's bookkeeping. benchmarks/results/train_step.json keeps
the newest figures of each device, preset, stage and way of training.
"""

import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from timing import forget_peak, peak_gib, synchronize

from megajukebox.common.files import write_atomic
from megajukebox.common.provenance import made_by
from megajukebox.data.stream.sample_order import philox
from megajukebox.models.convnet import set_channels_last
from megajukebox.records.run_log import RunLog
from megajukebox.training.batching import share_batch
from megajukebox.training.config import Preset, load_preset
from megajukebox.training.engines import collectives
from megajukebox.training.engines.factory import build_engine
from megajukebox.training.engines.pipeline import reader
from megajukebox.training.engines.zero import ZeroEngine
from megajukebox.training.planner.fit import trace_setting
from megajukebox.training.planner.gpus import gpu_named
from megajukebox.training.planner.mfu import FORWARD_AND_BACKWARD
from megajukebox.training.planner.recipe import recipe
from megajukebox.training.planner.workload import footprint, weights_of
from megajukebox.training.settings import TrainingSettings
from megajukebox.training.stages import workload_of

RESULT = Path(__file__).parent / "results" / "train_step.json"
PARTS = (
    "forward",
    "backward",
    "step",
)  # of DeepSpeed's engine, in which the model and DeepSpeed itself work
COLUMNS = (
    "stage",
    "ds_config",
    "parameters",
    "s a step",
    "a second",
    "TFLOP/s",
    "of a product",
    "peak GiB",
    "ours",
)


def main(
    settings: Annotated[
        list[str] | None, typer.Argument(help="Changes to the preset: key.sub=value ...")
    ] = None,
    preset: Annotated[
        str, typer.Option(help="A name in megajukebox/presets, or a YAML file.")
    ] = "tiny",
    stage: Annotated[str | None, typer.Option(help="One stage; else all.")] = None,
    ds_config: Annotated[
        str | None, typer.Option(help="Another JSON, from ds_configs/ or a path.")
    ] = None,
    repeats: Annotated[
        int, typer.Option(min=1, help="Steps measured, after two that are not.")
    ] = 10,
    channels_last: Annotated[
        bool | None,
        typer.Option(
            "--channels-last/--channels-apart",
            help="How convolutions lay out channels; else as the device likes them.",
        ),
    ] = None,
    local_rank: Annotated[
        int, typer.Option("--local_rank", hidden=True, help="The deepspeed launcher gives it.")
    ] = 0,
) -> None:
    """Measure training steps."""
    chosen, place = load_preset(preset, settings), collectives.start()
    rows = [
        measured(chosen, name, ds_config, repeats, channels_last=channels_last)
        for name in ([stage] if stage else chosen.training)
    ]
    collectives.stop()
    if place.rank == 0:
        Console(width=120).print(table(rows))
        keep(rows)


def measured(
    preset: Preset,
    stage: str,
    ds_name: str | None,
    repeats: int,
    flops: float | None = None,
    channels_last: bool | None = None,
) -> dict[str, Any]:
    """The figures of one stage, of this rank. `flops` of a step are counted where they are not given."""
    of, name = workload_of(preset, stage), ds_name or preset.stage(stage).ds_config
    as_given, place = collectives.read_ds_config(name), collectives.start()
    ds_config = share_batch(as_given, reader(place, as_given).size)
    way = recipe(ds_config, place.size)
    engine = build_engine(
        of.model_config, of.build, ds_config, TrainingSettings(ds_config="", steps=1)
    )
    set_channels_last(engine.engine, channels_last)
    batches = [of.batch(way.micro) for _ in range(way.accumulation)]
    spent = timed(engine.engine)
    forget_peak()
    with tempfile.TemporaryDirectory() as folder:
        log = RunLog(Path(folder), writes=place.rank == 0, rank=place.rank)
        seconds = [loop_step(engine, batches, log, step, spent) for step in range(repeats + 2)][2:]
    if flops is None:
        on_gpu = gpu_named("h100-80gb") if engine.device.type == "cuda" else None
        traced = footprint(of, way.micro, trace_setting(of, way, on_gpu))
        flops = FORWARD_AND_BACKWARD * traced.flops * way.accumulation / way.pipeline
    taken = statistics.median(s["all"] for s in seconds)
    product = product_speed(engine.device, way.precision)
    return {
        "device": device_name(engine.device),
        "preset": preset.name,
        "stage": stage,
        "ds_config": name,
        "ranks": place.size,
        "parameters": weights_of(of, 1, 0).total,
        "samples_per_step": way.samples(place.size),
        "step_seconds": taken,
        "every_step": [s["all"] for s in seconds],
        "fastest": min(s["all"] for s in seconds),
        "slowest": max(s["all"] for s in seconds),
        "units_per_second": way.samples(place.size) * of.units / taken,
        "unit": of.unit,
        "tflops": flops / taken / 1e12,
        "product_tflops": product / 1e12,
        "mfu": flops / taken / product,
        "peak_gib": peak_gib(),
        "ours": statistics.median(1 - sum(s[p] for p in PARTS) / s["all"] for s in seconds),
        "parts": {part: statistics.median(s[part] for s in seconds) for part in PARTS},
    }


def loop_step(
    engine: ZeroEngine, batches: list[dict], log: RunLog, step: int, spent: Counter
) -> dict[str, float]:
    """What training/loop.py does in a step that is logged, but for reading data. Seconds, all and by part."""
    spent.clear()
    synchronize(engine.device)
    begun = time.perf_counter()
    torch.manual_seed(int(philox(0, "model/0", step).random_raw()) % 2**63)
    metrics = engine.step(batches, rate=1.0)
    log.metrics(step + 1, "train", {**metrics, **collectives.memory()})
    synchronize(engine.device)
    return {"all": time.perf_counter() - begun, **{part: spent[part] for part in PARTS}}


def timed(engine: Any) -> Counter:
    """From now on adds the seconds spent in the parts of DeepSpeed's engine to the counter that is returned."""
    spent: Counter = Counter()

    def watch(part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            done = work(*args, **kwargs)
            synchronize(engine.device)
            spent[part] += time.perf_counter() - begun
            return done

        return call

    if hasattr(engine, "train_batch"):
        engine.train_batch = watch("step", engine.train_batch)
        return spent
    for part in PARTS:
        setattr(engine, part, watch(part, getattr(engine, part)))
    return spent


# ---- The device ------------------------------------------------------------------------------------------------------


def product_speed(device: torch.device, precision: str) -> float:
    """FLOP/s of square matrix products, the best of ten."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device).to(getattr(torch, precision)) for _ in range(2))
    best = 0.0
    for _ in range(10):
        synchronize(device)
        begun = time.perf_counter()
        a @ b
        synchronize(device)
        best = max(best, 2 * side**3 / (time.perf_counter() - begun))
    return best


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu = next(n for n in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in n)
    return f"{cpu.partition(':')[2].strip()}, {torch.get_num_threads()} thread"


# ---- Results ---------------------------------------------------------------------------------------------------------


def table(rows: list[dict[str, Any]]) -> Table:
    made = Table(title=f"{rows[0]['preset']} on {rows[0]['ranks']} x {rows[0]['device']}")
    for column in COLUMNS:
        made.add_column(column, justify="left" if column in COLUMNS[:2] else "right")
    for r in rows:
        made.add_row(
            r["stage"],
            r["ds_config"],
            f"{r['parameters'] / 1e6:,.2f} M",
            f"{r['step_seconds']:.3f}",
            f"{r['units_per_second']:,.4g} {r['unit'].split()[0]}",
            f"{r['tflops']:.3f}",
            f"{r['mfu']:.0%}",
            f"{r['peak_gib']:.2f}",
            f"{r['ours']:.1%}",
        )
    return made


def keep(rows: list[dict[str, Any]], result: Path = RESULT, last: str = "ds_config") -> None:
    """Add to the file `result`; a row replaces the one before of the same device, ranks, preset, stage and `last`."""
    known = json.loads(result.read_text()) if result.exists() else {}
    date = datetime.now(timezone.utc).isoformat(timespec="minutes")
    for row in rows:
        key = ", ".join(str(row[k]) for k in ("device", "ranks", "preset", "stage", last))
        known[key] = {**row, "date": date, "torch": torch.__version__, "made_by": made_by()}
    write_atomic(result, (json.dumps(known, indent=1) + "\n").encode())


if __name__ == "__main__":
    typer.run(main)
