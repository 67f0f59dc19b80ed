"""What looks wrong with a song of the corpus: cheap checks whose findings a person then listens to."""

# T samples   C channels   N frames or channels   R rows of a mel spectrogram   W its columns
from itertools import pairwise

import numpy as np

from megajukebox.conditioning.lrc import TimedWord

SHORT_SECONDS = 5.0
FRAME_SECONDS = 0.1
SILENT_DB = -60.0
MAX_SILENT_RATIO = 0.5  # of the frames
FULL_SCALE = 0.999
MAX_CLIPPED_RATIO = 0.001  # of the samples
MAX_DC_OFFSET = 0.01
EMPTY_DB = -80.0  # a frequency that never rises above this is not there
SOUNDING_PERCENTILE = (
    95  # what sounds less often does not count: a cut is a click, with all frequencies in it
)
MIN_BAND_RATIO = 0.6  # of the rows of a mel spectrogram, from below, that music reaches
MAX_WORDS_PER_SECOND = 8.0  # more than anybody sings
LEAST_POWER = 1e-12  # -120 dB: the logarithm of silence


def check_audio(wave_TC: np.ndarray, rate: int, decibels_RW: np.ndarray) -> list[str]:
    """Findings on audio [T, C] and on the mel spectrogram [R, W] of its mix."""
    if not len(wave_TC):
        return ["no sound"]
    levels_C = level_db(wave_TC.T)
    has_empty_channel = len(levels_C) > 1 and levels_C.min() < SILENT_DB < levels_C.max()
    checks = {
        "short": len(wave_TC) < SHORT_SECONDS * rate,
        "silence": silent_ratio(wave_TC.mean(axis=1), rate) > MAX_SILENT_RATIO,
        "clipped": np.mean(np.abs(wave_TC) >= FULL_SCALE) > MAX_CLIPPED_RATIO,
        "DC offset": np.abs(wave_TC.mean(axis=0)).max() > MAX_DC_OFFSET,
        "one channel empty": has_empty_channel,
        "no high frequencies": band_ratio(decibels_RW) < MIN_BAND_RATIO,
    }
    return [name for name, is_wrong in checks.items() if is_wrong]


def silent_ratio(wave_T: np.ndarray, rate: int) -> float:
    """Share of the frames that are below `SILENT_DB` of full scale."""
    size = max(1, round(FRAME_SECONDS * rate))
    frames = wave_T[: len(wave_T) // size * size].reshape(-1, size)
    return float(np.mean(level_db(frames) < SILENT_DB)) if len(frames) else 0.0


def level_db(waves_NT: np.ndarray) -> np.ndarray:
    """Root mean square [N] in dB of full scale."""
    power = np.mean(np.square(waves_NT, dtype=np.float64), axis=-1)
    return 10 * np.log10(np.maximum(power, LEAST_POWER))


def band_ratio(decibels_RW: np.ndarray) -> float:
    """Share of the rows, from the lowest frequency up, to the highest that sounds; 1 for silence."""
    usual_level = np.percentile(decibels_RW, SOUNDING_PERCENTILE, axis=1)
    sounding = np.flatnonzero(usual_level > EMPTY_DB)
    return (sounding[-1] + 1) / len(decibels_RW) if len(sounding) else 1.0


def check_lyrics(text: str, words: list[TimedWord], seconds: float) -> list[str]:
    """Findings on lyrics of a song of so many seconds."""
    checks = {
        "too many words": len(text.split()) > MAX_WORDS_PER_SECOND * seconds,
        "words after the end": bool(words) and max(word.t0 for word in words) > seconds,
        "words out of order": any(after.t0 < before.t0 for before, after in pairwise(words)),
    }
    return [name for name, is_wrong in checks.items() if is_wrong]
