"""What channels mean, and more than two of them folded into left and right.

The equations are those of ITU-R BS.775 (downward mixing); the low-frequency channel is left out, as there. Speakers
that BS.775 does not know (a back centre, heights) take the share of the nearest one that it does.
"""

import math

import numpy as np

# B back, S side, T top; FLC: left of centre.
FLAC_ORDERS = {  # RFC 9639, section 9.1.3; Microsoft's order of speakers too, for a WAV that names none
    1: ("FC",),
    2: ("FL", "FR"),
    3: ("FL", "FR", "FC"),
    4: ("FL", "FR", "BL", "BR"),
    5: ("FL", "FR", "FC", "BL", "BR"),
    6: ("FL", "FR", "FC", "LFE", "BL", "BR"),
    7: ("FL", "FR", "FC", "LFE", "BC", "SL", "SR"),
    8: ("FL", "FR", "FC", "LFE", "BL", "BR", "SL", "SR"),
}
VORBIS_ORDERS = {  # Vorbis I, section 4.3.9; Opus: RFC 7845, section 5.1.1.2
    1: ("FC",),
    2: ("FL", "FR"),
    3: ("FL", "FC", "FR"),
    4: ("FL", "FR", "BL", "BR"),
    5: ("FL", "FC", "FR", "BL", "BR"),
    6: ("FL", "FC", "FR", "BL", "BR", "LFE"),
    7: ("FL", "FC", "FR", "SL", "SR", "BC", "LFE"),
    8: ("FL", "FC", "FR", "SL", "SR", "BL", "BR", "LFE"),
}
# The bits of a channel mask, lowest first: Microsoft, WAVEFORMATEXTENSIBLE.
MASK_ORDER = (
    *("FL", "FR", "FC", "LFE", "BL", "BR", "FLC", "FRC", "BC", "SL", "SR"),
    *("TC", "TFL", "TFC", "TFR", "TBL", "TBC", "TBR"),
)
# libsndfile's numbers of speakers (SF_CHANNEL_MAP_*), in the files whose layout it reads.
LIBSNDFILE_SPEAKERS = {
    **{1: "FC", 2: "FL", 3: "FR", 4: "FC", 5: "FL", 6: "FR", 7: "FC", 8: "BC", 9: "BL"},
    **{10: "BR", 11: "LFE", 12: "FLC", 13: "FRC", 14: "SL", 15: "SR", 16: "TC", 17: "TFL"},
    **{18: "TFR", 19: "TFC", 20: "TBL", 21: "TBR", 22: "TBC"},
}

SHARE = math.sqrt(0.5)  # of the centre and of each surround channel
HALF = 0.5  # of what goes to both surround channels, a centre behind
LEFT_RIGHT = {
    **{"FL": (1.0, 0.0), "FR": (0.0, 1.0), "FC": (SHARE, SHARE), "LFE": (0.0, 0.0)},
    **{"FLC": (1.0, 0.0), "FRC": (0.0, 1.0), "BC": (HALF, HALF)},
    **{"BL": (SHARE, 0.0), "BR": (0.0, SHARE), "SL": (SHARE, 0.0), "SR": (0.0, SHARE)},
    **{"TFL": (SHARE, 0.0), "TFR": (0.0, SHARE), "TBL": (SHARE, 0.0), "TBR": (0.0, SHARE)},
    **{"TC": (HALF, HALF), "TFC": (HALF, HALF), "TBC": (HALF, HALF)},
    # A left and right that hold a mix already, beside other speakers (Dolby's Lt and Rt): ffmpeg's DL and DR.
    **{"DL": (1.0, 0.0), "DR": (0.0, 1.0)},
}

Speakers = tuple[str, ...]


def speakers_of_mask(mask: int, channels: int) -> Speakers | None:
    """The speakers that a WAVEFORMATEXTENSIBLE mask names for `channels`; None if it does not name so many."""
    named = [name for bit, name in enumerate(MASK_ORDER) if mask >> bit & 1]
    return tuple(named[:channels]) if len(named) >= channels else None


def fold_matrix(speakers: Speakers) -> np.ndarray | None:
    """[C, 2] or [C, 1] that folds channels into left and right, or into one; None: they stay as they are.

    The one channel that is left beside a low-frequency one is mono. Two channels that are a left and a right one, wherever
    they stand, stay what they are.
    """
    shares = np.array([LEFT_RIGHT[name] for name in speakers], np.float32)
    if len(speakers) == 1:
        return None
    heard = [number for number, name in enumerate(speakers) if name != "LFE"]
    if len(heard) == 1:
        mono = np.zeros((len(speakers), 1), np.float32)
        mono[heard[0]] = 1
        return mono
    if len(speakers) == 2 and shares[0, 1] == 0 and shares[1, 0] == 0:
        return None
    return shares


def fold(x_TC: np.ndarray, matrix: np.ndarray | None) -> np.ndarray:
    """`x_TC @ matrix`, [T, 2] or [T, 1] float32; the same value wherever a frame stands in a block.

    A product of matrices would round by the number of frames at hand.
    """
    if matrix is None:
        return x_TC
    folded = np.zeros((len(x_TC), matrix.shape[1]), np.float32)
    for channel, shares in enumerate(matrix):
        for side, share in enumerate(shares):
            if share:
                folded[:, side] += share * x_TC[:, channel]
    return folded
