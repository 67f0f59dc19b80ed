"""Tempo, key and harmony: of two recordings that should be the same music, and of songs against their genre."""

# T samples   F frames   C the 12 pitch classes
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from megajukebox.evaluation.audio_features import chroma, chromagram, correlation, tempo
from megajukebox.evaluation.inputs import EvalSong
from megajukebox.evaluation.metrics import MetricValue, mean_score, set_score

Array = np.ndarray
NEAR = 0.04  # share by which two tempi may differ, as in MIREX
STRETCH = 8.0  # seconds that are taken to be of one tempo
LEAST_SECONDS = 4.0  # that a tempo or key is told from
SMOOTH = 5  # frames of a chromagram that count as one moment: half a second
FEW = 4  # songs of a genre that say what its tempi and scale are
# How well each step of the chromatic scale fits a key, as listeners rated it (Krumhansl and Kessler 1982).
MAJOR = (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88)
MINOR = (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17)
KEYS = np.array([np.roll(profile, tonic) for profile in (MAJOR, MINOR) for tonic in range(12)])


def agreement(truth_T: Array, made_T: Array, rate: int) -> Mapping[str, float]:
    """Whether a recording [T] has the tempo, key and harmony of another; nothing for less than 4 s."""
    length = min(len(truth_T), len(made_T))
    if length < LEAST_SECONDS * rate:
        return {}
    x, y = truth_T[:length], made_T[:length]
    tempi = [
        (tempo(one, rate), tempo(other, rate))
        for one, other in zip(stretches(x, rate), stretches(y, rate))
    ]
    return {
        "tempo_agreement": float(np.mean([is_near(*pair) for pair in tempi])),
        "tempo_octave_agreement": float(np.mean([is_near_octaves(*pair) for pair in tempi])),
        "key_agreement": key_score(key(chroma(x, rate))[0], key(chroma(y, rate))[0]),
        "chroma_agreement": chroma_agreement(x, y, rate),
    }


def stretches(audio_T: Array, rate: int) -> list[Array]:
    """The recording in stretches of about 8 s: played by people, a longer one has no single tempo (docs/decisions/0028)."""
    return np.array_split(audio_T, max(1, int(len(audio_T) / rate / STRETCH)))


def is_near_octaves(one: float, other: float) -> bool:
    return any(is_near(one, other * times) for times in (1 / 3, 0.5, 1, 2, 3))


def is_near(one: float, other: float) -> bool:
    return abs(other / one - 1) <= NEAR


def key(shares_C: Array) -> tuple[int, float]:
    """(key, correlation with its profile): keys 0-11 are C major to B major, 12-23 C minor to B minor."""
    fits = np.array([correlation(profile, shares_C) for profile in KEYS])
    return int(fits.argmax()), float(fits.max())


def key_score(truth: int, heard: int) -> float:
    """MIREX: 1 for the same key, 0.5 a fifth away, 0.3 for the relative and 0.2 for the parallel key."""
    (mode, tonic), (mode_heard, tonic_heard) = divmod(truth, 12), divmod(heard, 12)
    step = (tonic_heard - tonic) % 12
    if mode == mode_heard:
        return {0: 1.0, 5: 0.5, 7: 0.5}.get(step, 0.0)
    relative = (
        9 if mode == 0 else 3
    )  # a minor is nine steps above C major, C major three above a minor
    return {relative: 0.3, 0: 0.2}.get(step, 0.0)


def chroma_agreement(x_T: Array, y_T: Array, rate: int) -> float:
    """Correlation of the two courses of pitch classes, each moment of equal weight."""
    return correlation(*(course(a, rate).ravel() for a in (x_T, y_T)))


def course(audio_T: Array, rate: int, smooth: int = SMOOTH) -> Array:
    """[F, C] chroma over `smooth` frames each, of length 1; silence is 0."""
    strength_FC = chromagram(audio_T, rate)
    count = max(1, len(strength_FC) // smooth)
    sums_FC = np.stack([part.sum(axis=0) for part in np.array_split(strength_FC, count)])
    return sums_FC / np.maximum(np.linalg.norm(sums_FC, axis=1, keepdims=True), 1e-12)


# ---- Songs against a corpus


@dataclass(frozen=True)
class MusicFeatures:
    """What is kept of a song: its tempo, its pitch classes, and the genre it says it is of."""

    tempo: float  # beats a minute
    shares_C: Array
    genre: str | None


def music_features(song: EvalSong) -> MusicFeatures | None:
    """None for a song that is too short to tell."""
    if song.seconds < LEAST_SECONDS:
        return None
    return MusicFeatures(
        tempo(song.audio, song.rate), chroma(song.audio, song.rate), song.labels.get("genre")
    )


def like_the_corpus(
    songs: Mapping[str, MusicFeatures], corpus: Mapping[str, MusicFeatures]
) -> Iterator[MetricValue]:
    """Tempi, scales and keys of `songs` beside those of `corpus`, as a whole and within each one's own genre."""
    if not songs or not corpus:
        return
    known = np.array([heard.tempo for heard in corpus.values()])
    yield set_score(
        "tempo_distance",
        songs,
        lambda some: tempo_distance(np.array([h.tempo for h in some]), known),
    )
    yield mean_score("key_clarity", {name: key(heard.shares_C)[1] for name, heard in songs.items()})
    ranges, scales = tempo_ranges(corpus.values()), genre_scales(corpus.values())
    yield mean_score(
        "tempo_of_genre",
        {n: float(within(h, ranges)) for n, h in songs.items() if h.genre in ranges},
    )
    if len(scales) > 1:
        fits = {
            name: scale_fit(heard, scales) for name, heard in songs.items() if heard.genre in scales
        }
        yield mean_score("scale_of_genre", fits)


def tempo_distance(some: Array, others: Array) -> float:
    """Mean distance in octaves between equal quantiles of two sets of tempi (Wasserstein's, of order 1)."""
    shares = (np.arange(200) + 0.5) / 200
    return float(
        np.abs(np.quantile(np.log2(some), shares) - np.quantile(np.log2(others), shares)).mean()
    )


def tempo_ranges(corpus: Iterable[MusicFeatures]) -> dict[str, tuple[float, float]]:
    """The middle nine tenths of the tempi of each genre with at least FEW songs, and 4 % beyond."""
    ends = {
        g: np.quantile([heard.tempo for heard in some], (0.05, 0.95))
        for g, some in by_genre(corpus).items()
    }
    return {
        genre: (float(low) / (1 + NEAR), float(high) * (1 + NEAR))
        for genre, (low, high) in ends.items()
    }


def by_genre(corpus: Iterable[MusicFeatures]) -> dict[str, list[MusicFeatures]]:
    found: dict[str, list[MusicFeatures]] = {}
    for heard in corpus:
        if heard.genre is not None:
            found.setdefault(heard.genre, []).append(heard)
    return {genre: some for genre, some in sorted(found.items()) if len(some) >= FEW}


def within(heard: MusicFeatures, ranges: Mapping[str, tuple[float, float]]) -> bool:
    low, high = ranges[heard.genre or ""]
    return low <= heard.tempo <= high


def genre_scales(corpus: Iterable[MusicFeatures]) -> dict[str, Array]:
    """The mean pitch classes [C] of each genre, its songs turned to where they agree most with those before."""
    return {
        genre: scale([heard.shares_C for heard in some]) for genre, some in by_genre(corpus).items()
    }


def scale(songs: Sequence[Array]) -> Array:
    total = songs[0]
    for shares_C in songs[1:]:
        total = total + turned(shares_C, total)
    return total / len(songs)


def turned(shares_C: Array, towards_C: Array) -> Array:
    turns = [np.roll(shares_C, step) for step in range(12)]
    return max(turns, key=lambda turn: correlation(turn, towards_C))


def scale_fit(heard: MusicFeatures, scales: Mapping[str, Array]) -> float:
    """Correlation with the scale of its own genre at the best tonic, less the mean of that with other genres'."""
    fits = {
        g: correlation(turned(heard.shares_C, scale_C), scale_C) for g, scale_C in scales.items()
    }
    own = fits.pop(heard.genre or "")
    return own - float(np.mean(list(fits.values())))
