"""Simple ears: what a clip's tempo, scale and timbre are, and whose or what it sounds like.

They answer one question about a trained model: does it listen to the artist and the genre it is asked for? Audio is
mono float [T] at a rate in Hz; clips of 4 s at 11025 Hz are enough. Nothing here is learned except by `learn`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from megajukebox.data.spectra import frame_spectra, mel_bands, window_size

# T samples   F frames   K frequency bins   B bands   D features   N clips
Array = np.ndarray

FRAMES_A_SECOND = 100
HIGHEST = 5000.0  # Hz: what every rate from 11025 up can hold
BANDS = 28
RHYTHM_BANDS = ((30, 180), (180, 2000), (2000, HIGHEST))  # Hz: kick, melody, snare with hat
TONE_BANDS = ((100, 400), (400, 1000), (1000, 2000), (2000, 3500), (3500, HIGHEST))  # Hz
LAGS = np.geomspace(0.2, 1.8, 48)  # seconds, from half a fast beat to a slow bar


def onset_envelope(audio: Array, rate: int, low: float = 30.0, high: float = HIGHEST) -> Array:
    """[F] how much louder the bands from `low` to `high` Hz get, 100 times a second; mean 0."""
    return onsets(*spectrogram(audio, rate), low, high)


def onsets(power_FK: Array, hertz_K: Array, low: float, high: float) -> Array:
    power_FB = power_FK @ mel_bands(hertz_K, low, high, 8)
    # The floor, 40 dB below the loudest band, keeps near-silence from rattling.
    loudness_FB = np.log(power_FB + 1e-4 * power_FB.max() + 1e-12)
    rise_F = np.maximum(loudness_FB[2:] - loudness_FB[:-2], 0).sum(axis=1)
    return rise_F - rise_F.mean()


def tempo(audio: Array, rate: int, slowest: float = 60.0, fastest: float = 180.0) -> float:
    """Beats a minute: where the onsets of low, middle and high sounds most agree with themselves a little later.

    A beat agrees with itself after two beats as well, so times near 118 beats a minute are preferred.
    """
    agreement_F = repetition(*spectrogram(audio, rate)).sum(axis=0)
    lags = np.arange(int(FRAMES_A_SECOND * 60 / fastest), int(FRAMES_A_SECOND * 60 / slowest) + 2)
    lags = lags[lags < len(agreement_F) - 1]
    preference = np.exp(-0.5 * (np.log2(60 * FRAMES_A_SECOND / lags / 118) / 0.7) ** 2)
    best = lags[np.argmax(preference * agreement_F[lags])]
    return 60 * FRAMES_A_SECOND / (best + summit(*agreement_F[best - 1 : best + 2]))


def repetition(power_FK: Array, hertz_K: Array) -> Array:
    """[3, F] how much the onsets of low, middle and high sounds agree with themselves each number of frames later."""
    return np.stack(
        [autocorrelation(onsets(power_FK, hertz_K, low, high)) for low, high in RHYTHM_BANDS]
    )


def summit(before: float, at: float, after: float) -> float:
    """Where between its neighbours the top of the parabola through three points lies, -0.5 to 0.5."""
    bend = before - 2 * at + after
    return float(np.clip(0.5 * (before - after) / bend, -0.5, 0.5)) if bend < 0 else 0.0


def chroma(audio: Array, rate: int) -> Array:
    """[12] share of each pitch class, C first; sums to 1. Only peaks of the spectrum count: drums have few."""
    strength_C = chromagram(audio, rate).sum(axis=0)
    return strength_C / max(strength_C.sum(), 1e-12)


def chromagram(audio: Array, rate: int) -> Array:
    """[F, 12] strength of each pitch class, C first, every 93 ms: the peaks of the spectrum from 100 to 1500 Hz."""
    power_FK, hertz_K = spectrogram(audio, rate, window=0.372, hop=0.093)
    magnitude_FK = np.sqrt(power_FK)
    inner = magnitude_FK[:, 1:-1]
    peak_FK = (
        (inner > magnitude_FK[:, :-2])
        & (inner > magnitude_FK[:, 2:])
        & (inner > 0.05 * inner.max())
    )
    hertz_K, strength_FK = hertz_K[1:-1], inner * peak_FK
    heard_K = (hertz_K > 100) & (hertz_K < 1500)
    pitch_K = np.round(69 + 12 * np.log2(hertz_K[heard_K] / 440)).astype(int) % 12
    return strength_FK[:, heard_K] @ np.eye(12)[pitch_K]


def scale_match(shares: Array, scales: Sequence[Sequence[int]]) -> Array:
    """[len(scales)] correlation of a chroma with each scale (semitones above its tonic), at its best tonic."""
    templates = np.zeros((len(scales), 12))
    for n, scale in enumerate(scales):
        templates[n, list(scale)] = 1
    return np.array(
        [
            max(correlation(np.roll(shape, tonic), shares) for tonic in range(12))
            for shape in templates
        ]
    )


def correlation(one: Array, other: Array) -> float:
    one, other = one - one.mean(), other - other.mean()
    return float(one @ other / max(np.sqrt((one @ one) * (other @ other)), 1e-12))


def spectral_centroid(power_FK: Array, hertz_K: Array) -> Array:
    """[F] Hz, the centre of gravity of each spectrum."""
    return power_FK @ hertz_K / np.maximum(power_FK.sum(axis=1), 1e-12)


def band_loudness(power_FK: Array, hertz_K: Array) -> Array:
    """[F, B] natural log of the power in mel bands up to 5 kHz, against the mean power of the clip.

    The floor 30 dB below the mean hides what coding noise would cover anyway.
    """
    power_FB = power_FK @ mel_bands(hertz_K, 60.0, HIGHEST, BANDS)
    return np.log(power_FB / max(power_FB.mean(), 1e-12) + 1e-3)


def cepstrum(loudness_FB: Array, size: int = 14) -> Array:
    """[F, size] the coarse shape of each frame's spectrum (MFCC): its loudness first, then ever finer ripples."""
    bands = loudness_FB.shape[1]
    ripples_BD = np.cos(np.pi / bands * np.outer(np.arange(bands) + 0.5, np.arange(size)))
    return loudness_FB @ ripples_BD / bands


def rhythm(audio: Array, rate: int) -> Array:
    """[D] features of a genre: how onsets of three bands repeat at lags up to a bar, and the intervals of the scale."""
    frames = LAGS * FRAMES_A_SECOND
    repeats = [
        np.interp(frames, np.arange(len(curve)), curve)
        for curve in repetition(*spectrogram(audio, rate))
    ]
    shares = chroma(audio, rate)
    # The share of each interval, whatever the tonic: the chroma's agreement with itself, moved by 1 to 6 semitones.
    intervals = [correlation(shares, np.roll(shares, step)) for step in range(1, 7)]
    return np.concatenate([*repeats, intervals])


def timbre(audio: Array, rate: int) -> Array:
    """[D] features of an artist: the shape of the spectrum, how it varies and moves, its pitch and its noise."""
    power_FK, hertz_K = spectrogram(audio, rate)
    cepstrum_FD = cepstrum(band_loudness(power_FK, hertz_K))[:, 1:]
    moves_FD = cepstrum_FD[3:] - cepstrum_FD[:-3]
    weight_F = np.log(spectral_centroid(power_FK, hertz_K) + 1.0)
    fine_FK, fine_K = spectrogram(audio, rate, window=0.093)
    courses = [
        weight_F,
        *height(fine_FK, fine_K),
        *(peakiness(fine_FK, fine_K, *band) for band in TONE_BANDS),
    ]
    quantiles = [np.quantile(course, (0.2, 0.5, 0.8)) for course in courses]
    return np.concatenate([cepstrum_FD.mean(0), cepstrum_FD.std(0), moves_FD.std(0), *quantiles])


def height(power_FK: Array, hertz_K: Array) -> Array:
    """[2, F] log Hz of the strongest tone, and of the centre of gravity, where voices have their pitch."""
    sung_K = (hertz_K > 120) & (hertz_K < 1200)
    strongest_F = hertz_K[sung_K][power_FK[:, sung_K].argmax(axis=1)]
    return np.log(
        np.stack([strongest_F, spectral_centroid(power_FK[:, sung_K], hertz_K[sung_K]) + 1.0])
    )


def peakiness(power_FK: Array, hertz_K: Array, low: float, high: float) -> Array:
    """[F] log of the mean over the geometric mean of a band's bins: high for few clear tones, low for noise."""
    power_FK = power_FK[:, (hertz_K > low) & (hertz_K < high)] + 1e-3 * power_FK.mean() + 1e-12
    return np.log(power_FK.mean(axis=1)) - np.log(power_FK).mean(axis=1)


def recognise(
    train: Sequence[tuple[Array, str]],
    test: Sequence[Array],
    rate: int,
    features: Callable[[Array, int], Array] = timbre,
) -> list[str]:
    """The label of each test clip, by what is learned from the (clip, label) of `train`.

    `features` is `timbre` to tell artists and `rhythm` to tell genres. Raises ValueError if there is nothing to tell.
    """
    return fit(train, rate, features).name(test)


@dataclass(frozen=True)
class NearestClassClassifier:
    """What has been learned: the mean of each class, seen in units of the spread within the classes."""

    labels: list[str]
    mean_LD: Array  # L labels
    whiten_DD: Array
    rate: int
    features: Callable[[Array, int], Array]

    def name(self, clips: Sequence[Array]) -> list[str]:
        """The label of the class mean nearest to each clip."""
        heard_ND = np.stack([self.features(clip, self.rate) for clip in clips])
        distance_NL = np.linalg.norm((heard_ND[:, None] - self.mean_LD) @ self.whiten_DD, axis=2)
        return [self.labels[n] for n in distance_NL.argmin(axis=1)]


def fit(
    train: Sequence[tuple[Array, str]], rate: int, features: Callable[[Array, int], Array] = timbre
) -> NearestClassClassifier:
    """Ears that know the labels of `train`, for when more than one set of clips is to be named."""
    labels = sorted({label for _, label in train})
    if len(labels) < 2:
        raise ValueError(f"train has the labels {labels}; give clips of at least two")
    taught = [
        (features(copy, rate), label) for clip, label in train for copy in worn_copies(clip, rate)
    ]
    x_ND, of_N = (
        np.stack([x for x, _ in taught]),
        np.array([labels.index(label) for _, label in taught]),
    )
    mean_LD = np.stack([x_ND[of_N == n].mean(axis=0) for n in range(len(labels))])
    return NearestClassClassifier(labels, mean_LD, whitening(x_ND - mean_LD[of_N]), rate, features)


def worn_copies(clip: Array, rate: int) -> list[Array]:
    """The clip as it is, hissing, murmuring, dull, and dull and hissing.

    Coded music is worn music: ears that have known only clean recordings take the wear for a timbre. Of the 48 demo
    songs' second half with white noise at 6 dB, ears taught the clean first half named the artist of 35% of the clips
    (which is guessing), ears taught these copies of 98%.
    """
    dull = dulled(clip, rate)
    return [clip, with_hiss(clip, 5), with_murmur(clip, 4), dull, with_hiss(dull, 8)]


def with_hiss(clip: Array, snr: float, seed: int = 0) -> Array:
    """The clip with white noise `snr` dB below it."""
    noise = np.random.default_rng(seed).standard_normal(len(clip), dtype=np.float32)
    return clip + noise * np.float32(np.std(clip) * 10 ** (-snr / 20))


def with_murmur(clip: Array, snr: float, seed: int = 0) -> Array:
    """The clip with noise `snr` dB below it that follows its spectrum, as the error of a codec does."""
    size = 512
    noise = np.random.default_rng(seed).standard_normal(len(clip) + size, dtype=np.float32)
    hann = np.hanning(size).astype(np.float32)
    murmur = np.zeros_like(noise)
    for start in range(0, len(clip) - size, size // 2):
        here = slice(start, start + size)
        murmur[here] += hann * np.fft.irfft(
            np.abs(np.fft.rfft(clip[here] * hann)) * np.fft.rfft(noise[here])
        )
    murmur = murmur[: len(clip)]
    return clip + murmur * np.float32(np.std(clip) / max(np.std(murmur), 1e-12) * 10 ** (-snr / 20))


def dulled(clip: Array, rate: int, above: float = 2000.0) -> Array:
    """The clip with what lies `above` so many Hz fading away."""
    spectrum = np.fft.rfft(clip)
    spectrum /= 1 + (np.fft.rfftfreq(len(clip), 1 / rate) / above) ** 8
    return np.fft.irfft(spectrum, len(clip)).astype(np.float32)


def whitening(spread_ND: Array, shrink: float = 0.3) -> Array:
    """[D, D] the map that makes `spread` (of mean 0) white.

    Few clips know little of how features vary together, so their covariance is drawn towards its diagonal.
    """
    covariance_DD = spread_ND.T @ spread_ND / len(spread_ND)
    diagonal_D = np.diag(covariance_DD)
    covariance_DD = (1 - shrink) * covariance_DD + np.diag(
        shrink * diagonal_D + 1e-3 * diagonal_D.mean() + 1e-12
    )
    value_D, vector_DD = np.linalg.eigh(covariance_DD)
    return vector_DD / np.sqrt(value_D)


def spectrogram(
    audio: Array, rate: int, window: float = 0.046, hop: float = 1 / FRAMES_A_SECOND
) -> tuple[Array, Array]:
    """(power [F, K], frequency of each bin [K] in Hz). `window` and `hop` in seconds; bins above 5 kHz are left out."""
    if audio.ndim != 1 or len(audio) < rate:
        raise ValueError(
            f"audio of shape {audio.shape} at {rate} Hz is not mono of 1 s or more; average its channels"
        )
    size = window_size(window, rate)
    hop_size = hop * rate
    starts = np.round(np.arange(int((len(audio) - size) / hop_size) + 1) * hop_size).astype(int)
    hertz_K = np.fft.rfftfreq(size, 1 / rate)
    kept = hertz_K <= HIGHEST
    spectra_FK = frame_spectra(audio, starts, np.hanning(size).astype(np.float32))
    return np.abs(spectra_FK[:, kept]) ** 2, hertz_K[kept]


def autocorrelation(envelope_F: Array) -> Array:
    """[F] agreement of a curve with itself each number of frames later; 1 at none. Short overlaps are not favoured."""
    size = len(envelope_F)
    spectrum = np.fft.rfft(envelope_F - envelope_F.mean(), 2 * size)
    products = np.fft.irfft(np.abs(spectrum) ** 2)[:size] / np.arange(size, 0, -1)
    return products / max(products[0], 1e-12)
