"""How long training stands still for a checkpoint: written at once, and in the background from a copy in memory.

    python benchmarks/save_stall.py                      # a minute on two cores; 1 GB in the temporary folder

Trains a prior of 21 million weights (float32; with Adam's moments a checkpoint of 0.25 GB) on made-up
codes through the real entry, one process, ZeRO-3. Reads what the run itself notes: `stall_seconds` and `seconds` of its
saves, and its steps' times while a checkpoint was being written and while none was. The first save, which also
exports the weights, is told apart. Writes benchmarks/results/save_stall.json.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from fixtures.interrupted_runs import alone, environment_of, events  # noqa: E402
from fixtures.tiny_shards import write_codes  # noqa: E402

from megajukebox.common.provenance import made_by  # noqa: E402
from megajukebox.records.jsonl_tail import read_lines  # noqa: E402
from megajukebox.training import checkpoint  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "save_stall.json"
MODEL = ["top.transformer.width=1024", "top.transformer.depth=6"]
SETTINGS = [
    "steps=40",
    "checkpointing.every=6",
    "checkpointing.keep_last=1",
    "checkpointing.export_every=1000",
    "evaluation.every=1000",
]


def measured(data: Path, out: Path, background: bool) -> dict[str, Any]:
    """Of one run."""
    settings = [*SETTINGS, f"checkpointing.in_background={str(background).lower()}"]
    subprocess.run(
        [*alone(data, out, *settings), *MODEL],
        env=environment_of(),
        check=True,
        capture_output=True,
    )
    first, *saves = events(out, "save")[:-1]  # the last one waits for its end, in any case
    lines = [
        line
        for line in read_lines(out / "metrics.jsonl")
        if line["split"] == "train" and line["step"] > 3
    ]
    during = [line["step_seconds"] for line in lines if written_during(line, saves, first)]
    beside = [line["step_seconds"] for line in lines if not written_during(line, saves, first)]
    return {
        "stall_seconds": [save["stall_seconds"] for save in saves],
        "stall_median": statistics.median(save["stall_seconds"] for save in saves),
        "seconds_until_final": statistics.median(save["seconds"] for save in saves),
        "stall_with_export": first["stall_seconds"],
        "step_seconds": statistics.median(beside),
        "step_seconds_while_writing": statistics.median(during) if during else None,
        "checkpoint_bytes": checkpoint.size_of(checkpoint.candidates(out)[0]),
        "weights_bytes": (out / "model.safetensors").stat().st_size,
    }


def written_during(line: dict, saves: list[dict], first: dict) -> bool:
    """Whether a checkpoint was on its way to the disk at some time of the step that ended with this line."""
    begun = line["time"] - line["step_seconds"]
    return any(
        e["time"] - e["seconds"] < line["time"] and begun < e["time"] for e in [first, *saves]
    )


def main() -> None:
    found: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "commit": made_by()["commit"],
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread computes",
    }
    with tempfile.TemporaryDirectory() as folder:
        data = write_codes(Path(folder) / "codes")
        for name, background in (("at once", False), ("in the background", True)):
            found[name] = measured(data, Path(folder) / name.replace(" ", "_"), background)
            print(name, json.dumps(found[name], indent=1), flush=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
