"""The processes of a run: joining them, agreeing with them, and the ds_config that says how they
share the work.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import deepspeed
import psutil
import safetensors.torch
import torch
import torch.distributed as dist

from megajukebox.common.device import accelerator, choose_device
from megajukebox.common.rank_messages import (
    all_gather_json,
    broadcast_bytes,
    broadcast_json,
    refuse_pickled_code,
)
from megajukebox.common.world import World, world
from megajukebox.training.engines.deepspeed_private import MIN_LOSS_SCALE_MESSAGE
from megajukebox.training.engines.ds_config import read_ds_config as read_ds_config

TIMEOUT_MINUTES = "60"
OVERFLOW_AT_MIN_SCALE = "gradients overflow at the lowest fp16 loss scale"


class TrainingDiverged(RuntimeError):
    """The loss is no longer a number."""


class LossScaleAtMinimum(RuntimeError):
    """Gradients overflow in fp16, and the loss scale can fall no further."""


@contextmanager
def raising_at_min_loss_scale(engine: Any) -> Iterator[None]:
    """Raises LossScaleAtMinimum if the gradient overflows inside, at the lowest loss scale.

    Under ZeRO DeepSpeed says so; its optimizers for fp16 without ZeRO would stay there for ever, in
    silence.
    """
    scaling = getattr(engine.optimizer, "loss_scale_config", None)
    lowest = scaling and scaling.dynamic_loss_scale and scaling.cur_scale <= scaling.min_loss_scale
    last_try = lowest and engine.is_gradient_accumulation_boundary()
    try:
        yield
    except Exception as error:  # it has no name of its own
        if MIN_LOSS_SCALE_MESSAGE not in str(error):
            raise
        raise LossScaleAtMinimum(OVERFLOW_AT_MIN_SCALE) from None
    if last_try and engine.optimizer.overflow:
        raise LossScaleAtMinimum(OVERFLOW_AT_MIN_SCALE)


def start() -> World:
    """Join the other processes (gloo on CPUs, NCCL on GPUs) and return who this one is."""
    here = world()
    refuse_pickled_code()
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # Its shared-memory all-reduce compiles for minutes and leaves 66 MB in /dev/shm for every
    # process; gloo serves.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # The group's own time limit comes after the watchdog's, which reports more (minutes;
    # watchdog.py).
    os.environ.setdefault("DEEPSPEED_TIMEOUT", TIMEOUT_MINUTES)
    chosen = choose_device(here.local_rank)
    if chosen.type == "cuda":
        # DeepSpeed takes the number of the device from here: 0 where each task sees one GPU alone.
        os.environ["LOCAL_RANK"] = str(chosen.index)
        if "OMPI_COMM_WORLD_LOCAL_RANK" in os.environ:
            os.environ["OMPI_COMM_WORLD_LOCAL_RANK"] = str(chosen.index)
    if not dist.is_initialized():
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    return here


def stop() -> None:
    """Leave the group, so that no process waits for one that has ended."""
    if dist.is_initialized():
        dist.destroy_process_group()


def broadcast_from_rank_0(value: Any) -> Any:
    """`value` of rank 0, plain as JSON has it, on every rank; the others may give None."""
    received = broadcast_json(0, value)
    assert received is not None
    return received


def broadcast_batch(rank: int, batch: dict | None) -> dict:
    """The tensors of `batch` of `rank`, by name and within dicts by name, on every rank; the others may give None."""
    data = safetensors.torch.save(_flat(batch)) if batch is not None else b""
    received: dict[str, Any] = {}
    for path, tensor in safetensors.torch.load(broadcast_bytes(rank, data)).items():
        inner = received
        *folders, name = path.split("/")
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[name] = tensor
    return received


def _flat(batch: dict) -> dict[str, torch.Tensor]:
    """The tensors of a batch by their paths in it: `codes`, `conditions/artist`."""
    tensors = {}
    for name, value in batch.items():
        if isinstance(value, dict):
            for path, tensor in _flat(value).items():
                tensors[f"{name}/{path}"] = tensor
        else:
            # Copied, for tensors of one piece of memory cannot be written apart.
            tensors[name] = value.clone(memory_format=torch.contiguous_format)
    return tensors


def seed(number: int) -> None:
    """The same first weights on every rank and in every run."""
    torch.manual_seed(number)


def barrier() -> None:
    dist.barrier()


def all_gather(value: Any) -> list[Any]:
    """`value` of every rank, plain as JSON has it, by rank, on every rank."""
    return all_gather_json(value)


def all_reduce_max(*numbers: int) -> list[int]:
    """The highest of all ranks, for each of `numbers`."""
    highest = torch.tensor(numbers, device=device())
    dist.all_reduce(highest, op=dist.ReduceOp.MAX)
    return highest.tolist()


def memory() -> dict[str, float]:
    """Bytes that this process holds: of the machine's memory now, of the GPU's at most so far."""
    held = {"memory_host_bytes": float(psutil.Process().memory_info().rss)}
    if accelerator() == "cuda":
        held["memory_gpu_bytes"] = float(torch.cuda.max_memory_allocated())
    return held


def flight_record() -> bytes | None:
    """The last collectives of this process, as JSON of torch's flight recorder; None where it keeps none.

    Safe to call from another thread while this process waits in a collective.
    """
    if not dist.is_initialized():
        return None
    library = "nccl" if dist.get_backend() == "nccl" else "fr"
    dump = getattr(torch._C._distributed_c10d, f"_dump_{library}_trace_json", None)
    return dump(includeCollectives=True, onlyActive=False) if dump else None


def all_reduce_sum(numbers: list[int]) -> list[int]:
    """Each of `numbers` summed over all ranks."""
    summed = torch.tensor(numbers, device=device())
    dist.all_reduce(summed)
    return summed.tolist()


def device() -> torch.device:
    """The one that `start` has chosen."""
    if accelerator() == "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
