"""The run of one level's prior, as sampling uses it: weights while loaded, conditioning from requests, word times."""

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch

from megajukebox.common.errors import UserError
from megajukebox.common.levels import LEVELS
from megajukebox.common.model_files import (
    WEIGHTS,
    StoredTensors,
    check_vqvae,
    fill,
    load_into,
    read_facts,
)
from megajukebox.common.plain_text import plain
from megajukebox.conditioning.jukebox_labels import as_written
from megajukebox.conditioning.lrc import parse_lrc, read_lrc, write_lrc
from megajukebox.conditioning.schema import (
    ConditionResources,
    SongConditioning,
    conditions_of,
    read_request,
)
from megajukebox.conditioning.tokenizers import run_tokenizer
from megajukebox.conditioning.vocabulary import UNKNOWN, Vocabulary, normalised, read_vocabularies
from megajukebox.data.adapters import AdapterMix, FoldedTensors
from megajukebox.models.prior import Prior, PriorConfig
from megajukebox.sampling.levels.autoregressive import build_level_sampler
from megajukebox.sampling.levels.level_sampler import LevelSampler
from megajukebox.sampling.lyrics.head_selection import read_alignment_head, sung_words
from megajukebox.sampling.songs.requests import SongRequest
from megajukebox.sampling.songs.song import GeneratedSong

# Labels that a request may give, with their articles.
LABELS_OF_REQUESTS = {
    "artist": "an artist",
    "genres": "genres",
    "year": "a year",
    "moods": "moods",
    "keywords": "keywords",
    "language": "a language",
}
PER_LEVEL = ("temperature", "top_k", "top_p", "guidance", "hop_fraction")
MAX_LYRICS_NOTES = 5  # of one request
NO_ADAPTERS = AdapterMix()
MIN_NAME_SIMILARITY = 0.75  # of difflib, from which on a known name is suggested for an unknown one


class PriorRun:
    """The run of one level's prior. Its weights are in memory while `loaded`, or for good after `keep_loaded`.

    Args:
        adapters: folded into the weights while these are loaded; names that they bring are known.
        any_base: adapters may have been trained beside other weights.

    Raises:
        UserError: the folder holds no prior, or one of another VQ-VAE than `vqvae` (the VQ-VAE's facts), or an
            adapter is of another prior.
    """

    def __init__(
        self,
        folder: Path,
        vqvae: dict[str, Any],
        adapters: AdapterMix = NO_ADAPTERS,
        any_base: bool = False,
    ):
        self.folder = folder
        self.facts = read_facts(folder)
        if self.facts["kind"] != "prior":
            raise UserError(f"{folder} holds a {self.facts['kind']}, not a prior")
        check_vqvae(folder, self.facts, vqvae["fingerprint"])
        self.config = PriorConfig(**self.facts["config"])
        self.vocabularies = read_vocabularies(folder)
        self.adapters = adapters
        self.base_vocabularies = self.vocabularies
        if adapters:
            stored = StoredTensors(folder / WEIGHTS)
            shapes = {name: stored.shape(name) for name in stored}
            adapters.check(self.facts, shapes, any_base)
            self.config, self.vocabularies = adapters.grown(self.config, self.vocabularies)
        self.tokenizer = run_tokenizer(folder, self.facts) if self.config.lyrics else None
        self.conditions = conditions_of(
            self.config,
            ConditionResources(self.vocabularies, self.tokenizer, spelling=self.facts.get("names")),
        )
        self.alignment = read_alignment_head(folder)
        self.kept_prior: Prior | None = None
        self.kept_samplers: dict[tuple[str, bool], LevelSampler] = {}  # of the loaded prior

    def conditioning(self, request: SongRequest) -> SongConditioning:
        """What the prior is conditioned on for `request`, beside codes and timing."""
        return read_request(self.conditions, request)

    def names(self, request: SongRequest, condition: str) -> list[str]:
        """The request's names of one condition, as this prior's vocabularies spell them."""
        spelling = self.facts.get("names")
        names: list[str] = []
        for name in request.names(condition):
            names += as_written(spelling, condition, name)
        return names

    def unknown_names(self, request: SongRequest) -> Iterator[tuple[str, str]]:
        """The (condition, name) pairs of the request that are not in this prior's vocabularies."""
        for condition in self.config.conditions:
            vocabulary = self.vocabularies.get(condition, Vocabulary())
            for name in self.names(request, condition):
                if not vocabulary.id(name):
                    yield condition, name

    def notes(self, request: SongRequest) -> Iterator[str]:
        """What else of the request this level cannot follow, a line each."""
        seconds = request.song_seconds or request.seconds
        trained = self.config.timing
        if trained and not trained.min_seconds <= seconds <= trained.max_seconds:
            limits = f"{trained.min_seconds:g}-{trained.max_seconds:g} s"
            yield f"{seconds:g} s is outside the {limits} that were trained; the nearest is used"
        if self.config.lyrics and not request.lyrics.strip():
            yield "no lyrics: the voice, if any, has nothing to follow"
        if self.config.lyrics:
            for remark in read_lrc(request.lyrics).remarks[:MAX_LYRICS_NOTES]:
                yield f"lyrics line {remark.line}: {remark.detail}"

    def unload(self) -> None:
        """Give back the memory of a prior that was kept."""
        if self.kept_prior is not None:
            self.kept_samplers.clear()
            self.kept_prior.to("meta")
            self.kept_prior = None

    def keep_loaded(self, device: torch.device, dtype: torch.dtype) -> None:
        """Load the prior for good: for a process that samples one song after another."""
        self.kept_prior = self._load(device, dtype)

    @contextmanager
    def loaded(self, device: torch.device, dtype: torch.dtype) -> Iterator[Prior]:
        """The prior on `device`, straight from the file, and gone after the block; or the one that is kept."""
        prior = self.kept_prior or self._load(device, dtype)
        try:
            yield prior
        except BaseException:
            self.kept_samplers.clear()  # the memory was too little, perhaps: the next attempt has theirs
            raise
        if prior is self.kept_prior:
            return
        self.kept_samplers.clear()
        # Gone even while a caller's name still holds it: the next one is loaded before that name is reused.
        prior.to("meta")
        if device.type == "cuda":
            torch.cuda.empty_cache()
        # glibc would keep its memory beside the file of the next one.
        with suppress(OSError, AttributeError):  # another system, another allocator
            ctypes.CDLL("libc.so.6").malloc_trim(0)

    def level_sampler(self, prior: Prior, decoding: str, int8: bool) -> LevelSampler:
        """The level sampler of the loaded `prior`. On a GPU it stays with it: its graphs take seconds to capture."""
        if prior.head.weight.device.type == "cpu":  # where it would hold a copy of the weights
            return build_level_sampler(prior, decoding, int8=int8)
        if (decoding, int8) not in self.kept_samplers:
            self.kept_samplers.clear()
            self.kept_samplers[decoding, int8] = build_level_sampler(prior, decoding, int8=int8)
        return self.kept_samplers[decoding, int8]

    def _load(self, device: torch.device, dtype: torch.dtype) -> Prior:
        with torch.device("meta"):
            prior = Prior(self.config)
        if self.adapters:
            path = self.folder / WEIGHTS
            folded = FoldedTensors(path, self.adapters, self.base_vocabularies)
            fill(prior, folded, dtype=dtype, device=device)
        else:
            load_into(prior, self.folder, dtype=dtype, device=device)
        if device.type == "cpu":
            # Copied from the pages of the file, which would stay in memory beside the packed weights.
            for tensor in (*prior.parameters(), *prior.buffers()):
                tensor.data = tensor.data.clone()
        return prior.eval()


def unknown_name_notes(levels: Mapping[str, PriorRun], request: SongRequest) -> Iterator[str]:
    """A note for each name that some levels were not trained with, with the closest one that they know."""
    unknown: dict[tuple[str, str], list[str]] = {}
    for level, run in levels.items():
        for pair in run.unknown_names(request):
            unknown.setdefault(pair, []).append(level)
    for (condition, name), where in unknown.items():
        known = levels[where[0]].vocabularies.get(condition, Vocabulary()).names[1:]
        closest = get_close_matches(normalised(name), known, n=1, cutoff=MIN_NAME_SIMILARITY)
        hint = f"; did you mean {closest[0]!r}?" if closest else ""
        yield f"{condition} {name!r} is unknown to {', '.join(where)}, which took it as <unknown>{hint}"


def unheard_notes(levels: Mapping[str, PriorRun], request: SongRequest) -> Iterator[str]:
    """A note for each setting that no level which is sampled for the request is told, and which so changes nothing."""
    those = "of these runs"
    if request.mode == "upsample":  # what is kept was sampled before
        kept = LEVELS[: LEVELS.index(request.upsample_from) + 1]
        levels = {level: run for level, run in levels.items() if level not in kept}
        those = f"of {', '.join(levels)}, which are sampled,"
    configs = [run.config for run in levels.values()]
    for condition, article in LABELS_OF_REQUESTS.items():
        names = request.names(condition)
        if names and not any(condition in config.conditions for config in configs):
            shown = ", ".join(repr(name) for name in names)
            yield f"{condition} {shown} is not heard: no level {those} is told {article}"
    if request.lyrics.strip() and not any(config.lyrics for config in configs):
        yield f"lyrics are not heard: no level {those} is told any"
    follows = any({"sections", "memory"} & set(config.aligned) for config in configs)
    if request.sections and not follows:
        yield f"sections are not heard: no level {those} is told any, or remembers them"
    for name in request.aligned:
        if not any(name in config.aligned for config in configs):
            yield f"aligned.{name} is not heard: no level {those} is told it"
    if request.song_seconds is not None and not any(config.timing for config in configs):
        yield (
            f"song_seconds {request.song_seconds:g} is not heard: no level {those} is told its"
            " place in the song"
        )
    for setting in PER_LEVEL:
        others = [level for level in getattr(request, setting) if level not in levels]
        # One number for all levels means those that there are.
        if others and len(getattr(request, setting)) < len(LEVELS):
            yield f"{setting} of {', '.join(others)} is not used: no such level is sampled"


def align_words(song: GeneratedSong, run: PriorRun, prior: Prior, samples: int) -> None:
    """Find when the words of `song` are sung, unless its request gives times or no head is known to follow lyrics.

    Args:
        samples: length of the song in audio samples, as the prior was conditioned on it.
    """
    request = song.request
    conditioning = run.conditioning(request)
    if conditioning.words or run.alignment is None or not run.alignment.follows:
        return
    codes_T = torch.from_numpy(song.codes[run.config.level])
    whole = (request.song_seconds or 0) <= request.seconds
    lyrics, _ = parse_lrc(request.lyrics)  # as the prior read them: without headers
    words = sung_words(prior, conditioning, lyrics, codes_T, samples, run.alignment.pair, whole)
    if words:
        song.timed_lyrics = write_lrc(words, lyrics)
        timed = []
        for word in words:
            text = lyrics[word.start_char : word.end_char]
            timed.append({"text": text, **vars(word)})
        song.facts["alignment"] = {**run.alignment.model_dump(), "words": timed}


def print_conditions(folder: Path) -> None:
    """Print the names that a request may use, by condition, as the vocabularies of a prior's run spell them."""
    read_facts(folder)  # raises where there is no run
    for condition, vocabulary in read_vocabularies(folder).items():
        names = [name for name in vocabulary.names if name != UNKNOWN]
        print(plain(f"{condition}: {', '.join(names)}"))
