"""How much memory sampling takes at most, before it takes any; and the largest batch that stays within a bound."""

import torch

from megajukebox.models.prior import Prior, PriorConfig

ACTIVATIONS = 12  # tensors of a window and the width of the prior that live at once while a beginning is taken in


def cache_numbers(config: PriorConfig) -> int:
    """Keys and values that one song's caches of one window hold (cache.py)."""
    shape, length = config.transformer, config.length
    row = length // shape.rows
    lyrics = config.lyrics.tokens if config.lyrics else 0
    kept = {"row": row, "previous_row": 2 * row, "lyrics": lyrics, "prefix": config.attended_prefix}
    return sum(2 * kept.get(pattern, length) for pattern in shape.patterns) * shape.attention_width


def weight_numbers(config: PriorConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in Prior(config).parameters())


def bound(config: PriorConfig, rows: int, dtype: torch.dtype, cpu: bool, weights: int | None = None) -> int:
    """Bytes for a prior and `rows` songs (twins of guided ones count) in lockstep.

    On a CPU the weights are kept a second time, reordered, for steps of several rows, and a quarter again for the int8
    copy that guesses. Logits are of one song: near ties are decided one by one.
    """
    size = dtype.itemsize
    weights = (weight_numbers(config) if weights is None else weights) * size
    copies = (2.0 if cpu else 1.0) + 4.0 / size / 4 * 0.27
    window = config.length * config.transformer.width * max(4, size) * ACTIVATIONS
    logits = 3 * config.length * (config.shift + config.codes) * 4
    return int(weights * copies + rows * (cache_numbers(config) * size + window) + logits)


def largest_batch(
    configs: list[PriorConfig], most: int, limit: float, dtype: torch.dtype, cpu: bool, guided: bool = False
) -> int:
    """The most songs, up to `most`, that every level samples within `limit` bytes. ValueError if not even one."""
    twins = 2 if guided else 1
    weights = [weight_numbers(config) for config in configs]
    for songs in range(most, 0, -1):
        if all(bound(config, songs * twins, dtype, cpu, w) <= limit for config, w in zip(configs, weights)):
            return songs
    least = max(bound(config, twins, dtype, cpu, w) for config, w in zip(configs, weights))
    raise ValueError(
        f"memory {limit / 1e9:.2g} GB is too little for one song, which takes up to {least / 1e9:.2g} GB;"
        " give more, or a lower --precision"
    )
