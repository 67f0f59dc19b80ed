"""The songs that are evaluated and their references: out of song shards, code shards, and folders of samples."""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from megajukebox.common.errors import UserError
from megajukebox.common.levels import LEVELS
from megajukebox.common.npz import MAX_NPZ_BYTES, codes_of, read_npy, read_npz
from megajukebox.common.plain_text import plain
from megajukebox.common.progress import track
from megajukebox.common.untrusted_files import open_inside, parse_json, read_inside
from megajukebox.conditioning.lrc import TimedWord, parse_lrc
from megajukebox.conditioning.song_sections import LabelledSection, stored_sections
from megajukebox.data.audio import downmix, facts, read_channels_slice, read_mono
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.shards.transports import is_url
from megajukebox.data.stream.song_dataset import split

log = logging.getLogger(__name__)

Array = np.ndarray
MAX_LYRICS_BYTES = 1 << 20
LABELS = ("artist", "genre", "language")


@dataclass(frozen=True)
class EvalSong:
    """One recording, real or generated. Audio is mono float32 [T], full scale 1."""

    key: str
    audio: Array
    rate: int  # Hz
    labels: Mapping[str, str] = field(default_factory=dict)  # those of LABELS that are known
    text: str = ""  # lyrics
    words: tuple[TimedWord, ...] = ()  # with times, where they are known
    sections: tuple[LabelledSection, ...] = ()  # of its JSON, or of the plan that it was sampled by
    stereo: Array | None = None  # [T, 2] of which `audio` is the mean, where it was asked for

    @property
    def seconds(self) -> float:
        return len(self.audio) / self.rate


def labels_of(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Artist, genre (the first) and language of a song's JSON or a request, those that it has."""
    genres = metadata.get("genres") or ()
    genre = genres if isinstance(genres, str) else next(iter(genres), None)
    labels = {
        "artist": metadata.get("artist"),
        "genre": genre,
        "language": metadata.get("language"),
    }
    return {name: str(value) for name, value in labels.items() if value}


# ---- Song shards and code shards


def select_rows(shards: ShardSet, held_out: bool, fraction: float, limit: int) -> list[int]:
    """At most `limit` rows, evenly spread over the held-out songs (or over the others) of a set.

    `fraction` of the songs are held out.
    """
    rows = np.flatnonzero(split(shards.songs["key"], fraction) == held_out)
    return evenly_spaced(rows, limit).tolist()


def evenly_spaced(rows: Array, limit: int) -> Array:
    """At most `limit` of `rows`, evenly spread: the same ones every time."""
    return rows if len(rows) <= limit else rows[(np.arange(limit) * len(rows)) // limit]


@dataclass
class EvalSongs:
    """Songs of shards that can be iterated over more than once. Unreadable ones are left out, with the reason."""

    shards: ShardSet
    rows: list[int]
    max_seconds: float  # of each song, from its start
    refused: dict[str, str] = field(default_factory=dict)  # reason by key
    channels: int = 1  # 2: songs have `stereo` too

    def __iter__(self) -> Iterator[EvalSong]:
        for row in track(self.rows, "reading songs"):
            try:
                yield self.song(row)
            except ValueError as error:
                self.refused[self.shards.key(row)] = str(error)

    def song(self, row: int) -> EvalSong:
        """One song with its metadata and lyrics. ValueError if it cannot be read."""
        shards = self.shards
        rate = shards.index["sample_rate"]
        frames = min(int(shards.songs["frames"][row]), int(self.max_seconds * rate))
        with shards.open_member(row, "audio") as file:
            audio = read_channels_slice(file, 0, frames, rate, self.channels)  # type: ignore[arg-type]
        stereo = audio if self.channels == 2 else None
        mono = audio if stereo is None else downmix(stereo)
        text = ""
        words: list[TimedWord] = []
        if shards.has(row, "lyrics"):
            text, words = parse_lrc(shards.read_member(row, "lyrics").decode())
        song_facts = shards.read_facts(row)
        sections = tuple(stored_sections(song_facts))
        labels = labels_of(song_facts)
        key = shards.key(row)
        return EvalSong(key, mono, rate, labels, text, tuple(words), sections, stereo)


def load_codes(shards: ShardSet, row: int, level: str) -> Array:
    """All codes [T] of a song at one level."""
    return codes_of(read_npy(shards.read_member(row, level)), level)


# ---- Samples


@dataclass(frozen=True)
class EvalSample:
    """One song that `megajukebox sample` wrote."""

    key: str
    folder: Path
    record: Mapping[str, Any]

    @property
    def levels(self) -> list[str]:
        """The levels it has audio of, coarsest first."""
        records = self.record.get("levels", {})
        levels = []
        for level in LEVELS:
            record = records.get(level)
            if isinstance(record, dict) and record.get("audio"):
                levels.append(level)
        return levels

    @property
    def seconds(self) -> float:
        """Length of its finest level, from the file's header; 0 without audio."""
        if not self.levels:
            return 0.0
        try:
            with open_inside(
                self.folder, str(self.record["levels"][self.levels[-1]]["audio"])
            ) as file:
                return facts(file).seconds or 0.0
        except FileNotFoundError:
            return 0.0

    def song(self, level: str) -> EvalSong:
        """Its audio at one level. ValueError if that cannot be read."""
        name = str(self.record["levels"][level]["audio"])
        if Path(name).name != name:
            raise UserError(f"{self.key}: audio {name!r} is not a file name")
        rate = int(self.record["sample_rate"])
        with open_inside(self.folder, name) as file:
            audio = read_mono(file, rate)
        request = self.record["request"]
        try:
            lyrics = read_inside(self.folder, f"{self.key}.lrc", MAX_LYRICS_BYTES).decode()
        except FileNotFoundError:
            lyrics = str(request.get("lyrics") or "")
        text, words = parse_lrc(lyrics)
        labels = labels_of(request)
        return EvalSong(self.key, audio, rate, labels, text, tuple(words), self.sections)

    @property
    def sections(self) -> tuple[LabelledSection, ...]:
        """The plan that it was sampled by; () without one. ValueError if that cannot be read."""
        return tuple(stored_sections(self.record))

    def codes(self) -> dict[str, Array]:
        """Codes [T] by level; none if they were not kept, or cannot be read."""
        try:
            data = read_inside(self.folder, f"{self.key}.codes.npz", MAX_NPZ_BYTES)
            arrays = read_npz(data, names=LEVELS)
            return {level: codes_of(arrays[level], level) for level in LEVELS if level in arrays}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            log.warning("codes of %s are left out: %s", plain(self.key), plain(str(error)))
            return {}


def samples_in(folder: Path) -> list[EvalSample]:
    """The samples of a folder by name, without reconstructions of real songs.

    Raises:
        UserError: there are none.
    """
    samples = []
    for path in sorted(folder.glob("*.json")):
        try:
            record = parse_json(read_inside(folder, path.name))
        except (OSError, ValueError) as error:
            log.warning("%s is left out: %s", plain(path.name), plain(str(error)))
            continue
        if not isinstance(record, dict) or not isinstance(record.get("request"), dict):
            continue
        levels = record.get("levels", {})
        is_sample = isinstance(record.get("sample_rate"), int) and isinstance(levels, dict)
        if is_sample and "reconstruction" not in record:
            samples.append(EvalSample(path.stem, folder, record))
    if not samples:
        raise UserError(f"{folder} holds no samples; give a folder that `megajukebox sample` wrote")
    return samples


@dataclass
class SampledSongs:
    """The audio of one level of those samples that have it, as songs that can be iterated over more than once."""

    samples: list[EvalSample]
    level: str
    refused: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.samples = [sample for sample in self.samples if self.level in sample.levels]

    def __iter__(self) -> Iterator[EvalSong]:
        for sample in self.samples:
            try:
                yield sample.song(self.level)
            except (ValueError, OSError) as error:
                self.refused[sample.key] = str(error)


# ---- References


@dataclass(frozen=True)
class References:
    """What targets are compared with: at most one set of each kind."""

    songs: ShardSet | None = None
    codes: ShardSet | None = None
    notes: ShardSet | None = None
    samples: list[EvalSample] = field(default_factory=list)

    @classmethod
    def open(cls, sources: Iterable[str]) -> "References":
        """Open song shards, code shards and folders of samples, each a path or a URL.

        Raises:
            UserError: two of one kind, or a folder that holds none of them.
        """
        by_kind: dict[str, Any] = {}
        for source in sources:
            kind = "samples"
            reference: ShardSet | list[EvalSample]
            if is_url(source) or (Path(source) / "index.json").is_file():
                reference = ShardSet(source)
                kind = reference.index["kind"]
            else:
                reference = samples_in(Path(source))
            if kind in by_kind:
                raise UserError(f"--reference {source} is a second set of {kind}; give one of each")
            by_kind[kind] = reference
        for kind in by_kind.keys() - {"songs", "codes", "notes", "samples"}:
            raise UserError(f"a --reference holds {kind}; give songs, codes, notes or samples")
        return cls(**by_kind)

    @property
    def shard_sets(self) -> list[ShardSet]:
        return list(filter(None, (self.songs, self.codes, self.notes)))

    def check_scale(self, samples: list[EvalSample]) -> None:
        """Refuse samples that no figure could compare with these references.

        Mel bands, spectra and embeddings are of other pitches at another sample rate: one song at 11,025 and 8,000 Hz is
        two thirds as far from itself as from another song (docs/decisions/0049). Codes mean nothing beside those of
        another VQ-VAE.

        Raises:
            UserError: names the two rates, or the two VQ-VAEs, and the way out.
        """
        rate = rate_of_samples(samples)
        if self.songs and self.songs.index["sample_rate"] != rate:
            raise UserError(
                f"{self.songs.source} holds songs at {self.songs.index['sample_rate']} Hz, the samples in"
                f" {samples[0].folder} have {rate} Hz; give songs that were prepared with --sample-rate {rate}"
            )
        if self.samples and rate_of_samples(self.samples) != rate:
            raise UserError(
                f"the samples in {self.samples[0].folder} have {rate_of_samples(self.samples)} Hz, those in"
                f" {samples[0].folder} {rate} Hz; give samples of runs of one sample rate"
            )
        if self.codes is None:
            return
        encoder = str(self.codes.index["vqvae"]["fingerprint"])
        for sample in samples:
            weights = sample.record.get("weights")
            decoder = weights.get("vqvae") if isinstance(weights, dict) else None
            if decoder not in (None, encoder):
                raise UserError(
                    f"{self.codes.source} holds codes of another VQ-VAE ({encoder[:12]}) than sample"
                    f" {plain(sample.key)} ({plain(str(decoder))[:12]}); give the codes that its runs were trained on"
                )

    def describe(self) -> list[dict[str, Any]]:
        """Kind, source and fingerprint of each, for the report."""
        described = []
        for shards in self.shard_sets:
            kind = shards.index["kind"]
            described.append(
                {"kind": kind, "source": shards.source, "fingerprint": shards.fingerprint}
            )
        if self.samples:
            source = str(self.samples[0].folder)
            fingerprint = fingerprint_of_samples(self.samples)
            described.append({"kind": "samples", "source": source, "fingerprint": fingerprint})
        return described


def rate_of_samples(samples: list[EvalSample]) -> int:
    """The sample rate in Hz that all of them have.

    Raises:
        UserError: two of them differ.
    """
    first = samples[0]
    rate = int(first.record["sample_rate"])
    for sample in samples:
        other = int(sample.record["sample_rate"])
        if other != rate:
            raise UserError(
                f"{first.folder} holds samples at {rate} Hz ({plain(first.key)}) and at {other} Hz"
                f" ({plain(sample.key)}), which no figure compares; put them into two folders"
            )
    return rate


def fingerprint_of_samples(samples: list[EvalSample]) -> str:
    """Checksum of the samples' records: the same samples have the same one wherever they lie."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(read_inside(sample.folder, f"{sample.key}.json"))
    return digest.hexdigest()
