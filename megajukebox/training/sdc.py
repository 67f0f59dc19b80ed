"""Silent data corruption (SDC): a machine that holds or computes something wrong, without an error, is found and left.

Replicas are compared with each other, what one rank holds alone with its second copy, and now and then all ranks
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

SEEDS = 2**63  # torch takes seeds below it


class RecomputedLoss(NamedTuple):
    """The loss of a micro-batch that all had, computed twice, on a device of some kind, and how exact that kind is."""

    first: float
    again: float
    kind: str
    tolerance: float  # relative; 0: to the last bit


def check_replicas(run: RunContext, engine: ZeroEngine, step: int) -> None:
    """Compare the weights that ranks must hold alike, and each rank's 16-bit weights with its master weights.

    Raises:
        TerminateRun: some ranks hold others than they must; it names them and their hosts.
    """
    engine.masters.compare()
    differences = collectives.all_gather(engine.masters.found())
    wrong = [rank for rank, count in enumerate(differences) if count]
    if wrong:
        report_corruption(
            run, wrong, step, "16-bit weights of ranks {} are not their float32 masters, rounded"
        )
    if run.ranks == 1:
        return
    hashes = collectives.all_gather(engine.replicated_hash())
    mismatched = mismatched_ranks(hashes, engine.stages)
    if mismatched:
        report_corruption(
            run, mismatched, step, "weights of ranks {} are not those of the other ranks"
        )


def check_recomputed_loss(
    run: RunContext, task: Task, engine: ZeroEngine, micro_batch: dict, step: int
) -> None:
    """Let all ranks compute the loss of one micro-batch, twice, and compare; nothing of the run is changed.

    The micro-batch is one that a rank has just trained on, each time another rank's.

    Raises:
        TerminateRun: some ranks get another loss, or not the same one twice; it names them and their hosts.
    """
    if not run.is_deterministic:
        return
    readers = task.reading.world.size
    every = run.settings.checks.recompute_check_every
    with run.watchdog.phase("eval"):
        source = step // every % readers
        shared = collectives.broadcast_batch(source, micro_batch if run.rank == source else None)
        own = recompute(run, engine, shared, step)
    # Ranks of one pipeline are `readers` apart, and its last stage alone sees a loss.
    gathered = collectives.all_gather(None if own is None else list(own))
    results = [RecomputedLoss(*loss) for loss in gathered if loss is not None]
    mismatched = mismatched_losses(results)
    losses = [[result.first.hex(), result.again.hex()] for result in results]
    if nondeterministic(results, mismatched):
        reason = (
            f"{len(mismatched)} of {len(results)} got another loss: it does not repeat to the last bit here,"
            " so none is blamed; recompute_check_every does nothing from here on"
        )
        alert = AlertRaised(kind=NONDETERMINISTIC, step=step, reason=reason, losses=losses)
        run.log.event(alert)
        run.is_deterministic = False
    elif mismatched:
        wrong = [rank for rank in range(run.ranks) if rank % readers in mismatched]
        what = "ranks {} do not compute the loss that others do, or not at a second time"
        report_corruption(run, wrong, step, what, losses)


def recompute(
    run: RunContext, engine: ZeroEngine, micro_batch: dict, step: int
) -> RecomputedLoss | None:
    """The loss of `micro_batch` on this rank, twice from the same seed; None on a stage that sees no loss."""
    seed = int(philox(run.settings.seed, "recompute", step).random_raw()) % SEEDS
    losses = []
    with torch.random.fork_rng([engine.device] if engine.device.type == "cuda" else []):
        for _ in range(2):
            torch.manual_seed(seed)
            losses.append(engine.loss_here(micro_batch))
    first, again = losses
    if first is None or again is None:
        return None
    return RecomputedLoss(first, again, *engine.exactness())


def report_corruption(
    run: RunContext, ranks: list[int], step: int, what: str, losses: list[list[str]] | None = None
) -> NoReturn:
    """Raise the alert of corrupted `ranks` and end the run; `what` has a place for their names.

    Raises:
        TerminateRun: always.
    """
    hosts_of_ranks = collectives.all_gather(host())
    hosts = sorted({hosts_of_ranks[rank] for rank in ranks})
    reason = what.format(f"{ranks} on {', '.join(hosts)}") + " (silent corruption)"
    run.log.event(AlertRaised(kind=SDC, step=step, reason=reason, hosts=hosts, losses=losses))
    raise TerminateRun(
        "corrupt", f"{reason}; start again from the last checkpoint, without those machines"
    )


def mismatched_ranks(hashes: list[int], stages: int) -> list[int]:
    """The ranks whose weights are not those of most ranks of their stage; all of a stage where there is no majority."""
    mismatched: list[int] = []
    ranks_per_stage = len(hashes) // stages
    for first in range(0, len(hashes), ranks_per_stage):
        ranks = range(first, first + ranks_per_stage)
        [(majority, votes)] = Counter(hashes[rank] for rank in ranks).most_common(1)
        has_majority = votes * 2 > ranks_per_stage
        for rank in ranks:
            if not has_majority or hashes[rank] != majority:
                mismatched.append(rank)
    return mismatched


def mismatched_losses(results: list[RecomputedLoss]) -> list[int]:
    """Which results are wrong: two losses where there should be one, or not that of most others of the same kind.

    All of a kind are wrong where there is no majority.
    """
    mismatched = []
    steady_by_kind: dict[str, list[int]] = {}
    for number, result in enumerate(results):
        if is_alike(result.first, result.again, result.tolerance):
            steady_by_kind.setdefault(result.kind, []).append(number)
        else:
            mismatched.append(number)
    for steady in steady_by_kind.values():
        majority = largest_group(results, steady)
        has_majority = len(majority) * 2 > len(steady)
        mismatched += sorted(set(steady) - majority) if has_majority else steady
    return sorted(mismatched)


def largest_group(results: list[RecomputedLoss], numbers: list[int]) -> set[int]:
    """The most of `numbers` whose losses are alike; of two as large, the first."""
    largest: set[int] = set()
    for number in numbers:
        one = results[number]
        group = set()
        for other in numbers:
            if is_alike(one.first, results[other].first, one.tolerance):
                group.add(other)
        if len(group) > len(largest):
            largest = group
    return largest


def nondeterministic(results: list[RecomputedLoss], mismatched: list[int]) -> bool:
    """Whether a kernel that does not repeat to the last bit explains the mismatch, rather than a broken machine.

    So it is if more than half of those that should be exact are mismatched (of two, each with itself).
    """
    exact = 0
    for number in mismatched:
        one = results[number]
        is_steady = len(results) == 2 and is_alike(one.first, one.again, 0)
        if one.tolerance == 0 and not is_steady:
            exact += 1
    return exact * 2 > len(results)


def is_alike(a: float, b: float, tolerance: float) -> bool:
    """Whether two losses are equal within the relative `tolerance`; NaN is like NaN."""
    both_nan = math.isnan(a) and math.isnan(b)
    return both_nan or math.isclose(a, b, rel_tol=tolerance, abs_tol=0.0)
