"""Bytes on each GPU, part by part, at the moments that may be the fullest: as DeepSpeed 0.19
allocates them.

    weights      what the model computes with, and under ZeRO-3 the whole layers gathered for the moment
    gradients    of the weights                          optimizer    float32 weights and Adam's two moments
    buffers      in which ranks exchange gradients       activations  kept by the forward pass for the backward pass
    temporary    what single operations need, and Adam while it steps

`backward` is the fullest moment of forward and backward, `update` that of the optimizer. Formulas
from its sources (runtime/zero/stage_1_and_2.py, stage3.py, fp16/unfused_optimizer.py,
bf16_optimizer.py) for torch's AdamW.
"""

from typing import NamedTuple

from megajukebox.training.planner.activation_trace import TracedPass
from megajukebox.training.planner.recipe import Recipe

PARTS = ("weights", "gradients", "optimizer", "buffers", "activations", "temporary")
Parts = dict[str, float]
NOTHING: Parts = dict.fromkeys(PARTS, 0.0)
ALLREDUCE = 500_000_000  # elements that ZeRO-0 joins for one all-reduce
# Bytes of one weight: in float32, of Adam's two moments, and of those with the float32 weight
# (master weight).
FLOAT32 = 4
MOMENTS = 8
MASTER_AND_MOMENTS = 12


class Weights(NamedTuple):
    """Of one pipeline stage, in elements."""

    total: int
    largest: int  # the largest single tensor
    small: int  # of tensors small enough that ZeRO-3 leaves them whole on every rank


def moments(
    recipe: Recipe, weights: Weights, ranks: int, traced: TracedPass, on_gpu: bool
) -> dict[str, Parts]:
    """{"backward": bytes by part, "update": bytes by part} of each of `ranks` data-parallel ranks."""
    # The first stage of a pipeline keeps its share of the layers, for as many micro-batches as are
    # under way.
    stages = recipe.pipeline
    kept = traced.activations * min(stages, recipe.accumulation) // stages
    peak = kept + traced.peak - traced.activations
    traced = TracedPass(kept, peak, traced.flops // stages, traced.frozen_flops // stages)
    if recipe.stage == 0:
        return _zero_0(recipe, weights, traced, on_gpu)
    if recipe.stage < 3:
        return _zero_1_and_2(recipe, weights, ranks, traced, on_gpu)
    return _zero_3(recipe, weights, ranks, traced, on_gpu)


def adam_temporaries(elements: int, largest: int, on_gpu: bool) -> float:
    """Two copies of what is stepped at once: on CPUs tensor by tensor; on GPUs all together, one
    copy and in place.
    """
    return FLOAT32 * elements if on_gpu else 2 * FLOAT32 * largest


def keeps_gradients(recipe: Recipe) -> bool:
    """Whether a gradient stays where the backward pass made it, or is moved away (into a bucket, a
    sum, a share).
    """
    same_bytes = recipe.gradient_bytes in (None, recipe.weight_bytes)
    return recipe.stage == 0 or (recipe.stage == 1 and same_bytes)


def gradients_grow(recipe: Recipe) -> bool:
    """Whether they stay and none is there when the backward pass begins: then the pass itself shows
    how many there are.

    With several micro-batches those of the first are all there when the second begins.
    """
    return keeps_gradients(recipe) and recipe.accumulation == 1 and recipe.pipeline == 1


def copied_to_reduce(recipe: Recipe, bucket: int) -> int:
    """A bucket of gradients in the precision that ranks sum it in, where that is another."""
    is_copied = recipe.reduced_bytes != recipe.weight_bytes
    return recipe.reduced_bytes * bucket if is_copied else 0


def _backward(recipe: Recipe, weights: Weights, traced: TracedPass, static: Parts) -> Parts:
    """Forward and backward on top of `static`; gradients that grow are among what the pass was seen
    to need.
    """
    gradients = static["gradients"]
    if keeps_gradients(recipe) and not gradients_grow(recipe):
        gradients = recipe.weight_bytes * weights.total
    return static | {
        "gradients": gradients,
        "activations": traced.activations,
        "temporary": traced.peak - traced.activations,
    }


def _zero_0(recipe: Recipe, weights: Weights, traced: TracedPass, on_gpu: bool) -> dict[str, Parts]:
    """Everything on every rank; in half precision beside float32 weights."""
    size = recipe.weight_bytes
    n = weights.total
    optimizer = MOMENTS * n
    stepping = adam_temporaries(n, weights.largest, on_gpu)
    if size == 2:
        optimizer = MASTER_AND_MOMENTS * n
        stepping += FLOAT32 * n
    static = NOTHING | {"weights": size * n, "optimizer": optimizer}
    update = static | {"gradients": size * n}
    # Gradients joined for the all-reduce, also on a single rank: made after the backward pass, gone
    # before Adam steps.
    joined = size * min(n, ALLREDUCE)
    if joined > stepping:
        update["buffers"] = joined
    else:
        update["temporary"] = stepping
    return {"backward": _backward(recipe, weights, traced, static), "update": update}


def _zero_1_and_2(
    recipe: Recipe, weights: Weights, ranks: int, traced: TracedPass, on_gpu: bool
) -> dict[str, Parts]:
    """Each rank steps its share of one flat vector; ZeRO-2 also keeps only that share's gradients."""
    size = recipe.weight_bytes
    n = weights.total
    share = n / ranks
    accumulated = recipe.gradient_bytes or size
    optimizer = 0 if recipe.offload_optimizer else MASTER_AND_MOMENTS * share
    static = NOTHING | {"weights": size * n, "optimizer": optimizer}
    adam = adam_temporaries(int(share), int(share), on_gpu)
    # Float32 sums of bfloat16 gradients stay for as long as the run lasts.
    if accumulated != size and recipe.stage == 1:
        static |= {"gradients": accumulated * n}
        backward = _backward(recipe, weights, traced, static)
        return {"backward": backward, "update": static | {"temporary": adam}}
    exchange = 0
    if recipe.contiguous:
        # A CPU's pages count once they are touched.
        bucket = recipe.bucket if on_gpu else min(recipe.bucket, n)
        exchange = size * bucket * (2 if recipe.overlap else 1) + copied_to_reduce(recipe, bucket)
    own = accumulated * share
    backward = static | {"buffers": exchange, "gradients": own if recipe.stage == 2 else 0}
    stepping = 0.0
    if not recipe.offload_optimizer:
        # The rank's gradients are joined, then made float32, then stepped.
        converting = own + (FLOAT32 * share if size == 2 else 0)
        stepping = max(converting, FLOAT32 * share + adam - own)
    update = static | {"gradients": own, "temporary": stepping}
    return {"backward": _backward(recipe, weights, traced, backward), "update": update}


def _zero_3(
    recipe: Recipe, weights: Weights, ranks: int, traced: TracedPass, on_gpu: bool
) -> dict[str, Parts]:
    """A rank owns its share of every weight; layers are gathered when they are needed."""
    size = recipe.weight_bytes
    n = weights.total
    share = (n - weights.small) / ranks + weights.small / ranks
    kept_whole = size * weights.small
    # A layer stays if it is needed again soon: after the forward pass the last ones are, for the
    # backward pass.
    live = size * min(n - weights.small, max(min(recipe.live, recipe.reuse // 2), weights.largest))
    fetched = size * min(n, max(recipe.prefetch, weights.largest))
    bucket = recipe.bucket if on_gpu else min(recipe.bucket, n)
    offloaded = recipe.offload_optimizer
    static = NOTHING | {
        "weights": kept_whole + (0 if recipe.offload_weights else size * share),
        "optimizer": 0 if offloaded else MASTER_AND_MOMENTS * share,
        "gradients": 0 if offloaded else (recipe.gradient_bytes or size) * share,
        "buffers": size * bucket + copied_to_reduce(recipe, bucket) if recipe.contiguous else 0,
    }
    backward = _backward(recipe, weights, traced, static)
    backward["weights"] += live
    backward["buffers"] += fetched
    stepping = 0.0
    if not offloaded:
        joined = (FLOAT32 + size if size == 2 else size) * share
        adam = FLOAT32 * share + adam_temporaries(int(share), int(share), on_gpu)
        stepping = max(joined, adam) * min(1, recipe.group / share)
    return {"backward": backward, "update": static | {"temporary": stepping}}


def on_host(recipe: Recipe, weights: Weights, ranks: int) -> float:
    """Bytes of a rank's share that are offloaded to its machine's memory."""
    share = weights.total / ranks
    offloaded = 0.0
    if recipe.offload_optimizer:  # float32 weights and moments, and the gradient in both precisions
        offloaded += (MASTER_AND_MOMENTS + FLOAT32 + recipe.weight_bytes) * share
    if recipe.offload_weights:
        offloaded += recipe.weight_bytes * share
    return offloaded


def checkpoint_bytes(recipe: Recipe, elements: int) -> float:
    """Of one checkpoint: weights, and float32 weights with Adam's moments (under ZeRO-0 in float32
    only once).
    """
    single = recipe.stage == 0 and recipe.weight_bytes == FLOAT32
    return elements * (MASTER_AND_MOMENTS + (0 if single else recipe.weight_bytes))
