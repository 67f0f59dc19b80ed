"""Plain WebDataset streaming for song tars without an index: they are read from end to end, as they
come, whoever made them (data/shards/plain_tars.py).

    training.vqvae.loader.data_mode=unindexed, --data "https://host/songs-{000000..000127}.tar", or
    "pipe:... {000000..000127}.tar"

Statistical resume only: tars are drawn with replacement and clips shuffled in a buffer bounded in
bytes, both from (seed, first step, rank, worker). A resumed run draws anew; some clips come twice
in an "epoch", some not at all. An indexed set (batches.py) has every clip exactly once and should
be preferred wherever a tar can be read twice.
"""

import contextlib
import io
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import count, islice
from pathlib import Path

import numpy as np
import webdataset

from megajukebox.common.errors import BadSampleError, UserError
from megajukebox.common.plain_text import plain
from megajukebox.data.audio import facts, read_slice
from megajukebox.data.shards.plain_tars import UnindexedSong, songs_of, tar_name
from megajukebox.data.shards.remote import RemoteConfig
from megajukebox.data.shards.source_url import SourceUrl
from megajukebox.data.shards.transports import check_allowed, is_url, may_pass
from megajukebox.data.stream.augment import Augment
from megajukebox.data.stream.bad_samples import (
    MAX_REASON,
    BadSample,
    BadSampleCounter,
    OnBad,
    StorageUnavailable,
    bad_sample_of,
    error_for_many,
)
from megajukebox.data.stream.batches import (
    Batch,
    ReadClip,
    micro_batches,
    tensors,
    this_worker,
    whole_steps,
)
from megajukebox.data.stream.sample_order import rng
from megajukebox.data.stream.song_dataset import clip_start, split, training_mix
from megajukebox.data.stream.stream_identity import UnindexedStreamIdentity
from megajukebox.data.stream.worker_pool import ALONE, PrefetchedSteps, ReadAhead, WorkerStatus

TAR_ENDING = re.compile(r"(?<!^)\.(tar|tgz)(\.\w+)?$", re.IGNORECASE)
MAX_HELD_OUT_TARS = 16  # read for clips to evaluate on
MIN_SHUFFLED = 16  # clips in the buffer before the first one leaves it
SPARE_TARS = 8  # tars that may give no clip, beyond twice their number


@dataclass(frozen=True)
class UnindexedShards:
    """Song tars without an index: `urls` is a WebDataset pattern, e.g.

    "songs-{000000..000127}.tar", or a folder of tars.
    """

    urls: str
    sample_rate: int
    clip: int  # samples
    held_out: float = 0.0
    clips_per_song_visit: int = 4  # clips taken of each song that comes by
    buffer_bytes: int = 256 << 20  # of clips, per worker
    augment: Augment = Augment()  # noqa: RUF009 - frozen
    remote: RemoteConfig = RemoteConfig()  # noqa: RUF009 - frozen
    channels: int = 1

    @property
    def shown(self) -> str:
        """`urls` without what they keep secret."""
        return SourceUrl.parse(self.urls).base

    def tars(self) -> list[str]:
        """The tars one by one; of a folder all, by name.

        Raises:
            UserError: one would run a command without leave, or the folder has none.
        """
        if not is_url(self.urls) and Path(self.urls).is_dir():
            return tars_in(Path(self.urls))
        tars = webdataset.shardlists.expand_urls(self.urls)
        for tar in tars:
            check_allowed(tar, self.remote.allow_pipe)
        return tars


def tars_in(folder: Path) -> list[str]:
    """The tars of a folder by name, whatever they are compressed by. UserError where it has none."""
    tars = sorted(str(path) for path in folder.iterdir() if TAR_ENDING.search(path.name))
    if not tars:
        raise UserError(f"{folder} holds no tar; name the tars, e.g. {folder}/songs-{{0..9}}.tar")
    return tars


def clips_of(
    song: UnindexedSong, shards: UnindexedShards, generator: np.random.Generator
) -> Iterator[np.ndarray]:
    """Clips [clip, channels] at random positions of a song; none of a short one.

    Raises BadSampleError if it is broken, or of another sample rate.
    """
    if song.audio is None:
        raise song.fault or BadSampleError("missing", f"{plain(song.key)} has no audio")
    info = facts(io.BytesIO(song.audio))
    frames = info.frames or 0
    rate = info.sample_rate
    if rate != shards.sample_rate:
        raise BadSampleError(
            "sample_rate",
            f"sample rate is {rate} Hz, wanted {shards.sample_rate} Hz; resample it, or let prepare do so",
        )
    if frames < shards.clip:
        return
    for _ in range(shards.clips_per_song_visit):
        clip = int(generator.integers(frames // shards.clip))
        start = clip_start(clip, shards.clip, frames, generator)
        x_TC = read_slice(io.BytesIO(song.audio), start, shards.clip, shards.sample_rate)
        x = training_mix(x_TC, shards.channels, generator.random())
        if shards.augment.on:
            x = shards.augment(x, shards.sample_rate, generator)
        yield x.reshape(shards.clip, shards.channels).astype(np.float32)


def samples(
    shards: UnindexedShards,
    seed: int,
    rank: int,
    world: int,
    clips_per_step: int,
    first_step: int,
    status: WorkerStatus,
) -> Iterator[tuple[int, ReadClip]]:
    """The source stage: (step, clip) of tars drawn at random, through the buffer;
    `clips_per_step` on this rank.
    """
    worker, workers = this_worker()
    status.register(worker, os.getpid())
    generator = rng(seed, f"piped/{rank}/{world}/{worker}", first_step)
    clips = shuffled(drawn(shards, generator, status, worker), shards.buffer_bytes, generator)
    for step in count(first_step + worker, workers):
        for clip in islice(clips, clips_per_step):
            yield step, clip


def drawn(
    shards: UnindexedShards, generator: np.random.Generator, status: WorkerStatus, worker: int
) -> Iterator[ReadClip]:
    """Clips for ever, tar after tar; what is broken goes along with the next clip that is whole.

    Raises:
        UserError: many tars gave no clip (StorageUnavailable where the storage does not answer).
    """
    tars = shards.tars()
    bad: list[BadSample] = []
    tars_without_clip = 0
    while True:
        tar = tars[int(generator.integers(len(tars)))]
        if tars_without_clip >= 2 * len(tars) + SPARE_TARS:
            why = bad[-1].reason if bad else "every song is shorter than a clip or held out"
            raise error_for_many(Counter(one.kind for one in bad))(
                f"no clip came out of the last {tars_without_clip} tars of {shards.shown} ({why})"
            )
        tars_without_clip += 1
        try:
            for song in songs_of(tar, shards.remote):
                status.start_clip(worker, 0, 0)
                if is_held_out(song, shards):
                    continue
                try:
                    for clip in clips_of(song, shards, generator):
                        yield ReadClip({"audio": clip}, bad)
                        bad = []
                        tars_without_clip = 0
                except (ValueError, OSError, MemoryError) as error:
                    bad.append(bad_sample_of(song.tar, plain(song.key), error))
        except (ValueError, OSError, MemoryError) as error:
            if isinstance(error, OSError) and may_pass(error):  # another try may read it
                reason = f"unavailable: {error}"[:MAX_REASON]
                bad.append(BadSample(tar_name(tar), "", "unavailable", reason))
            else:
                bad.append(bad_sample_of(tar_name(tar), "", error))


def shuffled(
    clips: Iterator[ReadClip], buffer_bytes: int, generator: np.random.Generator
) -> Iterator[ReadClip]:
    """Clips in random order through a buffer of at most `buffer_bytes`, which fills while clips
    leave it.
    """
    buffer: list[ReadClip] = []
    for clip in clips:
        buffer.append(clip)
        capacity = max(1, buffer_bytes // clip.fields["audio"].nbytes)
        if len(buffer) < min(capacity, MIN_SHUFFLED):
            continue
        i = int(generator.integers(len(buffer)))
        buffer[i], buffer[-1] = buffer[-1], buffer[i]
        yield buffer.pop()
        if len(buffer) < capacity - 1:  # two come for each that leaves, until it is full
            buffer.append(next(clips))


def held_out_batches(
    shards: UnindexedShards, *, micro_batch: int, rank: int, world: int, limit: int
) -> Iterator[Batch]:
    """The same clips of held-out songs each time, as many batches on every rank; nothing if no
    song is held out.
    """
    clips = held_out_clips(shards, limit) if shards.held_out and limit else ()
    if not clips:
        return
    for step in range(max(1, len(clips) // (micro_batch * world))):
        first = (step * world + rank) * micro_batch
        chosen = [clips[n % len(clips)] for n in range(first, first + micro_batch)]
        yield tensors({"audio": np.stack(chosen)})


@lru_cache(maxsize=1)
def held_out_clips(shards: UnindexedShards, limit: int) -> tuple[np.ndarray, ...]:
    """The first `limit` clips [clip, 1] of held-out songs, in the order of the tars.

    Every rank reads the same, so what is damaged is passed over. Raises StorageUnavailable if a tar
    cannot be fetched, since the other ranks may have fetched it.
    """
    return tuple(islice(all_held_out(replace(shards, augment=Augment())), limit))


def all_held_out(shards: UnindexedShards) -> Iterator[np.ndarray]:
    """Clips of the held-out songs of the first tars."""
    for tar in shards.tars()[:MAX_HELD_OUT_TARS]:
        try:
            for song in songs_of(tar, shards.remote):
                if is_held_out(song, shards):
                    generator = rng(0, f"piped/held_out/{song.key}", 0)
                    with contextlib.suppress(ValueError, MemoryError):
                        yield from clips_of(song, shards, generator)
        except (ValueError, MemoryError):
            continue
        except OSError as error:
            raise StorageUnavailable(
                f"{tar_name(tar)} could not be read for the held-out songs ({error})"
            ) from error


def is_held_out(song: UnindexedSong, shards: UnindexedShards) -> bool:
    key = song.key.encode("utf-8", "surrogateescape")
    return bool(split(np.array([key]), shards.held_out)[0])


class UnindexedBatches:
    """Like Batches, of `UnindexedShards`: its `state()` says that resuming is statistical only."""

    def __init__(
        self,
        shards: UnindexedShards,
        *,
        seed: int,
        global_batch: int,
        micro_batch: int,
        rank: int = 0,
        world: int = 1,
        first_step: int = 0,
        ahead: ReadAhead = ALONE,
        on_bad: OnBad | None = None,
        max_bad_sample_ratio: float = 0.01,
        ratio_after_clips: int = 1000,
    ) -> None:
        shards.tars()
        self.shards = shards
        self.seed = seed
        self.rank = rank
        self.world = world
        self.ahead = ahead
        self.clips_per_step = global_batch // world
        self.micro_batch = micro_batch
        self.next_step = first_step
        self.identity = UnindexedStreamIdentity(shards.shown)
        self.counter = BadSampleCounter(max_bad_sample_ratio, ratio_after_clips, on_bad)
        self._steps: PrefetchedSteps | None = None

    def __iter__(self) -> Iterator[list[Batch]]:
        tars = f"a tar of {self.shards.shown}"
        self._steps = PrefetchedSteps(self._pipeline, lambda song: tars, self.next_step, self.ahead)
        for step in self._steps:
            self.counter.add(self.clips_per_step, step.replaced)
            self.next_step += 1
            yield [tensors(batch) for batch in step.micro_batches]

    def _pipeline(
        self, first_step: int, status: WorkerStatus, left_out: frozenset[int]
    ) -> webdataset.DataPipeline:
        return webdataset.DataPipeline(
            partial(
                samples,
                self.shards,
                self.seed,
                self.rank,
                self.world,
                self.clips_per_step,
                first_step,
                status,
            ),
            partial(micro_batches, size=self.micro_batch),
            partial(
                whole_steps, accumulation=self.clips_per_step // self.micro_batch, status=status
            ),
        )

    def state(self) -> dict[str, object]:
        return self.identity.state(self.next_step)

    def resume(self, state: Mapping[str, object]) -> None:
        """Draw anew from the step of `state` on. Raises UserError if it is of an indexed set."""
        self.identity.check(state)
        self.next_step = int(state["next_step"])  # type: ignore[call-overload]

    def bad_samples(self) -> dict[str, int]:
        """Clips and tars replaced so far on this rank, by kind."""
        return dict(self.counter.kinds)

    def report(self) -> dict[str, float]:
        return (
            {"prefetch_fill_ratio": self._steps.fill()}
            if self._steps and self.ahead.workers
            else {}
        )
