"""Bits per code: how well a prior predicts songs that it was not trained on."""

# B windows   T codes of a window   V vocabulary
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from megajukebox.common.progress import track
from megajukebox.conditioning.section_conditions import MEMORY
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.stream.batches import stack, tensors
from megajukebox.data.stream.code_dataset import (
    CodeWindows,
    check_codes,
)
from megajukebox.distillation.teacher_sampling import to_device
from megajukebox.models.prior import Prior
from megajukebox.sampling.jukebox import PriorRun

MIN_REMEMBERED = 0.5  # share of a window that returns, for memory to be measured in it
BATCH = 8  # windows that are evaluated at once
WindowBits = Callable[[dict[str, Any]], Tensor]  # a batch of windows -> mean bits per code [B]


def windows_of(run: PriorRun, codes: ShardSet) -> CodeWindows:
    """The windows of `codes` as the run's prior was trained on them, with full conditioning.

    Raises:
        UserError: the codes are of another VQ-VAE than the prior was trained on.
    """
    check_codes(codes, run.folder, run.facts)
    config = run.config
    return CodeWindows(codes, config.level, config.window, conditions=run.conditions)


def held_out_bits(
    bits: WindowBits,
    windows: CodeWindows,
    rows: list[int],
    max_windows: int,
    device: torch.device,
) -> dict[str, dict[str, float]]:
    """{song: {"bits_per_code", "label_gain_bits", "memory_gain_bits"}} of at most `max_windows` of each song.

    `label_gain_bits` is what the labels are worth: the bits with those of another song in their place, less
    the bits. `memory_gain_bits` is what memory is worth in windows that return: the bits without it, less the bits.
    """
    metrics: dict[str, dict[str, float]] = {}
    counts = windows.clips("train")  # nothing is held out here: `rows` says which songs
    labels = {}
    for row in rows:
        if counts[row]:
            labels[row] = windows.read(row, 0, None)["conditions"]
    for row in track(labels, "bits per code"):
        samples = song_windows(windows, row, max_windows)
        own = {"bits_per_code": song_bits(bits, samples, device)}
        others = labels_of_another(labels, row)
        if others is not None:
            swapped = [sample | {"conditions": others} for sample in samples]
            own["label_gain_bits"] = song_bits(bits, swapped, device) - own["bits_per_code"]
        returning = [sample for sample in samples if remembered_share(sample) >= MIN_REMEMBERED]
        if returning:
            forgotten = [sample | {MEMORY: np.zeros_like(sample[MEMORY])} for sample in returning]
            without = song_bits(bits, forgotten, device)
            own["memory_gain_bits"] = without - song_bits(bits, returning, device)
        metrics[windows.shards.key(row)] = own
    return metrics


def remembered_share(sample: Mapping[str, Any]) -> float:
    """The share of a window's codes for which there is a memory; 0 for a prior without one."""
    if MEMORY not in sample:
        return 0.0
    margin = (len(sample[MEMORY]) - len(sample["codes"])) // 2
    return float((sample[MEMORY][margin : margin + len(sample["codes"])] > 0).mean())


def labels_of_another(
    labels: Mapping[int, Mapping[str, np.ndarray]], row: int
) -> Mapping[str, np.ndarray] | None:
    """The labels of the next song whose labels differ in every condition if there is one, else in any."""
    rows = list(labels)
    index = rows.index(row)
    best = None
    most_differences = 0
    for other in rows[index + 1 :] + rows[:index]:
        pairs = ((labels[other][name], ids) for name, ids in labels[row].items())
        differences = sum(not np.array_equal(theirs, ids) for theirs, ids in pairs)
        if differences > most_differences:
            best = labels[other]
            most_differences = differences
    return best


def song_windows(windows: CodeWindows, row: int, limit: int) -> list[dict]:
    """At most `limit` windows of a song, evenly spread."""
    count = windows.clips("train")[row]
    chosen = np.unique(np.linspace(0, count - 1, min(limit, count)).round().astype(int))
    return [windows.read(row, int(clip), None) for clip in chosen]


def song_bits(bits: WindowBits, samples: list[dict], device: torch.device) -> float:
    """Mean bits per code over the windows of one song."""
    values = []
    for first in range(0, len(samples), BATCH):
        batch = to_device(tensors(stack(samples[first : first + BATCH])), device)
        values.append(bits(batch).cpu())
    return float(torch.cat(values).mean())


@torch.inference_mode()
def window_bits(prior: Prior, batch: dict[str, Any]) -> Tensor:
    """Mean bits per code [B] of each window; `Prior.forward` gives the mean over the batch."""
    conditioning = prior.conditioning(batch)
    tokens = prior.tokens(batch)
    prefix = prior.config.prefix_tokens
    logits_BTV = prior.logits(tokens, conditioning)[:, prefix:]
    nats_BT = F.cross_entropy(logits_BTV.transpose(1, 2), tokens[:, prefix:], reduction="none")
    return nats_BT.mean(1) / np.log(2)
