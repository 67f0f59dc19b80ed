"""A trained jukebox: requests become songs, level by level, with one prior in memory at a time, or all of them.

    from megajukebox.sampling.jukebox import Jukebox, SongRequest
    songs = Jukebox("runs/tiny").sample([SongRequest(id="mine", artist="...", seconds=8)])
    songs[0].save("samples")

A song becomes <id>.wav, <id>.json and its codes, in the folder that `save` is given. With a SongWriter as its sink
(songs/song_writer.py) its files grow while it is sampled, and an interrupted song can be resumed.
"""

# B songs   T codes of a level
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from megajukebox.common.device import choose_device, without_tf32
from megajukebox.common.errors import UserError
from megajukebox.common.levels import PRIOR_FOLDERS, VQVAE_FOLDER
from megajukebox.common.model_files import load_into, read_facts
from megajukebox.data.adapters import ScaledAdapter
from megajukebox.models.prior import Prior
from megajukebox.models.vqvae import VQVAE, VQVAEConfig
from megajukebox.sampling.adapter_library import AdapterLibrary
from megajukebox.sampling.level_jobs import batches_of_equal_length, build_job, songs_by_adapters
from megajukebox.sampling.levels.decoding_policy import FASTEST, DecodingPolicy
from megajukebox.sampling.levels.level_sampler import LevelJob, LevelSampler
from megajukebox.sampling.prior_run import PriorRun, align_words, unheard_notes, unknown_name_notes
from megajukebox.sampling.refiners import load_refiners
from megajukebox.sampling.songs.prompt_sources import (
    KnownCodes,
    PromptSource,
    load_source,
    prompt_codes,
)
from megajukebox.sampling.songs.reconstruction import reference_tracks
from megajukebox.sampling.songs.requests import SongRequest
from megajukebox.sampling.songs.song import GeneratedSong
from megajukebox.sampling.songs.song_writer import InMemorySink, SamplingInterrupted, SongSink
from megajukebox.sampling.students.student_runs import fingerprints, parse_students

__all__ = [
    "DecodingPolicy",
    "GeneratedSong",
    "Jukebox",
    "PriorRun",
    "SamplingInterrupted",
    "SongRequest",
]

OnProgress = Callable[[str, int], None]  # level, codes sampled since the last call
OnLevel = Callable[[str, list[GeneratedSong]], None]
SAME_LENGTH_SECONDS = 0.1  # a request's seconds that differ by less from its source's are the same


def sampled_levels(config: VQVAEConfig, asked: Sequence[str] = ()) -> tuple[str, ...]:
    """The levels to sample, from the top down. By default all; the top alone where its target is `spectrum`.

    The wave of a spectrum top is a song by itself; what its upsamplers add may be noise (docs/decisions/0048).

    Raises:
        UserError: `asked` names a level that there is not, or leaves one out between the top and another.
    """
    levels = config.levels[::-1]
    if not asked:
        return levels[:1] if "top" in config.spectrum_levels else levels
    wanted = levels if list(asked) == ["all"] else tuple(asked)
    if wanted != levels[: len(wanted)]:
        ways = [",".join(levels[: count + 1]) for count in range(len(levels))]
        raise UserError(
            f"levels {','.join(asked)!r} cannot be sampled; give one of {', '.join(ways)}, all"
        )
    return wanted


class Jukebox:
    """The runs vqvae, top_prior, middle_upsampler and bottom_upsampler of one folder.

    Args:
        students: which levels students sample (students/student_runs.py).
        samplers: level samplers of a caller's own, by level, each made from the loaded prior.
        levels: only these levels, from the top down (`sampled_levels`).
        adapters: those that requests may name, beside the ones in `runs`/adapters (adapter_library.py).
        any_base: adapters may have been trained beside other weights.
        folders: instead of `levels`, where their runs are if not in `runs`.
        refiners: runs of refiners; None: those that lie in `runs`, (): none.

    Raises:
        UserError: a run is missing, is of another kind, or was trained with another VQ-VAE.
    """

    def __init__(
        self,
        runs: Path | str,
        device: str | None = None,
        dtype: torch.dtype = torch.float32,
        policy: DecodingPolicy = FASTEST,
        samplers: dict[str, Callable[[Prior], LevelSampler]] | None = None,
        students: Sequence[str] = (),
        folders: Mapping[str, Path] | None = None,
        refiners: Sequence[Path] | None = None,
        levels: Sequence[str] = (),
        adapters: Sequence[ScaledAdapter] = (),
        any_base: bool = False,
    ):
        self.runs = Path(runs)
        self.dtype = dtype
        self.policy = policy
        if folders is None and not (self.runs / VQVAE_FOLDER).is_dir():
            raise UserError(
                f"{runs} is no folder of runs; give the one that holds vqvae,"
                f" {', '.join(PRIOR_FOLDERS.values())}"
            )
        self.students = parse_students(self.runs, students)
        self.samplers: dict[str, Callable[[Prior], LevelSampler]] = {
            **(samplers or {}),
            **self.students,
        }
        self.device = choose_device(asked=device)
        policy.check_device(self.device)
        facts = read_facts(self.runs / VQVAE_FOLDER)
        self.vqvae = VQVAE(VQVAEConfig(**facts["config"]))
        load_into(self.vqvae, self.runs / VQVAE_FOLDER, device=self.device)
        self.vqvae.to(self.device).eval()
        self.refiners = load_refiners(self.runs, facts, self.device, refiners)
        self.main_level = "bottom"  # whose audio is <id>.wav
        if folders is None:
            levels = sampled_levels(self.vqvae.config, levels)
            for level in self.students:
                if level not in levels:
                    raise UserError(
                        f"a student samples the {level} level, and levels is {','.join(levels)};"
                        " leave out --sampler, or give --levels all"
                    )
            folders = {level: self.runs / PRIOR_FOLDERS[level] for level in levels}
            self.main_level = levels[-1]
        self.weights = {"vqvae": facts["fingerprint"]}
        self.steps = {"vqvae": facts.get("step")}
        self.levels: dict[str, PriorRun] = {}
        self.adapters = AdapterLibrary(self.runs, adapters, any_base)
        self._vqvae_facts = facts
        self._adapted: dict[tuple[str, str], PriorRun] = {}  # by level and adapters
        for level, folder in folders.items():
            run = PriorRun(folder, facts)
            self.levels[level] = run
            self.weights[level] = run.facts["fingerprint"]
            self.steps[level] = run.facts.get("step")
        self.weights |= fingerprints(self.students)
        self.keep_loaded = (
            False  # priors stay loaded between batches; memory_budget.py says if they fit
        )
        self._sources: dict[str, PromptSource] = {}

    def num_codes(self, request: SongRequest, level: str) -> int:
        """Codes of a level for the seconds asked: a whole number of top codes, at least one."""
        top = max(self.vqvae.config.hops.values())
        length = max(1, round(request.seconds * self.vqvae.config.sample_rate / top)) * top
        return length // self.vqvae.config.hops[level]

    def notes(self, request: SongRequest) -> list[str]:
        """What of the request the priors and students cannot follow, a line each."""
        levels = {level: self.run_of(level, request) for level in self.levels}
        notes = list(unknown_name_notes(levels, request))
        notes += unheard_notes(levels, request)
        notes += self.adapters.notes(request, levels)
        for run in levels.values():
            notes += run.notes(request)
        for student in self.students.values():
            notes += student.notes(request)
        return notes

    def run_of(self, level: str, request: SongRequest) -> PriorRun:
        """The prior of a level as `request` wants it: with its adapters.

        Raises:
            UserError: an adapter is unknown, damaged, of another base, or goes with no other.
        """
        if not request.adapters:
            return self.levels[level]
        key = (level, str(sorted(request.adapters.items())))
        if key not in self._adapted:
            mix = self.adapters.mix(level, request.adapters)
            run = self.levels[level]
            if mix:
                student = self.students.get(level)
                if student is not None and not student.verified:
                    raise UserError(
                        f"a student samples the {level} level, and knows no adapter; leave --sampler"
                        f" out, or verify its codes: --sampler {level}=verified"
                    )
                run = PriorRun(run.folder, self._vqvae_facts, mix, self.adapters.any_base)
            self._adapted[key] = run
        return self._adapted[key]

    def song_key(self, request: SongRequest) -> dict[str, Any]:
        """What fixes a song to the last code: the same key, the same song."""
        return {
            "request": request.model_dump(mode="json"),
            **self._generation_facts(),
            **self._adapter_facts(request),
        }

    def _adapter_facts(self, request: SongRequest) -> dict[str, Any]:
        """By level the adapters of a request: fingerprints, scales, licences; {} where it asks for none."""
        if not request.adapters:
            return {}
        facts = {}
        for level in self.levels:
            mix = self.run_of(level, request).adapters
            if mix:
                facts[level] = mix.facts()
        return {"adapters": facts}

    def _generation_facts(self) -> dict[str, Any]:
        return {
            "weights": self.weights,
            "precision": str(self.dtype).removeprefix("torch."),
            "decoding": self.decoding_facts(),
        }

    def _refiner_facts(self) -> dict[str, Any]:
        """Which refiners make further recordings of the same codes: no part of what fixes a song."""
        if not self.refiners:
            return {}
        return {"refiners": {name: one.fingerprint for name, one in self.refiners.items()}}

    def decoding_facts(self) -> dict[str, Any]:
        """What decides about the codes beside weights: the policy's facts, and which levels a student samples."""
        students = {level: run.name for level, run in self.students.items() if not run.verified}
        if not students:
            return self.policy.facts()
        return self.policy.facts() | {"exact": False, "students": students}

    # ---- Starting songs ---------------------------------------------------------------------------------------------

    def start_song(self, request: SongRequest) -> GeneratedSong:
        """The song of `request` before it is sampled, with the codes of its prompt.

        Raises:
            UserError: the request cannot be made; it says why.
        """
        prompt = KnownCodes()
        source = None
        notes: list[str] = []
        if request.source is not None:
            path = request.source
            if path not in self._sources:  # the last one stays: variations of a request share it
                loaded = load_source(path, self.vqvae, self.weights["vqvae"], self.device)
                self._sources = {path: loaded}
            source = self._sources[path]
            sampled = tuple(self.levels) or self.vqvae.config.levels[-1:]
            prompt, seconds = prompt_codes(request, source.codes, self.vqvae, sampled)
            changed = abs(request.seconds - seconds) > SAME_LENGTH_SECONDS
            if request.mode != "prompt" and "seconds" in request.model_fields_set and changed:
                length = f"{seconds:.1f} s, not {request.seconds:g} s"
                notes.append(f"it is as long as {request.source}, {length}")
            request = request.model_copy(update={"seconds": seconds})
        hops = self.vqvae.config.hops
        finest = min(self.levels, key=lambda level: hops[level])
        song = GeneratedSong(
            request,
            notes + self.notes(request),
            self.vqvae.config.sample_rate,
            known=prompt,
            prompt=prompt,
            facts={
                **self._generation_facts(),
                **self._adapter_facts(request),
                "steps": self.steps,
                "runs": str(self.runs),
                **self._refiner_facts(),
            },
            samples=self.num_codes(request, finest) * hops[finest],
            main_level=self.main_level,
        )
        if source is not None:
            song.add_reference_tracks(
                reference_tracks(source, self.vqvae, song.samples, self.device)
            )
        return song

    # ---- Sampling ---------------------------------------------------------------------------------------------------

    @without_tf32()  # the conditioners' convolutions; those of the VQ-VAE see to it themselves
    def sample(
        self,
        requests: list[SongRequest] | list[GeneratedSong],
        batch_size: int = 16,
        on_progress: OnProgress = lambda level, count: None,
        on_level: OnLevel = lambda level, songs: None,
        sink: SongSink | None = None,
    ) -> list[GeneratedSong]:
        """One song a request, level by level.

        Args:
            on_progress: called with (level, codes sampled since the last call).
            on_level: called with (level, songs) as soon as a level of all songs is complete.
            sink: where codes and audio go while they are sampled; by default into the songs.

        Raises:
            SamplingInterrupted: the sink asked to stop; what was sampled is saved there.
        """
        songs: list[GeneratedSong] = []
        for request in requests:
            if not isinstance(request, GeneratedSong):
                request = self.start_song(request)
            songs.append(request)
        sink = sink or InMemorySink(self.vqvae, self.refiners)
        sink.resume(songs)
        for level in self.levels:
            for together in songs_by_adapters(songs):
                run = self._keep_loaded(level, self.run_of(level, together[0].request))
                with run.loaded(self.device, self.dtype) as prior:
                    for batch in batches_of_equal_length(together, batch_size):
                        self._sample_level(level, prior, batch, on_progress, sink)
            on_level(level, songs)
        sink.finish(songs)
        return songs

    def _keep_loaded(self, level: str, run: PriorRun) -> PriorRun:
        """Keep the prior of `run` in memory if priors are kept, in the place of one with other adapters."""
        others = [self.levels[level]]
        for (of_level, _), adapted in self._adapted.items():
            if of_level == level:
                others.append(adapted)
        keeps = self.keep_loaded
        for other in others:
            if other is not run and other.kept_prior is not None:
                other.unload()
                keeps = True
        if keeps and run.kept_prior is None:
            run.keep_loaded(self.device, self.dtype)
        return run

    def _sample_level(
        self,
        level: str,
        prior: Prior,
        songs: list[GeneratedSong],
        on_progress: OnProgress,
        sink: SongSink,
    ) -> None:
        """Sample one level of songs of equal length, and record how."""
        start_time = time.perf_counter()
        job = self.build_job(level, songs)
        known_before = int(job.known_BT.sum())
        run = self.run_of(level, songs[0].request)
        decoding = self.policy.decoding_of(level, len(songs), run.config, self.device)
        recorded_decoding = decoding
        if level in self.students:
            recorded_decoding = self.students[level].name
        elif level in self.samplers:
            recorded_decoding = "own"
        build = self.samplers.get(level) or partial(
            run.level_sampler, decoding=decoding, int8=self.policy.int8
        )
        all_known = known_before == job.known_BT.numel()
        sampler = None if all_known else build(prior)
        on_progress(level, known_before)
        sink.start_level(level, songs)

        def progress(count: int) -> None:
            on_progress(level, count)
            sink.update(level, songs, job)

        if sampler is not None:
            sampler.sample(job, progress)
        seconds = time.perf_counter() - start_time
        facts = {
            "codes": job.total,
            "wall_seconds": seconds,
            "tokens_per_second": (job.known_BT.numel() - known_before) / seconds,
            "batch": len(songs),
            "decoding": recorded_decoding,
        }
        for song, codes_T in zip(songs, job.codes_BT.cpu()):
            song.codes[level] = codes_T.numpy()
            song.levels[level] = dict(facts)
            align_words(song, run, prior, job.samples)
        sink.finish_level(level, songs, job)

    def build_job(self, level: str, songs: list[GeneratedSong]) -> LevelJob:
        """One level of songs of equal length, with what is known of each."""
        request = songs[0].request
        levels = list(self.levels)
        index = levels.index(level)
        seconds = request.song_seconds or request.seconds
        return build_job(
            level,
            self.run_of(level, request),
            songs,
            total=self.num_codes(request, level),
            samples=round(seconds * self.vqvae.config.sample_rate),
            level_above=levels[index - 1] if index else None,
            device=self.device,
        )
