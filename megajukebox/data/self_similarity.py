"""Which stretch of a song sounded before, by its chords alone: for songs of which nobody wrote down the sections.

chroma, a row each 93 ms   |....aabbccdd....eeff..aabbccdd..|
                                ^-------- lag --------^         the stretch that follows is the same one lag earlier
"""

# T samples   F frames   C features of a frame
import math

import numpy as np

from megajukebox.conditioning.song_sections import SectionReturn
from megajukebox.data import audio
from megajukebox.data.spectra import (
    CHROMA_FRAME_SECONDS,
    CHROMA_STEP_SECONDS,
    chromagram,
    window_size,
)

Array = np.ndarray
RATE = 11_025  # Hz: more than pitches need
BLOCK_FRAMES = 640  # of a chromagram at once, a minute: bounds the memory
SMOOTH_FRAMES = 3  # of chroma that are averaged
STRETCH_FRAMES = (
    30  # over which similarity is averaged, 2.8 s: of a single chord nobody says that it comes back
)
MIN_LAG_SECONDS = 3.0  # shorter ones are a riff, not a section
MIN_RETURN_SECONDS = 4.0
LAG_TOLERANCE_SECONDS = 0.2  # by which the lag may drift within one return
# Mean cosine from which a stretch counts as heard before (docs/decisions/0065).
DEFAULT_THRESHOLD = 0.9


def song_chroma(audio_T: Array, rate: int) -> Array:
    """[F, 12] chroma of mono audio, a row each CHROMA_STEP_SECONDS; [0, 12] where it is shorter than a second."""
    x_T = audio.resampled(audio_T[:, None], rate, RATE)[:, 0]
    step = CHROMA_STEP_SECONDS * RATE
    size = window_size(CHROMA_FRAME_SECONDS, RATE)
    blocks = [np.zeros((0, 12))]
    for first in range(0, int(len(x_T) / step) + 1, BLOCK_FRAMES):
        start = round(first * step)
        block_T = x_T[start : start + math.ceil((BLOCK_FRAMES - 1) * step) + size]
        if len(block_T) >= max(RATE, size):
            blocks.append(chromagram(block_T, RATE)[:BLOCK_FRAMES])
    return smoothed(np.concatenate(blocks))


def smoothed(features_FC: Array) -> Array:
    """Each row the mean of SMOOTH_FRAMES around it."""
    if not len(features_FC):
        return features_FC
    padded_FC = np.pad(features_FC, ((SMOOTH_FRAMES // 2, SMOOTH_FRAMES // 2), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded_FC, SMOOTH_FRAMES, axis=0)
    return windows.mean(axis=-1)


def earlier_places(features_FC: Array) -> tuple[Array, Array]:
    """(similarity [F], lag [F] in frames) of each frame's best earlier place; -1 and 0 where there is none.

    Similarity is the mean cosine of the STRETCH_FRAMES from the frame on with those one lag earlier.
    """
    lengths_F1 = np.linalg.norm(features_FC, axis=1, keepdims=True)
    unit_FC = (features_FC / np.maximum(lengths_F1, 1e-9)).astype(np.float32)
    frames = len(unit_FC)
    similarity_F = np.full(frames, -1.0)
    lag_F = np.zeros(frames, dtype=int)
    shortest = int(np.ceil(MIN_LAG_SECONDS / CHROMA_STEP_SECONDS))
    for lag in range(shortest, frames - STRETCH_FRAMES + 1):
        cosine = np.einsum("fc,fc->f", unit_FC[lag:], unit_FC[:-lag])
        sums = np.concatenate([[0.0], np.cumsum(cosine, dtype=float)])
        mean = (sums[STRETCH_FRAMES:] - sums[:-STRETCH_FRAMES]) / STRETCH_FRAMES
        places = slice(lag, lag + len(mean))
        better = mean > similarity_F[places]
        similarity_F[places][better] = mean[better]
        lag_F[places][better] = lag
    return similarity_F, lag_F


def similar_returns(
    features_FC: Array, threshold: float = DEFAULT_THRESHOLD
) -> list[SectionReturn]:
    """The stretches of a song that sounded before: runs of frames that are similar at one lag."""
    similarity_F, lag_F = earlier_places(features_FC)
    tolerance = LAG_TOLERANCE_SECONDS / CHROMA_STEP_SECONDS
    runs: list[list[int]] = []
    for frame in np.flatnonzero(similarity_F >= threshold).tolist():
        follows = bool(runs) and runs[-1][-1] == frame - 1
        if follows and abs(lag_F[frame] - np.median(lag_F[runs[-1]])) <= tolerance:
            runs[-1].append(frame)
        else:
            runs.append([frame])
    returns: list[SectionReturn] = []
    limit = len(features_FC)
    for run in reversed(runs):
        # The stretch that begins at the last frame is the same too, up to where another return begins.
        end = min(run[-1] + STRETCH_FRAMES, limit)
        if (end - run[0]) * CHROMA_STEP_SECONDS >= MIN_RETURN_SECONDS:
            lag = int(np.median(lag_F[run]))
            times = np.array([run[0], end, run[0] - lag]) * CHROMA_STEP_SECONDS
            returns.append(SectionReturn(*times.tolist()))
            limit = run[0]
    return returns[::-1]
