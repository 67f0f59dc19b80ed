"""The metrics of samples: beside other samples, their audio, and their codes."""

import logging
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from megajukebox.common.levels import LEVELS
from megajukebox.conditioning.song_sections import LabelledSection, stored_sections
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.evaluation.context import EvalContext
from megajukebox.evaluation.evaluators.adherence import code_accuracy, code_counts
from megajukebox.evaluation.evaluators.codebook import (
    codebook_metrics,
    histogram,
    repeat_metrics,
)
from megajukebox.evaluation.evaluators.frechet import frechet_metric
from megajukebox.evaluation.evaluators.memorization import clip_metrics, passage_metrics
from megajukebox.evaluation.evaluators.music_features import agreement
from megajukebox.evaluation.evaluators.repetition import code_reuse
from megajukebox.evaluation.inputs import (
    EvalSample,
    SampledSongs,
    labels_of,
    load_codes,
    samples_in,
)
from megajukebox.evaluation.metrics import MetricValue, mean_metrics, prefixed
from megajukebox.evaluation.reference_set import ReferenceSet, evaluate_set, fit_reference
from megajukebox.evaluation.targets import EvalTarget

log = logging.getLogger(__name__)
Array = np.ndarray
UNKNOWN_SECONDS = 5.0  # taken for the length of a sample whose file does not say


def target_samples(target: EvalTarget, context: EvalContext) -> list[EvalSample]:
    """The samples of a target; what they were requested to be is kept for the report's labels."""
    samples = samples_in(target.path)
    for sample in samples:
        context.requested[sample.key] = labels_of(sample.record["request"])
    return samples


# ---- Beside other samples


def paired_metrics(target: EvalTarget, context: EvalContext) -> Iterator[MetricValue]:
    """Samples beside those of another run or sampler: as sets, and song by song where the request was the same."""
    samples = target_samples(target, context)
    embed = context.embedder.embed
    for level in LEVELS:
        ours = SampledSongs(samples, level)
        theirs = {song.key: song for song in SampledSongs(context.references.samples, level)}
        if not ours.samples or not theirs:
            continue
        rows: dict[str, Mapping[str, float]] = {}
        embeddings = {}
        for song in ours:
            embeddings[song.key] = embed(song)
            if song.key in theirs:
                rows[song.key] = agreement(theirs[song.key].audio, song.audio, song.rate)
        part = f"paired/{level}"
        yield from mean_metrics(part, rows)
        their_embeddings = {key: embed(song) for key, song in theirs.items()}
        yield from prefixed(part, frechet_metric(embeddings, their_embeddings))


# ---- Audio


def audio_metrics(target: EvalTarget, context: EvalContext) -> Iterator[MetricValue]:
    """Metrics of the audio of each level, with and without real songs to compare it with.

    Real songs are cut to the samples' length, where length matters.
    """
    samples = target_samples(target, context)
    seconds = float(np.median([sample.seconds or UNKNOWN_SECONDS for sample in samples]))
    songs = context.references.songs
    reference: ReferenceSet | None = None
    if songs:
        log.info("reading the training songs")
        corpus = context.songs(songs, context.rows(songs, target.path, held_out=False))
        reference = fit_reference(corpus, seconds, context.embedder)
    embeddings: Mapping[str, Array] = {}  # of the finest level
    for level in audio_levels(samples):
        songs_of_level = SampledSongs(samples, level)
        metrics, embeddings = evaluate_set(f"samples/{level}", songs_of_level, reference, seconds)
        yield from metrics
    if songs and reference:
        held_out = context.songs(songs, context.rows(songs, target.path, held_out=True))
        metrics, real = evaluate_set("samples/held_out", held_out, reference, seconds)
        yield from metrics
        yield from prefixed("samples/chance", reference.classifier.chance())
        known = reference.features.embeddings
        yield from prefixed("copying/clips", clip_metrics(embeddings, real, known))


def audio_levels(samples: list[EvalSample]) -> list[str]:
    """The levels that any sample has audio of, coarsest first."""
    present: set[str] = set()
    for sample in samples:
        present.update(sample.levels)
    return [level for level in LEVELS if level in present]


# ---- Codes


def code_metrics(target: EvalTarget, context: EvalContext) -> Iterator[MetricValue]:
    """The codes of samples at each level: how many are used, whose they look like, and whether they are copied."""
    shards = context.references.codes
    assert shards is not None, "TARGET_EVALUATORS requires codes"
    samples = target_samples(target, context)
    training_rows = context.rows(shards, target.path, held_out=False)
    held_out_rows = context.rows(shards, target.path, held_out=True)
    labels = {}
    for row in training_rows + held_out_rows:
        labels[shards.key(row)] = labels_of(shards.read_facts(row))
    for level in audio_levels(samples):
        codes: dict[str, Array] = {}
        for sample in samples:
            by_level = sample.codes()
            if level in sample.levels and level in by_level:
                codes[sample.key] = by_level[level]
        if not codes:
            continue
        training = codes_of_songs(shards, training_rows, level)
        held_out = codes_of_songs(shards, held_out_rows, level)
        part = f"sample_codes/{level}"
        size = shards.index["vqvae"]["codes"][level]
        histograms = {}
        for key, codes_T in codes.items():
            histograms[key] = histogram(codes_T, size)
        yield from prefixed(part, codebook_metrics(histograms))
        yield from prefixed(part, repeat_metrics(codes, held_out))
        yield from prefixed(f"{part}_held_out", repeat_metrics(held_out))
        corpus = labelled_counts(training, size, labels)
        ours = labelled_counts(codes, size, context.requested)
        theirs = labelled_counts(held_out, size, labels)
        yield from prefixed(part, code_accuracy(corpus, ours))
        yield from prefixed(f"{part}_held_out", code_accuracy(corpus, theirs))
        # The other levels are the same music, in more codes than can be compared one by one.
        if level == "top":
            rate = shards.index["sample_rate"] / shards.index["vqvae"]["hops"][level]
            sections = {sample.key: sample.sections for sample in samples}
            real = {}
            for row in held_out_rows:
                real[shards.key(row)] = tuple(stored_sections(shards.read_facts(row)))
            yield from mean_metrics(part, reuse_of(codes, sections, rate))
            yield from mean_metrics(f"{part}_held_out", reuse_of(held_out, real, rate))
            metrics = passage_metrics(codes, held_out, list(training.values()))
            yield from prefixed("copying/codes", metrics)


def reuse_of(
    codes: Mapping[str, Array],
    sections: Mapping[str, Sequence[LabelledSection]],
    codes_per_second: float,
) -> dict[str, Mapping[str, float]]:
    """`code_reuse` of each song."""
    rows = {}
    for key, codes_T in codes.items():
        rows[key] = code_reuse(codes_T, sections[key], codes_per_second)
    return rows


def codes_of_songs(shards: ShardSet, rows: list[int], level: str) -> dict[str, Array]:
    """Codes [T] int64 of songs of a shard set, by their keys."""
    codes = {}
    for row in rows:
        codes[shards.key(row)] = load_codes(shards, row, level).astype(np.int64)
    return codes


def labelled_counts(
    codes: Mapping[str, Array], size: int, labels: Mapping[str, Mapping[str, str]]
) -> dict[str, tuple[Array, Mapping[str, str]]]:
    """(counts [K], labels) of each song's codes."""
    labelled = {}
    for key, codes_T in codes.items():
        labelled[key] = (code_counts(codes_T, size), labels[key])
    return labelled
