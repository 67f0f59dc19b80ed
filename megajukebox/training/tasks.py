"""What the training loop needs to know of what it trains: a model, its data, and how they are shared among processes."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from torch import Tensor, nn

from megajukebox.common.world import World
from megajukebox.data.shards.remote import RemoteConfig
from megajukebox.data.stream.batches import (
    Batches,
    ClipSource,
    OnBad,
    held_out_batches,
    held_out_steps,
    stream_identity,
)
from megajukebox.data.stream.stream_identity import StreamIdentity, UnindexedStreamIdentity
from megajukebox.data.stream.unindexed import UnindexedBatches, UnindexedShards
from megajukebox.data.stream.unindexed import held_out_batches as unindexed_held_out_batches
from megajukebox.data.stream.worker_pool import ReadAhead
from megajukebox.training.adapter_task import AdapterTask
from megajukebox.training.batching import NoClips
from megajukebox.training.config import Preset
from megajukebox.training.finetune import PretrainedModel
from megajukebox.training.settings import TrainingSettings

Stream = Batches | UnindexedBatches | NoClips
Evaluator = Callable[[nn.Module], dict[str, Tensor]]  # by name, a value of each of some windows


@dataclass(frozen=True)
class ReaderShare:
    """This process's share of the data. Ranks of one pipeline share it: `world` counts readers, not ranks."""

    world: World
    global_batch: int  # clips of a step, of all readers
    micro_batch: int
    on_bad: OnBad
    reads: bool = True  # False between the ends of a pipeline: that process needs no clips

    @property
    def accumulation(self) -> int:
        """Micro-batches of a step."""
        return self.global_batch // (self.world.size * self.micro_batch)


@dataclass(frozen=True)
class TaskRequest:
    """What `train` was asked for: a stage of a preset on some data, perhaps starting from trained weights."""

    preset: Preset
    settings: TrainingSettings
    data: str | tuple[str, ...]  # folder or URL of shards; of several each with `:WEIGHT`, or none
    remote: RemoteConfig
    base: PretrainedModel | None = None
    vqvae: Path | None = None  # run of the VQ-VAE that a refiner refines


@dataclass(frozen=True)
class Task:
    """A model, its data, and what its run folder says of them."""

    kind: str  # as in model.json: vqvae, prior, student or refiner
    config: BaseModel
    build: Callable[[], nn.Module]
    source: ClipSource | UnindexedShards
    settings: TrainingSettings
    reading: ReaderShare
    units_per_step: float
    audio_seconds: float  # in one step
    speed_name: str  # metric of `units_per_step` a second
    facts: dict[str, Any]
    unexported: str | None = None  # beginning of the names of weights that only training needs
    files: dict[str, bytes] = field(default_factory=dict)  # kept in the run folder, by name
    evaluator: Evaluator | None = None  # of more than the loss on held-out clips
    adapter: AdapterTask | None = None  # which is trained instead of the model

    def batches(self, first_step: int) -> Stream:
        """Lists of micro-batches, one list a step, from `first_step` on."""
        reading = self.reading
        if not reading.reads:
            return NoClips(reading.accumulation)
        loader = self.settings.loader
        common: dict[str, Any] = {
            "seed": self.settings.seed,
            "global_batch": reading.global_batch,
            "micro_batch": reading.micro_batch,
            "rank": reading.world.rank,
            "world": reading.world.size,
            "first_step": first_step,
            "ahead": ReadAhead(
                workers=loader.workers,
                prefetch=loader.prefetch,
                timeout=loader.timeout_seconds,
                memory=int(loader.worker_memory_gb * 2**30),
            ),
            "on_bad": reading.on_bad,
            "max_bad_sample_ratio": loader.max_bad_sample_ratio,
        }
        if isinstance(self.source, UnindexedShards):
            return UnindexedBatches(self.source, **common)
        return Batches(
            self.source,
            **common,
            block=loader.shuffle_shards,
            clips_per_song_visit=loader.clips_per_song_visit,
        )

    def held_out(self) -> Iterable[dict]:
        """The same few batches of held-out songs each time."""
        reading = self.reading
        size = reading.micro_batch
        rank = reading.world.rank
        world = reading.world.size
        limit = self.settings.evaluation.batches * size * world
        if isinstance(self.source, UnindexedShards):
            return unindexed_held_out_batches(
                self.source, micro_batch=size, rank=rank, world=world, limit=limit
            )
        if not reading.reads:
            steps = held_out_steps(self.source, micro_batch=size, world=world, limit=limit)
            return [{}] * steps
        return held_out_batches(
            self.source,
            micro_batch=size,
            rank=rank,
            world=world,
            limit=limit,
            on_bad=reading.on_bad,
        )

    def corpus(self) -> dict[str, int]:
        """How many songs and clips are trained on, held out, or too short; {} without an index."""
        return {} if isinstance(self.source, UnindexedShards) else self.source.report()

    def stream_state(self, next_step: int) -> dict[str, object]:
        """The position of the stream before `next_step`: valid for any number of ranks."""
        return self.identity().state(next_step)

    def identity(self) -> StreamIdentity | UnindexedStreamIdentity:
        """What fixes which clip comes when; its `check` refuses a checkpoint of another order."""
        if isinstance(self.source, UnindexedShards):
            return UnindexedStreamIdentity(self.source.shown)
        return stream_identity(
            self.source,
            seed=self.settings.seed,
            global_batch=self.reading.global_batch,
            block=self.settings.loader.shuffle_shards,
            clips_per_song_visit=self.settings.loader.clips_per_song_visit,
        )
