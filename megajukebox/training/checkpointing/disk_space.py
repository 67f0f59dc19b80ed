"""Whether a new run has the disk space that it will need, checked before hours are spent."""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from megajukebox.training import checkpoint
from megajukebox.training.adapter_task import AdapterTask

CHECKPOINT_BYTES = 12  # a weight, at least: it and Adam's two moments, in float32
EXPORT_BYTES = 4  # a weight in float32
AVERAGE_BYTES = 4  # a weight's moving average in float32


def missing_disk_space(
    run: Path,
    build: Callable[[], nn.Module],
    averaged: bool,
    adapter: AdapterTask | None = None,
) -> str:
    """Why the first checkpoint and exported weights of a run cannot be written to its disk; empty if they can.

    The weights are counted on the meta device, without those that an adapter leaves frozen: they are in no checkpoint.
    A run that has a checkpoint is not checked: each save checks by itself.
    """
    if checkpoint.candidates(run):
        return ""
    with torch.device("meta"):
        model = build()
    if adapter:
        adapter.add_to(model)
    weights = sum(
        parameter.numel()
        for parameter in model.parameters()
        if not adapter or parameter.requires_grad
    )
    needed = weights * (CHECKPOINT_BYTES + EXPORT_BYTES + (AVERAGE_BYTES if averaged else 0))
    free = shutil.disk_usage(run).free
    if free >= needed:
        return ""
    return (
        f"{run} has {free / 1e9:.3g} GB free, but the first checkpoint and the exported weights of"
        f" {weights:,} weights take at least {needed / 1e9:.3g} GB; free some space or give another --out"
    )
