"""What a score is, and what every figure means: its unit, which way is better, and what change is worth a word.

Evaluators are generators of `Score`. A score's name is a path, `part/.../measure`; the last word is one of MEASURES.
docs/evaluation.md defines each measure in full (kept by a test).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")


@dataclass(frozen=True)
class MetricDefinition:
    """One kind of figure. `better` is 1 where more is better, -1 where less is, 0 where neither."""

    about: str
    better: int
    min_effect: float = (
        0.0  # a change for the worse below this is not worth stopping for, however certain
    )
    unit: str = ""
    limits: tuple[float, float] = (-np.inf, np.inf)  # what it can be
    answers: bool = False  # yes or no, song by song: the figure is the share of yes


METRICS = {
    # reconstruction, one song against itself
    "snr_db": MetricDefinition("signal to noise ratio", 1, 0.1, "dB"),
    "si_sdr_db": MetricDefinition("scale-invariant signal to distortion ratio", 1, 0.1, "dB"),
    "stft_distance": MetricDefinition("multi-resolution STFT distance", -1, 0.01),
    "spectral_convergence_db": MetricDefinition("spectral convergence", -1, 0.1, "dB"),
    "mel_distance_db": MetricDefinition("mean distance of log-mel spectra", -1, 0.1, "dB"),
    # codes
    "perplexity": MetricDefinition(
        "perplexity of the codes' histogram", 1, 1.0, "codes", limits=(1, np.inf)
    ),
    "usage": MetricDefinition("share of the codebook in use", 1, 0.01, limits=(0, 1)),
    "entropy_bits": MetricDefinition("entropy of the codes' histogram", 0, 0.0, "bits"),
    "bits_per_code": MetricDefinition("bits a code of held-out songs costs", -1, 0.005, "bits"),
    "label_gain_bits": MetricDefinition(
        "bits a code saved by being told the song's labels", 1, 0.005, "bits"
    ),
    "forward_kl_bits": MetricDefinition(
        "teacher's codes: bits the student needs beyond the teacher", -1, 0.005, "bits"
    ),
    "reverse_kl_bits": MetricDefinition(
        "student's codes: bits the teacher needs beyond the student", -1, 0.005, "bits"
    ),
    # sets of songs
    "frechet": MetricDefinition("Fréchet distance of embeddings", -1, 0.05, limits=(0, np.inf)),
    "tempo_distance": MetricDefinition(
        "distance between distributions of tempo", -1, 0.01, "octaves", (0, np.inf)
    ),
    # music
    "tempo_agreement": MetricDefinition("share of 8 s stretches whose tempo is within 4%", 1, 0.01),
    "tempo_octave_agreement": MetricDefinition("the same, halves and doubles forgiven", 1, 0.01),
    "key_agreement": MetricDefinition("MIREX key score", 1, 0.01),
    "chroma_agreement": MetricDefinition("correlation of pitch classes, moment by moment", 1, 0.01),
    "tempo_of_genre": MetricDefinition(
        "tempo within the range of its genre's songs", 1, 0.01, answers=True
    ),
    "scale_of_genre": MetricDefinition("correlation with its genre's scale", 1, 0.01),
    "key_clarity": MetricDefinition("correlation with the nearest key", 0),
    "repetition": MetricDefinition(
        "chroma similarity of sections marked the same, beyond that of others", 1, 0.01
    ),
    # does it listen?
    "artist_heard": MetricDefinition(
        "share recognised as the artist asked for", 1, 0.01, answers=True
    ),
    "genre_heard": MetricDefinition(
        "share recognised as the genre asked for", 1, 0.01, answers=True
    ),
    "language_heard": MetricDefinition(
        "share recognised as the language asked for", 1, 0.01, answers=True
    ),
    "word_error_ms": MetricDefinition("median error of the start of words", -1, 1.0, "ms"),
    "even_error_ms": MetricDefinition(
        "the same if words were sung evenly over the song", 0, 0.0, "ms"
    ),
    # sound
    "loudness_lufs": MetricDefinition("integrated loudness, BS.1770", 0, 0.0, "LUFS"),
    "true_peak_db": MetricDefinition("peak between samples, 4x oversampled", 0, 0.0, "dBTP"),
    "clipped": MetricDefinition("share of samples stuck at full scale", -1, 1e-4),
    "silent": MetricDefinition("share of time below -60 LUFS", -1, 0.01),
    "dc": MetricDefinition("size of the mean of the wave", -1, 1e-3),
    # copies
    "shared_codes": MetricDefinition(
        "longest passage of codes found in a training song", -1, 1.0, "codes"
    ),
    "nearest": MetricDefinition("distance to the nearest training clip", 0),
    "suspicious": MetricDefinition(
        "share nearer to a training clip than held-out songs come", -1, 0.0, answers=True
    ),
}


@dataclass(frozen=True)
class MetricValue:
    """One figure, and what each song contributes to it: its own value, or for sets of songs its pseudo-value."""

    name: str
    value: float
    items: Mapping[str, float] = field(default_factory=dict)
    pooled: bool = False  # of all songs at once: the items are pseudo-values

    @property
    def measure(self) -> MetricDefinition:
        return METRICS[self.name.rpartition("/")[2]]


def mean_score(name: str, items: Mapping[str, float]) -> MetricValue:
    """The mean over songs; a song without a finite value has no say."""
    known = {key: float(value) for key, value in items.items() if np.isfinite(value)}
    return MetricValue(name, float(np.mean(list(known.values()))) if known else float("nan"), known)


def mean_scores(part: str, rows: Mapping[str, Mapping[str, float]]) -> Iterator[MetricValue]:
    """One score a measure, from rows {song: {measure: value}}."""
    names = dict.fromkeys(name for row in rows.values() for name in row)
    for name in names:
        yield mean_score(
            f"{part}/{name}", {key: row[name] for key, row in rows.items() if name in row}
        )


def set_score(
    name: str, songs: Mapping[str, Item], statistic: Callable[[Sequence[Item]], float]
) -> MetricValue:
    """A statistic of all songs together, with what each song does to it."""
    keys = list(songs)
    others = [[songs[other] for other in keys if other != key] for key in keys if len(keys) > 2]
    return pseudo_score(
        name, keys, statistic([songs[key] for key in keys]), [statistic(some) for some in others]
    )


def sum_score(
    name: str, songs: Mapping[str, np.ndarray], statistic: Callable[[np.ndarray], float]
) -> MetricValue:
    """`set_score` for a statistic of the songs' sum (counts, moments): without summing n times."""
    total = np.sum(list(songs.values()), axis=0)
    others = [statistic(total - song) for song in songs.values()] if len(songs) > 2 else []
    return pseudo_score(name, list(songs), statistic(total), others)


def pseudo_score(
    name: str, keys: Sequence[str], value: float, left_out: Sequence[float]
) -> MetricValue:
    """`value` of n songs, and each song's jackknife pseudo-value, n value - (n - 1) left_out (the value without it).

    The mean of pseudo-values estimates the statistic without its bias of order 1/n, and their spread tells its error
    (Tukey 1958): so a Fréchet distance has an interval, and two of them can be compared song by song.
    """
    n = len(keys)
    return MetricValue(
        name,
        value,
        {key: n * value - (n - 1) * without for key, without in zip(keys, left_out)},
        pooled=True,
    )


def under(part: str, scores: Iterable[MetricValue]) -> Iterator[MetricValue]:
    """The scores with `part/` before their names."""
    for score in scores:
        yield replace(score, name=f"{part}/{score.name}")
