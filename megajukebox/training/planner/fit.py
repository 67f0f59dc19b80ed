"""Whether a way of training fits a number of GPUs, and if it does not, the nearest that does."""

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

from megajukebox.common.errors import UserError
from megajukebox.training.planner.activation_trace import TraceSetting
from megajukebox.training.planner.gpus import (
    FRAGMENTATION,
    GIB,
    GPU,
    MIB,
    OUTSIDE_GIB,
    PROCESS_MIB,
    PROCESS_ZERO_MIB,
)
from megajukebox.training.planner.memory import Parts, gradients_grow, moments
from megajukebox.training.planner.recipe import Recipe
from megajukebox.training.planner.workload import Workload, footprint, weights_of

FUSED_HEAD_MULTIPLE = 8  # PyTorch's fused attention on a V100 wants heads of a multiple of this
LARGEST_MICRO_BATCH = 64  # up to which the largest that fits is looked for
MOST_HALVINGS = 5  # of a micro-batch, looking for what fits

# What a change costs, relative to each other: halving a micro-batch costs 1 and 1 more for each
# further time; computing activations again a third of a step; each stage of ZeRO sends more; an
# offloaded optimizer steps on the host.
COST_OF_RECOMPUTING = 2
COST_OF_A_ZERO_STAGE = 3
COST_OF_OFFLOADING = 12


class DoesNotFit(UserError):
    """More memory than a GPU has."""


class MemoryNeed(NamedTuple):
    """Of one GPU, in bytes."""

    moments: dict[str, Parts]
    outside: float  # CUDA, NCCL; of a CPU process what is there without a model
    gaps: float = FRAGMENTATION  # between tensors, as a share of them

    @property
    def total(self) -> float:
        """Bytes at the fullest moment."""
        counted = max(sum(parts.values()) for parts in self.moments.values())
        return counted * (1 + self.gaps) + self.outside


class SettingChange(NamedTuple):
    """Something that saves memory: how much it is felt, what to set, and the recipe's fields then."""

    cost: int
    setting: str  # empty: nothing changes
    fields: dict[str, Any]


UNCHANGED = SettingChange(0, "", {})


def trace_setting(workload: Workload, recipe: Recipe, gpu: GPU | None) -> TraceSetting:
    """How a pass runs on `gpu`; None is a CPU process."""
    fused = gpu is None or gpu.flash or workload.head_size % FUSED_HEAD_MULTIPLE == 0
    return TraceSetting(
        weights=recipe.weights,
        precision=recipe.precision,
        recompute=recipe.recompute,
        fused=fused,
        cpu=gpu is None,
        gradients=gradients_grow(recipe),
    )


def memory_need(workload: Workload, recipe: Recipe, gpus: int, gpu: GPU | None) -> MemoryNeed:
    """On each of `gpus` devices of the kind `gpu`; None is a CPU process."""
    traced = footprint(workload, recipe.micro, trace_setting(workload, recipe, gpu))
    weights = weights_of(workload, recipe.pipeline, recipe.persistent)
    by_moment = moments(recipe, weights, recipe.data_ranks(gpus), traced, on_gpu=gpu is not None)
    if gpu:
        return MemoryNeed(by_moment, OUTSIDE_GIB * GIB)
    modules = PROCESS_ZERO_MIB if recipe.stage or recipe.pipeline > 1 else PROCESS_MIB
    return MemoryNeed(by_moment, (modules + workload.process_mib) * MIB, gaps=0.0)


def check_whole(gpus: int, stages: int, gpus_per_node: int) -> None:
    """Raises UserError, with the nearest number that does, if GPUs do not make whole pipelines and
    nodes.
    """
    if gpus % stages:
        nearest_count = max(1, round(gpus / stages)) * stages
        raise UserError(
            f"{gpus} GPUs are not a multiple of pipeline.stages {stages}; {nearest_count} are"
        )
    if gpus > gpus_per_node and gpus % gpus_per_node:
        nearest_count = max(1, round(gpus / gpus_per_node)) * gpus_per_node
        raise UserError(f"{gpus} GPUs are not whole nodes of {gpus_per_node}; {nearest_count} are")


def check_precision(recipe: Recipe, gpu: GPU) -> None:
    """Raises UserError for a precision that the card does not compute in."""
    if recipe.precision not in gpu.peak:
        raise UserError(
            f"{gpu.name} does not compute in {recipe.precision}; it does in {', '.join(gpu.peak)}:"
            " use a ds_config of its own profile there"
        )


def check_fits(workload: Workload, recipe: Recipe, gpus: int, gpu: GPU) -> MemoryNeed:
    """What it needs. Raises DoesNotFit with the nearest way that does fit."""
    needed = memory_need(workload, recipe, gpus, gpu)
    if needed.total <= gpu.memory * GIB:
        return needed
    near = nearest(workload, recipe, gpus, gpu)
    way_out = "nothing near it fits; take a GPU with more memory"
    if near:
        way_out = f"the nearest that fits: {near}"
    raise DoesNotFit(
        f"{needed.total / GIB:.1f} GiB a GPU are needed and {gpu.name} has {gpu.memory:.1f};"
        f" {way_out}"
    )


def nearest(workload: Workload, recipe: Recipe, gpus: int, gpu: GPU) -> str | None:
    """The least felt changes after which it fits, in words; the batch stays the same."""
    for _, changes, changed in sorted(_ways_to_save(recipe), key=lambda way: way[0]):
        needed = memory_need(workload, changed, gpus, gpu).total
        if needed <= gpu.memory * GIB:
            return f"{' and '.join(changes)} ({needed / GIB:.1f} GiB)"
    return None


def _ways_to_save(recipe: Recipe) -> Iterator[tuple[int, list[str], Recipe]]:
    """(cost, what to change, the recipe then) for every combination of changes."""
    recomputed = [UNCHANGED]
    if not recipe.recompute:
        setting = "activation_checkpointing"
        recomputed.append(SettingChange(COST_OF_RECOMPUTING, setting, {"recompute": True}))
    offloaded = [UNCHANGED]
    if not recipe.offload_optimizer:
        setting = "zero_optimization.offload_optimizer"
        offloaded.append(SettingChange(COST_OF_OFFLOADING, setting, {"offload_optimizer": True}))
    shared = [UNCHANGED]  # by higher stages of ZeRO; a pipeline goes with ZeRO-1 alone
    highest = 3 if recipe.pipeline == 1 else recipe.stage
    for stage in range(recipe.stage + 1, highest + 1):
        cost = COST_OF_A_ZERO_STAGE * (stage - recipe.stage)
        shared.append(SettingChange(cost, f"zero_optimization.stage {stage}", {"stage": stage}))
    for changes in product(recomputed, _smaller(recipe), shared, offloaded):
        fields: dict[str, Any] = {}
        for change in changes:
            fields |= change.fields
        changed = recipe._replace(**fields)
        if changed == recipe or (fields.get("offload_optimizer") and changed.stage == 0):
            continue
        recomputing, smaller, sharing, offloading = changes
        cost = 0
        settings = []
        for change in (recomputing, sharing, offloading, smaller):
            cost += change.cost
            if change.setting:
                settings.append(change.setting)
        yield cost, settings, changed


def _smaller(recipe: Recipe) -> Iterator[SettingChange]:
    """Micro-batches halved again and again, with as many times the accumulation."""
    yield UNCHANGED
    for halvings in range(1, MOST_HALVINGS + 1):
        parts = 2**halvings
        if recipe.micro % parts:
            continue
        micro = recipe.micro // parts
        accumulation = recipe.accumulation * parts
        setting = (
            f"train_micro_batch_size_per_gpu {micro} with gradient_accumulation_steps"
            f" {accumulation}"
        )
        yield SettingChange(1 + halvings, setting, {"micro": micro, "accumulation": accumulation})


def largest_micro_batch(workload: Workload, recipe: Recipe, gpus: int, gpu: GPU) -> int:
    """The largest power of two that fits (0 if not even one sample does)."""
    best = 0
    size = 1
    while size <= LARGEST_MICRO_BATCH:
        changed = recipe._replace(micro=size)
        if memory_need(workload, changed, gpus, gpu).total > gpu.memory * GIB:
            break
        best = size
        size *= 2
    return best
