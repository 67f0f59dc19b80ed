"""Tempo, key and harmony: of two recordings that should be the same music, and of songs against their genre."""

# T samples   F frames   C the 12 pitch classes
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from megajukebox.data.spectra import chromagram
from megajukebox.evaluation.audio_features import chroma, correlation, tempo
from megajukebox.evaluation.inputs import EvalSong
from megajukebox.evaluation.metrics import MetricValue, mean_metric, set_metric

Array = np.ndarray
TEMPO_TOLERANCE = 0.04  # relative difference of two tempi that count as equal, as in MIREX
OCTAVES = (1 / 3, 0.5, 1, 2, 3)  # multiples of a tempo that count as equal to it
STRETCH_SECONDS = (
    8.0  # played by people, a longer stretch has no single tempo (docs/decisions/0028)
)
MIN_SECONDS = 4.0  # that a tempo or key is estimated from
SMOOTH_FRAMES = 5  # of a chromagram that count as one moment: half a second
MIN_GENRE_SONGS = 4  # from which the tempi and the scale of a genre are estimated
TEMPO_QUANTILES = (0.05, 0.95)  # the middle nine tenths of a genre's tempi are its range
# How well each step of the chromatic scale fits a key, as listeners rated it (Krumhansl and Kessler 1982).
MAJOR = (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88)
MINOR = (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17)
KEYS = np.array([np.roll(mode, tonic) for mode, tonic in product((MAJOR, MINOR), range(12))])
# MIREX key scores by semitones from the true tonic to the estimated one.
SAME_MODE_SCORES = {0: 1.0, 5: 0.5, 7: 0.5}  # the same key, a fifth below or above
PARALLEL_SCORE, RELATIVE_SCORE = 0.2, 0.3
TO_RELATIVE_MINOR, TO_RELATIVE_MAJOR = 9, 3  # A minor is nine steps above C major


def agreement(truth_T: Array, other_T: Array, rate: int) -> Mapping[str, float]:
    """Whether a recording [T] has the tempo, key and harmony of another; nothing for less than 4 s."""
    length = min(len(truth_T), len(other_T))
    if length < MIN_SECONDS * rate:
        return {}
    x_T = truth_T[:length]
    y_T = other_T[:length]
    stretches = max(1, int(length / rate / STRETCH_SECONDS))
    same = []
    same_octave = []
    for x, y in zip(np.array_split(x_T, stretches), np.array_split(y_T, stretches)):
        truth = tempo(x, rate)
        estimate = tempo(y, rate)
        same.append(is_same_tempo(truth, estimate))
        same_octave.append(any(is_same_tempo(truth, estimate * factor) for factor in OCTAVES))
    moments_x = chroma_over_time(x_T, rate)
    moments_y = chroma_over_time(y_T, rate)
    return {
        "tempo_agreement": float(np.mean(same)),
        "tempo_octave_agreement": float(np.mean(same_octave)),
        "key_agreement": key_score(key(chroma(x_T, rate))[0], key(chroma(y_T, rate))[0]),
        "chroma_agreement": correlation(moments_x.ravel(), moments_y.ravel()),
    }


def is_same_tempo(one: float, other: float) -> bool:
    return abs(other / one - 1) <= TEMPO_TOLERANCE


def key(shares_C: Array) -> tuple[int, float]:
    """(key, correlation with its profile): keys 0-11 are C major to B major, 12-23 C minor to B minor."""
    fits = np.array([correlation(profile, shares_C) for profile in KEYS])
    return int(fits.argmax()), float(fits.max())


def key_score(truth: int, estimate: int) -> float:
    """MIREX: 1 for the same key, 0.5 a fifth away, 0.3 for the relative and 0.2 for the parallel key."""
    mode, tonic = divmod(truth, 12)
    other_mode, other_tonic = divmod(estimate, 12)
    step = (other_tonic - tonic) % 12
    if mode == other_mode:
        return SAME_MODE_SCORES.get(step, 0.0)
    relative = TO_RELATIVE_MINOR if mode == 0 else TO_RELATIVE_MAJOR
    return {relative: RELATIVE_SCORE, 0: PARALLEL_SCORE}.get(step, 0.0)


def chroma_over_time(audio_T: Array, rate: int, smooth: int = SMOOTH_FRAMES) -> Array:
    """[F, C] chroma over `smooth` frames each, of length 1; silence is 0."""
    strength_FC = chromagram(audio_T, rate)
    count = max(1, len(strength_FC) // smooth)
    sums_FC = np.stack([part.sum(axis=0) for part in np.array_split(strength_FC, count)])
    return sums_FC / np.maximum(np.linalg.norm(sums_FC, axis=1, keepdims=True), 1e-12)


# ---- Songs against a corpus


@dataclass(frozen=True)
class MusicFeatures:
    """What is kept of a song: its tempo, its pitch classes, and the genre of its metadata."""

    tempo: float  # beats per minute
    shares_C: Array
    genre: str | None


def music_features(song: EvalSong) -> MusicFeatures | None:
    """None for a song that is too short."""
    if song.seconds < MIN_SECONDS:
        return None
    beats_per_minute = tempo(song.audio, song.rate)
    return MusicFeatures(beats_per_minute, chroma(song.audio, song.rate), song.labels.get("genre"))


def corpus_metrics(
    songs: Mapping[str, MusicFeatures], corpus: Mapping[str, MusicFeatures]
) -> Iterator[MetricValue]:
    """Tempi, scales and keys of `songs` beside those of `corpus`, as a whole and within each one's own genre."""
    if not songs or not corpus:
        return
    corpus_tempi = tempi_of(corpus.values())
    yield set_metric(
        "tempo_distance", songs, lambda some: tempo_distance(tempi_of(some), corpus_tempi)
    )
    ranges = {}
    scales = {}
    for genre, some in by_genre(corpus.values()).items():
        low, high = np.quantile(tempi_of(some), TEMPO_QUANTILES)
        ranges[genre] = (low / (1 + TEMPO_TOLERANCE), high * (1 + TEMPO_TOLERANCE))
        scales[genre] = genre_scale(some)
    clarity = {}
    in_range = {}
    fits = {}
    for name, song in songs.items():
        clarity[name] = key(song.shares_C)[1]
        if song.genre in ranges:
            low, high = ranges[song.genre]
            in_range[name] = float(low <= song.tempo <= high)
            if len(scales) > 1:
                fits[name] = scale_fit(song, scales)
    yield mean_metric("key_clarity", clarity)
    yield mean_metric("tempo_of_genre", in_range)
    if len(scales) > 1:
        yield mean_metric("scale_of_genre", fits)


def tempi_of(songs: Iterable[MusicFeatures]) -> Array:
    return np.array([song.tempo for song in songs])


def tempo_distance(some: Array, others: Array) -> float:
    """Mean distance in octaves between equal quantiles of two sets of tempi (Wasserstein's, of order 1)."""
    levels = (np.arange(200) + 0.5) / 200
    ours = np.quantile(np.log2(some), levels)
    theirs = np.quantile(np.log2(others), levels)
    return float(np.abs(ours - theirs).mean())


def by_genre(corpus: Iterable[MusicFeatures]) -> dict[str, list[MusicFeatures]]:
    """The songs of each genre with at least MIN_GENRE_SONGS, genres by name."""
    genres: dict[str, list[MusicFeatures]] = {}
    for song in corpus:
        if song.genre is not None:
            genres.setdefault(song.genre, []).append(song)
    for name in sorted(genres):
        songs = genres.pop(name)
        if len(songs) >= MIN_GENRE_SONGS:
            genres[name] = songs
    return genres


def genre_scale(songs: Sequence[MusicFeatures]) -> Array:
    """The mean pitch classes [C] of songs, each transposed to where it agrees most with those before."""
    total_C = songs[0].shares_C
    for song in songs[1:]:
        total_C = total_C + transposed(song.shares_C, total_C)
    return total_C / len(songs)


def transposed(shares_C: Array, towards_C: Array) -> Array:
    turns = [np.roll(shares_C, step) for step in range(12)]
    return max(turns, key=lambda turn: correlation(turn, towards_C))


def scale_fit(song: MusicFeatures, scales: Mapping[str, Array]) -> float:
    """Correlation with the scale of its own genre at the best tonic, less the mean of that with other genres'."""
    fits = {}
    for genre, scale_C in scales.items():
        fits[genre] = correlation(transposed(song.shares_C, scale_C), scale_C)
    own = fits.pop(song.genre or "")
    return own - float(np.mean(list(fits.values())))
