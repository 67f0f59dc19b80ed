"""Does it listen? Samples named by classifiers that learned artists, genres and languages from the corpus itself.

Two witnesses, both small and deterministic: ears for audio (evaluation/audio_features.py) and counts of codes. What they make of
real held-out songs is told beside, and what guessing would get.
"""

# K features: single codes, and pairs of neighbours hashed into PAIRS bins
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from megajukebox.evaluation.audio_features import NearestClassClassifier, fit, rhythm, timbre
from megajukebox.evaluation.inputs import LABELS, EvalSong
from megajukebox.evaluation.metrics import MetricValue, mean_score

Array = np.ndarray
FEATURES = {"artist": timbre, "genre": rhythm, "language": timbre}
MOST_LABELS, FEWEST_SONGS = (
    50,
    3,
)  # labels that are told apart: the commonest, with songs enough to know them by
CLIPS_A_SONG = 2
LEAST_SECONDS, MOST_SECONDS = 2.0, 20.0  # of a clip
PAIRS = 4096


def known_labels(said: Iterable[str | None]) -> list[str]:
    """The labels that are told apart; none if there are fewer than two."""
    counts = Counter(name for name in said if name)
    common = [name for name, times in counts.most_common(MOST_LABELS) if times >= FEWEST_SONGS]
    return sorted(common) if len(common) > 1 else []


def right(
    heard: Mapping[str, str], asked: Mapping[str, str | None], names: Sequence[str]
) -> dict[str, float]:
    """1 for each song recognised as what it was asked to be, else 0; only of those asked for a known name."""
    return {
        key: float(heard[key] == said)
        for key, said in asked.items()
        if said in names and key in heard
    }


# ---- By ear


@dataclass(frozen=True)
class LabelClassifier:
    """Ears for each label that the corpus has enough of."""

    ears: Mapping[str, NearestClassClassifier]
    seconds: float  # of a clip

    def classify(self, song: EvalSong) -> dict[str, float]:
        """`artist_heard` and its like: 1 where the song sounds like what it says it is, 0 where like another."""
        clips = clips_of(song, self.seconds)[:1]
        told = {
            name: ears
            for name, ears in self.ears.items()
            if clips and song.labels.get(name) in ears.labels
        }
        return {
            f"{name}_heard": float(ears.name(clips)[0] == song.labels[name])
            for name, ears in told.items()
        }

    def chance(self) -> Iterator[MetricValue]:
        """What guessing would get."""
        for label, ears in self.ears.items():
            yield MetricValue(f"{label}_heard", 1 / len(ears.labels))


def fit_label_classifier(corpus: Iterable[EvalSong], seconds: float) -> LabelClassifier:
    """Learns from clips of `seconds` of the corpus, as long as those that will be judged."""
    seconds = min(max(seconds, LEAST_SECONDS), MOST_SECONDS)
    clips = [(song, clip) for song in corpus for clip in clips_of(song, seconds)]
    ears, rate = {}, clips[0][0].rate if clips else 1
    for label in LABELS:
        names = known_labels({song.key: song.labels.get(label) for song, _ in clips}.values())
        taught = [
            (clip, song.labels[label]) for song, clip in clips if song.labels.get(label) in names
        ]
        if taught:
            ears[label] = fit(taught, rate, FEATURES[label])
    return LabelClassifier(ears, seconds)


def clips_of(song: EvalSong, seconds: float) -> list[Array]:
    """At most CLIPS_A_SONG clips spread over the song, silent ones left out; all of a song that is shorter than one."""
    size = int(seconds * song.rate)
    room = len(song.audio) - size
    if room < 0:
        return [song.audio] if song.seconds >= LEAST_SECONDS else []
    count = min(CLIPS_A_SONG, room // size + 1)
    starts = np.linspace(0, room, count + 2)[1:-1].astype(int)
    clips = (song.audio[start : start + size] for start in starts)
    return [clip for clip in clips if np.abs(clip).max() > 1e-4]


# ---- By codes


def code_counts(codes: Array, size: int) -> Array:
    """[K] how often each code and each (hashed) pair of neighbours occurs."""
    codes = codes.astype(np.int64)
    pairs = (codes[:-1] * 1_000_003 + codes[1:] * 7919) % PAIRS
    return np.concatenate(
        [np.bincount(codes, minlength=size), np.bincount(pairs, minlength=PAIRS)]
    ).astype(np.float64)


def name_by_codes(
    corpus: Mapping[str, tuple[Array, str]], songs: Mapping[str, Array]
) -> dict[str, str]:
    """The label of each song's counts [K], by multinomial naive Bayes over the counts and labels of the corpus.

    Counts are divided by what a song has of them and labels are equally likely beforehand; a count of 1 is added.
    """
    labels = sorted({label for _, label in corpus.values()})
    total_LK = (
        np.stack(
            [
                np.sum([x for x, label in corpus.values() if label == name], axis=0)
                for name in labels
            ]
        )
        + 1.0
    )
    log_LK = np.log(total_LK / total_LK.sum(axis=1, keepdims=True))
    return {key: labels[int((log_LK @ counts_K).argmax())] for key, counts_K in songs.items()}


def by_codes(
    corpus: Mapping[str, tuple[Array, Mapping[str, str]]],
    songs: Mapping[str, tuple[Array, Mapping[str, str]]],
) -> Iterator[MetricValue]:
    """`artist_heard` and its like from (counts [K], labels) of a corpus and of the songs to be judged."""
    for label in LABELS:
        names = known_labels(labels.get(label) for _, labels in corpus.values())
        taught = {
            key: (x, labels[label])
            for key, (x, labels) in corpus.items()
            if labels.get(label) in names
        }
        if taught and songs:
            heard = name_by_codes(taught, {key: x for key, (x, _) in songs.items()})
            found = right(
                heard, {key: labels.get(label) for key, (_, labels) in songs.items()}, names
            )
            if found:
                yield mean_score(f"{label}_heard", found)
