"""How much memory sampling from a folder of several priors takes; writes benchmarks/results/sampling_memory.json.

    python benchmarks/sampling_memory.py     # under a minute, 3.2 GB of disk while it runs

Three priors of about a gigabyte with random weights lie in one folder, as imported ones would. A fresh process samples
a little through all levels. Its peak, less what it held before (torch, the VQ-VAE), is what the priors cost: one of
them and its activations at a time, or all if they fit; beside it stands the bound that `sample` prints.
"""

import json
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path

import torch

from megajukebox.common.files import write_atomic
from megajukebox.common.levels import PRIOR_FOLDERS
from megajukebox.common.model_files import PendingTensor, save_weights
from megajukebox.common.provenance import made_by
from megajukebox.models.conditioners import UpsamplerConditionerConfig
from megajukebox.models.prior import Prior, PriorConfig
from megajukebox.models.transformer import TransformerConfig
from megajukebox.models.vqvae import VQVAE, VQVAEConfig
from megajukebox.sampling.jukebox import Jukebox
from megajukebox.sampling.memory_budget import fit_batch, level_memory
from megajukebox.sampling.songs.requests import SongRequest

RESULT = Path(__file__).parent / "results" / "sampling_memory.json"
SHAPE = TransformerConfig(width=2048, depth=20, heads=2, blocks=8)
RATE, WINDOW = 8000, 256
SECONDS = 0.128  # eight top codes, 128 bottom codes


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        sizes = write_runs(Path(folder))
        ways = [
            (dtype, kept)
            for dtype in ("float32", "bfloat16")
            for kept in ("one at a time", "all kept")
        ]
        used = {
            f"{dtype}, {kept}": peak_in_a_fresh_process(folder, dtype, kept) for dtype, kept in ways
        }
    largest = max(sizes.values())
    for found in used.values():
        found["peak_to_largest_prior"] = round(found["added_at_the_peak_megabytes"] / largest, 3)
        found["peak_to_all_priors"] = round(
            found["added_at_the_peak_megabytes"] / sum(sizes.values()), 3
        )
    result = {
        "date": datetime.now(timezone.utc).isoformat(timespec="minutes"),
        "made_by": made_by(),
        "torch": torch.__version__,
        "prior_files_megabytes": sizes,
        **used,
    }
    print(json.dumps(result, indent=1))
    write_atomic(RESULT, (json.dumps(result, indent=1) + "\n").encode())


def peak_in_a_fresh_process(folder: str, dtype: str, kept: str) -> dict[str, float]:
    program = [sys.executable, __file__, folder, dtype, kept]
    return json.loads(subprocess.run(program, capture_output=True, text=True, check=True).stdout)


def write_runs(folder: Path) -> dict[str, int]:
    """A VQ-VAE and a prior a level; megabytes of each prior's file."""
    vqvae = VQVAEConfig(
        sample_rate=RATE, width=8, depth=2, multipliers=(1, 1, 1), code_width=16, codebook_size=64
    )
    fingerprint = save_weights(folder / "vqvae", "vqvae", vqvae, VQVAE(vqvae).state_dict(), step=0)
    for level, run in PRIOR_FOLDERS.items():
        config = PriorConfig(
            level=level,
            sample_rate=RATE,
            hop=vqvae.hops[level],
            codebook_size=64,
            window=WINDOW,
            transformer=SHAPE,
            upsampler_conditioner=None
            if level == "top"
            else UpsamplerConditionerConfig(width=64, depth=2),
        )
        with torch.device("meta"):
            shapes = Prior(config).state_dict()
        if not config.separate_head:
            del shapes["head.weight"]  # the same tensor as the input's table
        tensors = {name: random(tensor) for name, tensor in shapes.items()}
        save_weights(folder / run, "prior", config, tensors, step=0, vqvae=fingerprint)
    return {
        run: round((folder / run / "model.safetensors").stat().st_size / 1e6)
        for run in PRIOR_FOLDERS.values()
    }


def random(like: torch.Tensor) -> PendingTensor:
    return PendingTensor(like.dtype, tuple(like.shape), lambda: 0.02 * torch.randn(like.shape))


def sample_here(folder: str, dtype: str, kept: str) -> dict[str, int]:
    """In a fresh process: megabytes before the priors, added by them at the peak, and the bound of that."""
    torch.set_num_threads(1)
    jukebox, request = (
        Jukebox(folder, device="cpu", dtype=getattr(torch, dtype)),
        SongRequest(id="some", seconds=SECONDS),
    )
    jukebox.keep_loaded = kept == "all kept"
    needs = level_memory(jukebox, [request])
    limit = fit_batch(needs, 1, float("inf"), jukebox.dtype, cpu=True).bytes - (
        not jukebox.keep_loaded
    )
    bound = fit_batch(needs, 1, limit, jukebox.dtype, cpu=True)
    before = megabytes("VmRSS")
    jukebox.sample([request])
    told = {"before_megabytes": before, "added_at_the_peak_megabytes": megabytes("VmHWM") - before}
    return told | {"bound_megabytes": round(bound.bytes / 1e6)}


def megabytes(entry: str) -> int:
    status = Path("/proc/self/status").read_text()
    return round(
        int(next(line.split()[1] for line in status.splitlines() if line.startswith(entry)))
        * 1024
        / 1e6
    )


if __name__ == "__main__":
    if sys.argv[1:]:
        print(json.dumps(sample_here(*sys.argv[1:])))
    else:
        main()
