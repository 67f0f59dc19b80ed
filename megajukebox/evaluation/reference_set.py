"""What judges keep of the songs that a jukebox was trained on: gone through once, nothing of it large."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from megajukebox.evaluation.evaluators.adherence import LabelClassifier, fit_label_classifier
from megajukebox.evaluation.evaluators.embedding import Embedder
from megajukebox.evaluation.evaluators.frechet import frechet_score
from megajukebox.evaluation.evaluators.loudness import sound
from megajukebox.evaluation.evaluators.music_features import (
    MusicFeatures,
    like_the_corpus,
    music_features,
)
from megajukebox.evaluation.evaluators.repetition import repetition
from megajukebox.evaluation.inputs import EvalSong, EvalSongs, Sampled
from megajukebox.evaluation.metrics import MetricValue, mean_scores, under

Array = np.ndarray


@dataclass(frozen=True)
class ReferenceSet:
    """The training songs as the judges remember them."""

    embedder: Embedder
    embeddings: Mapping[str, Array]  # [N, D] by song
    heard: Mapping[str, MusicFeatures]
    listener: LabelClassifier


def fit_reference(songs: EvalSongs, seconds: float, embedder: Embedder) -> ReferenceSet:
    """The corpus of `songs`; tempo, key and what ears are taught by are those of clips of `seconds`, as of samples."""
    embeddings, heard = {}, {}
    for song in songs:
        embeddings[song.key] = embedder.embed(song)
        told = music_features(middle(song, seconds))
        if told is not None:
            heard[song.key] = told
    return ReferenceSet(embedder, embeddings, heard, fit_label_classifier(songs, seconds))


def evaluate_set(
    part: str, songs: Sampled | EvalSongs, corpus: ReferenceSet | None, seconds: float
) -> tuple[list[MetricValue], dict[str, Array]]:
    """Every figure of a set of songs, under `part`; and the embeddings [N, D] of its songs.

    Tempo and key are those of `seconds` from the middle of a song, as long as samples are. Without a corpus only the
    figures that need none.
    """
    rows, embeddings, heard = {}, {}, {}
    for song in songs:
        rows[song.key] = {**sound(song.audio, song.rate), **repetition(song)}
        if corpus:
            rows[song.key] |= corpus.listener.classify(song)
            embeddings[song.key] = corpus.embedder.embed(song)
            told = music_features(middle(song, seconds))
            if told is not None:
                heard[song.key] = told
    scores = list(mean_scores(part, rows))
    if corpus:
        distance = frechet_score(embeddings, corpus.embeddings)
        scores += under(
            part, [*([distance] if distance else []), *like_the_corpus(heard, corpus.heard)]
        )
    return scores, embeddings


def middle(song: EvalSong, seconds: float) -> EvalSong:
    """The song cut to `seconds` from its middle, without its words, whose times would no longer hold."""
    size = int(seconds * song.rate)
    start = max(0, (len(song.audio) - size) // 2)
    return replace(song, audio=song.audio[start : start + size], text="", words=())
