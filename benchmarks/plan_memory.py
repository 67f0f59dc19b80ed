"""`megajukebox plan` against processes that really train: peak memory of each, predicted and measured.

    python benchmarks/plan_memory.py                      # all, about six minutes on two cores
    python benchmarks/plan_memory.py --only "ZeRO-3 x 2"

Every process builds its engine, trains two steps on made-up batches, and reports by how much its resident memory rose
above what it was with everything of ours imported (Linux: VmHWM, which /proc/self/clear_refs resets). The predictions
are those of `plan` for CPUs, where a page counts once it is touched; what cases of next to nothing take beside their
tensors is its "process". malloc is told to give memory back at once, as a GPU's allocator reuses it; without that a
process keeps what it has freed. benchmarks/results/plan_memory.json keeps the newest figures of each case.
"""

import json
import os
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from rich.console import Console
from rich.table import Table

from megajukebox.common.files import write_atomic
from megajukebox.common.provenance import made_by
from megajukebox.common.world import free_port
from megajukebox.training.config import Preset, load_preset
from megajukebox.training.planner.fit import memory_need
from megajukebox.training.planner.recipe import recipe
from megajukebox.training.planner.workload import Workload
from megajukebox.training.settings import TrainingSettings
from megajukebox.training.stages import workload_of

RESULT = Path(__file__).parent / "results" / "plan_memory.json"
MIB = 2**20
PRIOR = [
    "top.transformer.depth=10",
    "top.window=2048",
    "top.transformer.blocks=32",
]  # of the preset `small`: 53 M
VQVAE = ["training.vqvae.clip=131072"]
NO_PRIOR = [
    f"top.transformer.{size}" for size in ("depth=2", "width=32", "heads=1", "blocks=16")
] + ["top.window=256"]
NO_VQVAE = ["training.vqvae.clip=4096"]
ADAM = {"type": "AdamW", "params": {"lr": 1e-4, "torch_adam": True}}
RECOMPUTE = {"activation_checkpointing": {"partition_activations": False}}
BF16 = {"bf16": {"enabled": True}}
PAGES_BACK = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_ARENA_MAX": "1",
}


class Case(NamedTuple):
    """One way of training one stage."""

    stage: str
    ranks: int
    zero: int
    micro: int = 1
    more: dict[str, Any] = {}  # noqa: RUF012  further keys of its ds_config
    nothing: bool = False  # a model of next to no size: what is left is the process's own

    @property
    def ds_config(self) -> dict[str, Any]:
        zero = {"stage": self.zero, "reduce_bucket_size": 20_000_000, "overlap_comm": False}
        if self.zero == 3:
            zero |= {
                "stage3_max_live_parameters": 20_000_000,
                "stage3_max_reuse_distance": 20_000_000,
            }
            zero |= {"stage3_prefetch_bucket_size": 5_000_000}
        base = {
            "train_micro_batch_size_per_gpu": self.micro,
            "optimizer": ADAM,
            "zero_optimization": zero,
        }
        return {**base, "gradient_clipping": 1.0, "steps_per_print": 10**9, **self.more}

    @property
    def subject(self) -> Workload:
        return workload_of(self.preset, self.stage)

    @property
    def preset(self) -> Preset:
        changes = {"vqvae": (VQVAE, NO_VQVAE), "top_prior": (PRIOR, NO_PRIOR)}[self.stage][
            self.nothing
        ]
        return load_preset("small", changes)


CASES = {
    "next to nothing, ZeRO-0 x 1": Case("top_prior", 1, 0, nothing=True),
    "next to nothing, ZeRO-1 x 2": Case("top_prior", 2, 1, nothing=True),
    "next to nothing, VQ-VAE": Case("vqvae", 1, 0, nothing=True),
    "VQ-VAE, ZeRO-0 x 1": Case("vqvae", 1, 0, micro=2),
    "VQ-VAE, ZeRO-0 x 2": Case("vqvae", 2, 0),
    "prior, ZeRO-0 x 1": Case("top_prior", 1, 0),
    "prior, ZeRO-0 x 1, recomputed": Case("top_prior", 1, 0, more=RECOMPUTE),
    "prior, ZeRO-1 x 2": Case("top_prior", 2, 1),
    "prior, ZeRO-1 x 2, bfloat16": Case("top_prior", 2, 1, more=BF16),
    "prior, ZeRO-1 x 2, 2 micro-batches": Case(
        "top_prior", 2, 1, more={"gradient_accumulation_steps": 2}
    ),
    "prior, ZeRO-2 x 2": Case("top_prior", 2, 2),
    "prior, ZeRO-3 x 2": Case("top_prior", 2, 3),
    "prior, ZeRO-3 x 2, recomputed": Case("top_prior", 2, 3, micro=2, more=RECOMPUTE),
    "prior, ZeRO-3 x 4, recomputed": Case("top_prior", 4, 3, more=RECOMPUTE),
    "prior, ZeRO-3 x 2, recomputed, bfloat16": Case(
        "top_prior", 2, 3, micro=2, more=RECOMPUTE | BF16
    ),
    "prior, pipeline 2 x ZeRO-1 x 1": Case(
        "top_prior",
        2,
        1,
        more=RECOMPUTE | {"pipeline": {"stages": 2}, "gradient_accumulation_steps": 4},
    ),
}


def main(
    only: Annotated[list[str] | None, typer.Option(help="Cases whose name has this in it.")] = None,
    worker: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Compare plan with what training takes."""
    if worker:
        print(json.dumps(measured(CASES[worker])))
        return
    chosen = [name for name in CASES if not only or any(part in name for part in only)]
    rows = []
    for name in chosen:
        rows.append(compared(name, CASES[name]))
        keep(rows[-1])
    Console(width=120).print(table(rows))


def keep(row: dict[str, Any]) -> None:
    """Add to the file of results; a case replaces what was known of it."""
    known = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    date = datetime.now(timezone.utc).isoformat(timespec="minutes")
    known[row["case"]] = {**row, "date": date, "torch": torch.__version__, "made_by": made_by()}
    write_atomic(RESULT, (json.dumps(known, indent=1) + "\n").encode())


def compared(name: str, case: Case) -> dict[str, Any]:
    """MiB of the fullest process: what plan says, what was seen, and plan's error."""
    wanted = memory_need(case.subject, recipe(case.ds_config, case.ranks), case.ranks, None)
    seen = max(launched(name, case.ranks))
    error = wanted.total / seen - 1
    parts = {
        moment: {k: round(v / MIB) for k, v in p.items()} for moment, p in wanted.moments.items()
    }
    told = {"plan": wanted.total / MIB, "process": wanted.outside / MIB, "measured": seen / MIB}
    return {"case": name, **told, "error": error, "parts": parts}


def launched(name: str, ranks: int) -> list[int]:
    """Bytes by which each rank's memory rose."""
    place = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    common = place | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--worker", name]
    started = [
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **common, **PAGES_BACK, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(ranks)
    ]
    return [json.loads(process.communicate()[0].splitlines()[-1]) for process in started]


def measured(case: Case) -> int:
    """Train two steps in this process; returns by how many bytes its memory rose at the most."""
    from megajukebox.training.engines import collectives
    from megajukebox.training.engines.factory import build_engine

    of, place = case.subject, collectives.start()
    warm_up(of)
    before = reset_peak()
    settings = TrainingSettings(ds_config="", steps=1)
    engine = build_engine(of.model_config, of.build, case.ds_config, settings)
    batches = [of.batch(case.micro) for _ in range(case.more.get("gradient_accumulation_steps", 1))]
    for _ in range(2):
        engine.step(batches, rate=1.0)
    peak = memory("VmHWM") - before
    collectives.stop()
    assert place.size == case.ranks
    return peak


def warm_up(of: Workload) -> None:
    """Load what the first operations load."""
    torch.nn.Linear(64, 64)(torch.randn(2, 64)).sum().backward()
    torch.nn.Conv2d(8, 8, 3)(torch.randn(1, 8, 9, 9)).sum().backward()
    torch.nn.functional.scaled_dot_product_attention(*torch.randn(3, 1, 2, 64, 64), is_causal=True)
    torch.stft(torch.randn(1, 4096), 512, window=torch.hann_window(512), return_complex=True)


def reset_peak() -> int:
    """What is resident now; from here on VmHWM is the peak since this call."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def memory(field: str) -> int:
    """Bytes of one field of /proc/self/status."""
    line = next(
        n for n in Path("/proc/self/status").read_text().splitlines() if n.startswith(field)
    )
    return int(line.split()[1]) * 1024


def table(rows: list[dict[str, Any]]) -> Table:
    made = Table(title="MiB of the fullest process")
    for column in ("case", "plan", "measured", "error"):
        made.add_column(column, justify="left" if column == "case" else "right")
    for row in rows:
        made.add_row(
            row["case"], f"{row['plan']:,.0f}", f"{row['measured']:,.0f}", f"{row['error']:+.0%}"
        )
    return made


if __name__ == "__main__":
    typer.run(main)
