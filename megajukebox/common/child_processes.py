"""Processes of ours that work on somebody's data: what starts them, and the part of the environment that they get.

None imports from the folder that it is started in, which may be a shared one; none sees a secret of this process.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megajukebox.common.redaction import is_secret, redact

RUN_MODULE = Path(__file__).with_name("run_module.py")
SAFE_PATH = {"PYTHONSAFEPATH": "1"}  # of Python 3.11 on; run_module.py does the same for 3.10
# What a decoder, a sampler or a conversion needs: where programs, libraries and caches are, and how to compute.
INHERITED = frozenset(
    (
        *("PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "TZ", "LANG", "LANGUAGE", "VIRTUAL_ENV"),
        *("LD_LIBRARY_PATH", "LD_PRELOAD", "XDG_CACHE_HOME", "CONDA_PREFIX", "CC", "CXX"),
        *("DS_ACCELERATOR", "MEGAJUKEBOX_LOG_LEVEL", "TORCH_EXTENSIONS_DIR", "DS_BUILD_OPS"),
    )
)
INHERITED_PREFIXES = (
    *("LC_", "PYTHON", "OMP_", "MKL_", "OPENBLAS_", "KMP_", "GOMP_", "NUMEXPR_", "MALLOC_"),
    *("CUDA_", "CUBLAS_", "CUDNN_", "NVIDIA_", "HIP_", "HSA_", "ROCR_"),
    *("TORCH_", "PYTORCH_", "TORCHINDUCTOR_", "TRITON_"),
)


def module_command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of ours in a process of its own, as `python -m` would."""
    return [sys.executable, str(RUN_MODULE), module, *arguments]


def holds_secret(name: str, value: str) -> bool:
    """Whether a variable is a secret by its name, or has one in its value: a password in a URL, a token."""
    return is_secret(name) or redact(value) != value


@contextmanager
def without_secrets() -> Iterator[None]:
    """Start processes within: they get this environment without its secrets, which are back in it afterwards."""
    hidden = {name: value for name, value in os.environ.items() if holds_secret(name, value)}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


def child_environment() -> dict[str, str]:
    """Of such a process: what it needs of ours, one thread if nothing says how many, and this very package."""
    inherited = {}
    for name, value in os.environ.items():
        if (name in INHERITED or name.startswith(INHERITED_PREFIXES)) and not holds_secret(
            name, value
        ):
            inherited[name] = value
    package = str(Path(__file__).parents[2])
    search_path = [package, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {
        **inherited,
        **SAFE_PATH,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        # An empty part would be the folder that one stands in.
        "PYTHONPATH": os.pathsep.join(filter(None, search_path)),
    }
