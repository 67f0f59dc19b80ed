"""The import of a checkpoint above 1 GB, in a process of its own: its peak memory stays below 1.3 times the file."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fixtures.reference_shapes import checkpoint

from megajukebox.interop.released_configs import PRIORS

pytestmark = pytest.mark.cold_start  # about what a new process is

IMPORT = """
import sys
from pathlib import Path
from megajukebox.interop.jukebox_weights import import_weights
import_weights([Path(sys.argv[1])], Path(sys.argv[2]), {"downs_t": (3, 2, 2), "strides_t": (2, 2, 2)})
# Not getrusage: ru_maxrss of a new process begins with what the one that started it, pytest, once had.
(peak,) = [line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
print(int(peak) * 1024)
"""


@pytest.mark.slow
def test_importing_more_than_a_gigabyte_takes_less_memory_than_the_file(tmp_path: Path):
    file = tmp_path / "prior_level_2.pth.tar"
    torch.save(checkpoint(PRIORS["prior_1b_lyrics"] | {"prior_depth": 24}), file)
    done = subprocess.run(
        [sys.executable, "-c", IMPORT, str(file), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=True,
    )
    share = int(done.stdout) / file.stat().st_size
    assert file.stat().st_size > 1e9 and share < 1.3, f"peak memory is {share:.2f} of the file"
