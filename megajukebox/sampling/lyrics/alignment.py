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
MIN_ATTENTION = (
    1e-30  # of what a code reads of a token in its window: a sharp softmax ends in zeros
)


@torch.inference_mode()
def align(
    prior: Prior, conditioning: list[SongConditioning], codes_BT: Tensor, samples: int, pairs: Sequence[Head],
    hop_fraction: float = DEFAULT_HOP_FRACTIONS["top"], offset: int = 0,
) -> dict[Head, list[np.ndarray]]:  # fmt: skip
    """How much each code reads each lyric token: for each (layer, head) one array [T, tokens of the lyrics] a song.

    The codes are a part of a song of `samples` audio samples, from `offset` on (in samples). 0 says that no window held
    both the code and the token, and nothing else is 0.
    """
    config, total = prior.config, codes_BT.shape[1]
    laid = {
        pair: [np.zeros((total, len(song.tokens.ids) + 1), np.float32) for song in conditioning]
        for pair in pairs
    }
    layers = sorted({layer for layer, _ in pairs})
    # From last to first: where windows overlap the earlier one counts, as in the reference.
    for start in reversed(
        window_starts(total, config.window, max(1, int(hop_fraction * config.window)))
    ):
        first = offset + start * config.hop
        length = config.window * config.hop
        position = WindowPosition(samples, first, length, config.sample_rate)
        lyrics = [song.lyrics_window(position) for song in conditioning]
        rows = [song.window(position) for song in conditioning]
        batch = to_device(tensors(stack(rows)), codes_BT.device)
        codes = codes_BT[:, start : start + config.window]
        batch["codes"] = F.pad(codes, (0, config.window - codes.shape[1]))  # the last window
        weights = lyric_attention(prior, batch, layers)
        for (layer, head), songs in laid.items():
            for b, song in enumerate(songs):
                place_window(
                    song,
                    weights[layer][b, head].clamp(min=MIN_ATTENTION).cpu().numpy(),
                    lyrics[b].index,
                    start,
                )
    return {pair: [song[:, :-1] for song in songs] for pair, songs in laid.items()}


def place_window(song: np.ndarray, window: np.ndarray, index: np.ndarray, start: int) -> None:
    """Put a window [W, N] into `song` [T, tokens + 1] at code `start`; its columns are the song's tokens `index` [N].

    Index -1 is padding, which the spare last column of the song takes.
    """
    length = min(len(window), len(song) - start)
    song[start : start + length, index] = window[:length]
