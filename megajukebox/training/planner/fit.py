"""Whether a way of training fits a number of GPUs, and if it does not, the nearest that does."""

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

from megajukebox.common.errors import UserError
from megajukebox.training.planner.activation_trace import TraceSetting
from megajukebox.training.planner.gpus import (
    CONVOLUTIONS_MIB,
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


class DoesNotFit(UserError):
    """More memory than a GPU has."""


class MemoryNeed(NamedTuple):
    """Of one GPU, in bytes."""

    moments: dict[str, Parts]
    outside: float  # CUDA, NCCL; of a CPU process what is there without a model
    gaps: float = FRAGMENTATION  # between tensors, as a share of them

    @property
    def counted(self) -> float:
        return max(sum(parts.values()) for parts in self.moments.values())

    @property
    def total(self) -> float:
        return self.counted * (1 + self.gaps) + self.outside


def setting(of: Workload, recipe: Recipe, gpu: GPU | None) -> TraceSetting:
    """How a pass runs on `gpu`; PyTorch's fused attention on a V100 wants heads of a multiple of 8."""
    fused = gpu is None or gpu.flash or of.head % 8 == 0
    return TraceSetting(
        recipe.weights,
        recipe.precision,
        recipe.recompute,
        fused,
        gpu is None,
        gradients_grow(recipe),
    )


def need(of: Workload, recipe: Recipe, gpus: int, gpu: GPU | None) -> MemoryNeed:
    """On each of `gpus` devices of the kind `gpu`; None is a CPU process."""
    run = footprint(of, recipe.micro, setting(of, recipe, gpu))
    weights = weights_of(of, recipe.pipeline, recipe.persistent)
    found = moments(recipe, weights, recipe.data_ranks(gpus), run, on_gpu=gpu is not None)
    return (
        MemoryNeed(found, OUTSIDE_GIB * GIB)
        if gpu
        else MemoryNeed(found, process(of, recipe) * MIB, gaps=0.0)
    )


def process(of: Workload, recipe: Recipe) -> float:
    """MiB that a CPU process takes beside the tensors that we count."""
    modules = PROCESS_ZERO_MIB if recipe.stage or recipe.pipeline > 1 else PROCESS_MIB
    return modules + (CONVOLUTIONS_MIB if of.kind == "vqvae" else 0)


def check_whole(gpus: int, stages: int, gpus_per_node: int) -> None:
    """Raises UserError, with the nearest number that does, if GPUs do not make whole pipelines and nodes."""
    if gpus % stages:
        raise UserError(
            f"{gpus} GPUs are not a multiple of pipeline.stages {stages}; {_near(gpus, stages)} are"
        )
    if gpus > gpus_per_node and gpus % gpus_per_node:
        raise UserError(
            f"{gpus} GPUs are not whole nodes of {gpus_per_node}; {_near(gpus, gpus_per_node)} are"
        )


def _near(gpus: int, part: int) -> int:
    return max(1, round(gpus / part)) * part


def check_precision(recipe: Recipe, gpu: GPU) -> None:
    if recipe.precision not in gpu.peak:
        raise UserError(
            f"{gpu.name} does not compute in {recipe.precision}; it does in {', '.join(gpu.peak)}:"
            " use a ds_config of its own profile there"
        )


def check_fits(of: Workload, recipe: Recipe, gpus: int, gpu: GPU) -> MemoryNeed:
    """What it needs. Raises DoesNotFit with the nearest way that does fit."""
    found = need(of, recipe, gpus, gpu)
    if found.total > gpu.memory * GIB:
        near = nearest(of, recipe, gpus, gpu)
        way = (
            f"the nearest that fits: {near}"
            if near
            else "nothing near it fits; take a GPU with more memory"
        )
        raise DoesNotFit(
            f"{found.total / GIB:.1f} GiB a GPU are needed and {gpu.name} has {gpu.memory:.1f}; {way}"
        )
    return found


def nearest(of: Workload, recipe: Recipe, gpus: int, gpu: GPU) -> str | None:
    """The least felt changes after which it fits, in words; the batch stays the same."""
    for _, changes, tried in sorted(_ways(recipe), key=lambda way: way[0]):
        if need(of, tried, gpus, gpu).total <= gpu.memory * GIB:
            size = need(of, tried, gpus, gpu).total / GIB
            return f"{' and '.join(changes)} ({size:.1f} GiB)"
    return None


def _ways(recipe: Recipe) -> Iterator[tuple[int, list[str], Recipe]]:
    """(cost, what to change, the recipe then) for every combination of changes."""
    recompute = [(0, "", recipe.recompute)] + (
        [] if recipe.recompute else [(2, "activation_checkpointing", True)]
    )
    halved = [(0, "", 1), *((1 + n, "", 2**n) for n in range(1, 6) if recipe.micro % 2**n == 0)]
    split = [s for s in range(recipe.stage + 1, 4) if recipe.pipeline == 1]
    stages = [
        (0, "", recipe.stage),
        *((3 * (s - recipe.stage), f"zero_optimization.stage {s}", s) for s in split),
    ]
    offload = [(0, "", recipe.offload_optimizer)]
    if not recipe.offload_optimizer:
        offload.append((12, "zero_optimization.offload_optimizer", True))
    for (a, saving, again), (b, _, parts), (c, zero, stage), (d, moved, away) in product(
        recompute, halved, stages, offload
    ):
        if away and stage == 0:
            continue
        words = [saving, zero, moved]
        if parts > 1:
            words.append(
                f"train_micro_batch_size_per_gpu {recipe.micro // parts} with"
                f" gradient_accumulation_steps {recipe.accumulation * parts}"
            )
        changed = recipe._replace(
            recompute=again, micro=recipe.micro // parts, accumulation=recipe.accumulation * parts, stage=stage,
            offload_optimizer=away,
        )  # fmt: skip
        if changed != recipe:
            yield a + b + c + d, [w for w in words if w], changed


def largest_micro_batch(of: Workload, recipe: Recipe, gpus: int, gpu: GPU) -> int:
    """The largest power of two that fits (0 if not even one sample does)."""
    best, size = 0, 1
    while size <= 64 and need(of, recipe._replace(micro=size), gpus, gpu).total <= gpu.memory * GIB:
        best, size = size, size * 2
    return best
