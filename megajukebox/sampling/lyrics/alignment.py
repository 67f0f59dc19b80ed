"""Which code reads which lyric token, over a whole song: attention of overlapping windows (spec section 13)."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from megajukebox.conditioning.schema import SongConditioning, WindowPosition
from megajukebox.data.stream.batches import stack, tensors
from megajukebox.models.lyric_attention import lyric_attention
from megajukebox.models.prior import Prior
from megajukebox.sampling.levels.level_sampler import DEFAULT_HOP_FRACTIONS
from megajukebox.sampling.levels.level_windows import to_device, window_starts

Head = tuple[int, int]  # layer, head
# Of what a code reads of a token in its window: a sharp softmax ends in zeros, and 0 means "not in the window".
MIN_ATTENTION = 1e-30


@torch.inference_mode()
def align(
    prior: Prior,
    conditioning: list[SongConditioning],
    codes_BT: Tensor,
    samples: int,
    pairs: Sequence[Head],
    hop_fraction: float = DEFAULT_HOP_FRACTIONS["top"],
    offset: int = 0,
) -> dict[Head, list[np.ndarray]]:
    """How much each code reads each lyric token: for each (layer, head) one array [T, tokens of the lyrics] a song.

    0 means that no window held both the code and the token; nothing else is 0.

    Args:
        codes_BT: a part of songs of `samples` audio samples, from `offset` (in samples) on.
    """
    config = prior.config
    total = codes_BT.shape[1]
    attention: dict[Head, list[np.ndarray]] = {}
    for pair in pairs:
        attention[pair] = []
        for song in conditioning:
            attention[pair].append(np.zeros((total, len(song.tokens.ids) + 1), np.float32))
    layers = sorted({layer for layer, _ in pairs})
    starts = window_starts(total, config.window, max(1, int(hop_fraction * config.window)))
    # From last to first: where windows overlap the earlier one counts, as in the reference.
    for start in reversed(starts):
        first = offset + start * config.hop
        length = config.window * config.hop
        position = WindowPosition(samples, first, length, config.sample_rate)
        lyrics = []
        rows = []
        for song in conditioning:
            lyrics.append(song.lyrics_window(position))
            rows.append(song.window(position))
        batch = to_device(tensors(stack(rows)), codes_BT.device)
        codes = codes_BT[:, start : start + config.window]
        batch["codes"] = F.pad(codes, (0, config.window - codes.shape[1]))  # the last window
        weights = lyric_attention(prior, batch, layers)
        for (layer, head), songs in attention.items():
            for b, song_TN in enumerate(songs):
                window = weights[layer][b, head].clamp(min=MIN_ATTENTION).cpu().numpy()
                place_window(song_TN, window, lyrics[b].index, start)
    without_padding = {}
    for pair, songs in attention.items():
        without_padding[pair] = [song_TN[:, :-1] for song_TN in songs]
    return without_padding


def place_window(song: np.ndarray, window: np.ndarray, index: np.ndarray, start: int) -> None:
    """Put a window [W, N] into `song` [T, tokens + 1] at code `start`; its columns are the song's tokens `index` [N].

    Index -1 is padding, which the spare last column of the song takes.
    """
    length = min(len(window), len(song) - start)
    song[start : start + length, index] = window[:length]
