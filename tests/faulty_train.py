"""`train` with a fault: python tests/faulty_train.py FAULT vqvae --preset ... (or under deepspeed)."""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from megajukebox.training import loop

AT = 12  # the step (0-based) before which a fault begins
SLOW, REST = 0.15, 8.0  # seconds
# Of these; a spike is one only beside losses that have settled, and a drop of speed only below what was usual.
STARTS = {"crash": 2, "spike": 150, "slow_forward": 10, "gentle": 0, "rank_gets_slow": 60}


def late(batches: Iterator[Any], seconds: float) -> Iterator[Any]:
    time.sleep(seconds)
    yield next(batches)


@torch.no_grad()
def spike(run: Any, engine: Any, step: int) -> None:
    """The last layer of the decoder a thousand times as loud for eight steps: longer, and the run would give up."""
    loud = {STARTS["spike"]: 1e3, STARTS["spike"] + 8: 1e-3}
    for weight in list(engine.module.parameters())[-2:]:
        weight.mul_(loud.get(step, 1.0))


def nan(run: Any, engine: Any, step: int) -> None:
    if step == AT:
        engine.peak_rates = [1e30 for _ in engine.peak_rates]


@torch.no_grad()
def collapse(run: Any, engine: Any, step: int) -> None:
    """All codes but one out of reach, and none given anew."""
    if step >= AT:
        for level in engine.module.levels.values():
            book = level.codebook
            book.threshold = 1e-6
            book.vectors[1:] = 1e6
            book.counts.fill_(1.0)
            book.sums.copy_(book.vectors)


def crash(run: Any, engine: Any, step: int) -> None:
    if step == STARTS["crash"]:
        raise RuntimeError("this fault was put here")


def no_saves(run: Any, engine: Any, step: int) -> None:
    if step == AT:
        loop.Saves.begin = lambda *_: None  # type: ignore[assignment]


def slow_forward(run: Any, engine: Any, step: int) -> None:
    """Rank 1 computes slowly, as a hot GPU would; every rank tells of each step at once."""
    if step == STARTS["slow_forward"] and run.rank == 1:
        engine.module.register_forward_pre_hook(lambda *_: time.sleep(SLOW))
    run.pulse.tell()


def gentle(run: Any, engine: Any, step: int) -> None:
    """No fault: every training step rests, so that a run lasts long and takes hardly any of a CPU."""
    if step == STARTS["gentle"]:
        engine.module.register_forward_pre_hook(lambda module, _: time.sleep(REST * module.training))


CHANGES: dict[str, Callable[[Any, Any, int], None]] = {
    "spike": spike, "nan": nan, "collapse": collapse, "crash": crash, "no_saves": no_saves,
    "slow_forward": slow_forward,
    "gentle": gentle,
}  # fmt: skip
WAITS = {  # fault -> seconds that a rank's data is late at a step
    "slow_rank": lambda rank, step: 0.7 if rank == 1 and step >= AT else 0.0,
    "rank_gets_slow": lambda rank, step: 0.7 if rank == 1 and step >= STARTS["rank_gets_slow"] else 0.0,
    "slow_data": lambda rank, step: 0.7 if step >= AT else 0.0,
    "data_stall": lambda rank, step: 600.0 if step == AT else 0.0,
}


def with_fault(fault: str, told: Callable[[float], None]) -> None:
    """From now on the loop has the fault; `told` hears the time at which it begins."""
    healthy = loop.train_one_step

    def step_with_fault(run: Any, task: Any, engine: Any, batches: Any, stream: Any, step: int) -> float:
        if step == STARTS.get(fault, AT):
            told(time.time())
        if fault in CHANGES:
            CHANGES[fault](run, engine, step)
        seconds = WAITS[fault](run.rank, step) if fault in WAITS else 0.0
        return healthy(run, task, engine, late(batches, seconds) if seconds else batches, stream, step)

    loop.train_one_step = step_with_fault  # type: ignore[assignment]


def note(path: Path, when: float) -> None:
    with path.open("a") as file:
        file.write(f"{when}\n")


if __name__ == "__main__":
    import typer

    from megajukebox.train import main

    name = sys.argv.pop(1) if not sys.argv[1].startswith("--") else sys.argv.pop(2)  # deepspeed puts its own first
    out = sys.argv[sys.argv.index("--out") + 1]
    with_fault(name, lambda when: note(Path(out) / "fault_began", when))
    typer.run(main)
