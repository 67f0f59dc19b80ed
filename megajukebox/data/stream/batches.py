"""From the global order to batches: the stages of a WebDataset pipeline, run by a DataLoader,
resumable at any step.

    positions --samples--> clips --micro_batches--> micro-batches --whole_steps--> one list of
    micro-batches a step

A source (SongClips, CodeWindows, several of them in BlendedClips) says which clips there are and reads
one; its order says which comes when. Worker k of w reads the whole steps k, k + w, ...; the DataLoader takes the workers in turn,
so steps arrive in order for any w. A clip that cannot be read is replaced (bad_samples.py);
worker_pool.py handles workers that hang or die.
"""

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, count, islice
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
import webdataset

from megajukebox.common.errors import BadSampleError, UserError
from megajukebox.data.shards.blended_sets import ShardBlend
from megajukebox.data.shards.remote import ShardUnavailable
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.stream.bad_samples import (
    BadSample,
    BadSampleCounter,
    OnBad,
    StorageUnavailable,
    bad_sample_of,
    error_for_many,
)
from megajukebox.data.stream.blend import BlendedClips, BlendedHeldOut, BlendedOrder
from megajukebox.data.stream.sample_order import InOrder, Order, rng, sample_positions
from megajukebox.data.stream.song_dataset import Part
from megajukebox.data.stream.stream_identity import StreamIdentity
from megajukebox.data.stream.worker_pool import ALONE, PrefetchedSteps, ReadAhead, WorkerStatus

MAX_CANDIDATES = 100  # clips tried in place of a broken one

Batch = dict[str, Any]  # name -> tensor [micro_batch, ...], or "conditions" -> such a dict


AnyOrder: TypeAlias = Order | InOrder | BlendedOrder | BlendedHeldOut


class ClipSource(Protocol):
    """The clips of a shard set, or of several (`BlendedClips`)."""

    shard_of_song: np.ndarray  # [songs]

    @property
    def shards(self) -> ShardSet | ShardBlend: ...

    def clips(self, part: Part) -> np.ndarray:
        """Number of clips of each song, [songs] int64; 0 for the songs of the other part."""
        ...

    def facts(self) -> dict[str, object]:
        """What fixes the samples beside the seed, as JSON."""
        ...

    def report(self) -> dict[str, int]:
        """How many songs and clips are trained on, held out, or too short."""
        ...

    def read(self, song: int, clip: int, rng: np.random.Generator | None) -> dict[str, Any]:
        """The arrays of one clip by name; without `rng` nothing is random.

        Raises:
            BadSampleError, OSError: it cannot be read, and is replaced.
        """
        ...


@dataclass(frozen=True)
class BatchPlan:
    """Which positions one rank reads, and how: `steps` None is for ever; without `seed` nothing
    is random.
    """

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
            nearest = max(1, self.global_batch // max(1, per_pass)) * max(1, per_pass)
            raise UserError(
                f"global batch {self.global_batch} is not micro batch {self.micro_batch} x accumulation x "
                f"{self.world} ranks; set it to {nearest}"
            )

    @property
    def accumulation(self) -> int:
        return self.global_batch // (self.micro_batch * self.world)

    def starting_at(self, step: int) -> "BatchPlan":
        """The same plan without the steps before `step`."""
        steps = None if self.steps is None else self.steps - (step - self.first_step)
        return replace(self, first_step=step, steps=steps)


@dataclass(frozen=True)
class ReadClip:
    """One clip as its source read it, and the clips that it replaces because they could not be
    read.
    """

    fields: dict[str, Any]
    replaced: list[BadSample] = field(default_factory=list)


@dataclass(frozen=True)
class TrainingStep:
    """What one rank reads for one step."""

    step: int
    micro_batches: list[Batch]
    replaced: list[BadSample]


def samples(
    source: ClipSource,
    order: AnyOrder,
    plan: BatchPlan,
    status: WorkerStatus,
    left_out: frozenset[int] = frozenset(),
) -> Iterator[tuple[int, ReadClip]]:
    """The source stage: (step, clip) for every position of this worker's steps; never of the
    songs `left_out`.
    """
    worker, workers = this_worker()
    status.register(worker, os.getpid())
    note_clip = partial(status.start_clip, worker)
    recent: deque[Any] = deque(maxlen=order.blocks_at_once)
    all_steps = islice(count(plan.first_step), plan.steps)
    for step in islice(all_steps, worker, None, workers):
        for position in map(int, sample_positions(step, plan.rank, plan.world, plan.global_batch)):
            block = order.block_at(position)
            if block not in recent:
                recent.append(block)
                source.shards.prefetch(order.shards_from(block))  # type: ignore[arg-type]
            yield step, read_or_replace(source, order, position, plan.seed, note_clip, left_out)


def this_worker() -> tuple[int, int]:
    """(number of this worker, how many there are)."""
    worker = torch.utils.data.get_worker_info()
    return (worker.id, worker.num_workers) if worker else (0, 1)


def read_or_replace(
    source: ClipSource,
    order: AnyOrder,
    position: int,
    seed: int | None,
    note_clip: Callable[[int, int], None] | None = None,
    left_out: frozenset[int] = frozenset(),
) -> ReadClip:
    """The clip at `position`, or the first candidate in its place that can be read.

    Raises:
        UserError: none of MAX_CANDIDATES can be read (StorageUnavailable where the storage does not
            answer).
    """
    replaced: list[BadSample] = []
    for attempt in range(min(MAX_CANDIDATES, order.clips)):
        _, song, clip = order.candidate(position, attempt)
        if note_clip:
            note_clip(position, song)
        try:
            if song in left_out:
                raise BadSampleError("crashed", "crashed: the processes that read it died")
            clip_rng = None if seed is None else rng(seed, "clip", position)
            return ReadClip(source.read(song, clip, clip_rng), replaced)
        except (ValueError, OSError, MemoryError) as error:
            replaced.append(bad_sample_of(shard_name(source, song), source.shards.key(song), error))
    last = replaced[-1]
    raise error_for_many(Counter(one.kind for one in replaced))(
        f"too many bad samples: none of {len(replaced)} clips at position {position} could be read, the last of song "
        f"{last.key} in {last.shard} ({last.reason}); check the shards and the disk they lie on"
    )


def shard_name(source: ClipSource, song: int) -> str:
    return source.shards.index["shards"][int(source.shard_of_song[song])]["name"]


def micro_batches(clips: Iterator[tuple[int, ReadClip]], size: int) -> Iterator[TrainingStep]:
    """`size` clips after `size` clips, stacked."""
    while group := list(islice(clips, size)):
        step, _ = group[0]
        stacked = stack([clip.fields for _, clip in group])
        replaced = chain.from_iterable(clip.replaced for _, clip in group)
        yield TrainingStep(step, [stacked], list(replaced))


def whole_steps(
    parts: Iterator[TrainingStep], accumulation: int, status: WorkerStatus
) -> Iterator[TrainingStep]:
    """The micro-batches of each step together; each step that is ready is noted."""
    worker, _ = this_worker()
    while group := list(islice(parts, accumulation)):
        batches = list(chain.from_iterable(part.micro_batches for part in group))
        replaced = list(chain.from_iterable(part.replaced for part in group))
        status.step_ready(worker)
        yield TrainingStep(group[0].step, batches, replaced)


def stack(group: Sequence[Mapping[str, Any]]) -> Batch:
    """Equal fields of samples, one array each; dicts field by field."""
    stacked: Batch = {}
    for name, first in group[0].items():
        column = [sample[name] for sample in group]
        stacked[name] = stack(column) if isinstance(first, dict) else np.stack(column)
    return stacked


def tensors(batch: Mapping[str, Any]) -> Batch:
    """The arrays of a batch as tensors, dicts field by field."""
    converted: Batch = {}
    for name, value in batch.items():
        converted[name] = tensors(value) if isinstance(value, dict) else torch.from_numpy(value)
    return converted


def steps_of(
    source: ClipSource, order: AnyOrder, plan: BatchPlan, ahead: ReadAhead
) -> PrefetchedSteps:
    """The steps of `plan`, read by the processes of `ahead`."""

    def pipeline(
        first_step: int, status: WorkerStatus, left_out: frozenset[int]
    ) -> webdataset.DataPipeline:
        return webdataset.DataPipeline(
            partial(samples, source, order, plan.starting_at(first_step), status, left_out),
            partial(micro_batches, size=plan.micro_batch),
            partial(whole_steps, accumulation=plan.accumulation, status=status),
        )

    return PrefetchedSteps(
        pipeline,
        lambda song: f"{source.shards.key(song)} in {shard_name(source, song)}",
        plan.first_step,
        ahead,
    )


def training_order(
    source: ClipSource, seed: int, block: int = 64, clips_per_song_visit: int = 1
) -> Order | BlendedOrder:
    """Which training clip of `source` comes when."""
    if isinstance(source, BlendedClips):
        return source.order(seed, block, clips_per_song_visit)
    return Order(source.clips("train"), source.shard_of_song, seed, block, clips_per_song_visit)


def held_out_order(source: ClipSource, limit: int | None) -> InOrder | BlendedHeldOut:
    """The held-out clips of `source`, of which there must be some: all, or `limit` of them."""
    if isinstance(source, BlendedClips):
        return source.held_out_order(limit)
    return InOrder(source.clips("held_out"), limit)


def stream_identity(
    source: ClipSource, *, seed: int, global_batch: int, block: int, clips_per_song_visit: int
) -> StreamIdentity:
    """What fixes the order of the training clips of `source`, without building that order."""
    clips = int(source.clips("train").sum())
    return StreamIdentity(seed, block, clips, global_batch, clips_per_song_visit, source.facts())


class Batches:
    """The batches of one rank: for each step a list of global_batch / (world * micro_batch)
    micro-batches, for ever.

    The same clips come at the same step for any world and number of workers. `on_bad` gets every
    clip that was replaced. Above the ratio `max_bad_sample_ratio` of them, counted once
    `ratio_after_clips` clips were read, iterating raises UserError, or StorageUnavailable where the
    storage did not answer for most. Iterate once; `state()` is the position after the last step
    that was handed out.
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
        clips_per_song_visit: int = 1,
        on_bad: OnBad | None = None,
        max_bad_sample_ratio: float = 0.01,
        ratio_after_clips: int = 1000,
    ) -> None:
        self.source = source
        self.ahead = ahead
        self.next_step = first_step
        self.order = training_order(source, seed, block, clips_per_song_visit)
        self.plan = BatchPlan(global_batch, micro_batch, rank, world, first_step, seed=seed)
        self.identity = stream_identity(
            source,
            seed=seed,
            global_batch=global_batch,
            block=block,
            clips_per_song_visit=clips_per_song_visit,
        )
        self.counter = BadSampleCounter(max_bad_sample_ratio, ratio_after_clips, on_bad)
        self._steps: PrefetchedSteps | None = None

    def __iter__(self) -> Iterator[list[Batch]]:
        plan = self.plan.starting_at(self.next_step)
        self._steps = steps_of(self.source, self.order, plan, self.ahead)
        try:
            for step in self._steps:
                assert step.step == self.next_step, (
                    f"the loader gave step {step.step} for {self.next_step}"
                )
                self.counter.add(plan.global_batch // plan.world, step.replaced)
                self.next_step += 1
                yield [tensors(batch) for batch in step.micro_batches]
        except ShardUnavailable as lost:
            raise StorageUnavailable(f"{lost}; the run was to stop then (lost: stop)") from lost

    def bad_samples(self) -> dict[str, int]:
        """Clips replaced so far on this rank, by kind."""
        return dict(self.counter.kinds)

    def report(self) -> dict[str, float]:
        """For the metrics: how full the buffer of read steps is (0..1), where processes fill
        one.
        """
        return (
            {"prefetch_fill_ratio": self._steps.fill()}
            if self._steps and self.ahead.workers
            else {}
        )

    def state(self) -> dict[str, object]:
        """All there is to save, as JSON: it holds for any world size and number of workers."""
        return self.identity.state(self.next_step)

    def resume(self, state: Mapping[str, object]) -> None:
        """Continue after the step of `state`. Raises UserError if it belongs to another order."""
        self.identity.check(state)
        self.next_step = int(state["next_step"])  # type: ignore[call-overload]


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
    """The held-out songs' clips in order, unshifted and mixed equally; as many batches on every
    rank.

    With `limit` that many clips, evenly spread. What does not fill a batch on every rank is left
    out, but at least one batch is filled, by taking clips twice. Nothing if no song is held out, or
    `limit` is 0.
    """
    steps = held_out_steps(source, micro_batch=micro_batch, world=world, limit=limit)
    if not steps:
        return
    order = held_out_order(source, limit)
    plan = BatchPlan(micro_batch * world, micro_batch, rank, world, steps=steps)
    counter = BadSampleCounter(max_ratio=1.0, after=0, on_bad=on_bad)
    for step in steps_of(source, order, plan, ahead):
        counter.add(micro_batch, step.replaced)
        yield tensors(step.micro_batches[0])


def held_out_steps(
    source: ClipSource, *, micro_batch: int, world: int, limit: int | None = None
) -> int:
    """How many batches `held_out_batches` gives on every rank."""
    if not source.clips("held_out").any() or limit == 0:
        return 0
    return max(1, held_out_order(source, limit).clips // (micro_batch * world))
