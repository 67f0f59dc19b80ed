"""What the songs of a batch become on the disk: audio while their codes come, resume files, and the finished records.

    writer = SongWriter(jukebox, Path("samples"))
    jukebox.sample(requests, sink=writer)         # -> samples/<id>.wav, <id>.json, <id>.codes.npz

An interrupted song leaves its codes in <out>/.unfinished (resume_store.py); the next attempt resumes from them.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from megajukebox.models.vqvae import VQVAE
from megajukebox.sampling.levels.level_sampler import LevelJob
from megajukebox.sampling.refiners import LevelRefiner
from megajukebox.sampling.songs.audio_stream import PARTIAL_SUFFIX, AudioStream, decode_all
from megajukebox.sampling.songs.prompt_sources import KnownCodes
from megajukebox.sampling.songs.requests import SongRequest
from megajukebox.sampling.songs.resume_store import ResumeStore
from megajukebox.sampling.songs.song import GeneratedSong, audio_name

SAVE_INTERVAL = 10.0  # seconds between two saves of the codes of unfinished songs


class SamplingInterrupted(Exception):
    """Sampling was asked to stop; the codes sampled so far are in the resume store."""


class SongContext(Protocol):
    """What a writer needs of the jukebox whose songs it writes."""

    vqvae: VQVAE
    main_level: str

    @property
    def refiners(self) -> Mapping[str, LevelRefiner]: ...

    @property
    def levels(self) -> Iterable[str]: ...

    def song_key(self, request: SongRequest) -> dict[str, Any]: ...


class SongSink(Protocol):
    """Takes the songs of a batch while they are sampled; the calls come in this order, the middle three by level."""

    def resume(self, songs: list[GeneratedSong]) -> None:
        """Fill in what an interrupted attempt left of these songs."""
        return None

    def start_level(self, level: str, songs: list[GeneratedSong]) -> None:
        """Called before the first code of a level."""
        return None

    def update(self, level: str, songs: list[GeneratedSong], job: LevelJob) -> None:
        """Called after every step, with the codes so far."""
        return None

    def finish_level(self, level: str, songs: list[GeneratedSong], job: LevelJob) -> None:
        """Called when a level has all its codes."""
        return None

    def finish(self, songs: list[GeneratedSong]) -> None:
        """Called when all levels are done."""
        return None


class InMemorySink(SongSink):
    """Decodes the audio of each finished level into the songs themselves, and writes nothing."""

    def __init__(self, vqvae: VQVAE, refiners: Mapping[str, LevelRefiner] | None = None):
        self.vqvae = vqvae
        self.refiners = refiners or {}

    def finish_level(self, level: str, songs: list[GeneratedSong], job: LevelJob) -> None:
        for song, codes_T in zip(songs, job.codes_BT):
            song.audio[level] = decode_all(self.vqvae, codes_T, level).float().cpu().numpy()
            add_refined(song, level, codes_T, self.vqvae, self.refiners)


def add_refined(
    song: GeneratedSong,
    level: str,
    codes_T: Tensor,
    vqvae: VQVAE,
    refiners: Mapping[str, LevelRefiner],
) -> None:
    """Add what the level's refiner makes of its codes, if there is one, as a track of its own."""
    refiner = refiners.get(level)
    if refiner is not None:
        song.add_reference_tracks({refiner.track: refiner.refined(vqvae, codes_T)})


class SongWriter:
    """A sink that writes songs into `out`: streams of audio, resume files, and finished records.

    `stop` is asked after every step; once it returns True the codes are saved and `SamplingInterrupted` is raised.
    """

    def __init__(
        self, jukebox: SongContext, out: Path | str, stop: Callable[[], bool] = lambda: False
    ):
        self.jukebox = jukebox
        self.out = Path(out)
        self.stop = stop
        self.resume_store = ResumeStore(self.out)
        self.streams: list[AudioStream] = []
        self.last_save = time.monotonic()

    def resume(self, songs: list[GeneratedSong]) -> None:
        """Give each song the codes that an interrupted attempt at the same request left."""
        for song in songs:
            key = self.jukebox.song_key(song.request)
            resumed = self.resume_store.load(song.request.id, key)
            if resumed is not None:
                song.known = resumed
                continue
            for level in self.jukebox.levels:  # partial audio there is of another song
                audio = self.out / audio_name(song.request.id, level, self.jukebox.main_level)
                audio.with_suffix(PARTIAL_SUFFIX).unlink(missing_ok=True)

    def start_level(self, level: str, songs: list[GeneratedSong]) -> None:
        """Open an audio stream a song; codes known by now are decoded with the first new ones."""
        self.streams = []
        for song in songs:
            path = self.out / audio_name(song.request.id, level, song.main_level)
            self.streams.append(AudioStream(self.jukebox.vqvae, level, path))

    def update(self, level: str, songs: list[GeneratedSong], job: LevelJob) -> None:
        """Decode the new codes; save them every `SAVE_INTERVAL` seconds.

        Raises:
            SamplingInterrupted: `stop` returned True; the codes are saved.
        """
        for stream, codes_T, known_T in zip(self.streams, job.codes_BT, job.known_BT.cpu()):
            unknown = (~known_T).nonzero()
            if len(unknown):  # else `finish_level` completes the file
                stream.feed(codes_T, int(unknown[0]))
        interrupted = self.stop()
        if interrupted or time.monotonic() > self.last_save + SAVE_INTERVAL:
            self._save_codes(level, songs, job)
        if interrupted:
            raise SamplingInterrupted

    def finish_level(self, level: str, songs: list[GeneratedSong], job: LevelJob) -> None:
        """Complete the level's audio files, and save its codes."""
        for stream, codes_T, song in zip(self.streams, job.codes_BT, songs):
            stream.feed(codes_T, job.total)
            song.levels[level]["audio"] = stream.path.name
            add_refined(song, level, codes_T, self.jukebox.vqvae, self.jukebox.refiners)
        self._save_codes(level, songs, job)

    def finish(self, songs: list[GeneratedSong]) -> None:
        """Write the records of finished songs, and remove what was kept to resume them."""
        for song in songs:
            song.save(self.out)
            self.resume_store.remove(song.request.id)

    def _save_codes(self, level: str, songs: list[GeneratedSong], job: LevelJob) -> None:
        codes_BT = job.codes_BT.cpu().numpy()
        known_BT = job.known_BT.cpu().numpy()
        for song, codes_T, known_T in zip(songs, codes_BT, known_BT):
            song.known = KnownCodes(
                song.known.codes | {level: codes_T.copy()},
                song.known.mask | {level: known_T.copy()},
            )
            key = self.jukebox.song_key(song.request)
            self.resume_store.save(song.request.id, key, song.known)
            self.resume_store.touch(song.request.id)
        self.last_save = time.monotonic()
