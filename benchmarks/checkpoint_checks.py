"""What the checks of a checkpoint cost a start: seconds of the looks, beside those of the reading that a start does anyway.

    python benchmarks/checkpoint_checks.py --megabytes 300
    python benchmarks/checkpoint_checks.py --run demo/runs/top_prior

Seconds of processor time (the clock behind them), the least of several rounds. Files come from the memory of the machine,
as they would not in earnest: so the share of the checks is an upper bound.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from megajukebox.training import checkpoint
from megajukebox.training.engines.checkpoint_engine import CheckpointStorage
from megajukebox.training.engines.restricted_loading import restricted_loading
from megajukebox.training.engines.universal_checkpoint import ALLOWED, vet

ROUNDS = 7
TENSORS = 400  # of each file, as a prior of 72 layers has some
FILES = (
    "mp_rank_00_model_states.pt",
    *(f"zero_pp_rank_{n}_mp_rank_00_optim_states.pt" for n in (0, 1)),
)


def made_up(run: Path, megabytes: int) -> Path:
    """A checkpoint of three files with numbers in it."""
    written = checkpoint.partial(run, 1)
    (written / "state").mkdir(parents=True)
    numbers = megabytes * 250_000 // len(FILES) // TENSORS
    for name in FILES:
        tensors = {f"layers.{n}.weight": torch.randn(numbers) for n in range(TENSORS)}
        torch.save({"module": tensors, "shapes": [torch.Size([numbers])]}, written / "state" / name)
    checkpoint.commit(written, 1, {"step": 1}, checkpoint.RetentionPolicy(1))
    return checkpoint.folder_of(run, 1)


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """(processor, clock), the least of each."""
    processor, clock = [], []
    for _ in range(ROUNDS):
        begun = time.process_time(), time.perf_counter()
        work()
        processor.append(time.process_time() - begun[0])
        clock.append(time.perf_counter() - begun[1])
    return min(processor), min(clock)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--run", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        run = options.run or Path(name)
        folder = checkpoint.newest(run)[0] if options.run else made_up(run, options.megabytes)
        assert folder is not None
        measure(folder)


def measure(folder: Path) -> None:
    saved = folder / "state"
    files = sorted(saved.glob("*.pt"))
    storage = CheckpointStorage(ALLOWED)

    def read_unchecked() -> None:
        with torch.serialization.safe_globals(ALLOWED):
            for path in files:
                torch.load(path, map_location="cpu", weights_only=True)

    def read() -> None:
        with restricted_loading(ALLOWED):
            for path in files:
                storage.load(str(path))

    def checksums_alone() -> None:
        for name in checkpoint._listed(folder):
            checkpoint.sha256_of(folder / name)

    def look_of_before() -> None:
        with torch.serialization.safe_globals(ALLOWED):
            for path in files:
                torch.load(path, map_location="cpu", weights_only=True, mmap=True)

    rows = {
        "checksums alone": checksums_alone,
        "verify: checksums, and that nothing else is there": lambda: checkpoint.verify(folder),
        "of it, that nothing else is there": lambda: checkpoint._unlisted(
            folder, checkpoint._listed(folder)
        ),
        "load the files, torch.load": read_unchecked,
        "load the files, restricted": read,
        "look before a conversion, until now": look_of_before,
        "look before a conversion": lambda: vet(saved),
    }
    total = sum(path.stat().st_size for path in files)
    print(f"{len(files)} files, {total / 1e6:.1f} MB, {os.cpu_count()} cores")
    for name, work in rows.items():
        processor, clock = seconds(work)
        print(f"{name:50s} {processor:9.4f} {clock:9.4f}")


if __name__ == "__main__":
    main()
