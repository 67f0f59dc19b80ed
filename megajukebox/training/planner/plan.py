"""The plan of one stage: memory, pace, days, disk and failures in one record, or the reason why it
cannot be.
"""

from pydantic import BaseModel

from megajukebox.training.batching import share_batch
from megajukebox.training.config import Preset
from megajukebox.training.planner.fit import (
    MemoryNeed,
    check_fits,
    check_precision,
    check_whole,
    largest_micro_batch,
    trace_setting,
)
from megajukebox.training.planner.forecast import (
    DAY,
    FAILURES_PER_1000_NODE_DAYS,
    Failures,
    Pace,
    failures,
    pace,
)
from megajukebox.training.planner.gpus import GIB, GPU, mfu_assumed
from megajukebox.training.planner.memory import checkpoint_bytes, on_host
from megajukebox.training.planner.mfu import FORWARD_AND_BACKWARD
from megajukebox.training.planner.recipe import Recipe, pipeline_stages, recipe
from megajukebox.training.planner.workload import PlannedStage, Workload, footprint, weights_of

EXPORTED_BYTES = 4  # of a weight in model.safetensors: float32


class MemoryForecast(BaseModel):
    """GiB of one GPU."""

    backward: dict[str, float]  # by part
    update: dict[str, float]
    needed: float  # the fuller of the two, and what lies outside our count
    available: float
    host: float  # offloaded, per GPU
    activations_kept: float  # what the forward pass keeps if nothing is recomputed
    activations_recomputed: float  # and with activation checkpointing
    largest_micro_batch: int


class TrainingPlan(BaseModel):
    """One stage on given GPUs."""

    preset: str
    stage: str
    ds_config: str
    gpu: str
    gpus: int
    nodes: int
    recipe: Recipe
    parameters: int
    memory: MemoryForecast
    samples_per_step: int
    samples_of_jukebox: int | None  # of a step of the released models, if it differs
    units_per_step: float
    unit: str
    steps: int
    teraflops_per_sample: float  # forward and backward
    share_of_peak: float
    share_from: str
    pace: Pace
    step_seconds: float
    days: float
    gpu_days: float
    checkpoint_gib: float
    disk_gib: float  # as many checkpoints as are kept, one being written, and the exported weights
    save_every_minutes: float
    failures: list[Failures]


class Assumptions(BaseModel):
    """What a plan cannot know."""

    mfu: float | None = None  # share of the peak; None: that of the profile
    save_seconds: float = 10.0
    restart_seconds: float = 900.0


def plan(
    preset: Preset,
    stage: PlannedStage,
    gpus: int,
    gpu: GPU,
    ds_config: dict,
    name: str,
    assumed: Assumptions,
) -> TrainingPlan:
    """The plan of `stage` on `gpus` times `gpu`; `name` is the ds_config's.

    Raises:
        UserError: it cannot be done; names the nearest that can (DoesNotFit among them).
    """
    settings = preset.stage(stage.name)
    workload = stage.workload
    stages = pipeline_stages(ds_config, gpus)
    check_whole(gpus, stages, gpu.gpus_per_node)
    way = recipe(share_batch(ds_config, gpus // stages, settings.batch), gpus)
    check_precision(way, gpu)
    needed = check_fits(workload, way, gpus, gpu)

    elements = weights_of(workload, 1, way.persistent).total
    traced = footprint(workload, way.micro, trace_setting(workload, way, gpu))
    trained_flops = traced.flops - traced.frozen_flops
    flops = FORWARD_AND_BACKWARD * trained_flops + traced.frozen_flops
    mfu, source = mfu_assumed(gpu, stage.name, way.precision, workload.bandwidth_bound)
    if assumed.mfu is not None:
        mfu = assumed.mfu
        source = "as given"
    step = pace(way, gpus, flops, elements, gpu, mfu)
    days = settings.steps * step.step / DAY
    nodes = -(-gpus // gpu.gpus_per_node)
    checkpoint_gib = checkpoint_bytes(way, elements) / GIB
    samples = way.samples(gpus)
    # Each of Jukebox's GPUs had one sample; None if the step is that, or was chosen.
    samples_of_jukebox = None
    if preset.name.startswith("jukebox") and not settings.batch and stage.default_gpus != samples:
        samples_of_jukebox = stage.default_gpus
    return TrainingPlan(
        preset=preset.name,
        stage=stage.name,
        ds_config=name,
        gpu=gpu.name,
        gpus=gpus,
        nodes=nodes,
        recipe=way,
        parameters=elements,
        memory=memory_forecast(workload, way, gpus, gpu, needed),
        samples_per_step=samples,
        samples_of_jukebox=samples_of_jukebox,
        units_per_step=samples * workload.units,
        unit=workload.unit,
        steps=settings.steps,
        teraflops_per_sample=flops / way.micro / 1e12,
        share_of_peak=mfu,
        share_from=source,
        pace=step,
        step_seconds=step.step,
        days=days,
        gpu_days=days * gpus,
        checkpoint_gib=checkpoint_gib,
        disk_gib=checkpoint_gib * (settings.checkpointing.keep_last + 1)
        + EXPORTED_BYTES * elements / GIB,
        save_every_minutes=settings.checkpointing.every * step.step / 60,
        failures=[
            failures(nodes, days, rate, assumed.save_seconds, assumed.restart_seconds)
            for rate in FAILURES_PER_1000_NODE_DAYS
        ],
    )


def memory_forecast(
    workload: Workload, way: Recipe, gpus: int, gpu: GPU, needed: MemoryNeed
) -> MemoryForecast:
    """What is needed, part by part, beside what other settings would need."""
    how = trace_setting(workload, way, gpu)
    kept = footprint(workload, way.micro, how._replace(recompute=False)).activations
    recomputed = footprint(workload, way.micro, how._replace(recompute=True)).activations
    weights = weights_of(workload, way.pipeline, way.persistent)
    return MemoryForecast(
        backward={part: size / GIB for part, size in needed.moments["backward"].items()},
        update={part: size / GIB for part, size in needed.moments["update"].items()},
        needed=needed.total / GIB,
        available=gpu.memory,
        host=on_host(way, weights, way.data_ranks(gpus)) / GIB,
        activations_kept=kept / GIB,
        activations_recomputed=recomputed / GIB,
        largest_micro_batch=largest_micro_batch(workload, way, gpus, gpu),
    )
