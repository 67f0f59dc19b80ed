"""The kernels of a decoding step without a GPU: Triton compiles them for each card, and interprets them at small sizes.

Triton is a part of torch's builds for CUDA. Beside the build for CPUs, `make triton` puts it into the folder .triton.
"""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fixtures.paths import ROOT

FOLDER = Path(os.environ.get("TRITON_FOLDER", ROOT / ".triton"))
WORKER = ROOT / "tests" / "fixtures" / "triton_worker.py"
INSTALLED = importlib.util.find_spec("triton") is not None
KERNELS = ("attention", "add_norm", "quick_gelu")

pytestmark = pytest.mark.skipif(
    not INSTALLED and not (FOLDER / "triton").is_dir(), reason="Triton is missing: make triton"
)


def worker(task: str, **environment: str) -> str:
    path = [str(ROOT), str(ROOT / "tests")] + ([] if INSTALLED else [str(FOLDER)])
    done = subprocess.run(
        [sys.executable, str(WORKER), task],
        env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_kernels_compile_for_each_card_and_read_16_bytes_at_a_time(tmp_path: Path) -> None:
    lines = worker("compile", TRITON_CACHE_DIR=str(tmp_path)).splitlines()
    found = {tuple(line.split()[:3]) for line in lines}
    for card in (("sm_70", "fp16"), ("sm_80", "bf16"), ("sm_90", "bf16"), ("sm_90", "fp32")):
        assert {(*card, kernel) for kernel in KERNELS} <= found, lines
    assert all(int(line.split()[3]) > 1000 and line.endswith("True") for line in lines), lines


def numpy_version() -> tuple[int, ...]:
    return tuple(int(part) for part in np.__version__.split(".")[:2])


def triton_version() -> tuple[int, ...]:
    """Of the Triton that the worker imports."""
    found = importlib.metadata.distributions(name="triton", path=[*sys.path, str(FOLDER)])
    return tuple(int(part) for part in next(iter(found)).version.split(".")[:2])


def test_interpreted_kernels_give_what_their_twins_give() -> None:
    if triton_version() < (3, 7) and numpy_version() >= (2, 5):
        pytest.skip("Triton's interpreter before 3.7 takes the numbers of NumPy before 2.5")
    assert worker("interpret", TRITON_INTERPRET="1") == "equal\n"
