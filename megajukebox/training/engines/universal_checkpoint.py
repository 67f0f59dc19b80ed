"""A checkpoint of one number of processes loads on any other: through DeepSpeed's universal form, made when needed."""

import argparse
import contextlib
import io
import os
import pickle
import re
import shutil
import subprocess
import sys
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

from megajukebox.common.errors import UserError
from megajukebox.common.files import write_atomic
from megajukebox.models.pipeline_layers import name_in_prior
from megajukebox.training.engines import ema

# What the files of a checkpoint may name beside tensors and plain values: nothing in them is run when they are read.
ALLOWED = [ZeroStageEnum, LossScaler, DynamicLossScaler, fragment_address]
PART = re.compile(r"(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")
SMALL = 2**30  # bytes up to which a conversion is not worth processes of its own
LOOK = 5.0  # seconds between two looks at whether a conversion goes on


class SavedLayout(NamedTuple):
    """Over how many processes an optimizer is shared: those that read different data, times stages of a pipeline."""

    readers: int
    stages: int


def spread_of(saved: Path) -> SavedLayout | None:
    """How a checkpoint was spread, as the names of its files tell; None if every process has all of it."""
    parts = [found for path in saved.iterdir() if (found := PART.fullmatch(path.name))]
    if not parts:
        return None
    return SavedLayout(*(1 + max(int(part[axis]) for part in parts) for axis in (1, 2)))


def is_pipeline(saved: Path) -> bool:
    return any(saved.glob("layer_*-model_states.pt"))


@contextlib.contextmanager
def converted(saved: Path, progressed: Callable[[], None]) -> Iterator[Path]:
    """The checkpoint files in `saved` in universal form, in a folder that is there while inside.

    Rank 0 makes it; the others look for it instead of waiting in a collective, whose time limit is shorter than a large
    conversion. As long as it goes on every rank calls `progressed`, or the watch over hung ranks would end it.
    """
    folder = saved.parent.with_name(saved.parent.name + ".universal")
    made, whole, sign = folder / saved.name, folder / "whole", folder / "goes_on"
    if dist.get_rank() == 0:
        shutil.rmtree(
            folder, ignore_errors=True
        )  # what a killed start left, before any rank looks for it
        made.mkdir(parents=True)
    dist.barrier()
    if dist.get_rank() == 0:

        def tell() -> None:
            sign.touch()
            progressed()

        vet(saved)
        _convert(saved, made, tell)
        _convert_average(saved, made, tell)
        write_atomic(whole, b"")
    _wait_for(whole, sign, progressed)
    dist.barrier()
    yield made
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(folder)


def vet(saved: Path) -> None:
    """ValueError if a file of a checkpoint names more than ALLOWED; only what it names is read, and nothing is run.

    DeepSpeed's own readers, for other numbers of processes and for weights alone, would run it.
    """
    with torch.serialization.safe_globals(ALLOWED):
        for path in sorted(saved.rglob("*.pt")):
            try:
                torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except (pickle.UnpicklingError, RuntimeError) as error:
                raise UserError(
                    f"{path} holds more than tensors and plain values; nothing in it was run"
                ) from error


def _wait_for(whole: Path, sign: Path, progressed: Callable[[], None]) -> None:
    """Until `whole` is there; a `sign` that was touched again since the last look is progress."""
    seen = 0
    while not whole.exists():
        time.sleep(0.1)
        with contextlib.suppress(FileNotFoundError):
            if (touched := sign.stat().st_mtime_ns) != seen:
                seen = touched
                progressed()


def _convert(saved: Path, made: Path, progressed: Callable[[], None]) -> None:
    told = {"input_folder": str(saved), "output_folder": str(made)}
    if sum(path.stat().st_size for path in saved.iterdir()) < SMALL:
        alone = {
            "num_extract_workers": 1,
            "num_merge_workers": 1,
            "keep_temp_folder": False,
            "strict": True,
        }
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            ds_to_universal.main(argparse.Namespace(**told, **alone, inject_missing_state=True))
        return
    # In a process of its own: its workers are forks, which must not inherit a GPU.
    workers = str(max(1, (os.cpu_count() or 2) // 2))
    command = [
        sys.executable,
        "-m",
        "deepspeed.checkpoint.ds_to_universal",
        "--inject_missing_state",
    ]
    command += [word for name, value in told.items() for word in (f"--{name}", value)]
    command += ["--num_extract_workers", workers, "--num_merge_workers", workers]
    follow(command, progressed)


def follow(command: Sequence[str], progressed: Callable[[], None], look: float = LOOK) -> None:
    """Run `command` to its end; each `look` seconds in which it or its children read or wrote count as progress.

    Raises CalledProcessError if it fails.
    """
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        before = 0
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(look)
            if (now := _moved(process.pid)) != before:
                before = now
                progressed()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, list(command))


def _moved(pid: int) -> int:
    """Bytes that a process and its children have read and written so far. Their processor time would not do: a pool
    looks after its workers all the time, also when they are stuck.
    """
    total = 0
    with contextlib.suppress(psutil.Error):
        for process in (parent := psutil.Process(pid), *parent.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                counters = process.io_counters()
                total += counters.read_chars + counters.write_chars
    return total


# ---- The moving average of the weights ------------------------------------------------------------------------------


def _convert_average(saved: Path, made: Path, progressed: Callable[[], None]) -> None:
    """DeepSpeed converts Adam's two states only: the average goes through once more under the name of the first."""
    swapped, other = made.parent / "average" / saved.name, made.parent / "converted"
    for path in saved.iterdir():
        swapped.mkdir(parents=True, exist_ok=True)
        if not PART.fullmatch(path.name):
            (swapped / path.name).symlink_to(path.resolve())
        elif not _with_average(path, swapped / path.name):
            return
        progressed()
    _convert(swapped, other, progressed)
    for path in (other / "zero").rglob("exp_avg.pt"):
        target = average_of(made, str(path.parent.relative_to(other / "zero")))
        target.parent.mkdir(exist_ok=True)
        os.replace(path, target)


def _with_average(path: Path, swapped: Path) -> bool:
    """Write an optimizer's file with the average in the place of the first moment. False if it keeps none."""
    whole = torch.load(path, map_location="cpu", weights_only=False)
    inner = whole["optimizer_state_dict"]
    states = (inner.get("optimizer_state_dict") or inner["base_optimizer_state"])["state"]
    for state in states.values() if isinstance(states, dict) else states:
        if ema.KEY not in state:
            return False
        state["exp_avg"] = state[ema.KEY]
    torch.save(whole, swapped)
    return True


def average_of(made: Path, name: str) -> Path:
    """The file of one parameter's average in a converted checkpoint: a flat tensor, or {"param": tensor}."""
    return made / "ema" / f"{name}.pt"


# ---- Weights alone --------------------------------------------------------------------------------------------------


def weights_of(saved: Path) -> dict[str, Tensor]:
    """The weights in a checkpoint by the names of the plain model, float32 where the optimizer kept them so."""
    vet(saved)
    if is_pipeline(saved):
        return _weights_of_layers(saved)
    if spread_of(saved):
        return get_fp32_state_dict_from_zero_checkpoint(str(saved.parent), saved.name)
    file = min(saved.glob("*_model_states.pt"))
    return torch.load(file, map_location="cpu", weights_only=False)["module"]


def _weights_of_layers(saved: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in sorted(saved.glob("layer_*-model_states.pt")):
        number = int(path.name.split("-")[0].split("_")[1])
        layer = torch.load(path, map_location="cpu", weights_only=True)
        found |= {name_in_prior(number, name): tensor for name, tensor in layer.items()}
    return found
