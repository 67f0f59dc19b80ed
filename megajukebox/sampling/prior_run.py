"""The run of one level's prior, as the sampler sees it: its weights while they are loaded, and what it is told."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch

from megajukebox.common.model_files import check_vqvae, load_into, read_facts
from megajukebox.conditioning.jukebox_labels import as_written
from megajukebox.conditioning.schema import (
    ConditionResources,
    SongConditioning,
    conditions_of,
    read_request,
)
from megajukebox.conditioning.tokenizers import run_tokenizer
from megajukebox.conditioning.vocabulary import Vocabulary, normalised, read_vocabularies
from megajukebox.models.prior import Prior, PriorConfig
from megajukebox.sampling.lyrics.head_selection import read_alignment_head
from megajukebox.sampling.songs.requests import SongRequest


class PriorRun:
    """The run of one level's prior: what it is told in which words. Weights are in memory while `loaded`."""

    def __init__(self, folder: Path, vqvae: dict[str, Any]):
        self.folder, self.facts = folder, read_facts(folder)
        if self.facts["kind"] != "prior":
            raise ValueError(f"{folder} holds a {self.facts['kind']}, not a prior")
        check_vqvae(folder, self.facts, vqvae["fingerprint"])
        self.config = PriorConfig(**self.facts["config"])
        self.vocabularies = read_vocabularies(folder)
        self.tokenizer = run_tokenizer(folder, self.facts) if self.config.lyrics else None
        self.conditions = conditions_of(
            self.config,
            ConditionResources(self.vocabularies, self.tokenizer, spelling=self.facts.get("names")),
        )
        self.alignment = read_alignment_head(folder)
        self.kept_prior: Prior | None = None

    def conditioning(self, request: SongRequest) -> SongConditioning:
        """What the prior is conditioned on for `request`, beside codes and timing."""
        return read_request(self.conditions, request)

    def names(self, request: SongRequest, condition: str) -> list[str]:
        """What the request says of one condition, as this prior's vocabularies spell it."""
        spelling = self.facts.get("names")
        return [
            spelt
            for name in request.names(condition)
            for spelt in as_written(spelling, condition, name)
        ]

    def unknown_names(self, request: SongRequest) -> Iterator[tuple[str, str]]:
        """The conditions and names of the request that this level never met, as (condition, name)."""
        for condition in self.config.conditions:
            known = self.vocabularies.get(condition, Vocabulary())
            yield from (
                (condition, name) for name in self.names(request, condition) if not known.id(name)
            )

    def closest_name(self, condition: str, name: str) -> str | None:
        """The known name that is written most alike, if one is at all."""
        known = self.vocabularies.get(condition, Vocabulary()).names
        return next(iter(get_close_matches(normalised(name), known[1:], 1, cutoff=0.75)), None)

    def notes(self, request: SongRequest) -> Iterator[str]:
        """What else of the request this level cannot follow, in words."""
        seconds, trained = request.song_seconds or request.seconds, self.config.timing
        if trained and not trained.min_seconds <= seconds <= trained.max_seconds:
            limits = f"{trained.min_seconds:g}-{trained.max_seconds:g} s"
            yield f"{seconds:g} s is outside the {limits} that were trained; it was told the nearest"
        if self.config.lyrics and not request.lyrics.strip():
            yield "no lyrics: the voice, if any, has nothing to follow"

    def keep_loaded(self, device: torch.device, dtype: torch.dtype) -> None:
        """Load the prior for good: for a process that makes one song after another."""
        self.kept_prior = self._prior(device, dtype)

    @contextmanager
    def loaded(self, device: torch.device, dtype: torch.dtype) -> Iterator[Prior]:
        """The prior on `device`, straight from the file, and gone after the block; or the one that is kept."""
        if self.kept_prior is not None:
            yield self.kept_prior
            return
        prior = self._prior(device, dtype)
        yield prior
        prior.to(
            "meta"
        )  # gone even while a caller's name still holds it: the next one is loaded before that is reused
        if device.type == "cuda":
            torch.cuda.empty_cache()
        give_back()

    def _prior(self, device: torch.device, dtype: torch.dtype) -> Prior:
        with torch.device("meta"):
            prior = Prior(self.config)
        load_into(prior, self.folder, dtype=dtype, device=device)
        if (
            device.type == "cpu"
        ):  # away from the pages of the file, which would stay beside the packed weights
            for tensor in (*prior.parameters(), *prior.buffers()):
                tensor.data = tensor.data.clone()
        return prior.eval()


def give_back() -> None:
    """Free memory goes back to the system: glibc would keep a whole prior's beside the next one's file."""
    with suppress(OSError, AttributeError):  # another system, another allocator
        ctypes.CDLL("libc.so.6").malloc_trim(0)
