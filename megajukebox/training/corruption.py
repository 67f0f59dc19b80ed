"""Silent corruption: a machine that holds or computes something wrong, without an error, is found, named and left.

What ranks hold alike is compared with each other, what one holds alone with its second copy, and now and then all
compute the same: a chip that multiplies wrongly leaves every copy in order.
"""

from typing import NoReturn

import torch

from megajukebox.data.stream.order import philox
from megajukebox.training.copies import Result, doubtful, odd_ranks, odd_results
from megajukebox.training.engines import parallel
from megajukebox.training.engines.engine import Engine
from megajukebox.training.launch import host
from megajukebox.training.run import Run
from megajukebox.training.survival.exits import Leave
from megajukebox.training.tasks import Task


def check_memory(run: Run, engine: Engine, step: int) -> None:
    """Raises Leave, naming them, if ranks do not hold the weights that they must."""
    engine.masters.compare()
    wrong = [rank for rank, found in enumerate(parallel.gathered(engine.masters.found())) if found]
    if wrong:
        leave(run, wrong, step, "16-bit weights of ranks {} are not their float32 masters, rounded")
    odd = odd_ranks(parallel.gathered(engine.replicated_hash()), engine.stages) if run.ranks > 1 else []
    if odd:
        leave(run, odd, step, "weights of ranks {} are not those of the other ranks")


def check_results(run: Run, task: Task, engine: Engine, micro_batch: dict, step: int) -> None:
    """Raises Leave, naming them, if ranks do not get the same loss for the same micro-batch, each time.

    The micro-batch is one that a rank has just trained on, each time another one's. Nothing of the run is touched.
    """
    if not run.repeatable:
        return
    readers = task.reading.place.size
    with run.pulse.section("evaluate"):
        turn = step // run.settings.recompute_every % readers
        shared = parallel.from_rank(turn, micro_batch if run.rank == turn else None)
        seed = int(philox(run.settings.seed, "recompute", step).random_raw()) % 2**63
        with torch.random.fork_rng([engine.device] if engine.device.type == "cuda" else []):
            first, again = (loss_here(engine, shared, seed) for _ in range(2))
    mine = None if first is None or again is None else Result(first, again, *engine.exactness())
    # Ranks of one pipeline are `readers` apart, and its last stage alone sees a loss.
    results = [result for result in parallel.gathered(mine) if result]
    odd = odd_results(results)
    losses = [[result.first.hex(), result.again.hex()] for result in results]
    if doubtful(results, odd):
        reason = (
            f"{len(odd)} of {len(results)} got another loss: it does not repeat to the last bit here, so none is blamed"
        )
        run.log.event("alert", step, reason=f"{reason}; recompute_every does nothing from here on", losses=losses)
        run.repeatable = False
    elif odd:
        what = "ranks {} do not compute the loss that others do, or not at a second time"
        wrong = [rank for rank in range(run.ranks) if rank % readers in odd]
        leave(run, wrong, step, what, losses=losses)


def loss_here(engine: Engine, micro_batch: dict, seed: int) -> float | None:
    torch.manual_seed(seed)
    return engine.loss_here(micro_batch)


def leave(run: Run, ranks: list[int], step: int, what: str, **facts: object) -> NoReturn:
    hosts = sorted({where for rank, where in enumerate(parallel.gathered(host())) if rank in ranks})
    reason = what.format(f"{ranks} on {', '.join(hosts)}") + " (silent corruption)"
    run.log.event("alert", step, reason=reason, hosts=hosts, **facts)
    raise Leave("corrupt", f"{reason}; start again from the last checkpoint, without those machines")
