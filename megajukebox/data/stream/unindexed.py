"""Plain WebDataset streaming for song tars without an index: they are read from end to end, as they come.

    training.vqvae.mode=stream, --data "https://host/songs-{000000..000127}.tar", or "pipe:... {000000..000127}.tar"

Statistical resume only: tars are drawn with replacement and clips shuffled in a buffer bounded in bytes, both from
(seed, first step, rank, worker). A resumed run draws anew; some clips come twice in an "epoch", some not at all. An
indexed set (stream.py) has every clip exactly once and should be preferred wherever a tar can be read twice.
"""

import contextlib
import http.client
import io
import json
import os
import tarfile
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import count, islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
import webdataset
from webdataset.gopen import gopen

from megajukebox.data.audio import downmix, opened, read_slice
from megajukebox.data.shards.index import KEY
from megajukebox.data.shards.remote import URL, may_pass
from megajukebox.data.stream.augment import Augment
from megajukebox.data.stream.bad_samples import (
    BadSample,
    BadSampleCounter,
    OnBad,
    StorageUnavailable,
    too_many,
)
from megajukebox.data.stream.batches import (
    Batch,
    counted,
    micro_batches,
    tensors,
    this_worker,
    whole_steps,
)
from megajukebox.data.stream.sample_order import rng
from megajukebox.data.stream.song_dataset import place, split
from megajukebox.data.stream.worker_pool import ALONE, PrefetchedSteps, ReadAhead, WorkerStatus

MAX_MEMBER = 1 << 30  # bytes of one member; a pipe cannot skip what it does not read
MAX_JSON = 1 << 22
STALL = 30.0  # seconds without a byte that end a tar
AUDIO = ("flac", "wav")
HELD_OUT_TARS = 16  # read, at most, for clips to judge by


@dataclass(frozen=True)
class UnindexedShards:
    """Song tars without an index: `urls` is a WebDataset pattern, e.g. "songs-{000000..000127}.tar"."""

    urls: str
    sample_rate: int
    clip: int  # samples
    held_out: float = 0.0
    clips_per_visit: int = 4  # clips taken of each song that comes by
    buffer_bytes: int = 256 << 20  # of clips, per worker
    augment: Augment = Augment()  # noqa: RUF009 - frozen
    allow_pipe: bool = False

    def tars(self) -> list[str]:
        """The tars one by one. ValueError for what would run a command without leave."""
        tars = webdataset.shardlists.expand_urls(self.urls)
        commands = [
            tar for tar in tars if URL.match(tar) and not tar.startswith(("http://", "https://"))
        ]
        if commands and not self.allow_pipe:
            raise ValueError(
                f"{commands[0]!r} would run a command; give --allow-pipe if you trust whoever wrote it"
            )
        return tars


@dataclass(frozen=True)
class UnindexedSongs:
    """Members of one song as they came."""

    key: str
    shard: str
    members: dict[str, bytes]


def open_tar(tar: str) -> BinaryIO:
    """A tar to read from its start to its end; webdataset's gopen would call curl for http."""
    if tar.startswith(("http://", "https://")):
        return urllib.request.urlopen(tar, timeout=STALL)
    return gopen(tar, "rb") if URL.match(tar) else open(tar, "rb")


def songs_of(tar: str) -> Iterator[UnindexedSongs]:
    """The songs of one tar, in order, nothing written to disk. ValueError where it is damaged, OSError where less of it
    came than there is.
    """
    name, members, before, file = Path(tar.split()[-1]).name, dict[str, bytes](), None, None
    try:
        with open_tar(tar) as file, tarfile.open(fileobj=file, mode="r|") as archive:
            for member in archive:
                key, _, extension = member.name.partition(".")
                if before is not None and key != before:
                    yield UnindexedSongs(before, name, members)
                    members = {}
                before = key
                if (
                    member.isreg()
                    and 0 <= member.size <= MAX_MEMBER
                    and extension in ("json", *AUDIO)
                ):
                    content = archive.extractfile(
                        member
                    )  # a view of the stream; nothing is unpacked
                    members[extension] = content.read() if content else b""
    except http.client.HTTPException as error:
        raise ConnectionError(f"{name} broke off ({error!r})") from error
    except tarfile.TarError as error:
        if missing := getattr(
            file, "length", None
        ):  # bytes that the site has promised and not sent
            raise ConnectionError(f"{name} broke off, {missing} bytes before its end") from error
        raise ValueError(f"{name} is damaged ({error})") from error
    if before is not None:
        yield UnindexedSongs(before, name, members)


def clips_of(
    song: UnindexedSongs, piped: UnindexedShards, dice: np.random.Generator
) -> Iterator[np.ndarray]:
    """Clips [clip, 1] of a song at random places; none of a short song. ValueError if it is broken."""
    if not KEY.fullmatch(song.key):
        raise ValueError(f"key {song.key!r} is not a name of letters, digits, - and _")
    check_json(song)
    data = next((song.members[kind] for kind in AUDIO if kind in song.members), b"")
    with opened(io.BytesIO(data)) as file:
        frames = file.frames
    for _ in range(piped.clips_per_visit if frames >= piped.clip else 0):
        start = place(int(dice.integers(frames // piped.clip)), piped.clip, frames, dice)
        x_T = downmix(
            read_slice(io.BytesIO(data), start, piped.clip, piped.sample_rate), dice.random()
        )
        yield (piped.augment(x_T, piped.sample_rate, dice) if piped.augment.on else x_T)[
            :, None
        ].astype(np.float32)


def check_json(song: UnindexedSongs) -> None:
    data = song.members.get("json")
    if data is None or len(data) > MAX_JSON:
        raise ValueError(f"{song.key} has no JSON")
    try:
        json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"the JSON of {song.key} cannot be read ({type(error).__name__})"
        ) from None


def samples(
    piped: UnindexedShards,
    seed: int,
    rank: int,
    world: int,
    share: int,
    first: int,
    board: WorkerStatus,
) -> Iterator[Batch]:
    """The source stage: clips of tars drawn at random, through the buffer; `share` of them make this rank's step."""
    worker, stride = this_worker()
    board.begin(worker, os.getpid())
    dice = rng(seed, f"piped/{rank}/{world}/{worker}", first)
    clips = shuffled(drawn(piped, dice, board, worker), piped.buffer_bytes, dice)
    for step in count(first + worker, stride):
        for _ in range(share):
            yield {"step": step, **next(clips)}


def drawn(
    piped: UnindexedShards, dice: np.random.Generator, board: WorkerStatus, worker: int
) -> Iterator[Batch]:
    """Clips for ever, tar after tar; what is broken goes along with the next clip that is whole."""
    tars, bad, barren = piped.tars(), list[BadSample](), 0
    while True:
        tar = tars[int(dice.integers(len(tars)))]
        barren += 1
        if barren > 2 * len(tars) + 8:
            why = bad[-1].reason if bad else "every song is shorter than a clip or held out"
            down = too_many(Counter(one.kind for one in bad))
            raise down(f"no clip came out of the last {barren - 1} tars of {piped.urls} ({why})")
        try:
            for song in songs_of(tar):
                board.note(worker, 0, 0)
                if is_held_out(song, piped):
                    continue
                try:
                    for clip in clips_of(song, piped, dice):
                        yield {"sample": {"audio": clip}, "bad": bad}
                        bad, barren = [], 0
                except (ValueError, OSError, MemoryError) as error:
                    bad.append(BadSample(song.shard, song.key, str(error)[:500]))
        except (ValueError, OSError) as error:
            passes = (
                isinstance(error, OSError)
                and not isinstance(error, FileNotFoundError)
                and may_pass(error)
            )
            bad.append(
                BadSample(
                    Path(tar.split()[-1]).name,
                    "",
                    f"{'unavailable: ' if passes else ''}{error}"[:500],
                )
            )


def shuffled(clips: Iterator[Batch], size: int, dice: np.random.Generator) -> Iterator[Batch]:
    """Each clip leaves from a random place of a buffer of at most `size` bytes, which fills while clips leave it."""
    buffer: list[Batch] = []
    for clip in clips:
        buffer.append(clip)
        room = max(1, size // clip["sample"]["audio"].nbytes)
        if len(buffer) < min(room, 16):
            continue
        place = int(dice.integers(len(buffer)))
        buffer[place], buffer[-1] = buffer[-1], buffer[place]
        yield buffer.pop()
        if len(buffer) < room - 1:  # two come for each that leaves, until it is full
            buffer.append(next(clips))


def held_out_batches(
    piped: UnindexedShards, *, micro_batch: int, rank: int, world: int, limit: int
) -> Iterator[Batch]:
    """The same clips of held-out songs each time, as many batches on every rank; nothing if no song is held out."""
    clips = held_out_clips(piped, limit) if piped.held_out and limit else ()
    steps = min(len(clips), 1) and max(1, len(clips) // (micro_batch * world))
    for step in range(steps):
        first = (step * world + rank) * micro_batch
        chosen = [clips[place % len(clips)] for place in range(first, first + micro_batch)]
        yield tensors({"audio": np.stack(chosen)})


@lru_cache(maxsize=1)
def held_out_clips(piped: UnindexedShards, limit: int) -> tuple[np.ndarray, ...]:
    """The first `limit` clips [clip, 1] of held-out songs, in the order of the tars.

    Every rank reads the same, so what is damaged is passed over; StorageDown if a tar cannot be had, since the other
    ranks may have had it.
    """
    return tuple(islice(all_held_out(replace(piped, augment=Augment())), limit))


def all_held_out(piped: UnindexedShards) -> Iterator[np.ndarray]:
    for tar in piped.tars()[:HELD_OUT_TARS]:
        try:
            for song in songs_of(tar):
                if is_held_out(song, piped):
                    with contextlib.suppress(ValueError):
                        yield from clips_of(song, piped, rng(0, f"piped/held_out/{song.key}", 0))
        except ValueError:
            continue
        except OSError as error:
            raise StorageUnavailable(
                f"{tar} could not be read for the held-out songs ({error})"
            ) from error


def is_held_out(song: UnindexedSongs, piped: UnindexedShards) -> bool:
    return bool(split(np.array([song.key.encode()[:48]], dtype="S48"), piped.held_out)[0])


class UnindexedBatches:
    """Like stream.Batches, of a `Piped` source: `state()` says that a resume of it is statistical only."""

    def __init__(
        self,
        piped: UnindexedShards,
        *,
        seed: int,
        global_batch: int,
        micro_batch: int,
        rank: int = 0,
        world: int = 1,
        first_step: int = 0,
        ahead: ReadAhead = ALONE,
        on_bad: OnBad | None = None,
        bad_share: float = 0.01,
        bad_after: int = 1000,
    ) -> None:
        piped.tars()
        self.piped, self.seed, self.rank, self.world, self.ahead = piped, seed, rank, world, ahead
        self.global_batch, self.micro_batch, self.next_step = global_batch, micro_batch, first_step
        self.counted = BadSampleCounter(bad_share, bad_after, on_bad)
        self._steps: PrefetchedSteps | None = None

    def __iter__(self) -> Iterator[list[Batch]]:
        self._steps = PrefetchedSteps(
            self._pipeline, lambda song: f"a tar of {self.piped.urls}", self.next_step, self.ahead
        )
        for step in self._steps:
            self.counted.add(self.global_batch // self.world, step.bad)
            self.next_step += 1
            yield [tensors(batch) for batch in step.micro_batches]

    def _pipeline(
        self, first: int, board: WorkerStatus, left_out: frozenset[int]
    ) -> webdataset.DataPipeline:
        share = self.global_batch // self.world
        return webdataset.DataPipeline(
            partial(samples, self.piped, self.seed, self.rank, self.world, share, first, board),
            partial(micro_batches, size=self.micro_batch),
            partial(whole_steps, accumulation=share // self.micro_batch),
            partial(counted, board=board),
        )

    def state(self) -> dict[str, object]:
        return {
            "mode": "stream",
            "resume": "statistical only",
            "urls": self.piped.urls,
            "next_step": self.next_step,
        }

    def check_state(self, state: Mapping[str, object]) -> None:
        """ValueError if `state` is of an indexed set: its clips would come again."""
        if state.get("mode") != "stream":
            raise ValueError(
                "the checkpoint is of an indexed set, whose order mode=stream cannot go on with; use its index"
            )

    def resume(self, state: Mapping[str, object]) -> None:
        self.check_state(state)
        self.next_step = int(state["next_step"])  # type: ignore[call-overload]

    def skips(self) -> dict[str, int]:
        return dict(self.counted.kinds)

    def report(self) -> dict[str, float]:
        return {"buffer_fill": self._steps.fill()} if self._steps and self.ahead.workers else {}
