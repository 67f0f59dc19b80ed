"""What a metric is: its unit, its better direction, and the smallest change that counts as worse.

Evaluators are generators of `MetricValue`. Its name is a path, `part/.../metric`; the last word is one of METRICS.
docs/evaluation.md defines each metric in full (kept by a test).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")


@dataclass(frozen=True)
class MetricDefinition:
    """One metric. `better` is 1 where more is better, -1 where less is, 0 where neither."""

    about: str
    better: int
    min_effect: float = 0.0  # a smaller change for the worse passes the gate, however certain it is
    unit: str = ""
    limits: tuple[float, float] = (-np.inf, np.inf)  # possible values
    binary: bool = False  # each song's value is 0 or 1, the metric is the fraction of 1


METRICS = {
    # reconstruction, one song against itself
    "snr_db": MetricDefinition("signal to noise ratio", 1, 0.1, "dB"),
    "si_sdr_db": MetricDefinition("scale-invariant signal to distortion ratio", 1, 0.1, "dB"),
    "stft_distance": MetricDefinition("multi-resolution STFT distance", -1, 0.01),
    "spectral_convergence_db": MetricDefinition("spectral convergence", -1, 0.1, "dB"),
    "mel_distance_db": MetricDefinition("mean distance of log-mel spectra", -1, 0.1, "dB"),
    # reconstructions of a stereo VQ-VAE
    "channel_mel_distance_db": MetricDefinition(
        "mean distance of log-mel spectra, of left and right apart", -1, 0.1, "dB"
    ),
    "width_error_db": MetricDefinition(
        "difference of the side's power over the mid's", -1, 0.5, "dB", (0, np.inf)
    ),
    # noise
    "valley_noise_db": MetricDefinition(
        "power between the harmonics beyond the original's", -1, 0.2, "dB"
    ),
    "log_magnitude_db": MetricDefinition(
        "mean error of log magnitudes", -1, 0.1, "dB", (0, np.inf)
    ),
    "peakiness_db": MetricDefinition(
        "arithmetic over geometric mean of power: noise 2.5, tones more", 1, 0.3, "dB", (0, np.inf)
    ),
    # codes
    "perplexity": MetricDefinition(
        "perplexity of the codes' histogram", 1, 1.0, "codes", limits=(1, np.inf)
    ),
    "usage": MetricDefinition("fraction of the codebook in use", 1, 0.01, limits=(0, 1)),
    "entropy_bits": MetricDefinition("entropy of the codes' histogram", 0, 0.0, "bits"),
    "repeat_share": MetricDefinition(
        "fraction of codes that equal the one before", 0, limits=(0, 1)
    ),
    "repeat_difference": MetricDefinition(
        "distance of that fraction from held-out songs'", -1, 0.06, limits=(0, 1)
    ),
    "bits_per_code": MetricDefinition("bits per code of held-out songs", -1, 0.005, "bits"),
    "label_gain_bits": MetricDefinition(
        "bits per code that the song's own labels save", 1, 0.005, "bits"
    ),
    "memory_gain_bits": MetricDefinition(
        "bits per code that memory saves in windows that return", 1, 0.005, "bits"
    ),
    "forward_kl_bits": MetricDefinition(
        "teacher's codes: bits per code that the student needs beyond the teacher",
        -1,
        0.005,
        "bits",
    ),
    "reverse_kl_bits": MetricDefinition(
        "student's codes: bits per code that the teacher needs beyond the student",
        -1,
        0.005,
        "bits",
    ),
    # sets of songs against the reference set
    "frechet": MetricDefinition("Fréchet distance of embeddings", -1, 0.05, limits=(0, np.inf)),
    "tempo_distance": MetricDefinition(
        "distance between distributions of tempo", -1, 0.01, "octaves", (0, np.inf)
    ),
    # music
    "tempo_agreement": MetricDefinition(
        "fraction of 8 s stretches whose tempo is within 4%", 1, 0.01
    ),
    "tempo_octave_agreement": MetricDefinition("the same, halves and doubles forgiven", 1, 0.01),
    "key_agreement": MetricDefinition("MIREX key score", 1, 0.01),
    "chroma_agreement": MetricDefinition("correlation of pitch classes, moment by moment", 1, 0.01),
    "tempo_of_genre": MetricDefinition(
        "tempo within the range of its genre's songs", 1, 0.01, binary=True
    ),
    "scale_of_genre": MetricDefinition("correlation with its genre's scale", 1, 0.01),
    "key_clarity": MetricDefinition("correlation with the nearest key", 0),
    "repetition": MetricDefinition(
        "chroma similarity of sections marked the same, beyond that of others", 1, 0.01
    ),
    "chorus_return": MetricDefinition(
        "the same, beyond sections of that kind in other songs of its artist and genre", 1, 0.01
    ),
    "code_reuse": MetricDefinition(
        "share of equal codes in sections marked the same, beyond that of others", 0
    ),
    # adherence to the request
    "artist_accuracy": MetricDefinition(
        "fraction classified as the requested artist", 1, 0.01, binary=True
    ),
    "genre_accuracy": MetricDefinition(
        "fraction classified as the requested genre", 1, 0.01, binary=True
    ),
    "language_accuracy": MetricDefinition(
        "fraction classified as the requested language", 1, 0.01, binary=True
    ),
    "word_error_ms": MetricDefinition("median error of the start of words", -1, 1.0, "ms"),
    "even_error_ms": MetricDefinition(
        "the same if words were sung evenly over the song", 0, 0.0, "ms"
    ),
    # written music
    "nats_per_note": MetricDefinition("nats per note of held-out pieces", -1, 0.02, "nats"),
    "nats_per_cell": MetricDefinition(
        "nats per voice and sixteenth of held-out pieces", -1, 0.005, "nats"
    ),
    "parallel_fifths": MetricDefinition("parallel fifths per 100 chords", -1, 0.2),
    "parallel_octaves": MetricDefinition("parallel octaves per 100 chords", -1, 0.2),
    "crossed_voices": MetricDefinition("sixteenths with crossed voices", -1, 0.5, "%"),
    "sharp_dissonances": MetricDefinition(
        "chords with a minor second or major seventh", 0, unit="%"
    ),
    "triads": MetricDefinition("beats that are triads or seventh chords", 1, 1.0, "%"),
    "leaps": MetricDefinition("moves over a sixth", 0, unit="%"),
    "sixteenths_per_note": MetricDefinition("mean length of a note", 0, unit="sixteenths"),
    "returning_bars": MetricDefinition("bars that sound again in the piece", 0, unit="%"),
    "shared_sixteenths": MetricDefinition(
        "longest run that a training piece has too", -1, 2.0, "sixteenths"
    ),
    # loudness and signal faults
    "loudness_lufs": MetricDefinition("integrated loudness, BS.1770", 0, 0.0, "LUFS"),
    "true_peak_db": MetricDefinition("peak between samples, 4x oversampled", 0, 0.0, "dBTP"),
    "clipped": MetricDefinition("fraction of samples stuck at full scale", -1, 1e-4),
    "silent": MetricDefinition("fraction of time below -60 LUFS", -1, 0.01),
    "dc": MetricDefinition("size of the mean of the wave", -1, 1e-3),
    # memorization
    "shared_codes": MetricDefinition(
        "longest passage of codes found in a training song", -1, 1.0, "codes"
    ),
    "nearest": MetricDefinition("distance to the nearest training clip", 0),
    "suspicious": MetricDefinition(
        "fraction nearer to a training clip than held-out songs come", -1, 0.0, binary=True
    ),
}


@dataclass(frozen=True)
class MetricValue:
    """A metric's value, and each song's contribution: its own value, or for sets of songs a pseudo-value."""

    name: str
    value: float
    items: Mapping[str, float] = field(default_factory=dict)  # by song
    pooled: bool = False  # of all songs at once: the items are pseudo-values

    @property
    def definition(self) -> MetricDefinition:
        return METRICS[self.name.rpartition("/")[2]]


def mean_metric(name: str, items: Mapping[str, float]) -> MetricValue:
    """Average over songs; a song without a finite value does not count."""
    finite = {key: float(value) for key, value in items.items() if np.isfinite(value)}
    mean = float(np.mean(list(finite.values()))) if finite else float("nan")
    return MetricValue(name, mean, finite)


def mean_metrics(part: str, rows: Mapping[str, Mapping[str, float]]) -> Iterator[MetricValue]:
    """Average each metric of the rows {song: {metric: value}}; the names start with `part`."""
    by_metric: dict[str, dict[str, float]] = {}
    for key, row in rows.items():
        for name, value in row.items():
            by_metric.setdefault(name, {})[key] = value
    for name, items in by_metric.items():
        yield mean_metric(f"{part}/{name}", items)


def set_metric(
    name: str, songs: Mapping[str, Item], statistic: Callable[[Sequence[Item]], float]
) -> MetricValue:
    """Compute a statistic of all songs together, and how each song changes it."""
    keys = list(songs)
    left_out = []
    if len(keys) > 2:
        for key in keys:
            left_out.append(statistic([songs[other] for other in keys if other != key]))
    return jackknife_metric(name, keys, statistic(list(songs.values())), left_out)


def sum_metric(
    name: str, songs: Mapping[str, np.ndarray], statistic: Callable[[np.ndarray], float]
) -> MetricValue:
    """Do what `set_metric` does for a statistic of the songs' sum (counts, moments), without n sums."""
    total = np.sum(list(songs.values()), axis=0)
    left_out = [statistic(total - song) for song in songs.values()] if len(songs) > 2 else []
    return jackknife_metric(name, list(songs), statistic(total), left_out)


def jackknife_metric(
    name: str, keys: Sequence[str], value: float, left_out: Sequence[float]
) -> MetricValue:
    """Make a metric of `value` over n songs with each song's jackknife pseudo-value as its item.

    A pseudo-value is n value - (n - 1) left_out, where left_out is the value without the song. Their mean
    estimates the statistic without its bias of order 1/n, and their spread gives its error (Tukey 1958):
    so a Fréchet distance has an interval, and two of them can be compared song by song.
    """
    n = len(keys)
    items = {key: n * value - (n - 1) * without for key, without in zip(keys, left_out)}
    return MetricValue(name, value, items, pooled=True)


def prefixed(part: str, metrics: Iterable[MetricValue]) -> Iterator[MetricValue]:
    """The metrics with `part/` before their names."""
    for metric in metrics:
        yield replace(metric, name=f"{part}/{metric.name}")
