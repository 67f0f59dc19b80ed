"""What looks wrong with a song of the corpus: cheap checks whose findings a person then listens to."""

from itertools import pairwise

import numpy as np

from megajukebox.conditioning.lrc import TimedWord

SHORT_SECONDS = 5.0
FRAME = 0.1  # seconds
SILENT_DB = -60.0
MOST_SILENCE = 0.5  # share of the frames
FULL_SCALE = 0.999
MOST_CLIPPED = 0.001  # share of the samples
MOST_DC = 0.01
EMPTY_DB = -80.0  # a frequency that never rises above this is not there
LEAST_BAND = 0.6  # share of the rows of a mel spectrogram, from below, that music reaches
WORDS_A_SECOND = 8.0  # more than anybody sings


def of_sound(wave_TC: np.ndarray, rate: int, decibels_RW: np.ndarray) -> list[str]:
    """Findings on audio [T, C] and on the mel spectrogram [R, W] of its mix."""
    if not len(wave_TC):
        return ["no sound"]
    found = {
        "short": len(wave_TC) < SHORT_SECONDS * rate,
        "silence": silent_share(wave_TC.mean(axis=1), rate) > MOST_SILENCE,
        "clipped": np.mean(np.abs(wave_TC) >= FULL_SCALE) > MOST_CLIPPED,
        "DC offset": np.abs(wave_TC.mean(axis=0)).max() > MOST_DC,
        "one channel empty": one_channel_empty(wave_TC),
        "no high notes": reached(decibels_RW) < LEAST_BAND,
    }
    return [name for name, is_so in found.items() if is_so]


def silent_share(wave_T: np.ndarray, rate: int) -> float:
    """Share of the frames of `FRAME` seconds that are below `SILENT_DB` of full scale."""
    size = max(1, round(FRAME * rate))
    frames = wave_T[: len(wave_T) // size * size].reshape(-1, size)
    return float(np.mean(level_db(frames) < SILENT_DB)) if len(frames) else 0.0


def one_channel_empty(wave_TC: np.ndarray) -> bool:
    levels = level_db(wave_TC.T)
    return len(levels) > 1 and levels.min() < SILENT_DB < levels.max()


def level_db(waves_NT: np.ndarray) -> np.ndarray:
    return 10 * np.log10(np.maximum(np.mean(np.square(waves_NT, dtype=np.float64), axis=-1), 1e-12))


def reached(decibels_RW: np.ndarray) -> float:
    """Share of the rows, from the lowest note up, to the highest that is heard; 1 for silence.

    What sounds in less than 5 % of the time does not count: a cut is a click, with all frequencies in it.
    """
    heard = np.flatnonzero(np.percentile(decibels_RW, 95, axis=1) > EMPTY_DB)
    return (heard[-1] + 1) / len(decibels_RW) if len(heard) else 1.0


def of_lyrics(text: str, words: list[TimedWord], seconds: float) -> list[str]:
    """Findings on lyrics of a song of so many seconds."""
    found = {
        "too many words": len(text.split()) > WORDS_A_SECOND * seconds,
        "words after the end": bool(words) and max(word.t0 for word in words) > seconds,
        "words out of order": any(after.t0 < before.t0 for before, after in pairwise(words)),
    }
    return [name for name, is_so in found.items() if is_so]
