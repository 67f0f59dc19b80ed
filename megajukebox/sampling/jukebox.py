"""A trained jukebox: requests become songs, level by level, with one prior in memory at a time.

    from megajukebox.sampling.jukebox import Jukebox
    songs = Jukebox("runs/tiny").sample([Request(id="mine", artist="...", seconds=8)])
    songs[0].save("samples")

Every song becomes <id>.wav, <id>.json and its codes, in the folder that `save` is given.
"""

import io
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megajukebox.data.audio import write_wav
from megajukebox.data.files import write_whole
from megajukebox.data.jukebox_labels import as_written
from megajukebox.data.lrc import parse_lrc, write_lrc
from megajukebox.data.lyrics import JukeboxCharacters, LyricsTokenizer, SentencePieceTokenizer, Tokens
from megajukebox.data.provenance import made_by
from megajukebox.data.vocabulary import Vocabulary, read_vocabularies
from megajukebox.data.weights import load_into, read_facts
from megajukebox.models.long_audio import decode_long
from megajukebox.models.prior import Prior, PriorConfig
from megajukebox.models.vqvae import VQVAE, VQVAEConfig
from megajukebox.sampling import noise
from megajukebox.sampling.autoregressive import sampler_of
from megajukebox.sampling.choosing import as_json, read_choice, sung_words
from megajukebox.sampling.drawing import Draw
from megajukebox.sampling.level import HOPS, Told, new_job
from megajukebox.sampling.requests import Request

RUNS = {"top": "top_prior", "middle": "middle_upsampler", "bottom": "bottom_upsampler"}
OnProgress = Callable[[str, int], None]  # level, codes sampled since the last call


@dataclass
class Song:
    """What was made for one request, so far: codes and audio by level."""

    request: Request
    notes: list[str]
    sample_rate: int
    codes: dict[str, np.ndarray] = field(default_factory=dict)
    audio: dict[str, np.ndarray] = field(default_factory=dict)
    levels: dict[str, dict[str, Any]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    timed_lyrics: str = ""  # .lrc of times found in the attention

    def save(self, folder: Path | str) -> Path:
        """Write the song; <id>.json comes last, so a song that has it is complete. Returns its path."""
        folder, name = Path(folder), self.request.id
        folder.mkdir(parents=True, exist_ok=True)
        for level, wave in self.audio.items():
            self.levels[level]["audio"] = f"{name}.wav" if level == "bottom" else f"{name}.{level}.wav"
            write_wav(folder / self.levels[level]["audio"], wave[:, None], self.sample_rate)
        codes = io.BytesIO()
        # The stubs of savez would take a more precise type for its argument allow_pickle.
        arrays: dict[str, Any] = {level: c.astype(np.uint16) for level, c in self.codes.items()}
        np.savez(codes, **arrays)
        write_whole(folder / f"{name}.codes.npz", codes.getvalue())
        self._save_lyrics(folder)
        write_whole(folder / f"{name}.json", (json.dumps(self.record(), indent=1, ensure_ascii=False) + "\n").encode())
        return folder / f"{name}.json"

    def _save_lyrics(self, folder: Path) -> None:
        lyrics = self.timed_lyrics or self.request.lyrics
        for ending in ("lrc", "txt"):
            (folder / f"{self.request.id}.{ending}").unlink(missing_ok=True)  # of a song that was here before
        if lyrics:
            write_whole(folder / f"{self.request.id}.{'lrc' if parse_lrc(lyrics)[1] else 'txt'}", lyrics.encode())

    def record(self) -> dict[str, Any]:
        return {
            "id": self.request.id,
            "sample_rate": self.sample_rate,
            "seconds": max(len(wave) for wave in self.audio.values()) / self.sample_rate,
            "request": self.request.model_dump(mode="json"),
            "notes": self.notes,
            "levels": self.levels,
            **self.facts,
            "made_by": made_by(),
        }


class LevelRun:
    """The run of one level's prior: what it is told in which words. The weights are only in memory while `loaded`."""

    def __init__(self, folder: Path, vqvae: dict[str, Any]):
        self.folder, self.facts = folder, read_facts(folder)
        if self.facts["kind"] != "prior":
            raise ValueError(f"{folder} holds a {self.facts['kind']}, not a prior")
        trained_on = self.facts.get("vqvae")
        if trained_on is not None and trained_on != vqvae["fingerprint"]:
            raise ValueError(
                f"{folder} was trained on the codes of another VQ-VAE"
                f" ({trained_on[:12]}, here {vqvae['fingerprint'][:12]});"
                " put the one it was trained with beside it, or train it again"
            )
        self.config = PriorConfig(**self.facts["config"])
        self.vocabularies = read_vocabularies(folder)
        self.tokenizer = self._tokenizer() if self.config.lyrics else None
        self.alignment = read_choice(folder)

    def _tokenizer(self) -> LyricsTokenizer:
        kind = self.facts.get("tokenizer")
        if kind in ("jukebox_v2", "jukebox_v3"):
            return JukeboxCharacters(kind[-2:])
        return SentencePieceTokenizer(self.folder / (kind or "lyrics.model"))

    def told(self, request: Request) -> Told:
        labels = self.config.labels
        known = {n: self.vocabularies.get(n, Vocabulary()) for n in labels}
        ids = {n: known[n].ids(self.names(request, n), label.slots) for n, label in labels.items()}
        text, words = parse_lrc(request.lyrics)
        tokens = self.tokenizer.encode(text) if self.tokenizer else Tokens([], [])
        return Told(ids, tokens, words if self.tokenizer else [])

    def names(self, request: Request, condition: str) -> list[str]:
        """What the request says of one condition, as this prior's vocabularies spell it."""
        spelling = self.facts.get("names")
        return [spelt for name in request.names(condition) for spelt in as_written(spelling, condition, name)]

    def notes(self, request: Request) -> Iterator[str]:
        """What of the request this level cannot follow, in words."""
        for name in self.config.labels:
            known = self.vocabularies.get(name, Vocabulary())
            for value in self.names(request, name):
                if not known.id(value):
                    yield f"{name} {value!r} is unknown to the {self.config.level} level; it was told <unknown>"
        seconds, trained = request.song_seconds or request.seconds, self.config.timing
        if trained and not trained.min_seconds <= seconds <= trained.max_seconds:
            limits = f"{trained.min_seconds:g}-{trained.max_seconds:g} s"
            yield f"{seconds:g} s is outside the {limits} that were trained; it was told the nearest"
        if self.config.lyrics and not request.lyrics.strip():
            yield "no lyrics: the voice, if any, has nothing to follow"

    @contextmanager
    def loaded(self, device: torch.device, dtype: torch.dtype) -> Iterator[Prior]:
        """The prior on `device`, straight from the file, and gone after the block."""
        with torch.device("meta"):
            prior = Prior(self.config)
        load_into(prior, self.folder, dtype=dtype, device=device)
        yield prior.eval()
        prior.to("meta")  # gone even while a caller's name still holds it: the next one is loaded before that is reused
        if device.type == "cuda":
            torch.cuda.empty_cache()


class Jukebox:
    """The folder that holds the runs vqvae, top_prior, middle_upsampler and bottom_upsampler.

    Raises ValueError where a run is missing, is of another kind, or was trained on another VQ-VAE.
    """

    def __init__(self, runs: Path | str, device: str | None = None, dtype: torch.dtype = torch.float32):
        self.runs, self.dtype = Path(runs), dtype
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        facts = read_facts(self.runs / "vqvae")
        self.vqvae = VQVAE(VQVAEConfig(**facts["config"]))
        load_into(self.vqvae, self.runs / "vqvae", device=self.device)
        self.vqvae.to(self.device).eval()
        self.levels = {level: LevelRun(self.runs / RUNS[level], facts) for level in reversed(self.vqvae.config.levels)}
        priors = {level: run.facts["fingerprint"] for level, run in self.levels.items()}
        self.weights = {"vqvae": facts["fingerprint"], **priors}
        self.steps = {
            "vqvae": facts.get("step"),
            **{level: run.facts.get("step") for level, run in self.levels.items()},
        }

    def codes_of(self, request: Request, level: str) -> int:
        """Codes of a level for the seconds asked: a whole number of top codes, at least one."""
        top = max(self.vqvae.config.hops.values())
        length = max(1, round(request.seconds * self.vqvae.config.sample_rate / top)) * top
        return length // self.vqvae.config.hops[level]

    def sample(
        self, requests: list[Request], batch_size: int = 16, on_progress: OnProgress = lambda level, count: None,
        on_level: Callable[[str, list[Song]], None] = lambda level, songs: None,
    ) -> list[Song]:  # fmt: skip
        """One song a request. `on_level` hears of each level of all songs as soon as its audio is there."""
        songs = [self._unsung(request) for request in requests]
        for level, run in self.levels.items():
            with run.loaded(self.device, self.dtype) as prior:
                for batch in batches_of_equal_length(songs, batch_size):
                    self._sample_level(level, run, prior, batch, on_progress)
            on_level(level, songs)
        return songs

    def _unsung(self, request: Request) -> Song:
        made = {"weights": self.weights, "steps": self.steps, "runs": str(self.runs)}
        facts = made | {"precision": str(self.dtype).removeprefix("torch.")}
        return Song(request, self.notes(request), self.vqvae.config.sample_rate, facts=facts)

    def notes(self, request: Request) -> list[str]:
        return [note for run in self.levels.values() for note in run.notes(request)]

    def _sample_level(
        self, level: str, run: LevelRun, prior: Prior, songs: list[Song], on_progress: OnProgress
    ) -> None:
        requests, started = [song.request for song in songs], time.perf_counter()
        total = self.codes_of(requests[0], level)
        samples = round((requests[0].song_seconds or requests[0].seconds) * self.vqvae.config.sample_rate)
        above, draw = upper_codes(songs, list(self.levels), level), draw_for(level, requests, self.device)
        guidance, told = [r.at("guidance", level, 1.0) for r in requests], [run.told(r) for r in requests]

        job = new_job(told, total, samples, draw, HOPS[level], above, guidance)
        sampler_of(prior, "sequential").sample(job, lambda count: on_progress(level, count))
        codes = job.codes_BT
        wall = time.perf_counter() - started
        speed = total * len(songs) / wall
        for song, row in zip(songs, codes):
            song.codes[level] = row.cpu().numpy()
            song.audio[level] = decode_long(self.vqvae, row, level).clamp(-1, 1).cpu().numpy()
            song.levels[level] = {
                "codes": total,
                "wall_seconds": wall,
                "tokens_per_second": speed,
                "batch": len(songs),
            }
            time_words(song, run, prior, samples)


def time_words(song: Song, run: LevelRun, prior: Prior, samples: int) -> None:
    """Find when the words of `song` are sung, unless the request tells it or no head of `prior` is known to follow."""
    told, request = run.told(song.request), song.request
    if told.words or run.alignment is None or not run.alignment.follows:
        return
    codes, whole = torch.from_numpy(song.codes[run.config.level]), (request.song_seconds or 0) <= request.seconds
    words = sung_words(prior, told, request.lyrics, codes, samples, run.alignment.pair, whole)
    if words:
        song.timed_lyrics = write_lrc(words, request.lyrics)
        song.facts["alignment"] = {**run.alignment.model_dump(), "words": as_json(request.lyrics, words)}


def batches_of_equal_length(songs: list[Song], size: int) -> Iterator[list[Song]]:
    """Songs of one length together: they walk the same windows in lockstep."""
    by_length: dict[tuple[float, float | None], list[Song]] = {}
    for song in songs:
        by_length.setdefault((song.request.seconds, song.request.song_seconds), []).append(song)
    for group in by_length.values():
        for first in range(0, len(group), size):
            yield group[first : first + size]


def upper_codes(songs: list[Song], levels: list[str], level: str) -> Tensor | None:
    above = levels.index(level) - 1
    return torch.from_numpy(np.stack([s.codes[levels[above]] for s in songs])) if above >= 0 else None


def draw_for(level: str, requests: list[Request], device: torch.device) -> Draw:
    """Jukebox's default temperature is 0.99 on every level, without filters (spec 12.1)."""
    temperature, top_k, top_p = (
        torch.tensor([r.at(setting, level, default) for r in requests], device=device)
        for setting, default in (("temperature", 0.99), ("top_k", 0), ("top_p", 0.0))
    )
    keys = noise.keys([r.seed for r in requests], level).to(device)
    return Draw(keys, temperature, top_k if top_k.any() else None, top_p if top_p.any() else None)
