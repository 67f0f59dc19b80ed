"""The plan of one stage: memory, pace, days, disk and failures in one record, or the reason why it cannot be."""

from pydantic import BaseModel

from megajukebox.training.batching import share_batch
from megajukebox.training.config import Preset
from megajukebox.training.planner.fit import (
    check_fits,
    check_precision,
    check_whole,
    largest_micro_batch,
    setting,
)
from megajukebox.training.planner.forecast import (
    DAY,
    FAILURES_PER_1000_NODE_DAYS,
    Failures,
    Pace,
    failures,
    pace,
)
from megajukebox.training.planner.gpus import GIB, GPU, JUKEBOX_GPUS, mfu_assumed
from megajukebox.training.planner.memory import checkpoint_bytes, on_host
from megajukebox.training.planner.recipe import Recipe, pipeline_stages, recipe
from megajukebox.training.planner.workload import footprint, weights_of, workload_of


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

    @property
    def advised_steps_between_saves(self) -> int:
        """At the middle rate of failures."""
        return max(1, round(self.failures[1].interval / self.step_seconds))


class Assumptions(BaseModel):
    """What a plan cannot know."""

    share: float | None = None  # of the peak; None: of the table in gpus.py
    save_seconds: float = 10.0
    restart_seconds: float = 900.0


def default_gpus(stage: str) -> int:
    """As many as Jukebox trained it on."""
    return JUKEBOX_GPUS.get(stage, 8)


def samples_of_jukebox(preset: Preset, stage: str, samples: int) -> int | None:
    """Samples of a step where each of Jukebox's GPUs has one. None if the step is that, or was chosen."""
    asked = preset.name.startswith("jukebox") and not preset.stage(stage).batch
    return default_gpus(stage) if asked and default_gpus(stage) != samples else None


def plan(
    preset: Preset,
    stage: str,
    gpus: int,
    gpu: GPU,
    ds_config: dict,
    name: str,
    assumed: Assumptions,
) -> TrainingPlan:
    """Raises ValueError (DoesNotFit among them) where it cannot be done, with the nearest that can."""
    stages, settings, of = (
        pipeline_stages(ds_config, gpus),
        preset.stage(stage),
        workload_of(preset, stage),
    )
    check_whole(gpus, stages, gpu.gpus_per_node)
    way = recipe(share_batch(ds_config, gpus // stages, settings.batch), gpus)
    check_precision(way, gpu)
    found = check_fits(of, way, gpus, gpu)
    elements = weights_of(of, 1, way.persistent).total
    how = setting(of, way, gpu)
    flops = 3 * footprint(of, way.micro, how).flops
    table, source = mfu_assumed(gpu, stage, way.precision, of.kind == "vqvae")
    share = table if assumed.share is None else assumed.share
    step = pace(way, gpus, flops, elements, gpu, share)
    days = settings.steps * step.step / DAY
    nodes = -(-gpus // gpu.gpus_per_node)
    checkpoint = checkpoint_bytes(way, elements) / GIB
    kept, recomputed = (
        footprint(of, way.micro, how._replace(recompute=again)).activations
        for again in (False, True)
    )
    return TrainingPlan(
        preset=preset.name, stage=stage, ds_config=name, gpu=gpu.name, gpus=gpus, nodes=nodes, recipe=way,
        parameters=elements, samples_per_step=way.samples(gpus),
        samples_of_jukebox=samples_of_jukebox(preset, stage, way.samples(gpus)),
        units_per_step=way.samples(gpus) * of.units, unit=of.unit, steps=settings.steps,
        teraflops_per_sample=flops / way.micro / 1e12, share_of_peak=share,
        share_from=source if assumed.share is None else "as told", pace=step, step_seconds=step.step, days=days,
        gpu_days=days * gpus, checkpoint_gib=checkpoint,
        disk_gib=checkpoint * (settings.checkpointing.keep_last + 1) + 4 * elements / GIB,
        save_every_minutes=settings.checkpointing.every * step.step / 60,
        failures=[
            failures(nodes, days, rate, assumed.save_seconds, assumed.restart_seconds)
            for rate in FAILURES_PER_1000_NODE_DAYS
        ],
        memory=MemoryForecast(
            backward=_gib(found.moments["backward"]), update=_gib(found.moments["update"]),
            needed=found.total / GIB, available=gpu.memory,
            host=on_host(way, weights_of(of, way.pipeline, way.persistent), way.data_ranks(gpus)) / GIB,
            activations_kept=kept / GIB, activations_recomputed=recomputed / GIB,
            largest_micro_batch=largest_micro_batch(of, way, gpus, gpu),
        ),
    )  # fmt: skip


def _gib(parts: dict[str, float]) -> dict[str, float]:
    return {part: size / GIB for part, size in parts.items()}
