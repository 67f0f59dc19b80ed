"""How well a reconstruction keeps left and right: each of them, and how wide the two are together."""

# T samples
from collections.abc import Mapping

import numpy as np

from megajukebox.evaluation.evaluators.reconstruction import cut_to_same_length, mel_decibels

Array = np.ndarray
NARROWEST_DB = -60.0  # of the side below the mid: what is narrower is mono to any ear


def stereo_metrics(truth_TC: Array, other_TC: Array, rate: int) -> Mapping[str, float]:
    """The metrics of a reconstruction [T, 2] of `truth` [T, 2] at a rate in Hz."""
    distances = []
    for channel in (0, 1):
        x_T, y_T = cut_to_same_length(truth_TC[:, channel], other_TC[:, channel])
        distances.append(np.abs(mel_decibels(x_T, rate) - mel_decibels(y_T, rate)).mean())
    return {
        "channel_mel_distance_db": float(np.mean(distances)),
        "width_error_db": abs(width_db(other_TC) - width_db(truth_TC)),
    }


def width_db(x_TC: Array) -> float:
    """Power of the side, half of left less right, over that of the mid, their mean; in dB, from NARROWEST_DB on."""
    x_TC = x_TC.astype(np.float64)
    mid = x_TC.mean(axis=1)
    side = (x_TC[:, 0] - x_TC[:, 1]) / 2
    least = 10 ** (NARROWEST_DB / 10)
    power = float(mid @ mid)
    if power <= 0:
        return 0.0 if side.any() else NARROWEST_DB
    return float(10 * np.log10(max(float(side @ side) / power, least)))
