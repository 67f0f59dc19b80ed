"""Training songs that samples are compared with: read once, kept as a few numbers each; and a set's metrics against them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from megajukebox.evaluation.evaluators.adherence import LabelClassifier, fit_label_classifier
from megajukebox.evaluation.evaluators.embedding import Embedder
from megajukebox.evaluation.evaluators.frechet import frechet_metric
from megajukebox.evaluation.evaluators.loudness import sound_metrics
from megajukebox.evaluation.evaluators.music_features import (
    MusicFeatures,
    corpus_metrics,
    music_features,
)
from megajukebox.evaluation.evaluators.noise import peakiness_metrics
from megajukebox.evaluation.evaluators.repetition import chorus_return, repetition, section_chromas
from megajukebox.evaluation.inputs import EvalSong, EvalSongs, SampledSongs
from megajukebox.evaluation.metrics import MetricValue, mean_metrics, prefixed

Array = np.ndarray


@dataclass
class SongFeatures:
    """Embeddings [N, D] and musical features of some songs, by song."""

    embeddings: dict[str, Array] = field(default_factory=dict)
    music: dict[str, MusicFeatures] = field(default_factory=dict)

    def add(self, song: EvalSong, seconds: float, embedder: Embedder) -> None:
        """Tempo and key are those of `seconds` from the middle of the song."""
        self.embeddings[song.key] = embedder.embed(song)
        size = int(seconds * song.rate)
        start = max(0, (len(song.audio) - size) // 2)
        # Without its words, whose times would no longer hold.
        middle = replace(song, audio=song.audio[start : start + size], text="", words=())
        music = music_features(middle)
        if music is not None:
            self.music[song.key] = music


@dataclass(frozen=True)
class ReferenceSet:
    """What is kept of the training songs."""

    embedder: Embedder
    features: SongFeatures
    classifier: LabelClassifier


def fit_reference(songs: EvalSongs, seconds: float, embedder: Embedder) -> ReferenceSet:
    """Read the songs; tempo, key and the classifiers' clips are of `seconds`, as long as samples are."""
    features = SongFeatures()
    for song in songs:
        features.add(song, seconds, embedder)
    return ReferenceSet(embedder, features, fit_label_classifier(songs, seconds))


def evaluate_set(
    part: str, songs: SampledSongs | EvalSongs, reference: ReferenceSet | None, seconds: float
) -> tuple[list[MetricValue], Mapping[str, Array]]:
    """Every metric of a set of songs, under `part`; and the embeddings [N, D] of its songs.

    Tempo and key are those of `seconds` from the middle of a song. Without a reference set only the
    metrics that need none.
    """
    rows: dict[str, dict[str, float]] = {}
    features = SongFeatures()
    chromas: dict[str, dict[str, list[Array]]] = {}  # of sections, by song and kind
    labels: dict[str, Mapping[str, str]] = {}
    for song in songs:
        if song.sections:
            chromas[song.key] = section_chromas(song)
            labels[song.key] = song.labels
        rows[song.key] = {
            **sound_metrics(song.audio, song.rate),
            **peakiness_metrics(song.audio, song.rate),
            **repetition(song),
        }
        if reference:
            rows[song.key] |= reference.classifier.classify(song)
            features.add(song, seconds, reference.embedder)
    for key, value in chorus_return(chromas, labels).items():
        rows[key]["chorus_return"] = value
    metrics = list(mean_metrics(part, rows))
    if reference:
        known = reference.features
        metrics += prefixed(part, frechet_metric(features.embeddings, known.embeddings))
        metrics += prefixed(part, corpus_metrics(features.music, known.music))
    return metrics, features.embeddings
