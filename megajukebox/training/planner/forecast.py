"""How long a run will take, and how many times something will break in it."""

import math
from typing import NamedTuple

from megajukebox.training.planner.gpus import GPU
from megajukebox.training.planner.recipe import Recipe

DAY = 86400.0
# Failures of 1000 nodes in a day, as reported: little, the fleet of Meta's RSC, and BLOOM's and
# OPT's bad weeks.
FAILURES_PER_1000_NODE_DAYS = (3.0, 6.5, 16.0)


class Pace(NamedTuple):
    """Seconds of one step."""

    compute: float  # at the assumed share of the peak
    waiting: float  # of `compute`, in which a pipeline fills and drains
    network: float  # the least that exchanging weights and gradients takes; it can go on beside computing

    @property
    def step(self) -> float:
        """Seconds of a step: the slower of computing and exchanging, which go on side by side."""
        return max(self.compute, self.network)

    @property
    def bound_by(self) -> str:
        return "network" if self.network > self.compute else "compute"


def pace(recipe: Recipe, gpus: int, flops: float, elements: int, gpu: GPU, mfu: float) -> Pace:
    """`flops`: of forward and backward of one micro-batch through the whole model of `elements`
    weights.
    """
    rate = gpu.peak[recipe.precision] * 1e12 * mfu
    working = flops * recipe.accumulation / recipe.pipeline / rate
    waiting = working * (recipe.pipeline - 1) / recipe.accumulation
    return Pace(
        working + waiting,
        waiting,
        exchanged(recipe, gpus, elements, gpu.gpus_per_node) / (gpu.network * 1e9),
    )


def exchanged(recipe: Recipe, gpus: int, elements: int, gpus_per_node: int) -> float:
    """Bytes that pass each node's network in a step: gradients out and weights in, once a ring.

    ZeRO-3 gathers the weights twice and scatters gradients once, for every micro-batch; pipeline
    stages of one node each exchange their own part, which is together the whole model if a node
    holds them all.
    """
    ranks = recipe.data_ranks(gpus)
    if gpus <= gpus_per_node or ranks == 1:
        return 0.0
    if recipe.stage == 3:
        of_a_weight = (2 * recipe.weight_bytes + recipe.reduced_bytes) * recipe.accumulation
    elif recipe.stage:
        of_a_weight = recipe.weight_bytes + recipe.reduced_bytes
    else:
        of_a_weight = 2 * recipe.reduced_bytes
    of_the_model = min(recipe.pipeline, gpus_per_node) / recipe.pipeline
    return of_a_weight * elements * of_the_model * (ranks - 1) / ranks


class Failures(NamedTuple):
    """What a run meets at one rate of failures."""

    per_1000_node_days: float
    expected: float
    interval: float  # seconds between checkpoints that lose the least
    ettr: float  # share of the time in which it trains; 0 where it hardly ever comes back before it fails again


MIN_ETTR = 0.001  # below it a run of weeks would take decades


def failures(nodes: float, days: float, rate: float, save: float, restart: float) -> Failures:
    """Of `rate` failures of 1000 nodes in a day. Durations in seconds.

    A save stops training for `save` seconds, a failure for `restart`, and what is not in a
    checkpoint is lost. A checkpoint every sqrt(2 save MTBF) seconds of training loses the least
    (Young 1974). Such an interval takes MTBF exp(restart / MTBF) (exp((interval + save) / MTBF) - 1)
    by the clock, failures of saves and restarts included (Daly 2006). Simulated, failure by
    failure: benchmarks/goodput.py.
    """
    between = DAY * 1000 / (rate * nodes)
    interval = (2 * save * between) ** 0.5
    segment = (interval + save) / between
    # 1 / (exp(x) - 1), which overflows, is exp(-x) / (1 - exp(-x)).
    ettr = interval / between * math.exp(-restart / between - segment) / -math.expm1(-segment)
    return Failures(rate, rate * nodes * days / 1000, interval, ettr if ettr >= MIN_ETTR else 0.0)
