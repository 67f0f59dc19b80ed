"""Audio features: onsets, tempo, chroma, timbre; and a nearest-class classifier on them.

They answer one question about a trained model: does it follow the artist and the genre that are requested? Audio is
mono float [T] at a rate in Hz; clips of 4 s at 11025 Hz are enough. Only the classifier is fitted, by `fit`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from megajukebox.common.errors import UserError
from megajukebox.data.spectra import (
    FRAMES_PER_SECOND,
    HIGHEST_HERTZ,
    chromagram,
    mel_bands,
    spectrogram,
)

# T samples   F frames   K frequency bins   B bands   C the 12 pitch classes   D features   N clips   L labels
Array = np.ndarray

TIMBRE_BANDS = 28
RHYTHM_BANDS = ((30, 180), (180, 2000), (2000, HIGHEST_HERTZ))  # Hz: kick, melody, snare with hat
TONE_BANDS = ((100, 400), (400, 1000), (1000, 2000), (2000, 3500), (3500, HIGHEST_HERTZ))  # Hz
LAG_SECONDS = np.geomspace(0.2, 1.8, 48)  # from half a fast beat to a slow bar
PREFERRED_TEMPO = 118  # beats per minute: of two tempi that fit alike, the nearer one counts
VOICE_HERTZ = (120, 1200)  # where voices have their pitch
SHRINKAGE = 0.3  # of the covariance towards its diagonal


# ---- Rhythm


def onsets(power_FK: Array, hertz_K: Array, low: float, high: float) -> Array:
    """[F - 2] rise of the loudness of the bands from `low` to `high` Hz, FRAMES_PER_SECOND; mean 0."""
    power_FB = power_FK @ mel_bands(hertz_K, low, high, 8)
    # The floor, 40 dB below the loudest band, keeps near-silence from rattling.
    loudness_FB = np.log(power_FB + 1e-4 * power_FB.max() + 1e-12)
    rise_F = np.maximum(loudness_FB[2:] - loudness_FB[:-2], 0).sum(axis=1)
    return rise_F - rise_F.mean()


def tempo(audio: Array, rate: int, slowest: float = 60.0, fastest: float = 180.0) -> float:
    """Estimate beats per minute: where the onsets of low, middle and high sounds agree most with themselves later.

    A beat agrees with itself after two beats as well, so times near PREFERRED_TEMPO are preferred.
    """
    agreement_F = onset_autocorrelation(*spectrogram(audio, rate)).sum(axis=0)
    frames_per_minute = 60 * FRAMES_PER_SECOND
    lags = np.arange(int(frames_per_minute / fastest), int(frames_per_minute / slowest) + 2)
    lags = lags[lags < len(agreement_F) - 1]
    octaves = np.log2(frames_per_minute / lags / PREFERRED_TEMPO)
    preference = np.exp(-0.5 * (octaves / 0.7) ** 2)
    best = lags[np.argmax(preference * agreement_F[lags])]
    before, at, after = agreement_F[best - 1 : best + 2]
    # Between frames: the top of the parabola through the three points.
    bend = before - 2 * at + after
    offset = float(np.clip(0.5 * (before - after) / bend, -0.5, 0.5)) if bend < 0 else 0.0
    return frames_per_minute / (best + offset)


def onset_autocorrelation(power_FK: Array, hertz_K: Array) -> Array:
    """[3, F] how much the onsets of low, middle and high sounds agree with themselves each number of frames later."""
    curves = []
    for low, high in RHYTHM_BANDS:
        envelope_F = onsets(power_FK, hertz_K, low, high)
        size = len(envelope_F)
        spectrum = np.fft.rfft(envelope_F - envelope_F.mean(), 2 * size)
        # Divided by the length of the overlap, so that short ones are not favoured.
        products = np.fft.irfft(np.abs(spectrum) ** 2)[:size] / np.arange(size, 0, -1)
        curves.append(products / max(products[0], 1e-12))
    return np.stack(curves)


# ---- Pitch


def chroma(audio: Array, rate: int) -> Array:
    """[C] share of each pitch class, C first; sums to 1. Only peaks of the spectrum count: drums have few."""
    strength_C = chromagram(audio, rate).sum(axis=0)
    return strength_C / max(strength_C.sum(), 1e-12)


def scale_match(shares_C: Array, scales: Sequence[Sequence[int]]) -> Array:
    """[scales] correlation of a chroma with each scale (semitones above its tonic), at its best tonic."""
    matches = []
    for scale in scales:
        template_C = np.zeros(12)
        template_C[list(scale)] = 1
        turns = [np.roll(template_C, tonic) for tonic in range(12)]
        matches.append(max(correlation(turn, shares_C) for turn in turns))
    return np.array(matches)


def correlation(one: Array, other: Array) -> float:
    one = one - one.mean()
    other = other - other.mean()
    return float(one @ other / max(np.sqrt((one @ one) * (other @ other)), 1e-12))


# ---- Features of genres and artists


def rhythm(audio: Array, rate: int) -> Array:
    """[D] features of a genre: how onsets of three bands repeat at lags up to a bar, and the intervals of the scale."""
    frames = LAG_SECONDS * FRAMES_PER_SECOND
    features = []
    for curve in onset_autocorrelation(*spectrogram(audio, rate)):
        features.append(np.interp(frames, np.arange(len(curve)), curve))
    shares_C = chroma(audio, rate)
    # The share of each interval, whatever the tonic: the chroma's agreement with itself, moved by 1 to 6 semitones.
    intervals = [correlation(shares_C, np.roll(shares_C, step)) for step in range(1, 7)]
    return np.concatenate([*features, intervals])


def timbre(audio: Array, rate: int) -> Array:
    """[D] features of an artist: the shape of the spectrum, how it varies and moves, its pitch and its noise."""
    power_FK, hertz_K = spectrogram(audio, rate)
    cepstrum_FD = cepstrum(power_FK, hertz_K)[:, 1:]
    moves_FD = cepstrum_FD[3:] - cepstrum_FD[:-3]
    fine_FK, fine_K = spectrogram(audio, rate, frame_seconds=0.093)
    curves = [np.log(spectral_centroid(power_FK, hertz_K) + 1.0), *voice_pitch(fine_FK, fine_K)]
    for low, high in TONE_BANDS:
        curves.append(tonality(fine_FK, fine_K, low, high))
    quantiles = [np.quantile(curve, (0.2, 0.5, 0.8)) for curve in curves]
    return np.concatenate([cepstrum_FD.mean(0), cepstrum_FD.std(0), moves_FD.std(0), *quantiles])


def spectral_centroid(power_FK: Array, hertz_K: Array) -> Array:
    """[F] Hz, the centre of gravity of each spectrum."""
    return power_FK @ hertz_K / np.maximum(power_FK.sum(axis=1), 1e-12)


def cepstrum(power_FK: Array, hertz_K: Array, size: int = 14) -> Array:
    """[F, size] the coarse shape of each frame's spectrum (MFCC): its loudness first, then ever finer ripples.

    Of natural logs of the power in mel bands up to 5 kHz, relative to the mean power of the clip. The floor
    30 dB below the mean hides what coding noise would cover anyway.
    """
    bands = TIMBRE_BANDS
    power_FB = power_FK @ mel_bands(hertz_K, 60.0, HIGHEST_HERTZ, bands)
    loudness_FB = np.log(power_FB / max(power_FB.mean(), 1e-12) + 1e-3)
    ripples_BD = np.cos(np.pi / bands * np.outer(np.arange(bands) + 0.5, np.arange(size)))
    return loudness_FB @ ripples_BD / bands


def voice_pitch(power_FK: Array, hertz_K: Array) -> Array:
    """[2, F] log Hz of the strongest tone, and of the centre of gravity, where voices have their pitch."""
    low, high = VOICE_HERTZ
    within_K = (hertz_K > low) & (hertz_K < high)
    voice_FK = power_FK[:, within_K]
    strongest_F = hertz_K[within_K][voice_FK.argmax(axis=1)]
    centroid_F = spectral_centroid(voice_FK, hertz_K[within_K]) + 1.0
    return np.log(np.stack([strongest_F, centroid_F]))


def tonality(power_FK: Array, hertz_K: Array, low: float, high: float) -> Array:
    """[F] log of the mean over the geometric mean of a band's bins: high for few clear tones, low for noise."""
    power_FK = power_FK[:, (hertz_K > low) & (hertz_K < high)] + 1e-3 * power_FK.mean() + 1e-12
    return np.log(power_FK.mean(axis=1)) - np.log(power_FK).mean(axis=1)


# ---- The classifier


@dataclass(frozen=True)
class NearestClassClassifier:
    """The mean of each class, in units of the spread within the classes."""

    labels: list[str]
    mean_LD: Array
    whiten_DD: Array
    rate: int
    features: Callable[[Array, int], Array]

    def predict(self, clips: Sequence[Array]) -> list[str]:
        """The label of the class mean nearest to each clip."""
        features_ND = np.stack([self.features(clip, self.rate) for clip in clips])
        distances = (features_ND[:, None] - self.mean_LD) @ self.whiten_DD
        nearest_N = np.linalg.norm(distances, axis=2).argmin(axis=1)
        return [self.labels[n] for n in nearest_N]


def fit(
    examples: Sequence[tuple[Array, str]],
    rate: int,
    features: Callable[[Array, int], Array] = timbre,
) -> NearestClassClassifier:
    """Fit a classifier on (clip, label) and degraded copies of the clips.

    `features` is `timbre` to tell artists apart and `rhythm` to tell genres apart.

    Raises:
        UserError: fewer than two labels.
    """
    labels = sorted({label for _, label in examples})
    if len(labels) < 2:
        raise UserError(f"the clips have the labels {labels}; give clips of at least two")
    rows = []
    classes = []
    for clip, label in examples:
        for copy in degraded_copies(clip, rate):
            rows.append(features(copy, rate))
            classes.append(labels.index(label))
    x_ND = np.stack(rows)
    class_N = np.array(classes)
    mean_LD = np.stack([x_ND[class_N == n].mean(axis=0) for n in range(len(labels))])
    whiten_DD = whitening(x_ND - mean_LD[class_N])
    return NearestClassClassifier(labels, mean_LD, whiten_DD, rate, features)


def degraded_copies(clip: Array, rate: int) -> list[Array]:
    """The clip as it is, with white noise, with noise of its own spectrum, dull, and dull with white noise.

    Coded music is degraded music: a classifier that has known only clean recordings takes the degradation
    for a timbre. Of the 48 demo songs' second half with white noise at 6 dB, a classifier fitted on the clean
    first half named the artist of 35% of the clips (which is guessing), one fitted on these copies of 98%.
    """
    dull = low_passed(clip, rate)
    return [
        clip,
        with_white_noise(clip, 5),
        with_coding_noise(clip, 4),
        dull,
        with_white_noise(dull, 8),
    ]


def with_white_noise(clip: Array, snr: float, seed: int = 0) -> Array:
    """The clip with white noise `snr` dB below it."""
    noise = np.random.default_rng(seed).standard_normal(len(clip), dtype=np.float32)
    return clip + noise * np.float32(np.std(clip) * 10 ** (-snr / 20))


def with_coding_noise(clip: Array, snr: float, seed: int = 0) -> Array:
    """The clip with noise `snr` dB below it that follows its spectrum, as the error of a codec does."""
    size = 512
    white = np.random.default_rng(seed).standard_normal(len(clip) + size, dtype=np.float32)
    window = np.hanning(size).astype(np.float32)
    noise = np.zeros_like(white)
    for start in range(0, len(clip) - size, size // 2):
        frame = slice(start, start + size)
        magnitude = np.abs(np.fft.rfft(clip[frame] * window))
        noise[frame] += window * np.fft.irfft(magnitude * np.fft.rfft(white[frame]))
    noise = noise[: len(clip)]
    return clip + noise * np.float32(np.std(clip) / max(np.std(noise), 1e-12) * 10 ** (-snr / 20))


def low_passed(clip: Array, rate: int, cutoff: float = 2000.0) -> Array:
    """The clip with what lies above `cutoff` Hz fading away."""
    spectrum = np.fft.rfft(clip)
    spectrum /= 1 + (np.fft.rfftfreq(len(clip), 1 / rate) / cutoff) ** 8
    return np.fft.irfft(spectrum, len(clip)).astype(np.float32)


def whitening(deviation_ND: Array) -> Array:
    """[D, D] the map that makes deviations (of mean 0) white.

    Few clips say little of how features vary together, so their covariance is drawn towards its diagonal.
    """
    covariance_DD = deviation_ND.T @ deviation_ND / len(deviation_ND)
    diagonal_D = np.diag(covariance_DD)
    covariance_DD = (1 - SHRINKAGE) * covariance_DD + np.diag(
        SHRINKAGE * diagonal_D + 1e-3 * diagonal_D.mean() + 1e-12
    )
    value_D, vector_DD = np.linalg.eigh(covariance_DD)
    return vector_DD / np.sqrt(value_D)
