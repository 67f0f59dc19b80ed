"""Which figures a VQ-VAE, a prior, and a folder of samples get: the evaluators put together, one function a subject."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.stream.code_dataset import CodeWindows
from megajukebox.distillation.divergence import (
    SamplingSettings,
    forward_gap,
    reverse_gap,
    student_bits,
)
from megajukebox.distillation.teacher_sampling import placed
from megajukebox.evaluation.evaluators.adherence import LabelClassifier, by_codes, code_counts
from megajukebox.evaluation.evaluators.codebook import codebook, histogram
from megajukebox.evaluation.evaluators.embedding import Embedder
from megajukebox.evaluation.evaluators.frechet import frechet_score
from megajukebox.evaluation.evaluators.likelihood import (
    BATCH,
    collated,
    held_out_bits,
    judged_windows,
    song_windows,
    window_bits,
    windows_of,
)
from megajukebox.evaluation.evaluators.memorization import clip_scores, passage_scores
from megajukebox.evaluation.evaluators.music_features import agreement
from megajukebox.evaluation.evaluators.reconstruction import by_band, fidelity
from megajukebox.evaluation.evaluators.repetition import repetition
from megajukebox.evaluation.inputs import (
    EvalSample,
    EvalSong,
    EvalSongs,
    Sampled,
    Say,
    codes_of,
    labels_of,
    silent,
)
from megajukebox.evaluation.metrics import MetricValue, mean_score, mean_scores, under
from megajukebox.evaluation.reference_set import ReferenceSet, evaluate_set
from megajukebox.models.chunked_codec import decode_long, encode_long
from megajukebox.models.prior import Prior
from megajukebox.models.student import Student
from megajukebox.models.vqvae import VQVAE
from megajukebox.sampling.jukebox import PriorRun
from megajukebox.sampling.lyrics.head_selection import word_start_errors
from megajukebox.sampling.real_songs import known_song

Array = np.ndarray
LEAST_SECONDS = 1.0  # of a song: what is shorter is not judged


@dataclass(frozen=True)
class EvalBudget:
    """How much is looked at; the defaults suit two CPU cores and a tiny model."""

    songs: int = 64  # held-out songs, at most
    seconds: float = 120.0  # of each song
    corpus: int = 256  # training songs that samples are compared with
    windows: int = 32  # of codes, of each song at each level


# ---- A VQ-VAE


def evaluate_vqvae(
    model: VQVAE, songs: EvalSongs, listener: LabelClassifier | None, embedder: Embedder
) -> Iterator[MetricValue]:
    """Reconstructions of `songs` through each level, against the songs themselves; and the codes they use."""
    levels = list(reversed(model.config.levels))
    judged = {level: Reconstructed() for level in levels}
    originals: dict[str, Array] = {}
    for song in songs:
        if song.seconds >= LEAST_SECONDS:
            originals[song.key] = embedder.embed(song)
            for level in levels:
                judged[level].add(model, song, level, listener, embedder)
    for level in levels:
        yield from judged[level].scores(level, originals)
    yield from about_originals(songs, listener)


class Reconstructed:
    """What is kept of the reconstructions of one level."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, float]] = {}
        self.bands: dict[str, dict[str, dict[str, float]]] = {}  # {band: {song: measures}}
        self.counts: dict[str, Array] = {}
        self.embeddings: dict[str, Array] = {}

    def add(
        self,
        model: VQVAE,
        song: EvalSong,
        level: str,
        listener: LabelClassifier | None,
        embedder: Embedder,
    ) -> None:
        x_T = torch.from_numpy(song.audio).to(next(model.parameters()).device)
        codes = encode_long(model, x_T, level)
        made = replace(song, audio=decode_long(model, codes, level).cpu().numpy())
        heard = listener.classify(made) if listener else {}
        near = fidelity(song.audio, made.audio, song.rate)
        alike = agreement(song.audio, made.audio, song.rate)
        self.rows[song.key] = {**near, **alike, **heard, **repetition(made)}
        for band, row in by_band(song.audio, made.audio, song.rate).items():
            self.bands.setdefault(band, {})[song.key] = row
        self.counts[song.key] = histogram(codes.cpu().numpy(), model.config.codebook_size)
        self.embeddings[song.key] = embedder.embed(made)

    def scores(self, level: str, originals: Mapping[str, Array]) -> Iterator[MetricValue]:
        yield from mean_scores(f"reconstruction/{level}", self.rows)
        for band, rows in self.bands.items():
            yield from mean_scores(f"reconstruction/{level}/{band}", rows)
        distance = frechet_score(self.embeddings, originals)
        yield from under(f"reconstruction/{level}", [distance] if distance else [])
        yield from under(f"codebook/{level}", codebook(self.counts))


def about_originals(songs: EvalSongs, listener: LabelClassifier | None) -> Iterator[MetricValue]:
    """What the same ears make of the songs themselves, and of guessing: what the figures are read against."""
    rows = {
        song.key: {**(listener.classify(song) if listener else {}), **repetition(song)}
        for song in songs
    }
    yield from mean_scores("reconstruction/original", rows)
    yield from under("reconstruction/chance", listener.chance() if listener else [])


# ---- A prior


def evaluate_prior(
    prior: Prior, run: PriorRun, codes: ShardSet, rows: list[int], windows: int, say: Say = silent
) -> Iterator[MetricValue]:
    """Bits per code of the songs in `rows`; and when their words are sung, where that is known and the run can tell."""
    level = run.config.level
    device = next(prior.parameters()).device
    found = held_out_bits(
        lambda batch: window_bits(prior, batch), windows_of(run, codes), rows, windows, device, say
    )
    yield from mean_scores(f"bits/{level}", found)
    counts = {
        codes.key(row): histogram(codes_of(codes, row, level), run.config.codebook_size)
        for row in rows
    }
    yield from under(
        f"bits/{level}", [score for score in codebook(counts) if score.name == "entropy_bits"]
    )
    if run.alignment is not None and run.tokenizer is not None:
        yield from under(f"lyrics/{level}", word_errors(prior, run, codes, rows))


def word_errors(
    prior: Prior, run: PriorRun, codes: ShardSet, rows: list[int]
) -> Iterator[MetricValue]:
    """Median error of the start of the words of each song that has word times, by the head that `align` chose."""
    assert run.alignment is not None
    ours, even = {}, {}
    for row in rows:
        song = known_song(run, codes, row) if codes.has(row, "lyrics") else None
        if (
            song is not None
            and song.conditioning.words
            and song.conditioning.tokens.ids
            and len(song.codes)
        ):
            off, off_evenly = word_start_errors(prior, [song], run.alignment.pair)
            ours[codes.key(row)], even[codes.key(row)] = (
                float(np.median(off)),
                float(np.median(off_evenly)),
            )
    if ours:
        yield mean_score("word_error_ms", ours)
        yield mean_score("even_error_ms", even)


# ---- A student beside its teacher


def evaluate_student(
    student: Student, teacher: Prior, manner: SamplingSettings, windows: CodeWindows, rows: list[int], most: int,
    taught: list[dict],
) -> Iterator[MetricValue]:  # fmt: skip
    """Bits per code of songs, and the divergences from the teacher, both ways and exact.

    Forward over windows that the teacher sampled (`taught`: data/stream/teacher_dataset.py), reverse over those that the
    student samples here, told what held-out songs are told.
    """
    device, part = next(teacher.parameters()).device, f"student/{teacher.config.level}"
    songs = held_out_bits(
        lambda batch: student_bits(student, batch).mean(1), windows, rows, most, device
    )
    reverse: dict[str, float] = {}
    for row in rows:
        batch = collated(song_windows(windows, row, min(most, BATCH)), device)
        seeds = [
            2**40 + row * BATCH + n for n in range(len(batch["codes"]))
        ]  # none that the teacher sampled with
        reverse[windows.shards.key(row)] = float(
            reverse_gap(student, teacher, batch, seeds, manner).mean()
        )
    yield from mean_scores(part, songs)
    yield mean_score(f"{part}/reverse_kl_bits", reverse)
    if taught:
        gaps = torch.cat([forward_gap(student, placed(batch, device)).cpu() for batch in taught])
        yield from under(part, judged_windows({"kl_forward": gaps}))


# ---- Samples


@dataclass(frozen=True)
class RealSongs:
    """The real songs that samples are judged against."""

    held_out: EvalSongs
    corpus: ReferenceSet


@dataclass(frozen=True)
class RealCodes:
    """The codes of real songs; `rows` of training and of held-out ones."""

    shards: ShardSet
    training: list[int]
    held_out: list[int]

    def songs(self, rows: list[int], level: str) -> dict[str, Array]:
        return {
            self.shards.key(row): codes_of(self.shards, row, level).astype(np.int64) for row in rows
        }


def evaluate_samples(
    samples: list[EvalSample], real: RealSongs | None, codes: RealCodes | None, seconds: float
) -> Iterator[MetricValue]:
    """Everything that can be said of samples of about `seconds`, with and without real songs to hold them against."""
    levels = [
        level
        for level in ("top", "middle", "bottom")
        if any(level in sample.levels for sample in samples)
    ]
    corpus = real.corpus if real else None
    embeddings: dict[str, Array] = {}
    for level in levels:
        scores, embeddings = evaluate_set(
            f"samples/{level}", Sampled(having(samples, level), level), corpus, seconds
        )
        yield from scores
    if real:
        scores, real_embeddings = evaluate_set(
            "samples/held_out", real.held_out, real.corpus, seconds
        )
        yield from scores
        yield from under("samples/chance", real.corpus.listener.chance())
        yield from under(
            "copying/clips", clip_scores(embeddings, real_embeddings, real.corpus.embeddings)
        )
    if codes:
        for level in levels:
            yield from evaluate_codes(having(samples, level), level, codes)


def having(samples: list[EvalSample], level: str) -> list[EvalSample]:
    return [sample for sample in samples if level in sample.levels]


def evaluate_codes(samples: list[EvalSample], level: str, real: RealCodes) -> Iterator[MetricValue]:
    """The codes of samples at one level: how many are used, whose they look like, and whether they are copied."""
    ours = {sample.key: codes[level] for sample in samples if level in (codes := sample.codes())}
    if not ours:
        return
    size = real.shards.index["vqvae"]["codes"][level]
    yield from under(
        f"sample_codes/{level}", codebook({key: histogram(c, size) for key, c in ours.items()})
    )
    training, held_out = real.songs(real.training, level), real.songs(real.held_out, level)
    said = {
        real.shards.key(row): labels_of(real.shards.read_facts(row))
        for row in real.training + real.held_out
    }
    taught = {key: (code_counts(c, size), said[key]) for key, c in training.items()}
    asked = {s.key: labels_of(s.record["request"]) for s in samples}
    judged = {key: (code_counts(c, size), asked[key]) for key, c in ours.items()}
    yield from under(f"sample_codes/{level}", by_codes(taught, judged))
    known = {key: (code_counts(c, size), said[key]) for key, c in held_out.items()}
    yield from under(f"sample_codes/{level}_held_out", by_codes(taught, known))
    if (
        level == "top"
    ):  # the other levels are the same music, in more codes than can be compared one by one
        yield from under("copying/codes", passage_scores(ours, held_out, list(training.values())))


def evaluate_paired(
    samples: list[EvalSample], others: list[EvalSample], embedder: Embedder
) -> Iterator[MetricValue]:
    """Samples beside those of another run or sampler: as sets, and song by song where the same request was made."""
    for level in ("top", "middle", "bottom"):
        here, there = Sampled(having(samples, level), level), Sampled(having(others, level), level)
        if not len(here) or not len(there):
            continue
        theirs = {song.key: song for song in there}
        rows, embeddings = {}, {}
        for song in here:
            embeddings[song.key] = embedder.embed(song)
            if song.key in theirs:
                rows[song.key] = dict(agreement(theirs[song.key].audio, song.audio, song.rate))
        yield from mean_scores(f"beside/{level}", rows)
        distance = frechet_score(
            embeddings, {key: embedder.embed(song) for key, song in theirs.items()}
        )
        yield from under(f"beside/{level}", [distance] if distance else [])
