"""Does a song follow its request? Songs named by classifiers that are fitted on the training songs' artists, genres and languages.

There are two classifiers, both small and deterministic: by audio (evaluation/audio_features.py) and by counts of codes. Their
accuracy on real held-out songs is reported beside, and that of guessing.
"""

# K features: single codes, and pairs of neighbours hashed into PAIR_BINS bins   L labels
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from megajukebox.evaluation.audio_features import NearestClassClassifier, fit, rhythm, timbre
from megajukebox.evaluation.inputs import LABELS, EvalSong
from megajukebox.evaluation.metrics import MetricValue, mean_metric

Array = np.ndarray
FEATURES = {"artist": timbre, "genre": rhythm, "language": timbre}
MAX_NAMES = 50  # of each label, the most common ones
MIN_SONGS_PER_NAME = 3  # fewer are not enough to fit a class
MAX_CLIPS_PER_SONG = 2
MIN_CLIP_SECONDS = 2.0
MAX_CLIP_SECONDS = 20.0
SILENCE = 1e-4  # peak of full scale, -80 dB: a quieter clip has nothing to classify
PAIR_BINS = 4096


def common_names(names: Iterable[str | None]) -> list[str]:
    """The names that are told apart; none if there are fewer than two."""
    common = []
    for name, count in Counter(filter(None, names)).most_common(MAX_NAMES):
        if count >= MIN_SONGS_PER_NAME:
            common.append(name)
    return sorted(common) if len(common) > 1 else []


# ---- By audio


@dataclass(frozen=True)
class LabelClassifier:
    """A classifier for each label that the corpus has enough songs of."""

    classifiers: Mapping[str, NearestClassClassifier]
    seconds: float  # of a clip

    def classify(self, song: EvalSong) -> dict[str, float]:
        """`artist_accuracy` and its like: 1 where the song is classified as its own label, else 0."""
        clips = clips_of(song, self.seconds)[:1]
        if not clips:
            return {}
        correct = {}
        for label, classifier in self.classifiers.items():
            name = song.labels.get(label)
            if name in classifier.labels:
                correct[f"{label}_accuracy"] = float(classifier.predict(clips)[0] == name)
        return correct

    def chance(self) -> Iterator[MetricValue]:
        """The accuracy of guessing."""
        for label, classifier in self.classifiers.items():
            yield MetricValue(f"{label}_accuracy", 1 / len(classifier.labels))


def fit_label_classifier(corpus: Iterable[EvalSong], seconds: float) -> LabelClassifier:
    """Fit on clips of `seconds` of the corpus, as long as those that will be evaluated."""
    seconds = min(max(seconds, MIN_CLIP_SECONDS), MAX_CLIP_SECONDS)
    clips: list[tuple[EvalSong, Array]] = []
    for song in corpus:
        for clip in clips_of(song, seconds):
            clips.append((song, clip))
    classifiers = {}
    for label in LABELS:
        name_of_song: dict[str, str | None] = {}
        for song, _ in clips:
            name_of_song[song.key] = song.labels.get(label)
        names = common_names(name_of_song.values())
        examples = []
        for song, clip in clips:
            if song.labels.get(label) in names:
                examples.append((clip, song.labels[label]))
        if examples:
            classifiers[label] = fit(examples, clips[0][0].rate, FEATURES[label])
    return LabelClassifier(classifiers, seconds)


def clips_of(song: EvalSong, seconds: float) -> list[Array]:
    """At most MAX_CLIPS_PER_SONG clips spread over the song, without silent ones; a song shorter than one is one."""
    size = int(seconds * song.rate)
    last_start = len(song.audio) - size
    if last_start < 0:
        return [song.audio] if song.seconds >= MIN_CLIP_SECONDS else []
    count = min(MAX_CLIPS_PER_SONG, last_start // size + 1)
    starts = np.linspace(0, last_start, count + 2)[1:-1].astype(int)
    clips = []
    for start in starts:
        clip = song.audio[start : start + size]
        if np.abs(clip).max() > SILENCE:
            clips.append(clip)
    return clips


# ---- By codes


def code_counts(codes: Array, size: int) -> Array:
    """[K] how often each of the `size` codes and each (hashed) pair of neighbours occurs."""
    codes = codes.astype(np.int64)
    pairs = (codes[:-1] * 1_000_003 + codes[1:] * 7919) % PAIR_BINS
    code_bins = np.bincount(codes, minlength=size)
    pair_bins = np.bincount(pairs, minlength=PAIR_BINS)
    return np.concatenate([code_bins, pair_bins]).astype(np.float64)


def classify_by_codes(
    corpus: Mapping[str, tuple[Array, str]], songs: Mapping[str, Array]
) -> dict[str, str]:
    """Name each song's counts [K] by multinomial naive Bayes over the (counts, name) of the corpus.

    All names are equally likely a priori; counts are smoothed by adding 1.
    """
    totals: dict[str, Array] = {}
    for counts_K, name in corpus.values():
        totals[name] = totals[name] + counts_K if name in totals else counts_K
    names = sorted(totals)
    total_LK = np.stack([totals[name] for name in names]) + 1.0
    log_LK = np.log(total_LK / total_LK.sum(axis=1, keepdims=True))
    predicted = {}
    for key, counts_K in songs.items():
        predicted[key] = names[int((log_LK @ counts_K).argmax())]
    return predicted


def code_accuracy(
    corpus: Mapping[str, tuple[Array, Mapping[str, str]]],
    songs: Mapping[str, tuple[Array, Mapping[str, str]]],
) -> Iterator[MetricValue]:
    """`artist_accuracy` and its like from (counts [K], labels) of a corpus and of the songs to be evaluated."""
    if not songs:
        return
    counts_of_songs = {key: counts for key, (counts, _) in songs.items()}
    for label in LABELS:
        names = common_names(labels.get(label) for _, labels in corpus.values())
        examples = {}
        for key, (counts, labels) in corpus.items():
            if labels.get(label) in names:
                examples[key] = (counts, labels[label])
        if not examples:
            continue
        predicted = classify_by_codes(examples, counts_of_songs)
        correct = {}
        for key, (_, labels) in songs.items():
            if labels.get(label) in names:
                correct[key] = float(predicted[key] == labels[label])
        if correct:
            yield mean_metric(f"{label}_accuracy", correct)
