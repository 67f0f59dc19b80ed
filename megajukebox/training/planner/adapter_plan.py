"""What training an adapter beside a frozen prior takes on one card: memory part by part, and hours.

Formulas, not measured on a card: docs/adapters.md says what was. A frozen weight has no gradient and no optimizer; a
step is a forward pass, its recomputation, and a backward pass to the activations alone.
"""

import torch
from pydantic import BaseModel

from megajukebox.common.errors import UserError
from megajukebox.models.adapters import shapes_of
from megajukebox.models.base_precision import STORED_BITS
from megajukebox.training.planner.activation_trace import TraceSetting
from megajukebox.training.planner.gpus import FRAGMENTATION, GIB, GPU, OUTSIDE_GIB, mfu_assumed
from megajukebox.training.planner.memory import MASTER_AND_MOMENTS
from megajukebox.training.planner.workload import CodeWorkload, PlannedStage, footprint
from megajukebox.training.settings import AdapterSettings

WEIGHT_BYTES = 2  # of what is not packed, and of the adapter: bfloat16 or float16
PASSES = 3  # of the forward pass's FLOPs: forward, recomputation, backward to the activations
# Bytes an element of the largest layer while it is unpacked: indices, values and scaled values, then 16 bits.
UNPACKING_BYTES = {"as_trained": 0, "bfloat16": 0, "int8": 4 + 2, "nf4": 4 + 4 + 4 + 2}
HOUR = 3600.0


class AdapterPlan(BaseModel):
    """One adapter on one card."""

    preset: str
    stage: str
    gpu: str
    base: str
    rank: int
    parameters: int  # of the prior
    adapter_parameters: int
    memory_gib: dict[str, float]  # by part
    needed_gib: float
    available_gib: float
    step_seconds: float
    steps: int
    hours: float
    share_from: str


def adapter_plan(
    preset: str,
    stage: PlannedStage,
    gpu: GPU,
    settings: AdapterSettings,
    steps: int,
    mfu: float | None,
) -> AdapterPlan:
    """The plan of an adapter at micro-batch 1.

    Raises:
        UserError: the stage is no prior, or it does not fit; names what does.
    """
    if not isinstance(stage.workload, CodeWorkload):
        raise UserError(f"{stage.name} takes no adapter; priors do: top_prior, or an upsampler")
    found = estimate(preset, stage, stage.workload, gpu, settings, steps, mfu)
    if found.needed_gib <= gpu.memory:
        return found
    ways = []
    for base in ("bfloat16", "int8", "nf4"):
        other = settings.model_copy(update={"base": base})
        need = estimate(preset, stage, stage.workload, gpu, other, steps, mfu).needed_gib
        if need <= gpu.memory:
            ways.append(f"--base {base} ({need:.1f} GiB)")
    way = " or ".join(ways) or "a larger card (--gpu), or ZeRO-3 over several"
    raise UserError(
        f"{stage.name} with an adapter of rank {settings.rank} and base {settings.base} needs"
        f" {found.needed_gib:.1f} GiB; {gpu.name} has {gpu.memory:.1f}: take {way}"
    )


def estimate(
    preset: str,
    stage: PlannedStage,
    workload: CodeWorkload,
    gpu: GPU,
    settings: AdapterSettings,
    steps: int,
    mfu: float | None,
) -> AdapterPlan:
    """As `adapter_plan`, whether it fits or not."""
    with torch.device("meta"):
        prior = workload.build()
    shapes = {name: tuple(p.shape) for name, p in prior.named_parameters()}
    adapter = shapes_of(settings.config, shapes)
    layers = {name.rpartition(".")[0] for name in adapter}
    sizes = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    adapted = [sizes[f"{layer}.weight"] for layer in layers]
    total = sum(sizes.values())
    learned = sum(torch.Size(shape).numel() for shape in adapter.values())
    form = "bfloat16" if settings.base == "as_trained" else settings.base
    precision = "bfloat16" if "bfloat16" in gpu.peak else "float16"
    how = TraceSetting(
        weights=precision,
        precision=precision,
        recompute=True,
        fused=True,
        cpu=False,
        gradients=False,
    )
    traced = footprint(workload, 1, how)
    parts = {
        "frozen weights": sum(adapted) * STORED_BITS[form] / 8
        + (total - sum(adapted)) * WEIGHT_BYTES,
        "adapter and optimizer": learned * (2 * WEIGHT_BYTES + MASTER_AND_MOMENTS),
        "kept inputs of layers": traced.activations,
        "one layer at work": traced.peak - traced.activations,
        "one layer unpacked": max(adapted) * UNPACKING_BYTES[settings.base],
    }
    assumed, source = mfu_assumed(gpu, stage.name, precision, bandwidth_bound=False)
    if mfu is not None:
        assumed, source = mfu, "as given"
    seconds = PASSES * traced.flops / (gpu.peak[precision] * 1e12 * assumed)
    return AdapterPlan(
        preset=preset,
        stage=stage.name,
        gpu=gpu.name,
        base=form,
        rank=settings.rank,
        parameters=total,
        adapter_parameters=learned,
        memory_gib={name: size / GIB for name, size in parts.items()},
        needed_gib=sum(parts.values()) / GIB * (1 + FRAGMENTATION) + OUTSIDE_GIB,
        available_gib=gpu.memory,
        step_seconds=seconds,
        steps=steps,
        hours=steps * seconds / HOUR,
        share_from=source,
    )
