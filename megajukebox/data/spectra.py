"""Spectra of recordings in numpy: windowed frames, their transforms, and triangles on the mel
scale.

Who needs which: evaluation/audio_features.py, self_similarity.py and evaluators/embedding.py (loudness in mel bands),
the explorer's pictures, the spectrograms of TensorBoard. The multi-resolution distances of
evaluators/reconstruction.py stay in torch: they are measured with the very transform that the
VQ-VAE is trained with.
"""

# T samples   F frames   N samples of a window   K frequency bins   B mel bands   C the 12 pitch classes
import numpy as np

from megajukebox.common.errors import UserError

Array = np.ndarray
FRAMES_PER_SECOND = 100
FRAME_SECONDS = 0.046
HIGHEST_HERTZ = 5000.0  # what every rate from 11025 up can hold
PITCH_HERTZ = (100, 1500)  # where the peaks of a chromagram are looked for
CHROMA_FRAME_SECONDS, CHROMA_STEP_SECONDS = 0.372, 0.093
MIN_PEAK = 0.05  # of the highest peak of the clip


def window_size(seconds: float, rate: int) -> int:
    """The power of two nearest (in octaves) to so many seconds, in samples."""
    return 2 ** round(np.log2(seconds * rate))


def frame_spectra(audio_T: Array, starts_F: Array, window_N: Array) -> Array:
    """[F, K] the Fourier transform of the frames that begin at `starts_F`, each times the window.

    audio  |-----------------------------|
    frames    |==N==|  |==N==|  |==N==|      starts_F = 3, 12, 21
    """
    frames_FN = np.lib.stride_tricks.sliding_window_view(audio_T, len(window_N))[starts_F]
    return np.fft.rfft(frames_FN * window_N)


def mel_bands(hertz_K: Array, low: float, high: float, bands: int) -> Array:
    """[K, B] triangles of equal width in mel (O'Shaughnessy 1987) between `low` and `high` Hz, for
    power spectra.

    `hertz_K` are the frequencies of the bins, evenly spaced from 0.
    """
    edges = 700 * np.expm1(np.linspace(np.log1p(low / 700), np.log1p(high / 700), bands + 2))
    # A triangle narrower than a bin would catch none.
    width = np.maximum(np.diff(edges), hertz_K[1])
    rising = 1 - np.maximum(edges[1:-1] - hertz_K[:, None], 0) / width[:-1]
    falling = 1 - np.maximum(hertz_K[:, None] - edges[1:-1], 0) / width[1:]
    return np.maximum(np.minimum(rising, falling), 0)


def spectrogram(
    audio: Array,
    rate: int,
    frame_seconds: float = FRAME_SECONDS,
    step_seconds: float = 1 / FRAMES_PER_SECOND,
) -> tuple[Array, Array]:
    """(power [F, K], frequency of each bin [K] in Hz); bins above HIGHEST_HERTZ are left out."""
    if audio.ndim != 1 or len(audio) < rate:
        raise UserError(
            f"audio of shape {audio.shape} at {rate} Hz is not mono of 1 s or more; average its channels"
        )
    size = window_size(frame_seconds, rate)
    step = step_seconds * rate
    starts = np.round(np.arange(int((len(audio) - size) / step) + 1) * step).astype(int)
    hertz_K = np.fft.rfftfreq(size, 1 / rate)
    kept_K = hertz_K <= HIGHEST_HERTZ
    spectra_FK = frame_spectra(audio, starts, np.hanning(size).astype(np.float32))
    return np.abs(spectra_FK[:, kept_K]) ** 2, hertz_K[kept_K]


def chromagram(audio: Array, rate: int) -> Array:
    """[F, C] strength of each pitch class, C first, every 93 ms: the peaks of the spectrum from 100 to 1500 Hz."""
    power_FK, hertz_K = spectrogram(audio, rate, CHROMA_FRAME_SECONDS, CHROMA_STEP_SECONDS)
    magnitude_FK = np.sqrt(power_FK)
    inner_FK = magnitude_FK[:, 1:-1]
    above_neighbours_FK = (inner_FK > magnitude_FK[:, :-2]) & (inner_FK > magnitude_FK[:, 2:])
    peak_FK = above_neighbours_FK & (inner_FK > MIN_PEAK * inner_FK.max())
    strength_FK = inner_FK * peak_FK
    hertz_K = hertz_K[1:-1]
    low, high = PITCH_HERTZ
    within_K = (hertz_K > low) & (hertz_K < high)
    pitch_K = np.round(69 + 12 * np.log2(hertz_K[within_K] / 440)).astype(int) % 12
    return strength_FK[:, within_K] @ np.eye(12)[pitch_K]
