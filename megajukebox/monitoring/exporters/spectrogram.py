"""A recording as a picture: time to the right, frequency upwards, loud is bright."""

import numpy as np
from matplotlib import colormaps

from megajukebox.data.spectra import frame_spectra

WINDOW = 1024
HEIGHT, WIDEST = 256, 1200
FLOOR = -80.0  # dB below the loudest


def picture(wave_T: np.ndarray, rate: int) -> np.ndarray:
    """RGB [height, width, 3] uint8 of a mono recording [T]."""
    hop = max(WINDOW // 4, len(wave_T) // WIDEST)
    padded = np.pad(wave_T.astype(np.float32), (0, WINDOW))
    starts = np.arange(0, len(padded) - WINDOW + 1, hop)
    spectra = frame_spectra(padded, starts, np.hanning(WINDOW))
    loudness = 20 * np.log10(np.abs(spectra).T[:HEIGHT] + 1e-9)  # [frequency, time]
    share = np.clip((loudness - loudness.max() - FLOOR) / -FLOOR, 0, 1)
    return (colormaps["magma"](share[::-1])[..., :3] * 255).astype(np.uint8)
