"""When each lyric token is sung: attention weights of overlapping windows laid over one song (spec section 13)."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from megajukebox.data.lyrics import LyricWindow
from megajukebox.data.windows import window_of_lyrics
from megajukebox.models.alignment import lyric_attention
from megajukebox.models.prior import Prior, PriorConfig
from megajukebox.sampling.windows import Told, window_starts


@torch.inference_mode()
def align(
    prior: Prior, told: list[Told], codes_BT: Tensor, samples: int, pairs: list[tuple[int, int]],
    hop_fraction: float = 0.125, offset: int = 0,
) -> dict[tuple[int, int], list[np.ndarray]]:  # fmt: skip
    """How much each code reads each lyric token: for each (layer, head) one array [T, tokens of the lyrics] a song.

    The codes are a part of a song of `samples` audio samples, from `offset` on (in samples).
    """
    config, total = prior.config, codes_BT.shape[1]
    starts = window_starts(total, config.window, max(1, int(hop_fraction * config.window)))
    windows: dict[tuple[int, int], list[np.ndarray]] = {pair: [] for pair in pairs}
    lyrics: list[list[LyricWindow]] = []
    for start in starts:
        place = (samples, offset + start * config.hop, config.window * config.hop)
        lyrics.append([_lyrics_at(config, song, place) for song in told])
        batch = _batch(config, told, lyrics[-1], place, codes_BT[:, start : start + config.window])
        weights = lyric_attention(prior, batch, sorted({layer for layer, _ in pairs}))
        for layer, head in pairs:
            windows[layer, head].append(weights[layer][:, head].cpu().numpy())
    return {
        pair: [
            lay_over([w[b] for w in found], [at[b].index for at in lyrics], starts, total, len(song.tokens.ids))
            for b, song in enumerate(told)
        ]
        for pair, found in windows.items()
    }


def _lyrics_at(config: PriorConfig, song: Told, place: tuple[int, int, int]) -> LyricWindow:
    assert config.lyrics is not None, "only a prior that reads lyrics can be aligned with them"
    return window_of_lyrics(song.tokens, song.words, *place, config.sample_rate, config.lyrics.tokens)


def _batch(
    config: PriorConfig, told: list[Told], lyrics: list[LyricWindow], place: tuple[int, int, int], codes_BT: Tensor
) -> dict:
    """The batch of one window, as `Prior.forward` wants it; a last window is filled up with code 0."""
    device = codes_BT.device
    names = {n: torch.from_numpy(np.stack([t.conditions[n] for t in told])).to(device) for n in config.labels}
    return {
        "codes": F.pad(codes_BT, (0, config.window - codes_BT.shape[1])),
        "timing": torch.tensor([place] * len(told), device=device),
        "conditions": names,
        "lyrics": torch.from_numpy(np.stack([window.ids for window in lyrics])).to(device),
    }


def lay_over(
    windows: Sequence[np.ndarray], indices: Sequence[np.ndarray], starts: Sequence[int], total: int, tokens: int
) -> np.ndarray:
    """One array [total, tokens] from windows [T, N], whose columns are the song's tokens `indices` [N] (-1 = padding).

    Where windows overlap the earlier one counts, as in the reference.
    """
    song = np.zeros((total, tokens + 1), dtype=np.float32)  # the spare column takes the padding
    for window, index, start in sorted(zip(windows, indices, starts), key=lambda item: -item[2]):
        length = min(len(window), total - start)
        song[start : start + length, index] = window[:length]
    return song[:, :-1]
