"""Bytes on each GPU, part by part, at the moments that may be the fullest: as DeepSpeed 0.19 allocates them.

    weights      what the model computes with, and under ZeRO-3 the whole layers gathered for the moment
    gradients    of the weights                          optimizer    float32 weights and Adam's two moments
    buffers      in which ranks exchange gradients       activations  kept by the forward pass for the backward pass
    temporary    what single operations need, and Adam while it steps

`backward` is the fullest moment of forward and backward, `update` that of the optimizer. Formulas from its
sources (runtime/zero/stage_1_and_2.py, stage3.py, fp16/unfused_optimizer.py, bf16_optimizer.py) for torch's AdamW.
"""

from typing import NamedTuple

from megajukebox.training.planner.activation_trace import TracedPass
from megajukebox.training.planner.recipe import Recipe

PARTS = ("weights", "gradients", "optimizer", "buffers", "activations", "temporary")
Parts = dict[str, float]
ALLREDUCE = 500_000_000  # elements that ZeRO-0 joins for one all-reduce


class Weights(NamedTuple):
    """Of one pipeline stage, in elements."""

    total: int
    largest: int  # the largest single tensor
    small: int  # of tensors small enough that ZeRO-3 leaves them whole on every rank


def moments(
    recipe: Recipe, weights: Weights, ranks: int, run: TracedPass, on_gpu: bool
) -> dict[str, Parts]:
    """{"backward": bytes by part, "update": bytes by part} of each of `ranks` data-parallel ranks."""
    run = in_flight(run, recipe)
    if recipe.stage == 0:
        return _whole(recipe, weights, run, on_gpu)
    if recipe.stage < 3:
        return _split_optimizer(recipe, weights, ranks, run, on_gpu)
    return _split_weights(recipe, weights, ranks, run, on_gpu)


def in_flight(run: TracedPass, recipe: Recipe) -> TracedPass:
    """What the first stage of a pipeline keeps: its share of the layers, for as many micro-batches as are under way."""
    stages = recipe.pipeline
    kept = run.activations * min(stages, recipe.accumulation) // stages
    return TracedPass(kept, kept + run.peak - run.activations, run.flops // stages)


def _parts(**bytes_by_part: float) -> Parts:
    return {**dict.fromkeys(PARTS, 0.0), **bytes_by_part}


def adam_temporaries(elements: int, largest: int, on_gpu: bool) -> float:
    """Two copies of what is stepped at once: on CPUs tensor by tensor; on GPUs all together, one copy and in place."""
    return 4 * elements if on_gpu else 8 * largest


def keeps_gradients(recipe: Recipe) -> bool:
    """Whether a gradient stays where the backward pass made it, or is moved away (into a bucket, a sum, a share)."""
    return recipe.stage == 0 or (
        recipe.stage == 1 and recipe.gradient_bytes in (None, recipe.weight_bytes)
    )


def gradients_grow(recipe: Recipe) -> bool:
    """Whether they stay and none is there when the backward pass begins: then the pass itself shows how many there are.

    With several micro-batches those of the first are all there when the second begins.
    """
    return keeps_gradients(recipe) and recipe.accumulation == 1 and recipe.pipeline == 1


def _backward(recipe: Recipe, weights: Weights, run: TracedPass, static: Parts) -> Parts:
    """Forward and backward on top of `static`; gradients that grow are among what the pass was seen to need."""
    whole = keeps_gradients(recipe) and not gradients_grow(recipe)
    gradients = recipe.weight_bytes * weights.total if whole else static["gradients"]
    temporary = run.peak - run.activations
    return static | {"gradients": gradients, "activations": run.activations, "temporary": temporary}


def _whole(recipe: Recipe, weights: Weights, run: TracedPass, on_gpu: bool) -> dict[str, Parts]:
    """ZeRO-0: everything on every rank; in half precision beside float32 weights."""
    half, n = recipe.weight_bytes == 2, weights.total
    static = _parts(weights=recipe.weight_bytes * n, optimizer=(12 if half else 8) * n)
    joined = recipe.weight_bytes * min(n, ALLREDUCE)  # also on a single rank
    stepping = adam_temporaries(n, weights.largest, on_gpu) + (4 * n if half else 0)
    gradients = {"gradients": recipe.weight_bytes * n}
    # The joined copy is made after the backward pass and gone before Adam steps.
    update = (
        static | gradients | ({"buffers": joined} if joined > stepping else {"temporary": stepping})
    )
    return {"backward": _backward(recipe, weights, run, static), "update": update}


def _split_optimizer(
    recipe: Recipe, weights: Weights, ranks: int, run: TracedPass, on_gpu: bool
) -> dict[str, Parts]:
    """ZeRO-1 and 2: each rank steps its share of one flat vector; ZeRO-2 also keeps only that share's gradients."""
    size, n = recipe.weight_bytes, weights.total
    share = n / ranks
    accumulated = recipe.gradient_bytes or size
    separate = (
        accumulated != size
    )  # float32 sums of bfloat16 gradients, for as long as the run lasts
    static = _parts(weights=size * n, optimizer=0 if recipe.offload_optimizer else 12 * share)
    bucket = (
        recipe.bucket if on_gpu else min(recipe.bucket, n)
    )  # a CPU's pages count once they are touched
    if separate and recipe.stage == 1:
        static |= {"gradients": accumulated * n}
        backward = _backward(recipe, weights, run, static)
        stepping = adam_temporaries(int(share), int(share), on_gpu)
        return {"backward": backward, "update": static | {"temporary": stepping}}
    exchange = size * bucket * (2 if recipe.overlap else 1) if recipe.contiguous else 0
    backward = static | {
        "buffers": exchange,
        "gradients": accumulated * share if recipe.stage == 2 else 0,
    }
    own = accumulated * share
    # The rank's gradients are joined, then made float32, then stepped.
    stepping = max(
        own + (4 * share if size == 2 else 0),
        4 * share + adam_temporaries(int(share), int(share), on_gpu) - own,
    )
    stepping = 0 if recipe.offload_optimizer else stepping
    update = static | {"gradients": own, "temporary": stepping}
    return {"backward": _backward(recipe, weights, run, backward), "update": update}


def _split_weights(
    recipe: Recipe, weights: Weights, ranks: int, run: TracedPass, on_gpu: bool
) -> dict[str, Parts]:
    """ZeRO-3: a rank owns its share of every weight; layers are gathered when they are needed."""
    size, n = recipe.weight_bytes, weights.total
    share = (n - weights.small) / ranks + weights.small / ranks
    kept_whole = size * weights.small
    # A layer stays if it is needed again soon: after the forward pass the last ones are, for the backward pass.
    live = size * min(n - weights.small, max(min(recipe.live, recipe.reuse // 2), weights.largest))
    fetched = size * min(n, max(recipe.prefetch, weights.largest))
    bucket = recipe.bucket if on_gpu else min(recipe.bucket, n)
    offloaded = recipe.offload_optimizer
    static = _parts(
        weights=kept_whole + (0 if recipe.offload_weights else size * share),
        optimizer=0 if offloaded else 12 * share,
        gradients=0 if offloaded else (recipe.gradient_bytes or size) * share,
        buffers=size * bucket if recipe.contiguous else 0,
    )  # fmt: skip
    backward = _backward(recipe, weights, run, static)
    backward["weights"] += live
    backward["buffers"] += fetched
    joined = (4 + size if size == 2 else size) * share
    stepping = max(joined, 4 * share + adam_temporaries(int(share), int(share), on_gpu)) * min(
        1, recipe.group / share
    )
    return {"backward": backward, "update": static | {"temporary": 0 if offloaded else stepping}}


def on_host(recipe: Recipe, weights: Weights, ranks: int) -> float:
    """Bytes of a rank's share that are offloaded to its machine's memory."""
    share = weights.total / ranks
    optimizer = (12 + 4 + recipe.weight_bytes) * share if recipe.offload_optimizer else 0
    return optimizer + (recipe.weight_bytes * share if recipe.offload_weights else 0)


def checkpoint_bytes(recipe: Recipe, elements: int) -> float:
    """Of one checkpoint: weights, and float32 weights with Adam's moments (under ZeRO-0 in float32 only once)."""
    single = recipe.stage == 0 and recipe.weight_bytes == 4
    return elements * (12 if single else 12 + recipe.weight_bytes)
