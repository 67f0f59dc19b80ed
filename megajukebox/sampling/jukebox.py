"""A trained jukebox: requests become songs, level by level, with one prior in memory at a time, or all of them.

    from megajukebox.sampling.jukebox import Jukebox, Request
    songs = Jukebox("runs/tiny").sample([Request(id="mine", artist="...", seconds=8)])
    songs[0].save("samples")

Every song becomes <id>.wav, <id>.json and its codes, in the folder that `save` is given. With `out`, `sample` itself
writes there: the audio of each level while it is made, and the codes so far, so that an interrupted song goes on.
"""

# B songs   T codes of a level
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megajukebox.common.levels import PRIOR_FOLDERS
from megajukebox.common.model_files import load_into, read_facts
from megajukebox.conditioning.lrc import write_lrc
from megajukebox.conditioning.schema import SongConditioning
from megajukebox.models.prior import Prior
from megajukebox.models.vqvae import VQVAE, VQVAEConfig
from megajukebox.sampling.decoding import gumbel_noise
from megajukebox.sampling.decoding.token_sampling import TokenSampler
from megajukebox.sampling.levels.autoregressive import build_level_sampler
from megajukebox.sampling.levels.decoding_policy import FASTEST, DecodingPolicy
from megajukebox.sampling.levels.level_sampler import DEFAULT_HOP_FRACTIONS, LevelJob, LevelSampler
from megajukebox.sampling.lyrics.head_selection import sung_words, words_as_json
from megajukebox.sampling.prior_run import PriorRun
from megajukebox.sampling.songs.audio_stream import (
    AudioStream,
    decode_all,
    known_length,
    partial_path,
)
from megajukebox.sampling.songs.prompt_sources import (
    KnownCodes,
    PromptSource,
    load_source,
    prompt_codes,
)
from megajukebox.sampling.songs.reconstruction import reference_tracks
from megajukebox.sampling.songs.requests import SongRequest
from megajukebox.sampling.songs.resume_store import ResumeStore
from megajukebox.sampling.songs.song import GeneratedSong, audio_name
from megajukebox.sampling.students.student_runs import fingerprints, parse_students

__all__ = ["DecodingPolicy", "GeneratedSong", "Jukebox", "PriorRun", "SongRequest"]

OnProgress = Callable[[str, int], None]  # level, codes sampled since the last call
SAVE_EVERY = 10.0  # seconds between two savings of unfinished songs


class SamplingInterrupted(Exception):
    """Raised between two rows of codes because `stop` said so; all that was done is saved if there is an `out`."""


class Jukebox:
    """The folder that holds the runs vqvae, top_prior, middle_upsampler and bottom_upsampler.

    `students` names levels that students sample (student_runs.py); `samplers` may give a level a sampler of its own,
    made of its loaded prior. Raises ValueError where a run is missing, is of another kind, or of another VQ-VAE.
    """

    def __init__(
        self, runs: Path | str, device: str | None = None, dtype: torch.dtype = torch.float32,
        policy: DecodingPolicy = FASTEST, samplers: dict[str, Callable[[Prior], LevelSampler]] | None = None,
        students: Sequence[str] = (), folders: Mapping[str, Path] | None = None,
    ):  # fmt: skip
        """`folders`: only these levels, from the top down, and where their runs are if not in `runs`."""
        self.runs, self.dtype, self.policy = Path(runs), dtype, policy
        if folders is None and not (self.runs / "vqvae").is_dir():
            raise ValueError(
                f"{runs} is no folder of runs; give the one that holds vqvae, {', '.join(PRIOR_FOLDERS.values())}"
            )
        self.students = parse_students(self.runs, students)
        self.samplers: dict[str, Callable[[Prior], LevelSampler]] = {
            **(samplers or {}),
            **self.students,
        }
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        facts = read_facts(self.runs / "vqvae")
        self.vqvae = VQVAE(VQVAEConfig(**facts["config"]))
        load_into(self.vqvae, self.runs / "vqvae", device=self.device)
        self.vqvae.to(self.device).eval()
        places = folders or {
            level: self.runs / PRIOR_FOLDERS[level] for level in reversed(self.vqvae.config.levels)
        }
        self.levels = {level: PriorRun(folder, facts) for level, folder in places.items()}
        priors = {level: run.facts["fingerprint"] for level, run in self.levels.items()}
        self.weights = {"vqvae": facts["fingerprint"], **priors, **fingerprints(self.students)}
        steps = {level: run.facts.get("step") for level, run in self.levels.items()}
        self.steps = {"vqvae": facts.get("step"), **steps}
        self.sources: dict[str, PromptSource] = {}
        self.keep_loaded = (
            False  # whether priors stay loaded from batch to batch; memory.py says if they fit
        )

    def num_codes(self, request: SongRequest, level: str) -> int:
        """Codes of a level for the seconds asked: a whole number of top codes, at least one."""
        top = max(self.vqvae.config.hops.values())
        length = max(1, round(request.seconds * self.vqvae.config.sample_rate / top)) * top
        return length // self.vqvae.config.hops[level]

    def notes(self, request: SongRequest) -> list[str]:
        told = [note for run in self.levels.values() for note in run.notes(request)]
        told = [*unknown_names(self.levels, request), *told]
        return told + [note for run in self.students.values() for note in run.notes(request)]

    def song_key(self, request: SongRequest) -> dict[str, Any]:
        """What fixes a song to the last code."""
        precision = str(self.dtype).removeprefix("torch.")
        asked = request.model_dump(mode="json")
        return {
            "request": asked,
            "weights": self.weights,
            "precision": precision,
            "engine": self.decoding_facts(),
        }

    def decoding_facts(self) -> dict[str, Any]:
        """What decides about the codes: the engine's facts, and which levels are a student's."""
        students = {level: run.name for level, run in self.students.items() if not run.verified}
        return self.policy.facts() | ({"exact": False, "students": students} if students else {})

    def start_song(self, request: SongRequest) -> GeneratedSong:
        """The song of `request` before it is sampled: with what it is given. ValueError names what is wrong with it."""
        known, source, notes = KnownCodes(), None, []
        if request.source is not None:
            if request.source not in self.sources:
                found = load_source(request.source, self.vqvae, self.weights["vqvae"], self.device)
                self.sources = {
                    request.source: found
                }  # of variations one after another; not of a thousand requests
            source = self.sources[request.source]
            known, seconds = prompt_codes(request, source.codes, self.vqvae)
            if (
                request.mode != "prompt"
                and "seconds" in request.model_fields_set
                and abs(request.seconds - seconds) > 0.1
            ):
                notes.append(
                    f"it is as long as {request.source}, {seconds:.1f} s, not {request.seconds:g} s"
                )
            request = request.model_copy(update={"seconds": seconds})
        facts = {"weights": self.weights, "steps": self.steps, "runs": str(self.runs)}
        facts |= {
            "precision": str(self.dtype).removeprefix("torch."),
            "engine": self.decoding_facts(),
        }
        samples = self.num_codes(request, "bottom" if "bottom" in self.levels else "top")
        samples *= min(self.vqvae.config.hops.values())
        rate = self.vqvae.config.sample_rate
        song = GeneratedSong(
            request,
            [*notes, *self.notes(request)],
            rate,
            known,
            known,
            facts=facts,
            samples=samples,
        )
        if source is not None:
            song.add_reference_tracks(reference_tracks(source, self.vqvae, samples, self.device))
        return song

    def sample(
        self, requests: list[SongRequest] | list[GeneratedSong], batch_size: int = 16,
        on_progress: OnProgress = lambda level, count: None,
        on_level: Callable[[str, list[GeneratedSong]], None] = lambda level, songs: None,
        out: Path | str | None = None, stop: Callable[[], bool] = lambda: False,
    ) -> list[GeneratedSong]:  # fmt: skip
        """One song a request. `on_level` hears of each level of all songs as soon as its audio is there.

        With `out` songs are saved there, level by level, and one that was interrupted goes on where it was. `stop` is
        asked now and then; where it says so, `Stopped` is raised.
        """
        songs = [
            self.start_song(request) if isinstance(request, SongRequest) else request
            for request in requests
        ]
        making = SongWriter(self, Path(out), stop) if out is not None else None
        if making:
            making.resume(songs)
        for level, run in self.levels.items():
            if self.keep_loaded and run.kept_prior is None:
                run.keep_loaded(self.device, self.dtype)
            with run.loaded(self.device, self.dtype) as prior:
                for batch in batches_of_equal_length(songs, batch_size):
                    self._sample_level(level, run, prior, batch, on_progress, making)
            on_level(level, songs)
        if making:
            making.finish(songs)
        return songs

    def _sample_level(
        self, level: str, run: PriorRun, prior: Prior, songs: list[GeneratedSong], on_progress: OnProgress,
        making: "SongWriter | None",
    ) -> None:  # fmt: skip
        started, samples = time.perf_counter(), self._song_samples(songs[0].request)
        job = self.build_job(level, run, songs)
        before = int(job.known_BT.sum())
        way = self.policy.decoding_of(level, len(songs), prior)
        sampler: LevelSampler | None = None
        if before < job.known_BT.numel():
            make = self.samplers.get(level) or (
                lambda prior: build_level_sampler(prior, way, int8=self.policy.int8)
            )
            sampler = make(prior)

        def progress(count: int) -> None:
            on_progress(level, count)
            if making:
                making.note(level, songs, job)

        on_progress(level, before)
        if making:
            making.streams(level, songs)
        if sampler is not None:
            sampler.sample(job, progress)
        wall = time.perf_counter() - started
        new, how = job.known_BT.numel() - before, self.way_told(level, way)
        made: dict[str, Any] = {
            "codes": job.total,
            "wall_seconds": wall,
            "tokens_per_second": new / wall,
        }
        made |= {"batch": len(songs), "way": how}
        for song, row in zip(songs, job.codes_BT.cpu()):
            song.codes[level], song.levels[level] = row.numpy(), dict(made)
            if not making:
                song.audio[level] = (
                    decode_all(self.vqvae, row.to(self.device), level).float().cpu().numpy()
                )
            align_words(song, run, prior, samples)
        if making:
            making.end_level(level, songs, job)

    def way_told(self, level: str, way: str) -> str:
        """For a song's record: how its level was sampled."""
        return (
            self.students[level].name
            if level in self.students
            else "own"
            if level in self.samplers
            else way
        )

    def build_job(self, level: str, run: PriorRun, songs: list[GeneratedSong]) -> LevelJob:
        """One level of songs of equal length, with what each is given and has done already."""
        requests, total = [song.request for song in songs], self.num_codes(songs[0].request, level)
        nothing = np.zeros(total, np.int64)
        codes, known, given = (
            torch.from_numpy(np.stack(rows)).to(self.device)
            for rows in (
                [song.known.codes.get(level, nothing) for song in songs],
                [song.known.mask.get(level, nothing.astype(bool)) for song in songs],
                [song.prompt.mask.get(level, nothing.astype(bool)) for song in songs],
            )
        )
        hop = {r.at("hop_fraction", level, DEFAULT_HOP_FRACTIONS[level]) for r in requests}.pop()
        guidance, draw = (
            [r.at("guidance", level, 1.0) for r in requests],
            token_sampler_for(level, requests, self.device),
        )
        above, samples = (
            upper_codes(songs, list(self.levels), level),
            self._song_samples(requests[0]),
        )
        return LevelJob(
            share_conditioning(run, requests),
            codes,
            known,
            above,
            samples,
            draw,
            guidance,
            hop,
            given,
        )

    def _song_samples(self, request: SongRequest) -> int:
        return round((request.song_seconds or request.seconds) * self.vqvae.config.sample_rate)


class SongWriter:
    """Songs on their way to files: audio as its codes come, and every few seconds the codes so far."""

    def __init__(self, jukebox: Jukebox, out: Path, stop: Callable[[], bool]):
        self.jukebox, self.out, self.stop = jukebox, out, stop
        self.unfinished = ResumeStore(out)
        self.audio: list[AudioStream] = []
        self.saved = time.monotonic()

    def resume(self, songs: list[GeneratedSong]) -> None:
        for song in songs:
            known = self.unfinished.load(song.request.id, self.jukebox.song_key(song.request))
            song.known = known or song.known
            for level in (
                self.jukebox.levels if known is None else ()
            ):  # what can be heard there is another song
                partial_path(self.out / audio_name(song.request.id, level)).unlink(missing_ok=True)

    def streams(self, level: str, songs: list[GeneratedSong]) -> None:
        """Audio of a level from its beginning: what is known by now is decoded with the first codes that come."""
        paths = [self.out / audio_name(song.request.id, level) for song in songs]
        self.audio = [AudioStream(self.jukebox.vqvae, level, path) for path in paths]

    def note(self, level: str, songs: list[GeneratedSong], job: LevelJob) -> None:
        for stream, codes, known in zip(self.audio, job.codes_BT, job.known_BT):
            done = known_length(known)
            if done < job.total:
                stream.feed(codes, done)
        stopping = self.stop()
        if stopping or time.monotonic() > self.saved + SAVE_EVERY:
            self._save(level, songs, job)
        if stopping:
            raise SamplingInterrupted

    def end_level(self, level: str, songs: list[GeneratedSong], job: LevelJob) -> None:
        for stream, codes, song in zip(self.audio, job.codes_BT, songs):
            stream.feed(codes, job.total)
            song.levels[level]["audio"] = stream.path.name
        self._save(level, songs, job)

    def _save(self, level: str, songs: list[GeneratedSong], job: LevelJob) -> None:
        for song, codes, known in zip(
            songs, job.codes_BT.cpu().numpy(), job.known_BT.cpu().numpy()
        ):
            song.known = KnownCodes(
                song.known.codes | {level: codes.copy()}, song.known.mask | {level: known.copy()}
            )
            self.unfinished.save(song.request.id, self.jukebox.song_key(song.request), song.known)
            self.unfinished.touch(song.request.id)
        self.saved = time.monotonic()

    def finish(self, songs: list[GeneratedSong]) -> None:
        for song in songs:
            song.save(self.out)
            self.unfinished.remove(song.request.id)


def share_conditioning(run: PriorRun, requests: list[SongRequest]) -> list[SongConditioning]:
    """What each song is told; those of one request's variations are one object, and share their beginning."""
    told: dict[str, SongConditioning] = {}
    keys = [
        request.model_copy(update={"id": "x", "seed": 0}).model_dump_json() for request in requests
    ]
    return [
        told.setdefault(key, told.get(key) or run.conditioning(request))
        for key, request in zip(keys, requests)
    ]


def unknown_names(levels: Mapping[str, PriorRun], request: SongRequest) -> Iterator[str]:
    """A note for each name that some levels never met, with the known one that it may be meant as."""
    strangers: dict[tuple[str, str], list[str]] = {}
    for level, run in levels.items():
        for stranger in run.unknown_names(request):
            strangers.setdefault(stranger, []).append(level)
    for (condition, name), where in strangers.items():
        near = levels[where[0]].closest_name(condition, name)
        meant = f"; did you mean {near!r}?" if near else ""
        yield f"{condition} {name!r} is unknown to {', '.join(where)}, which took it as <unknown>{meant}"


def is_complete(jukebox: Jukebox, out: Path, request: SongRequest) -> bool:
    """Whether the song is there, of this very request, these weights and an engine that gives the same codes."""
    path = out / f"{request.id}.json"
    if not path.exists():
        return False
    record, key = json.loads(path.read_text()), jukebox.song_key(request)
    asked = key.pop("request")
    theirs = record.get("request", {}) | (
        {"seconds": request.seconds} if request.source is not None else {}
    )
    return theirs == asked and all(
        record.get(name, {"exact": True}) == value for name, value in key.items()
    )


def align_words(song: GeneratedSong, run: PriorRun, prior: Prior, samples: int) -> None:
    """Find when the words of `song` are sung, unless the request tells it or no head of `prior` is known to follow."""
    told, request = run.conditioning(song.request), song.request
    if told.words or run.alignment is None or not run.alignment.follows:
        return
    codes, whole = (
        torch.from_numpy(song.codes[run.config.level]),
        (request.song_seconds or 0) <= request.seconds,
    )
    words = sung_words(prior, told, request.lyrics, codes, samples, run.alignment.pair, whole)
    if words:
        song.timed_lyrics = write_lrc(words, request.lyrics)
        song.facts["alignment"] = {
            **run.alignment.model_dump(),
            "words": words_as_json(request.lyrics, words),
        }


def batches_of_equal_length(songs: list[GeneratedSong], size: int) -> Iterator[list[GeneratedSong]]:
    """Songs of one length (and hops) together: they walk the same windows in lockstep."""
    alike: dict[tuple, list[GeneratedSong]] = {}
    for song in songs:
        asked = song.request
        alike.setdefault((asked.seconds, asked.song_seconds, str(asked.hop_fraction)), []).append(
            song
        )
    for group in alike.values():
        for first in range(0, len(group), size):
            yield group[first : first + size]


def upper_codes(songs: list[GeneratedSong], levels: list[str], level: str) -> Tensor | None:
    above = levels.index(level) - 1
    return (
        torch.from_numpy(np.stack([s.codes[levels[above]] for s in songs])) if above >= 0 else None
    )


def token_sampler_for(
    level: str, requests: list[SongRequest], device: torch.device
) -> TokenSampler:
    """Jukebox's default temperature is 0.99 on every level, without filters (spec 12.1)."""
    temperature, top_k, top_p = (
        torch.tensor([r.at(setting, level, default) for r in requests], device=device)
        for setting, default in (("temperature", 0.99), ("top_k", 0), ("top_p", 0.0))
    )
    keys = gumbel_noise.noise_keys([r.seed for r in requests], level).to(device)
    return TokenSampler(
        keys, temperature, top_k if top_k.any() else None, top_p if top_p.any() else None
    )
