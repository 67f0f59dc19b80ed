"""One song on its way into a shard: read, checked, resampled, encoded, described."""

import hashlib
import json
import re
import unicodedata
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from megajukebox.common.errors import UserError
from megajukebox.common.untrusted_files import UnsafeFileError
from megajukebox.conditioning.song_sections import resolve_sections, returns_of, section_fields
from megajukebox.data import audio
from megajukebox.data.ingest.song_lyrics import lyrics_notes, song_with_embedded_lyrics
from megajukebox.data.ingest.source_song import SongMetadata, SourceSong
from megajukebox.data.ingest.tags import SongTags, song_tags
from megajukebox.data.shards.shard_set import ShardSample
from megajukebox.records.ingest_notes import IngestNote, NoteKind

SILENCE = 1e-4  # a peak below this is not music
# A song is held as floats, scaled, as whole steps, encoded, and as the bytes of its members on their way: 4.5 copies.
COPIES = 5
MEMORY_BESIDE = 3 << 30  # bytes of addresses for modules, decoders and the stacks of threads
MAX_SLUG = 36  # characters of a key that come from the file's name


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
    tags: bool = True  # fields that the user did not give are those of the file's own tags
    strict: bool = False  # a song with a note is refused
    allow: tuple[str, ...] = ()  # kinds of notes that refuse no song

    @property
    def worker_memory(self) -> int:
        """Bytes that a process which converts songs may take beyond what it starts with."""
        longest = self.max_seconds * self.sample_rate * audio.STORED_CHANNELS
        return MEMORY_BESIDE + round(COPIES * longest * np.dtype(np.float32).itemsize)

    def __post_init__(self) -> None:
        low, high = audio.SAMPLE_RATES
        rules = (  # field, whether its value fits, way out
            ("sample_rate", low <= self.sample_rate <= high, f"choose {low} to {high} Hz"),
            ("codec", self.codec in ("flac", "wav"), "choose flac or wav"),
            ("bits", self.bits in (16, 24), "choose 16 or 24"),
            ("songs_per_shard", self.songs_per_shard >= 1, "choose at least 1"),
            ("shard_megabytes", self.shard_megabytes >= 1, "choose at least 1"),
            (
                "min_seconds",
                0 <= self.min_seconds < self.max_seconds,
                f"choose 0 or more, below max_seconds {self.max_seconds:g}",
            ),
        )
        for kind in self.allow:
            if kind not in [known.value for known in NoteKind]:
                known_kinds = ", ".join(known.value for known in NoteKind)
                raise UserError(f"allow is {kind!r}; choose among {known_kinds}")
        if self.allow and not self.strict:
            raise UserError(f"allow is {', '.join(self.allow)} without strict; give --strict too")
        for name, fits, way_out in rules:
            if not fits:
                raise UserError(f"{name} is {getattr(self, name)!r}; {way_out}")

    def refuses(self, note: IngestNote) -> bool:
        """Whether what this note is about is refused instead of noted."""
        return self.strict and note.kind.value not in self.allow


@dataclass(frozen=True)
class ConvertedSong:
    """A song ready to be stored, or the reason why it is refused."""

    refusal: str | None = None  # "<reason>: <detail>"
    audio: bytes = b""
    sha256: str = ""  # of `audio`, so of the samples too: the encoders are deterministic
    channels: int = 0
    frames: int = 0
    tags: dict[str, Any] = field(default_factory=dict)  # the file's own: fields of SongMetadata
    notes: tuple[IngestNote, ...] = ()  # on what was changed or left out while it was converted
    lyrics: str | None = None  # those beside the song, else its file's own
    lyrics_kind: str | None = None  # "txt" plain, "lrc" timed
    sections: dict[str, Any] = field(default_factory=dict)  # `sections` and `returns` of its JSON


def convert(song: SourceSong, settings: IngestConfig) -> ConvertedSong:
    """Read and encode the audio of `song`; a fault of it becomes its refusal, never an
    exception.
    """
    if song.refusal:
        return ConvertedSong(song.refusal)
    try:
        with song.open() as file:
            recording = audio.read_recording(file, settings.sample_rate, settings.max_seconds)
            tags = song_tags(file, song.name) if settings.tags else SongTags()
        converted = encoded(recording.samples, tags.metadata, settings)
        notes = [*recording.notes, *clipping(recording.samples, settings)]
        of_audio = [IngestNote(song.name, NoteKind(note.kind), note.detail) for note in notes]
        converted = replace(converted, notes=(*converted.notes, *of_audio))
        return with_words_and_sections(converted, song, tags, settings)
    except ValueError as error:
        return ConvertedSong(str(error))
    except (IsADirectoryError, UnsafeFileError):
        return ConvertedSong("unreadable: not a file")
    except OSError as error:
        return ConvertedSong(f"unreadable: {error.strerror or error}")
    except MemoryError:
        return ConvertedSong("too large: it needs more memory than one song may take")


def encoded(x: np.ndarray, tags: dict[str, Any], settings: IngestConfig) -> ConvertedSong:
    """The audio [T, C] of a song as it is stored, or why it is no song."""
    seconds = len(x) / settings.sample_rate
    if not len(x) or seconds < settings.min_seconds:
        return ConvertedSong(
            f"too short: {seconds:.3g} seconds; at least {settings.min_seconds:g} are wanted"
        )
    if audio.loudest(x) < SILENCE:
        return ConvertedSong(f"silent: no sample is beyond {SILENCE:g}")
    if settings.codec == "wav":
        data = audio.encode_wav(x, settings.sample_rate)
    else:
        data = audio.encode_flac(x, settings.sample_rate, settings.bits)
    return ConvertedSong(
        audio=data,
        sha256=hashlib.sha256(data).hexdigest(),
        channels=x.shape[1],
        frames=len(x),
        tags=tags,
    )


def with_words_and_sections(
    converted: ConvertedSong, song: SourceSong, tags: SongTags, settings: IngestConfig
) -> ConvertedSong:
    """`converted` with the words and sections of its song, and notes on them and on its tags."""
    if converted.refusal:
        return converted
    sung = song_with_embedded_lyrics(song, tags)
    seconds = converted.frames / settings.sample_rate
    given = song.metadata.get("sections", [])
    sections, changed = resolve_sections(given, sung.lyrics, seconds)
    late = []
    if changed:
        detail = f"sections behind the end at {seconds:.2f} s: {changed}; cut there, or left out"
        late.append(IngestNote(song.name, NoteKind.sections_outside_song, detail))
    return replace(
        converted,
        notes=(*converted.notes, *tags.notes, *lyrics_notes(sung, seconds), *late),
        lyrics=sung.lyrics,
        lyrics_kind=sung.lyrics_kind,
        sections=section_fields(sections, returns_of(sections)),
    )


def clipping(x: np.ndarray, settings: IngestConfig) -> list[audio.AudioNote]:
    """A note if samples of [T, C] are beyond what the codec holds, by more than rounding."""
    if settings.codec != "flac" or audio.loudest(x) <= 1.0:
        return []
    beyond = int(np.count_nonzero(np.abs(x) > 1.0))
    detail = f"{beyond} of {x.size} samples were beyond full scale, at most {audio.loudest(x):.3f}"
    return [audio.AudioNote("clipped", detail)]


def crashed(song: SourceSong) -> ConvertedSong:
    """The refusal of a song that kills the process that reads it."""
    return ConvertedSong(
        "unreadable: the process that read it died (a crash of the decoder, or out of memory)"
    )


def sample(song: SourceSong, converted: ConvertedSong, settings: IngestConfig) -> ShardSample:
    """The members of a song's sample: JSON, audio, lyrics."""
    key = f"{slug(song.path.stem)}-{converted.sha256[:8]}"
    metadata = converted.tags | song.metadata
    metadata.pop("sections", None)  # as given; those that were resolved follow
    facts = {
        "version": 1,
        "key": key,
        **{name: metadata[name] for name in SongMetadata.model_fields if name in metadata},
        "source": PurePosixPath(song.name).name,
        "sample_rate": settings.sample_rate,
        "channels": converted.channels,
        "frames": converted.frames,
        "sha256": converted.sha256,
        **converted.sections,
    }
    members = {
        "json": json.dumps(facts, ensure_ascii=False).encode(),
        settings.codec: converted.audio,
    }
    if converted.lyrics and converted.lyrics_kind:
        members[converted.lyrics_kind] = converted.lyrics.encode()
    return ShardSample(key, converted.frames, members)


def slug(stem: str) -> str:
    """What of a file's name fits into a key: ASCII letters (accents dropped), digits and dashes."""
    plain = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9_]+", "-", plain)[:MAX_SLUG].strip("-") or "song"
