"""How much memory sampling takes at most, before it takes any; what fits into it: how many songs, one prior or all."""

# B songs in lockstep   M rows (a song or its twin, and one of its windows)
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import torch

from megajukebox.models.prior import Prior, PriorConfig

ACTIVATIONS = 12  # tensors of a window and the width of the prior that live at once while a beginning is taken in
BESIDE = 64_000_000  # bytes that the allocator, oneDNN and libraries loaded late were seen to keep on a CPU, and more
MOST_WINDOWS = 64  # rows in lockstep where windows of one song are sampled together, unless songs alone are more


def cache_elements(config: PriorConfig) -> int:
    """Keys and values that one song's caches of one window hold (cache.py)."""
    shape, length = config.transformer, config.length
    row = length // shape.blocks
    lyrics = config.lyrics.tokens if config.lyrics else 0
    kept = {"row": row, "previous_row": 2 * row, "lyrics": lyrics, "prefix": config.attended_prefix}
    return sum(2 * kept.get(pattern, length) for pattern in shape.patterns) * shape.attention_width


def weight_elements(config: PriorConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in Prior(config).parameters())


@dataclass(frozen=True)
class LevelMemory:
    """What one level takes: the prior, how many rows a song is, and whether a student is beside the prior."""

    config: PriorConfig
    windows_per_song: int = 1  # of a song in lockstep
    twins: int = 1  # 2 where songs are guided
    student: bool = False

    def weight_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of the prior itself."""
        return weight_elements(self.config) * dtype.itemsize

    def auxiliary_bytes(self, dtype: torch.dtype, cpu: bool) -> int:
        """Bytes beside it while its level is sampled: a student, and a byte each for the int8 copy that guesses.

        On a CPU the weights of either once more, reordered for steps of several rows, and 0.6 times for holes that the
        allocator leaves (0.3 were seen: benchmarks/sampling_memory.py).
        """
        size = dtype.itemsize
        return int(
            weight_elements(self.config)
            * (size * (self.student + (1.6 + self.student if cpu else 0.0)) + 1.08)
        )

    def song_bytes(self, batch: int, dtype: torch.dtype) -> int:
        """Bytes for `batch` songs: caches and activations. Logits are of one song: near ties are decided one by one."""
        config, size = self.config, dtype.itemsize
        rows = self.twins * min(batch * self.windows_per_song, max(batch, MOST_WINDOWS))
        depth, state = config.transformer.depth, config.transformer.attention_width
        cache = 2 * depth * config.length * state if self.student else cache_elements(config)
        window = config.length * config.transformer.width * max(4, size) * ACTIVATIONS
        logits = 3 * config.length * (config.shift + config.codebook_size) * 4
        return rows * (cache * size + window) + logits


@dataclass(frozen=True)
class BatchFit:
    """What fits: songs in lockstep, all priors or one at a time, and the bytes that this takes at most."""

    songs: int
    keep_loaded: bool
    bytes: int

    def __str__(self) -> str:
        priors = "all priors" if self.keep_loaded else "one prior at a time"
        return (
            f"at most {self.bytes / 1e9:.2g} GB for {priors} and {self.songs} song(s) in lockstep"
        )


def fit_batch(
    needs: Sequence[LevelMemory], most: int, limit: float, dtype: torch.dtype, cpu: bool
) -> BatchFit:
    """The most songs, up to `most`, that every level samples within `limit` bytes; then all priors, if they fit too.

    Raises ValueError if not even one song does.
    """
    weights, copies = (
        [need.weight_bytes(dtype) for need in needs],
        [need.auxiliary_bytes(dtype, cpu) for need in needs],
    )
    beside = BESIDE if cpu else 0
    for songs in range(most, 0, -1):
        working = [copied + need.song_bytes(songs, dtype) for copied, need in zip(copies, needs)]
        apart, together = (
            beside + max(map(sum, zip(weights, working))),
            beside + sum(weights) + max(working),
        )
        if together <= limit:
            return BatchFit(songs, True, together)
        if apart <= limit:
            return BatchFit(songs, False, apart)
    raise ValueError(
        f"memory {limit / 1e9:.2g} GB is too little for one song, which takes up to {apart / 1e9:.2g} GB;"
        " give --memory GB if there is more, or a lower --precision"
    )


def free_memory(device: torch.device, processes: int = 1) -> float:
    """Bytes of `device` that are free now; of a CPU's, the share of one of `processes`."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return psutil.virtual_memory().available / processes
