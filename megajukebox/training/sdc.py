"""Silent corruption: a machine that holds or computes something wrong, without an error, is found, named and left.

What ranks hold alike is compared with each other, what one holds alone with its second copy, and now and then all
compute the same: a chip that multiplies wrongly leaves every copy in order.
"""

import math
from collections import Counter
from typing import NamedTuple, NoReturn

import torch

from megajukebox.common.world import host
from megajukebox.data.stream.sample_order import philox
from megajukebox.records.events import NONDETERMINISTIC, SDC, AlertRaised
from megajukebox.resilience.exit_codes import TerminateRun
from megajukebox.training.engines import collectives
from megajukebox.training.engines.zero import ZeroEngine
from megajukebox.training.run_context import RunContext
from megajukebox.training.tasks import Task


def check_replicas(run: RunContext, engine: ZeroEngine, step: int) -> None:
    """Raises Leave, naming them, if ranks do not hold the weights that they must."""
    engine.masters.compare()
    wrong = [
        rank for rank, found in enumerate(collectives.all_gather(engine.masters.found())) if found
    ]
    if wrong:
        leave(run, wrong, step, "16-bit weights of ranks {} are not their float32 masters, rounded")
    odd = (
        mismatched_ranks(collectives.all_gather(engine.replicated_hash()), engine.stages)
        if run.ranks > 1
        else []
    )
    if odd:
        leave(run, odd, step, "weights of ranks {} are not those of the other ranks")


def check_recomputed_loss(
    run: RunContext, task: Task, engine: ZeroEngine, micro_batch: dict, step: int
) -> None:
    """Raises Leave, naming them, if ranks do not get the same loss for the same micro-batch, each time.

    The micro-batch is one that a rank has just trained on, each time another one's. Nothing of the run is touched.
    """
    if not run.repeatable:
        return
    readers = task.reading.place.size
    with run.watchdog.phase("eval"):
        turn = step // run.settings.checks.recompute_check_every % readers
        shared = collectives.broadcast(turn, micro_batch if run.rank == turn else None)
        seed = int(philox(run.settings.seed, "recompute", step).random_raw()) % 2**63
        with torch.random.fork_rng([engine.device] if engine.device.type == "cuda" else []):
            first, again = (loss_here(engine, shared, seed) for _ in range(2))
    mine = (
        None
        if first is None or again is None
        else RecomputedLoss(first, again, *engine.exactness())
    )
    # Ranks of one pipeline are `readers` apart, and its last stage alone sees a loss.
    results = [result for result in collectives.all_gather(mine) if result]
    odd = mismatched_losses(results)
    losses = [[result.first.hex(), result.again.hex()] for result in results]
    if nondeterministic(results, odd):
        reason = f"{len(odd)} of {len(results)} got another loss: it does not repeat to the last bit here, so none is blamed"
        event = AlertRaised(
            kind=NONDETERMINISTIC,
            step=step,
            reason=f"{reason}; recompute_check_every does nothing from here on",
            losses=losses,
        )
        run.log.event(event)
        run.repeatable = False
    elif odd:
        what = "ranks {} do not compute the loss that others do, or not at a second time"
        wrong = [rank for rank in range(run.ranks) if rank % readers in odd]
        leave(run, wrong, step, what, losses=losses)


def loss_here(engine: ZeroEngine, micro_batch: dict, seed: int) -> float | None:
    torch.manual_seed(seed)
    return engine.loss_here(micro_batch)


def leave(
    run: RunContext, ranks: list[int], step: int, what: str, losses: list[list[str]] | None = None
) -> NoReturn:
    hosts = sorted(
        {where for rank, where in enumerate(collectives.all_gather(host())) if rank in ranks}
    )
    reason = what.format(f"{ranks} on {', '.join(hosts)}") + " (silent corruption)"
    run.log.event(AlertRaised(kind=SDC, step=step, reason=reason, hosts=hosts, losses=losses))
    raise TerminateRun(
        "corrupt", f"{reason}; start again from the last checkpoint, without those machines"
    )


def mismatched_ranks(hashes: list[int], stages: int) -> list[int]:
    """The ranks whose weights are not those of most ranks of their stage; all of a stage where there is no majority."""
    odd, beside = [], len(hashes) // stages
    for first in range(0, len(hashes), beside):
        ranks = range(first, first + beside)
        [(most, times)] = Counter(hashes[rank] for rank in ranks).most_common(1)
        known = times * 2 > beside
        odd += [rank for rank in ranks if not known or hashes[rank] != most]
    return odd


class RecomputedLoss(NamedTuple):
    """The loss of a micro-batch that all had, computed twice, on a device of some kind, and how exact that kind is."""

    first: float
    again: float
    kind: str
    tolerance: float  # relative; 0: to the last bit


def mismatched_losses(results: list[RecomputedLoss]) -> list[int]:
    """Whose numbers are not to be trusted: two at once where there should be one, or not that of most others of a kind
    (all of the kind, where there is no majority).
    """
    odd = [
        n
        for n, result in enumerate(results)
        if not alike(result.first, result.again, result.tolerance)
    ]
    steady = [n for n in range(len(results)) if n not in odd]
    for kind in {result.kind for result in results}:
        beside = [n for n in steady if results[n].kind == kind]
        near = {
            n: {
                m for m in beside if alike(results[n].first, results[m].first, results[n].tolerance)
            }
            for n in beside
        }
        most = max(near.values(), key=len, default=set())
        odd += [n for n in beside if n not in most or len(most) * 2 <= len(beside)]
    return sorted(odd)


def nondeterministic(results: list[RecomputedLoss], odd: list[int]) -> bool:
    """Whether it is rather the rule than the machines that is wrong: more than half of those that should be exact are
    `odd` (of two that disagree, each with itself). Then some kernel does not repeat to the last bit.
    """
    exact = [n for n in odd if results[n].tolerance == 0]
    if len(results) == 2:
        exact = [n for n in exact if not alike(results[n].first, results[n].again, 0)]
    return len(exact) * 2 > len(results)


def alike(a: float, b: float, tolerance: float) -> bool:
    return math.isclose(a, b, rel_tol=tolerance, abs_tol=0.0) or (math.isnan(a) and math.isnan(b))
