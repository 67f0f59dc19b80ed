"""The metrics of a run: of a VQ-VAE, of a prior, and of a student beside its teacher."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from megajukebox.common.errors import UserError
from megajukebox.common.levels import PRIOR_FOLDERS
from megajukebox.common.model_files import load_into, read_facts
from megajukebox.data.audio import downmix
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.stream.batches import held_out_batches, stack, tensors
from megajukebox.data.stream.teacher_dataset import TeacherWindows
from megajukebox.distillation.divergence import (
    SamplingSettings,
    forward_gap,
    reverse_gap,
    student_bits,
)
from megajukebox.distillation.teacher_sampling import to_device
from megajukebox.evaluation.context import EvalContext
from megajukebox.evaluation.evaluators.adherence import LabelClassifier, fit_label_classifier
from megajukebox.evaluation.evaluators.codebook import (
    codebook_metrics,
    histogram,
    repeat_metrics,
)
from megajukebox.evaluation.evaluators.embedding import Embedder
from megajukebox.evaluation.evaluators.frechet import frechet_metric
from megajukebox.evaluation.evaluators.likelihood import (
    BATCH,
    held_out_bits,
    song_windows,
    window_bits,
    windows_of,
)
from megajukebox.evaluation.evaluators.music_features import agreement
from megajukebox.evaluation.evaluators.noise import noise_metrics, peakiness_metrics
from megajukebox.evaluation.evaluators.reconstruction import fidelity, fidelity_by_band
from megajukebox.evaluation.evaluators.repetition import repetition
from megajukebox.evaluation.evaluators.stereo import stereo_metrics
from megajukebox.evaluation.frozen_weights import frozen
from megajukebox.evaluation.inputs import EvalSong, load_codes
from megajukebox.evaluation.metrics import MetricValue, mean_metric, mean_metrics, prefixed
from megajukebox.evaluation.targets import EvalTarget
from megajukebox.models.chunked_codec import decode_long, encode_long
from megajukebox.models.prior import Prior
from megajukebox.models.student import Student, StudentConfig
from megajukebox.models.vqvae import VQVAE, load_vqvae
from megajukebox.sampling.jukebox import PriorRun
from megajukebox.sampling.lyrics.head_selection import word_start_errors
from megajukebox.sampling.real_songs import known_song
from megajukebox.sampling.refiners import LevelRefiner, load_refiners
from megajukebox.sampling.students.student_runs import teacher_sampling

Array = np.ndarray
MIN_SECONDS = 1.0  # of a song that is reconstructed
CLASSIFIER_SECONDS = 5.0  # of the clips by which reconstructions are classified
MAX_TEACHER_WINDOWS = 128
FIRST_SEED = 2**40  # beyond the seeds that teachers sample their windows with


# ---- A VQ-VAE


def vqvae_metrics(target: EvalTarget, context: EvalContext) -> Iterator[MetricValue]:
    """Reconstructions of held-out songs through each level, against the songs themselves; and the codes they use."""
    shards = context.references.songs
    assert shards is not None, "TARGET_EVALUATORS requires songs"
    with frozen(target.path) as weights:
        model, facts = load_vqvae(weights, shards.index["sample_rate"], context.device)
    rows_evaluated = context.evaluated_rows(shards, target.path)
    songs = context.songs(shards, rows_evaluated, model.config.channels)
    training_rows = context.rows(shards, target.path, held_out=False)
    classifier: LabelClassifier | None = None  # without training songs, or labels to tell apart
    if training_rows:
        training_songs = context.songs(shards, training_rows)
        fitted = fit_label_classifier(training_songs, CLASSIFIER_SECONDS)
        classifier = fitted if fitted.classifiers else None
    columns = {level: LevelReconstructions(level, model) for level in reversed(model.config.levels)}
    for refiner in refiners_of(target, facts, context):
        columns[refiner.track] = LevelReconstructions(refiner.level, model, refiner)
    originals: dict[str, Array] = {}
    for song in songs:
        if song.seconds < MIN_SECONDS:
            continue
        originals[song.key] = context.embedder.embed(song)
        for reconstructions in columns.values():
            reconstructions.add(song, classifier, context.embedder)
    for column, reconstructions in columns.items():
        yield from reconstructions.metrics(column, originals)
    # The songs themselves, not reconstructed, and guessing: what the metrics are compared with.
    rows = {}
    for song in songs:
        accuracy = classifier.classify(song) if classifier else {}
        rows[song.key] = {
            **accuracy,
            **repetition(song),
            **peakiness_metrics(song.audio, song.rate),
        }
    yield from mean_metrics("reconstruction/original", rows)
    yield from prefixed("reconstruction/chance", classifier.chance() if classifier else [])


def refiners_of(
    target: EvalTarget, facts: Mapping[str, Any], context: EvalContext
) -> list[LevelRefiner]:
    """The refiners that were asked for, or (none was) those beside the VQ-VAE; of another VQ-VAE they are left out."""
    given = context.refiners
    if given:
        refiners = load_refiners(target.path.parent, facts, context.device, given)
        return list(refiners.values())
    try:
        return list(load_refiners(target.path.parent, facts, context.device).values())
    except UserError as error:
        context.notes.append(f"refiners are left out: {error}")
        return []


# Left out where the target is `spectrum`: phases are made up there, and these metrics compare phases first of all.
WAVE_METRICS = ("snr_db", "si_sdr_db")


@dataclass
class LevelReconstructions:
    """What is kept of the reconstructions of one level, by song: of the decoder's, or of what a refiner makes of it."""

    level: str
    model: VQVAE
    refiner: LevelRefiner | None = None
    rows: dict[str, dict[str, float]] = field(default_factory=dict)
    bands: dict[str, dict[str, dict[str, float]]] = field(
        default_factory=dict
    )  # {band: {song: ...}}
    codes: dict[str, Array] = field(default_factory=dict)
    counts: dict[str, Array] = field(default_factory=dict)
    embeddings: dict[str, Array] = field(default_factory=dict)

    def add(self, song: EvalSong, classifier: LabelClassifier | None, embedder: Embedder) -> None:
        """Reconstruct a song and keep its metrics."""
        model = self.model
        original = song.audio if song.stereo is None else song.stereo
        audio = torch.from_numpy(original).to(next(model.parameters()).device)
        codes = encode_long(model, audio, self.level)
        wave = self._decoded(codes)
        decoded = replace(song, audio=wave, stereo=None)
        stereo: Mapping[str, float] = {}
        if song.stereo is not None:
            decoded = replace(song, audio=downmix(wave), stereo=wave)
            stereo = stereo_metrics(song.stereo, wave, song.rate)
        fidelities = dict(fidelity(song.audio, decoded.audio, song.rate))
        bands = fidelity_by_band(song.audio, decoded.audio, song.rate)
        if self.level in model.config.spectrum_levels:
            for row in (fidelities, *bands.values()):
                for metric in WAVE_METRICS:
                    row.pop(metric, None)
        self.rows[song.key] = {
            **fidelities,
            **stereo,
            **noise_metrics(song.audio, decoded.audio, song.rate),
            **agreement(song.audio, decoded.audio, song.rate),
            **(classifier.classify(decoded) if classifier else {}),
            **repetition(decoded),
        }
        for band, row in bands.items():
            self.bands.setdefault(band, {})[song.key] = row
        self.codes[song.key] = codes.cpu().numpy()
        size = model.config.codebook_sizes[self.level]
        self.counts[song.key] = histogram(self.codes[song.key], size)
        self.embeddings[song.key] = embedder.embed(decoded)

    def _decoded(self, codes_T: torch.Tensor) -> Array:
        if self.refiner:
            return self.refiner.refined(self.model, codes_T)
        return decode_long(self.model, codes_T, self.level).cpu().numpy()

    def metrics(self, column: str, originals: Mapping[str, Array]) -> Iterator[MetricValue]:
        """Of all songs; `originals` are the embeddings [N, D] of the songs themselves."""
        part = f"reconstruction/{column}"
        yield from mean_metrics(part, self.rows)
        for band, rows in self.bands.items():
            yield from mean_metrics(f"{part}/{band}", rows)
        yield from prefixed(part, frechet_metric(self.embeddings, originals))
        if self.refiner is None:
            yield from prefixed(f"codebook/{column}", codebook_metrics(self.counts))
            yield from prefixed(f"codebook/{column}", repeat_metrics(self.codes))


# ---- A prior


def prior_metrics(target: EvalTarget, context: EvalContext) -> Iterator[MetricValue]:
    """Bits per code of held-out songs; and when their words are sung, where a head of the prior follows them."""
    codes = context.references.codes
    assert codes is not None, "TARGET_EVALUATORS requires codes"
    rows = context.evaluated_rows(codes, target.path)
    with frozen(target.path) as weights:
        run = PriorRun(weights, codes.index["vqvae"])
        if run.tokenizer and run.alignment is None:
            context.notes.append(
                f"{target.path}: no attention head is chosen that follows the words; run align first"
            )
        with run.loaded(context.device, torch.float32) as prior:
            yield from bits_metrics(prior, run, codes, rows, context)
            if run.tokenizer and run.alignment is not None:
                part = f"lyrics/{run.config.level}"
                yield from prefixed(part, word_error_metrics(prior, run, codes, rows))


def bits_metrics(
    prior: Prior, run: PriorRun, codes: ShardSet, rows: list[int], context: EvalContext
) -> Iterator[MetricValue]:
    """Bits per code, what labels save of them, and the entropy of the histogram, which has no context."""
    level = run.config.level
    bits = held_out_bits(
        lambda batch: window_bits(prior, batch),
        windows_of(run, codes),
        rows,
        context.budget.windows,
        context.device,
    )
    yield from mean_metrics(f"bits/{level}", bits)
    counts = {}
    for row in rows:
        counts[codes.key(row)] = histogram(load_codes(codes, row, level), run.config.codebook_size)
    for metric in prefixed(f"bits/{level}", codebook_metrics(counts)):
        if metric.name.endswith("/entropy_bits"):
            yield metric


def word_error_metrics(
    prior: Prior, run: PriorRun, codes: ShardSet, rows: list[int]
) -> Iterator[MetricValue]:
    """Median error of the start of the words of each song that has word times, by the head that `align` chose."""
    assert run.alignment is not None
    by_head = {}
    evenly = {}
    for row in rows:
        if not codes.has(row, "lyrics"):
            continue
        song = known_song(run, codes, row)
        if song.conditioning.words and song.conditioning.tokens.ids and len(song.codes):
            head_errors, even_errors = word_start_errors(prior, [song], run.alignment.pair)
            by_head[codes.key(row)] = float(np.median(head_errors))
            evenly[codes.key(row)] = float(np.median(even_errors))
    if by_head:
        yield mean_metric("word_error_ms", by_head)
        yield mean_metric("even_error_ms", evenly)


# ---- A student beside its teacher


def student_metrics(target: EvalTarget, context: EvalContext) -> Iterator[MetricValue]:
    """Bits per code of songs, and the divergences from the teacher, both ways and exact.

    The teacher is the prior of the student's level in the same folder of runs. Forward over windows that the
    teacher sampled for `distill`, reverse over those that the student samples here, with the conditioning of
    held-out songs.
    """
    codes = context.references.codes
    assert codes is not None, "TARGET_EVALUATORS requires codes"
    facts = read_facts(target.path)
    level = facts["level"]
    part = f"student/{level}"
    device = context.device
    teacher_run = PriorRun(target.path.parent.parent / PRIOR_FOLDERS[level], codes.index["vqvae"])
    if teacher_run.facts["fingerprint"] != facts["teacher"]:
        raise UserError(
            f"{teacher_run.folder} is not the teacher of {target.path}; distill it again"
        )
    student = Student(StudentConfig(**facts["config"]))
    load_into(student, target.path, device=device)
    student.to(device).eval()
    rows = context.evaluated_rows(codes, teacher_run.folder)
    windows = windows_of(teacher_run, codes)
    limit = context.budget.windows

    with teacher_run.loaded(device, torch.float32) as teacher:
        song_bits = held_out_bits(
            lambda batch: student_bits(student, batch).mean(1), windows, rows, limit, device
        )
        settings = SamplingSettings(**teacher_sampling(facts))
        reverse: dict[str, float] = {}
        for row in rows:
            batch = to_device(tensors(stack(song_windows(windows, row, min(limit, BATCH)))), device)
            first = FIRST_SEED + row * BATCH
            seeds = list(range(first, first + len(batch["codes"])))
            gaps = reverse_gap(student, teacher, batch, seeds, settings)
            reverse[windows.shards.key(row)] = float(gaps.mean())
        yield from mean_metrics(part, song_bits)
        yield mean_metric(f"{part}/reverse_kl_bits", reverse)
        folder = target.path.parent / "windows"
        if not (folder / "index.json").is_file():
            context.notes.append(f"{folder} holds no windows of the teacher: no forward divergence")
            return
        sampled = TeacherWindows(ShardSet(folder))
        forward: dict[str, float] = {}  # by window, as windows are of no song
        for batch in held_out_batches(sampled, micro_batch=BATCH, limit=MAX_TEACHER_WINDOWS):
            for gap in forward_gap(student, to_device(batch, device)).tolist():
                forward[f"window-{len(forward):04d}"] = gap
        if forward:
            yield mean_metric(f"{part}/forward_kl_bits", forward)
