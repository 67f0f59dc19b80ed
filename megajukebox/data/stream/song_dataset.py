"""Which clips a song set has, and one of them as audio: the samples of the VQ-VAE's training."""

import hashlib
import io
from pathlib import Path
from typing import Literal

import numpy as np

from megajukebox.common.errors import BadSampleError, UserError
from megajukebox.common.old_settings import upgrade_stage
from megajukebox.common.untrusted_files import parse_yaml, read_inside
from megajukebox.data.audio import as_channels, read_slice
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.stream.augment import Augment

Part = Literal["train", "held_out"]
# A song of a day at the highest rate: what claims more would drown all others.
MAX_FRAMES = 24 * 3600 * 192_000
BUFFER = 1 << 16  # bytes of a song read at a time
UNCHANGED = Augment()
HELD_OUT = 0.1  # share of songs kept out of training, for runs without a run.yaml


def split(keys: np.ndarray, held_out: float) -> np.ndarray:
    """Which songs are held out, [songs] bool: those whose key hashes into the share `held_out`
    (0..1).

    A pure function of each key: songs and their codes are split alike, and a song stays where it is
    when others come.
    """
    below = int(held_out * 2.0**64)
    if not 0 < below < 2**64:
        return np.full(len(keys), below > 0)
    # a million songs: look nothing up twice, and compare the hashes all at once
    blake2b = hashlib.blake2b
    digests = b"".join([blake2b(key, digest_size=8).digest() for key in keys.tolist()])
    return np.frombuffer(digests, dtype="<u8") < np.uint64(below)


def held_out_share(run: Path, default: float = HELD_OUT) -> float:
    """The share of songs that the run in this folder kept out of its training; imported runs do
    not say.
    """
    settings = run / "run.yaml"
    if not settings.is_file():
        return default
    values = parse_yaml(read_inside(run, settings.name))
    stage = upgrade_stage(values["preset"]["training"][values["stage"]])
    return float(stage["evaluation"]["held_out"])


def of_part(per_song: np.ndarray, held_out: np.ndarray, part: Part) -> np.ndarray:
    """`per_song` with 0 for the songs of the other part."""
    return np.where(held_out == (part == "held_out"), per_song, 0)


def clip_start(clip: int, length: int, song: int, rng: np.random.Generator | None) -> int:
    """Start of the clip-th clip of `length` in a song of `song`, with `rng` shifted by up to
    half a clip either way.
    """
    half = length // 2
    shift = int(rng.integers(-half, half)) if rng is not None and half else 0
    return moved_inside(clip * length + shift, length, song)


def moved_inside(start: int, length: int, song: int) -> int:
    """`start`, moved by up to half a clip where the clip would stick out of the song (Jukebox's
    rule).
    """
    if start > song - length:
        return max(0, start - length // 2)
    if start < 0:
        return min(song - length, start + length // 2)
    return start


class SongClips:
    """Clips of `clip` samples of the songs in `shards`, mixed down to mono, or (`channels` 2) of
    left and right; songs shorter than a clip are left out.

    With `verify` the first clip read from a song checks the whole member's CRC, once a process (33
    MB for four minutes of FLAC); without it a clip is refused if it does not decode to as many
    finite samples.
    """

    def __init__(
        self,
        shards: ShardSet,
        clip: int,
        held_out: float = 0.0,
        verify: bool = False,
        augment: Augment = UNCHANGED,
        channels: int = 1,
    ) -> None:
        if clip < 1:
            raise UserError(f"clip {clip} is not a length in samples; set 1 or more")
        self.shards = shards
        self.clip = clip
        self.held_out = held_out
        self.verify = verify
        self.augment = augment
        self.channels = channels
        self.shard_of_song = np.asarray(shards.songs["shard"])
        self._clips = believable(shards.songs["frames"]) // clip
        self._held_out = split(shards.songs["key"], held_out)
        self._verified = np.zeros(len(self._clips), dtype=bool)

    def clips(self, part: Part) -> np.ndarray:
        """Number of clips of each song, [songs] int64; 0 for the songs of the other part."""
        return of_part(self._clips, self._held_out, part)

    def report(self) -> dict[str, int]:
        return report(self._clips, self._held_out)

    def facts(self) -> dict[str, object]:
        """What fixes the samples beside the seed."""
        facts: dict[str, object] = {
            "index": self.shards.fingerprint,
            "clip": self.clip,
            "held_out": self.held_out,
        }
        if self.augment.on:
            facts["volume_db"] = self.augment.volume_db
            facts["eq_db"] = self.augment.eq_db
        if self.channels != 1:
            facts["channels"] = self.channels
        return facts

    def read(self, song: int, clip: int, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        """{"audio": float32 [clip, channels]}; BadSampleError if it cannot be read.

        Without `rng`: no shift, equal mix.
        """
        start = clip_start(clip, self.clip, int(self.shards.songs["frames"][song]), rng)
        mix = rng.random() if rng is not None else 0.5
        if not self.shards.has(song, "json"):
            raise BadSampleError("json", f"{self.shards.key(song)} has no JSON")
        if self.verify and not self._verified[song]:
            self.shards.check_member(song, "audio")
            self._verified[song] = True
        rate = self.shards.index["sample_rate"]
        # libsndfile asks for 8 kB at a time and often at its own position: a buffer answers without
        # a call of ours
        with io.BufferedReader(self.shards.open_member(song, "audio"), BUFFER) as file:
            x = training_mix(read_slice(file, start, self.clip, rate), self.channels, mix)
        if rng is not None and self.augment.on:
            x = self.augment(x, rate, rng)
        return {"audio": x.reshape(self.clip, self.channels).astype(np.float32, copy=False)}


def training_mix(x_TC: np.ndarray, channels: int, mix: float) -> np.ndarray:
    """A clip [T, C] as a model of so many channels is trained with it.

    Mono [T] is `mix` of the left and the rest of the right (Jukebox's rule: `mix` is drawn for each
    clip). Stereo [T, 2] has left and right exchanged where `mix` is below a half.
    """
    x = as_channels(x_TC, channels, mix)
    return x[:, ::-1] if channels == 2 and mix < 0.5 else x


def believable(frames: np.ndarray) -> np.ndarray:
    """Lengths of songs [songs] int64, 0 for those beyond MAX_FRAMES: nobody's song, and no
    memory holds its order.
    """
    frames = np.asarray(frames)
    return np.where(frames <= MAX_FRAMES, frames, 0).astype(np.int64)


def report(clips: np.ndarray, held_out: np.ndarray) -> dict[str, int]:
    """Counts for the run's events: what is trained on, held out, and left out for being too
    short.
    """
    return {
        "songs": len(clips),
        "songs_too_short": int((clips == 0).sum()),
        "train_songs": int(((clips > 0) & ~held_out).sum()),
        "train_clips": int(clips[~held_out].sum()),
        "held_out_songs": int(((clips > 0) & held_out).sum()),
        "held_out_clips": int(clips[held_out].sum()),
    }
