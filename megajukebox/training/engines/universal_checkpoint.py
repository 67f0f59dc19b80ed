"""A checkpoint of one number of processes loads on any other: through DeepSpeed's universal form,
made when needed.
"""

import argparse
import contextlib
import io
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
import torch.distributed as dist
from deepspeed.checkpoint import ds_to_universal
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from torch import Tensor

from megajukebox.common.child_processes import child_environment, module_command
from megajukebox.common.files import write_atomic
from megajukebox.models.pipeline_layers import name_in_prior
from megajukebox.training.engines import ema
from megajukebox.training.engines.restricted_loading import (
    as_user_error,
    check_saved_files,
    load_restricted,
    restricted_loading,
)

# What the files of a checkpoint may name beside tensors and plain values: nothing in them is run
# when they are read.
ALLOWED = [ZeroStageEnum, LossScaler, DynamicLossScaler, fragment_address]
PART = re.compile(r"(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")
SMALL_BYTES = 2**30  # up to which a conversion is not worth processes of its own
POLL_SECONDS = 5.0  # between two looks at whether a conversion goes on


class SavedLayout(NamedTuple):
    """Over how many processes an optimizer is shared: those that read different data, times stages
    of a pipeline.
    """

    readers: int
    stages: int


def layout_of(saved: Path) -> SavedLayout | None:
    """How a checkpoint is shared out, by the names of its files; None if every process has all of
    it.
    """
    readers = 0
    stages = 0
    for path in saved.iterdir():
        part = PART.fullmatch(path.name)
        if part:
            readers = max(readers, 1 + int(part[1]))
            stages = max(stages, 1 + int(part[2]))
    return SavedLayout(readers, stages) if readers else None


def is_pipeline(saved: Path) -> bool:
    """Whether the checkpoint's weights lie layer by layer, as a pipeline writes them."""
    return any(saved.glob("layer_*-model_states.pt"))


@contextlib.contextmanager
def converted(saved: Path, progressed: Callable[[], None]) -> Iterator[Path]:
    """The checkpoint files in `saved` in universal form, in a folder that is there while inside.

    Rank 0 converts; the others look for the result instead of waiting in a collective, whose time
    limit is shorter than a large conversion. While it goes on every rank calls `progressed`, or the
    watchdog would end it as hung.

    Raises:
        UserError: a file of the checkpoint holds more than tensors and plain values.
    """
    folder = saved.parent.with_name(saved.parent.name + ".universal")
    universal = folder / saved.name
    complete = folder / "complete"
    heartbeat = folder / "heartbeat"
    if dist.get_rank() == 0:
        # What a killed start left goes before any rank looks for it.
        shutil.rmtree(folder, ignore_errors=True)
        universal.mkdir(parents=True)
    dist.barrier()
    if dist.get_rank() == 0:

        def beat() -> None:
            heartbeat.touch()
            progressed()

        vet(saved)
        _convert(saved, universal, beat)
        _convert_average(saved, universal, beat)
        write_atomic(complete, b"")
    _wait_for(complete, heartbeat, progressed)
    dist.barrier()
    yield universal
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(folder)


def _wait_for(complete: Path, heartbeat: Path, progressed: Callable[[], None]) -> None:
    """Until `complete` is there; a `heartbeat` touched again since the last look is progress."""
    seen = 0
    while not complete.exists():
        time.sleep(0.1)
        with contextlib.suppress(FileNotFoundError):
            touched = heartbeat.stat().st_mtime_ns
            if touched != seen:
                seen = touched
                progressed()


def vet(saved: Path) -> None:
    """Refuse what is no file of ours, or names more than ALLOWED; nothing in it is run.

    Raises:
        UserError: names the file.
    """
    check_saved_files(saved, ALLOWED)


def _convert(saved: Path, universal: Path, progressed: Callable[[], None]) -> None:
    """DeepSpeed's own conversion of weights and Adam's states."""
    folders = {"input_folder": str(saved), "output_folder": str(universal)}
    if sum(path.stat().st_size for path in saved.iterdir()) < SMALL_BYTES:
        arguments = argparse.Namespace(
            **folders,
            num_extract_workers=1,
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=True,
        )
        silence = io.StringIO()
        with (
            contextlib.redirect_stdout(silence),
            contextlib.redirect_stderr(silence),
            restricted_loading(ALLOWED),
        ):
            ds_to_universal.main(arguments)
        return
    # In a process of its own: its workers are forks, which must not inherit a GPU.
    workers = str(max(1, (os.cpu_count() or 2) // 2))
    command = module_command(
        "megajukebox.training.engines.convert_checkpoint", "--inject_missing_state"
    )
    for name, value in folders.items():
        command += [f"--{name}", value]
    command += ["--num_extract_workers", workers, "--num_merge_workers", workers]
    follow(command, progressed)


def follow(
    command: Sequence[str], progressed: Callable[[], None], poll_seconds: float = POLL_SECONDS
) -> None:
    """Run `command` to its end; each `poll_seconds` in which it or its children read or wrote count
    as progress.

    Raises CalledProcessError if it fails.
    """
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=child_environment()) as process:
        before = 0
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(poll_seconds)
            now = _bytes_moved(process.pid)
            if now != before:
                before = now
                progressed()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, list(command))


def _bytes_moved(pid: int) -> int:
    """Bytes that a process and its children have read and written so far. Their processor time
    would not do: a pool looks after its workers all the time, also when they are stuck.
    """
    total = 0
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                counters = process.io_counters()
                total += counters.read_chars + counters.write_chars
    return total


# ---- The moving average of the weights ----------------------------------------------------------


def _convert_average(saved: Path, universal: Path, progressed: Callable[[], None]) -> None:
    """DeepSpeed converts Adam's two states only: the average goes through once more under the name
    of the first.
    """
    swapped = universal.parent / "average" / saved.name
    converted_average = universal.parent / "converted"
    for path in saved.iterdir():
        swapped.mkdir(parents=True, exist_ok=True)
        if not PART.fullmatch(path.name):
            (swapped / path.name).symlink_to(path.resolve())
        elif not _with_average(path, swapped / path.name):
            return
        progressed()
    _convert(swapped, converted_average, progressed)
    states = converted_average / "zero"
    for path in states.rglob("exp_avg.pt"):
        target = average_of(universal, str(path.parent.relative_to(states)))
        target.parent.mkdir(exist_ok=True)
        os.replace(path, target)


def _with_average(path: Path, swapped: Path) -> bool:
    """Write an optimizer's file with the average in the place of the first moment. False if it
    keeps none.
    """
    content = load_restricted(path, ALLOWED)
    inner = content["optimizer_state_dict"]
    states = (inner.get("optimizer_state_dict") or inner["base_optimizer_state"])["state"]
    for state in states.values() if isinstance(states, dict) else states:
        if ema.KEY not in state:
            return False
        state["exp_avg"] = state[ema.KEY]
    torch.save(content, swapped)
    return True


def average_of(universal: Path, name: str) -> Path:
    """The file of one parameter's average in a converted checkpoint: a flat tensor, or {"param":
    tensor}.
    """
    return universal / "ema" / f"{name}.pt"


# ---- Weights alone ------------------------------------------------------------------------------


def weights_of(saved: Path) -> dict[str, Tensor]:
    """The weights in a checkpoint by the names of the plain model, float32 where the optimizer kept
    them so.
    """
    vet(saved)
    if is_pipeline(saved):
        weights: dict[str, Tensor] = {}
        for path in sorted(saved.glob("layer_*-model_states.pt")):
            number = int(path.name.split("-")[0].split("_")[1])
            layer = load_restricted(path, ALLOWED)
            with as_user_error(path):
                weights |= {name_in_prior(number, name): tensor for name, tensor in layer.items()}
        return weights
    with restricted_loading(ALLOWED), as_user_error(saved):
        if layout_of(saved):
            return get_fp32_state_dict_from_zero_checkpoint(str(saved.parent), saved.name)
        file = min(saved.glob("*_model_states.pt"))
        return load_restricted(file, ALLOWED)["module"]
