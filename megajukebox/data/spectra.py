"""Spectra of recordings in numpy: windowed frames, their transforms, and triangles on the mel
scale.

Who needs which: evaluation/audio_features.py and evaluators/embedding.py (loudness in mel bands),
the explorer's pictures, the spectrograms of TensorBoard. The multi-resolution distances of
evaluators/reconstruction.py stay in torch: they are measured with the very transform that the
VQ-VAE is trained with.
"""

# T samples   F frames   N samples of a window   K frequency bins   B mel bands
import numpy as np

Array = np.ndarray


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
