"""From the global order to batches: the stages of a WebDataset pipeline, run by a DataLoader, resumable at any step.

    positions --source--> samples --micro_batches--> micro-batches --steps--> one list of micro-batches a step

A source (SongClips, CodeWindows) says which clips there are and reads one; `Order` says which comes when. Worker k of w
reads the whole steps k, k + w, ...; the DataLoader takes the workers in turn, so steps arrive in order for any w.
What cannot be read is replaced (skips.py); workers that hang or die are dealt with in loading.py.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice
from typing import Any, Protocol

import numpy as np
import torch
import webdataset

from megajukebox.data.shards.remote import ShardUnavailable
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.stream.bad_samples import (
    BadSample,
    BadSampleCounter,
    OnBad,
    StorageUnavailable,
    reason_of,
    too_many,
)
from megajukebox.data.stream.sample_order import InOrder, Order, rng, slots
from megajukebox.data.stream.song_dataset import Part
from megajukebox.data.stream.worker_pool import ALONE, PrefetchedSteps, ReadAhead, WorkerStatus

STATE_VERSION = 1
ATTEMPTS = 100  # candidates tried in place of a broken clip
REASON = 500  # letters of a reason that are kept

Batch = dict[str, Any]  # name -> tensor [micro_batch, ...], or "conditions" -> such a dict


class ClipSource(Protocol):
    """The clips of a shard set."""

    shards: ShardSet
    shard_of_song: np.ndarray  # [songs]

    def clips(self, part: Part) -> np.ndarray: ...

    def facts(self) -> dict[str, object]: ...

    def report(self) -> dict[str, int]: ...

    def read(self, song: int, clip: int, rng: np.random.Generator | None) -> dict[str, Any]: ...


@dataclass(frozen=True)
class BatchPlan:
    """Which positions one rank reads, and how: `steps` None is for ever; without `seed` nothing is random."""

    global_batch: int
    micro_batch: int
    rank: int
    world: int
    first_step: int = 0
    steps: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        per_pass = self.micro_batch * self.world
        if self.micro_batch < 1 or self.global_batch < 1 or self.global_batch % per_pass:
            raise ValueError(
                f"global batch {self.global_batch} is not micro batch {self.micro_batch} x accumulation x "
                f"{self.world} ranks; set it to {max(1, self.global_batch // max(1, per_pass)) * max(1, per_pass)}"
            )

    @property
    def accumulation(self) -> int:
        return self.global_batch // (self.micro_batch * self.world)


@dataclass(frozen=True)
class TrainingStep:
    """What one rank reads for one step."""

    step: int
    micro_batches: list[Batch]
    bad: list[BadSample]


def samples(
    source: ClipSource,
    order: Order | InOrder,
    plan: BatchPlan,
    board: WorkerStatus,
    left_out: frozenset[int] = frozenset(),
) -> Iterator[Batch]:
    """The source stage: every slot of this worker's steps as a sample, in order; never of the songs `left_out`."""
    worker, stride = this_worker()
    board.begin(worker, os.getpid())
    steps = (
        count(plan.first_step)
        if plan.steps is None
        else range(plan.first_step, plan.first_step + plan.steps)
    )
    block = None
    for step in islice(steps, worker, None, stride):
        for position in map(int, slots(step, plan.rank, plan.world, plan.global_batch)):
            if order.block_at(position) != block:
                block = order.block_at(position)
                source.shards.prefetch(order.shards_from(block))
            sample = readable(
                source, order, position, plan.seed, partial(board.note, worker), left_out
            )
            yield {"__key__": str(position), "step": step, **sample}


def this_worker() -> tuple[int, int]:
    """(number of this worker, how many there are)."""
    worker = torch.utils.data.get_worker_info()
    return (worker.id, worker.num_workers) if worker else (0, 1)


def readable(
    source: ClipSource,
    order: Order | InOrder,
    position: int,
    seed: int | None,
    note: Callable[[int, int], None] | None = None,
    left_out: frozenset[int] = frozenset(),
) -> Batch:
    """{"sample", "bad"} at `position`: its clip, or the first candidate in its place that can be read."""
    bad: list[BadSample] = []
    for attempt in range(min(ATTEMPTS, order.clips)):
        _, song, clip = order.locate(order.candidate(position, attempt))
        if note:
            note(position, song)
        try:
            if song in left_out:
                raise ValueError("crashed: the processes that read it died")
            sample = source.read(song, clip, None if seed is None else rng(seed, "clip", position))
            return {"sample": sample, "bad": bad}
        except (ValueError, OSError, MemoryError) as error:
            bad.append(
                BadSample(
                    shard_name(source, song), source.shards.key(song), reason_of(error)[:REASON]
                )
            )
    raise too_many(Counter(one.kind for one in bad))(
        f"too many bad samples: none of {len(bad)} clips at position {position} could be read, the last of song "
        f"{bad[-1].key} in {bad[-1].shard} ({bad[-1].reason}); check the shards and the disk they lie on"
    )


def shard_name(source: ClipSource, song: int) -> str:
    return source.shards.index["shards"][int(source.shard_of_song[song])]["name"]


def micro_batches(read: Iterator[Batch], size: int) -> Iterator[TrainingStep]:
    """`size` samples after `size` samples, stacked."""
    while group := list(islice(read, size)):
        stacked = stack([sample["sample"] for sample in group])
        yield TrainingStep(
            group[0]["step"], [stacked], [bad for sample in group for bad in sample["bad"]]
        )


def whole_steps(parts: Iterator[TrainingStep], accumulation: int) -> Iterator[TrainingStep]:
    """The micro-batches of each step together."""
    while group := list(islice(parts, accumulation)):
        batches = [batch for part in group for batch in part.micro_batches]
        yield TrainingStep(group[0].step, batches, [bad for part in group for bad in part.bad])


def stack(group: Sequence[Mapping[str, Any]]) -> Batch:
    """Equal fields of samples, one array each; dicts field by field."""
    return {
        field: stack([sample[field] for sample in group])
        if isinstance(group[0][field], dict)
        else np.stack([sample[field] for sample in group])
        for field in group[0]
    }


def tensors(batch: Mapping[str, Any]) -> Batch:
    return {
        field: tensors(x) if isinstance(x, dict) else torch.from_numpy(x)
        for field, x in batch.items()
    }


def counted(steps: Iterator[TrainingStep], board: WorkerStatus) -> Iterator[TrainingStep]:
    """Notes every step that is ready."""
    worker, _ = this_worker()
    for step in steps:
        board.made(worker)
        yield step


def steps_of(
    source: ClipSource, order: Order | InOrder, plan: BatchPlan, ahead: ReadAhead
) -> PrefetchedSteps:
    """The steps of `plan`, read by the processes of `ahead`."""

    def pipeline(
        first_step: int, board: WorkerStatus, left_out: frozenset[int]
    ) -> webdataset.DataPipeline:
        left = None if plan.steps is None else plan.steps - (first_step - plan.first_step)
        return webdataset.DataPipeline(
            partial(
                samples,
                source,
                order,
                replace(plan, first_step=first_step, steps=left),
                board,
                left_out,
            ),
            partial(micro_batches, size=plan.micro_batch),
            partial(whole_steps, accumulation=plan.accumulation),
            partial(counted, board=board),
        )

    def name_of(song: int) -> str:
        return f"{source.shards.key(song)} in {shard_name(source, song)}"

    return PrefetchedSteps(pipeline, name_of, plan.first_step, ahead)


class Batches:
    """The batches of one rank: for each step a list of global_batch / (world * micro_batch) micro-batches, for ever.

    The same clips at the same step for any world and number of workers. `on_bad(shard, key, reason)` hears of every
    clip that was replaced; above a share `bad_share` of them, counted from `bad_after` clips on, iterating raises
    ValueError, or StorageDown where most could not be had at all. Iterate once; `state()` is the place after the last
    step handed out.
    """

    def __init__(
        self,
        source: ClipSource,
        *,
        seed: int,
        global_batch: int,
        micro_batch: int,
        rank: int = 0,
        world: int = 1,
        first_step: int = 0,
        ahead: ReadAhead = ALONE,
        block: int = 64,
        visit: int = 1,
        on_bad: OnBad | None = None,
        bad_share: float = 0.01,
        bad_after: int = 1000,
    ) -> None:
        self.source = source
        self.ahead = ahead
        self.next_step = first_step
        self.order = Order(source.clips("train"), source.shard_of_song, seed, block, visit)
        self.plan = BatchPlan(global_batch, micro_batch, rank, world, first_step, seed=seed)
        self.counted = BadSampleCounter(bad_share, bad_after, on_bad)
        self._steps: PrefetchedSteps | None = None

    def __iter__(self) -> Iterator[list[Batch]]:
        plan = replace(self.plan, first_step=self.next_step)
        self._steps = steps_of(self.source, self.order, plan, self.ahead)
        try:
            for step in self._steps:
                assert step.step == self.next_step, (
                    f"the loader gave step {step.step} for {self.next_step}"
                )
                self.counted.add(plan.global_batch // plan.world, step.bad)
                self.next_step += 1
                yield [tensors(batch) for batch in step.micro_batches]
        except ShardUnavailable as lost:
            raise StorageUnavailable(f"{lost}; the run was to stop then (lost: stop)") from lost

    def skips(self) -> dict[str, int]:
        """Clips replaced so far on this rank, by kind."""
        return dict(self.counted.kinds)

    def report(self) -> dict[str, float]:
        """For the metrics: how full the buffer of read steps is (0..1), where processes fill one."""
        return {"buffer_fill": self._steps.fill()} if self._steps and self.ahead.workers else {}

    def epoch(self) -> float:
        """How often the songs have been heard before `next_step`."""
        return self.next_step * self.plan.global_batch / self.order.clips

    def state(self) -> dict[str, object]:
        """All there is to save, as JSON: it holds for any world size and number of workers."""
        return {"version": STATE_VERSION, "next_step": self.next_step, **self._fixed()}

    def check_state(self, state: Mapping[str, object]) -> None:
        """ValueError, naming the two things that disagree, if `state` belongs to another order than this one."""
        ours = {"version": STATE_VERSION, **self._fixed()}
        for fact in {**ours, **state}:  # also what is told only where it is not the usual
            if fact != "next_step" and state.get(fact) != ours.get(fact):
                raise ValueError(
                    f"the checkpoint's data state has {fact} {state.get(fact)!r} but this run has {ours.get(fact)!r}; "
                    f"resume with the same {fact}, or start a new run from the checkpoint's weights"
                )

    def resume(self, state: Mapping[str, object]) -> None:
        """Go on after the step of `state` (see `check_state`)."""
        self.check_state(state)
        self.next_step = int(state["next_step"])  # type: ignore[call-overload]

    def _fixed(self) -> dict[str, object]:
        order = self.order
        fixed = {
            "seed": order.seed,
            "block": order.block,
            "clips": order.clips,
            "global_batch": self.plan.global_batch,
        }
        visit = {} if order.visit == 1 else {"visit": order.visit}
        return {**fixed, **visit, **self.source.facts()}


def held_out_batches(
    source: ClipSource,
    *,
    micro_batch: int,
    rank: int = 0,
    world: int = 1,
    limit: int | None = None,
    ahead: ReadAhead = ALONE,
    on_bad: OnBad | None = None,
) -> Iterator[Batch]:
    """The held-out songs' clips in order, unshifted and mixed equally; as many batches on every rank.

    With `limit` that many clips, evenly spread. What does not fill a batch on every rank is left out, but at least one
    batch is filled, by taking clips twice. Nothing if no song is held out, or `limit` is 0.
    """
    steps = held_out_steps(source, micro_batch=micro_batch, world=world, limit=limit)
    if not steps:
        return
    order = InOrder(source.clips("held_out"), limit)
    plan = BatchPlan(micro_batch * world, micro_batch, rank, world, steps=steps)
    bad = BadSampleCounter(share=1.0, after=0, on_bad=on_bad)
    for step in steps_of(source, order, plan, ahead):
        bad.add(micro_batch, step.bad)
        yield tensors(step.micro_batches[0])


def held_out_steps(
    source: ClipSource, *, micro_batch: int, world: int, limit: int | None = None
) -> int:
    """How many batches `held_out_batches` gives on every rank."""
    clips = source.clips("held_out")
    if not clips.any() or limit == 0:
        return 0
    return max(1, InOrder(clips, limit).clips // (micro_batch * world))
