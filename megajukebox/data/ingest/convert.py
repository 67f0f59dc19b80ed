"""One song on its way into a shard: read, checked, resampled, encoded, described."""

import hashlib
import json
import re
import unicodedata
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from megajukebox.data import audio
from megajukebox.data.ingest.discover import SongMetadata, SourceSong, metadata_of_tags
from megajukebox.data.shards.shard_set import ShardSample

SILENCE = 1e-4  # a peak below this is not music
SLUG = 36  # characters of a key that come from the file's name


@dataclass(frozen=True)
class IngestConfig:
    """What decides the bytes of song shards, besides the songs."""

    sample_rate: int = 44_100  # Hz
    codec: str = "flac"  # or "wav": 32-bit float
    bits: int = 16  # of the FLAC: 16 or 24
    songs_per_shard: int = 64  # at most
    shard_megabytes: int = 1000  # about, at most
    min_seconds: float = 1.0
    max_seconds: float = audio.MAX_SECONDS
    tags: bool = True  # fields that nobody gave are those of the file's own tags

    def __post_init__(self) -> None:
        low, high = audio.SAMPLE_RATES
        check(
            "sample_rate",
            self.sample_rate,
            low <= self.sample_rate <= high,
            f"choose {low} to {high} Hz",
        )
        check("codec", self.codec, self.codec in ("flac", "wav"), "choose flac or wav")
        check("bits", self.bits, self.bits in (16, 24), "choose 16 or 24")
        check(
            "songs_per_shard", self.songs_per_shard, self.songs_per_shard >= 1, "choose at least 1"
        )
        check(
            "shard_megabytes", self.shard_megabytes, self.shard_megabytes >= 1, "choose at least 1"
        )
        lengths_fit = 0 <= self.min_seconds < self.max_seconds
        check(
            "min_seconds",
            self.min_seconds,
            lengths_fit,
            f"choose 0 or more, below max_seconds {self.max_seconds:g}",
        )


@dataclass(frozen=True)
class ConvertedSong:
    """A song ready to be stored, or the reason why it is refused."""

    refusal: str | None = None  # "<reason>: <detail>"
    audio: bytes = b""
    sha256: str = ""  # of `audio`, so of the samples too: the encoders are deterministic
    channels: int = 0
    frames: int = 0
    told: dict[str, Any] = field(default_factory=dict)  # by the file's tags: fields of Metadata


def check(name: str, value: object, fits: bool, way_out: str) -> None:
    if not fits:
        raise ValueError(f"{name} is {value!r}; {way_out}")


def convert(song: SourceSong, settings: IngestConfig) -> ConvertedSong:
    """Read and encode the audio of `song`; what is wrong with it becomes its refusal, never an exception."""
    if song.refusal:
        return ConvertedSong(song.refusal)
    try:
        x = audio.read(song.path, settings.sample_rate, settings.max_seconds)
        told = metadata_of_tags(audio.tags(song.path)) if settings.tags else {}
    except ValueError as error:
        return ConvertedSong(str(error))
    except OSError as error:
        return ConvertedSong(f"unreadable: {error.strerror or error}")
    reason = unfit(x, settings)
    return ConvertedSong(reason) if reason else replace(stored(x, settings), told=told)


def unfit(x: np.ndarray, settings: IngestConfig) -> str | None:
    """Why audio [T, C] that could be read is of no use, or None."""
    seconds = len(x) / settings.sample_rate
    if not len(x) or seconds < settings.min_seconds:
        return f"too short: {seconds:.3g} seconds; at least {settings.min_seconds:g} are wanted"
    return f"silent: no sample is beyond {SILENCE:g}" if audio.loudest(x) < SILENCE else None


def stored(x: np.ndarray, settings: IngestConfig) -> ConvertedSong:
    """The audio [T, C] encoded as `settings` ask."""
    if settings.codec == "wav":
        data = audio.encode_wav(x, settings.sample_rate)
    else:
        data = audio.encode_flac(x, settings.sample_rate, settings.bits)
    return ConvertedSong(
        None, data, hashlib.sha256(data).hexdigest(), channels=x.shape[1], frames=len(x)
    )


def crashed(song: SourceSong) -> ConvertedSong:
    """What becomes of a song that kills the process that reads it."""
    return ConvertedSong(
        "unreadable: the process that read it died (a crash of the decoder, or out of memory)"
    )


def sample(song: SourceSong, converted: ConvertedSong, settings: IngestConfig) -> ShardSample:
    """The members of a song's sample: JSON, audio, lyrics."""
    key = f"{slug(song.path.stem)}-{converted.sha256[:8]}"
    facts = {
        "version": 1,
        "key": key,
        **ordered(converted.told | song.metadata),
        "source": PurePosixPath(song.name).name,
        "sample_rate": settings.sample_rate,
        "channels": converted.channels,
        "frames": converted.frames,
        "sha256": converted.sha256,
    }
    members = {
        "json": json.dumps(facts, ensure_ascii=False).encode(),
        settings.codec: converted.audio,
    }
    if song.lyrics and song.lyrics_kind:
        members[song.lyrics_kind] = song.lyrics.encode()
    return ShardSample(key, converted.frames, members)


def ordered(metadata: dict[str, Any]) -> dict[str, Any]:
    return {name: metadata[name] for name in SongMetadata.model_fields if name in metadata}


def slug(stem: str) -> str:
    """What of a file's name fits into a key: ASCII letters (accents dropped), digits and dashes."""
    plain = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9_]+", "-", plain)[:SLUG].strip("-") or "song"
