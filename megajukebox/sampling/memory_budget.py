"""An upper bound on the memory that sampling takes, before it takes any; and what fits: songs in a batch, one prior or all.

The factors are measured: benchmarks/sampling_memory.py, results in benchmarks/results/sampling_memory.json.
"""

# B songs in lockstep   M rows (a song or its unconditional row, and one of its windows)
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import torch

from megajukebox.common.errors import UserError
from megajukebox.models.prior import Prior, PriorConfig
from megajukebox.sampling.decoding.cuda_graph_rows import MAX_GRAPH_SETS
from megajukebox.sampling.decoding.kv_cache import HEAD_MULTIPLE
from megajukebox.sampling.decoding.step_ops import fused_steps
from megajukebox.sampling.jukebox import Jukebox
from megajukebox.sampling.levels.autoregressive import DECODINGS
from megajukebox.sampling.songs.requests import SongRequest

# Of a level's weights, while it is sampled, in bytes of the weights themselves:
CPU_REORDERED_COPY = 1.0  # oneDNN's copy for steps of several rows (packed_linear.py)
CPU_FRAGMENTATION = 0.6  # holes that the allocator leaves; 0.3 were measured
# Bytes that a GPU holds beside tensors once it is at work: workspaces of cuBLAS, kernels loaded late. Not measured.
CUDA_OVERHEAD_BYTES = 300_000_000
# Of a captured step: kernels a layer and beside the layers (tests/fixtures/files/pretend_gpu_counts.json), by the kernels
# of step_ops.py and by plain operations; and bytes a kernel, an upper bound that no GPU has confirmed yet.
FUSED_LAYER_NODES = 8
PLAIN_LAYER_NODES = 20
OTHER_NODES = 40
GRAPH_NODE_BYTES = 10_000
# Bytes a code of the row that is sampled: its noise twice in float32, while it is made four times in int64.
NOISE_BYTES = 40
# Bytes a weight of the int8 copy that drafts: a byte, and 8 % on top; of what (scales, packing) was not measured apart.
INT8_COPY_BYTES = 1.08
# Tensors [window, width of the prior] that live at once while a known prefix is taken in.
PREFILL_TENSORS = 12
PREFILL_MIN_ITEMSIZE = 4  # bytes: some of them are float32 whatever the weights are
LOGIT_TENSORS = 3  # float32 [window, vocabulary] of one song, while a near tie is resolved
FLOAT32_BYTES = 4
# Bytes that the allocator, oneDNN and libraries loaded late keep on a CPU: an upper bound of what was measured.
CPU_OVERHEAD_BYTES = 64_000_000
MAX_WINDOW_ROWS = (
    64  # rows in lockstep where windows of a song are sampled together, unless songs alone are more
)
MANY_SONGS = 64  # more than any decoding of `auto` is chosen for by their number
# Windows sampled together start with a run-up of 1/8 of a window (autoregressive.py), so 7/8 of each are new codes.
NEW_WINDOW_SHARE = 7 / 8


def cache_elements(config: PriorConfig, head_multiple: int = 1) -> int:
    """Elements of keys and values that one song's caches of one window hold (kv_cache.py).

    Args:
        head_multiple: elements that heads are padded to a multiple of.
    """
    shape = config.transformer
    row = config.length // shape.blocks
    lyrics = config.lyrics.tokens if config.lyrics else 0
    positions = {
        "row": row,
        "previous_row": 2 * row,
        "lyrics": lyrics,
        "prefix": config.attended_prefix,
    }
    kept = sum(positions.get(pattern, config.length) for pattern in shape.patterns)
    head = shape.attention_width // shape.heads
    padded = -(-head // head_multiple) * head_multiple
    return 2 * kept * shape.heads * padded  # keys and values


def weight_elements(config: PriorConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Prior(config).parameters())


@dataclass(frozen=True)
class LevelMemory:
    """What one level takes, in bytes: of its prior, its copies, and its songs."""

    config: PriorConfig
    windows_per_song: int = 1  # sampled in lockstep
    guided: bool = False  # guided songs have an unconditional row beside their own
    student: bool = False  # a student is loaded beside the prior
    graph_nodes: int = 0  # kernels of a step that is captured on a GPU; 0: none is

    def weight_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of the prior itself."""
        return weight_elements(self.config) * dtype.itemsize

    def auxiliary_bytes(self, dtype: torch.dtype, cpu: bool) -> int:
        """Bytes beside the prior while its level is sampled: a student, the reordered copies, the int8 draft model."""
        copies = 1.0 if self.student else 0.0
        if cpu:
            copies += CPU_REORDERED_COPY + CPU_FRAGMENTATION
            if self.student:
                copies += CPU_REORDERED_COPY
        int8_copy = INT8_COPY_BYTES if cpu else 0.0  # what drafts with it is refused on a GPU
        return int(weight_elements(self.config) * (dtype.itemsize * copies + int8_copy))

    def rows(self, batch: int) -> int:
        """Rows in lockstep for `batch` songs."""
        rows = min(batch * self.windows_per_song, max(batch, MAX_WINDOW_ROWS))
        return 2 * rows if self.guided else rows

    def graph_bytes(self, batch: int, dtype: torch.dtype) -> int:
        """Bytes of the graphs that stay with the prior, with the caches and noise that they read (cuda_graph_rows.py)."""
        if not self.graph_nodes:
            return 0
        config = self.config
        columns = config.length // config.transformer.blocks
        cache = cache_elements(config, HEAD_MULTIPLE) * dtype.itemsize
        noise = columns * config.vocabulary * NOISE_BYTES
        one_set = columns * self.graph_nodes * GRAPH_NODE_BYTES + self.rows(batch) * (cache + noise)
        return MAX_GRAPH_SETS * one_set

    def song_bytes(self, batch: int, dtype: torch.dtype) -> int:
        """Bytes of `batch` songs: caches, activations, and logits of one song (near ties are resolved one by one)."""
        config = self.config
        cache = 0 if self.graph_nodes else cache_elements(config)
        if self.student:  # keys and values of every slot in every layer
            cache = (
                2 * config.transformer.depth * config.length * config.transformer.attention_width
            )
        activation_bytes = max(PREFILL_MIN_ITEMSIZE, dtype.itemsize) * PREFILL_TENSORS
        prefill = config.length * config.transformer.width * activation_bytes
        logits = LOGIT_TENSORS * config.length * config.vocabulary * FLOAT32_BYTES
        return self.rows(batch) * (cache * dtype.itemsize + prefill) + logits


@dataclass(frozen=True)
class BatchFit:
    """What fits: songs in lockstep, all priors or one at a time, and an upper bound of the bytes that this takes."""

    songs: int
    keep_loaded: bool
    bytes: int

    def __str__(self) -> str:
        priors = "all priors" if self.keep_loaded else "one prior at a time"
        return (
            f"at most {self.bytes / 1e9:.2g} GB for {priors} and {self.songs} song(s) in lockstep"
        )


def fit_batch(
    levels: Sequence[LevelMemory], max_songs: int, limit: float, dtype: torch.dtype, cpu: bool
) -> BatchFit:
    """The most songs, up to `max_songs`, that every level samples within `limit` bytes; then all priors, if they fit.

    Raises:
        UserError: not even one song fits.
    """
    overhead = CPU_OVERHEAD_BYTES if cpu else CUDA_OVERHEAD_BYTES
    weights = [level.weight_bytes(dtype) for level in levels]
    auxiliary = [level.auxiliary_bytes(dtype, cpu) for level in levels]
    for songs in range(max_songs, 0, -1):
        largest_working = 0  # bytes beside what stays with a prior, of the level that takes most
        largest_level = 0
        all_graphs = 0
        for level, weight_bytes, extra in zip(levels, weights, auxiliary):
            working = extra + level.song_bytes(songs, dtype)
            graphs = level.graph_bytes(songs, dtype)
            all_graphs += graphs
            largest_working = max(largest_working, working)
            largest_level = max(largest_level, weight_bytes + graphs + working)
        all_loaded = overhead + sum(weights) + all_graphs + largest_working
        one_loaded = overhead + largest_level
        if all_loaded <= limit:
            return BatchFit(songs, True, all_loaded)
        if one_loaded <= limit:
            return BatchFit(songs, False, one_loaded)
    raise UserError(
        f"memory {limit / 1e9:.2g} GB is too little for one song, which takes up to {one_loaded / 1e9:.2g} GB;"
        " give --memory GB if there is more, or a lower --precision"
    )


def level_memory(
    jukebox: Jukebox, requests: Sequence[SongRequest], guided: bool = False
) -> list[LevelMemory]:
    """What each level takes for the longest of the requests; `guided`: even if none of these is."""
    for request in requests:
        guided = guided or any(strength != 1 for strength in request.guidance.values())
    needs = []
    for level, run in jukebox.levels.items():
        windows = 1
        student = level in jukebox.students
        name = jukebox.policy.decoding_of(level, MANY_SONGS, run.config, jukebox.device)
        decoding = DECODINGS[name]
        if student or decoding.windows_in_lockstep:
            codes = max((jukebox.num_codes(request, level) for request in requests), default=1)
            windows = -int(-codes // (NEW_WINDOW_SHARE * run.config.window))
        nodes = 0
        if decoding.captures_steps and not student and jukebox.device.type == "cuda":
            nodes = step_nodes(run.config, fused_steps(jukebox.device, jukebox.dtype))
        needs.append(LevelMemory(run.config, windows, guided, student, nodes))
    return needs


def step_nodes(config: PriorConfig, fused: bool) -> int:
    """Kernels of one captured step."""
    layer = FUSED_LAYER_NODES if fused else PLAIN_LAYER_NODES
    return layer * config.transformer.depth + OTHER_NODES


def fit_jukebox(
    jukebox: Jukebox, requests: Sequence[SongRequest], max_songs: int, limit: float
) -> BatchFit:
    """`fit_batch` for these requests; priors then stay loaded between batches if that fits."""
    max_songs = min(max_songs, max(1, len(requests)))
    cpu = jukebox.device.type == "cpu"
    fit = fit_batch(level_memory(jukebox, requests), max_songs, limit, jukebox.dtype, cpu)
    jukebox.keep_loaded = fit.keep_loaded
    return fit


def free_memory(device: torch.device, processes: int = 1) -> float:
    """Bytes of `device` that are free now; of a CPU's, the share of one of `processes`."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return psutil.virtual_memory().available / processes
