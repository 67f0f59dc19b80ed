"""How long after each fault its alert fires: real tiny runs, a real Prometheus, rules 60 times faster than shipped.

    python benchmarks/faults.py [NAME OF A FAULT ...]      # about ten minutes; needs root for the full disk (a tmpfs)

Writes benchmarks/results/faults.json and prints the table of docs/monitoring.md.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from conftest import PRESET, environment  # noqa: E402
from fixtures.fault_injection import FAULTS, clean, seconds_to_alert  # noqa: E402
from fixtures.monitoring_stack import Rig  # noqa: E402

from megajukebox.common.provenance import made_by  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "faults.json"


def main(names: list[str]) -> None:
    about: dict[str, Any] = (
        json.loads(RESULTS.read_text()) if RESULTS.exists() and names else facts() | {"seconds": {}}
    )
    results = about["seconds"]
    with tempfile.TemporaryDirectory() as folder:
        songs = Path(folder) / "songs"
        prepare = [
            sys.executable,
            "-m",
            "megajukebox.commands.prepare",
            "demo:9",
            "--out",
            str(songs),
            "--preset",
            str(PRESET),
        ]
        subprocess.run(prepare, env=environment(), check=True, capture_output=True)
        for number, name in enumerate(names or FAULTS):
            rig = Rig(Path(folder) / str(number), songs)
            try:
                results[name] = round(seconds_to_alert(rig, FAULTS[name]), 1)
            except AssertionError as error:
                print(f"{name}: {str(error)[:2000]}", file=sys.stderr)
                results[name] = None
            finally:
                clean(rig)
            print(f"| {name} | {FAULTS[name].alert} | {results[name]} s |", flush=True)
            if names:  # the others stand as they were measured
                about.setdefault("again", {})[name] = {
                    key: facts()[key] for key in ("date", "commit")
                }
            RESULTS.write_text(json.dumps(about, indent=1) + "\n")


def facts() -> dict[str, object]:
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": made_by()["commit"],
        "rules_faster": 60,
        "scrape": "1s",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, shared with other work",
    }


if __name__ == "__main__":
    main(sys.argv[1:])
