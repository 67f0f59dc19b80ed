"""A healthy run raises no alert: two ranks of a tiny prior under a real Prometheus, rules 60 times faster than shipped.

    python benchmarks/quiet_run.py [MINUTES]      # 30; every step rests, so that it takes a few per cent of two cores

Half an hour of it is for the rules as more than a day. Adds to benchmarks/results/quiet_run.json; exit code 1 if any
alert fired or `watch` told of any problem.
"""

import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from fixtures.fault_injection import clean  # noqa: E402
from fixtures.interrupted_runs import NANO  # noqa: E402
from fixtures.monitoring_stack import FASTER, Rig  # noqa: E402
from fixtures.tiny_shards import write_codes  # noqa: E402

from megajukebox.common.provenance import made_by  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "quiet_run.json"
# The figures that rules judge, at their worst.
WORST = {
    "rank_slowdown_ratio": "max(max_over_time(megajukebox_rank_slowdown_ratio[{s}s]))",
    "spike_score": "max(max_over_time(megajukebox_spike_score[{s}s]))",
    "data_wait_ratio": "max(max_over_time(megajukebox_data_wait_ratio[{s}s]))",
    "seconds without a step": "max(max_over_time((time() - megajukebox_last_step_timestamp_seconds)[{s}s:1s]))",
    "seconds until a checkpoint is stale": "min(min_over_time"
    "((megajukebox_checkpoint_due_timestamp_seconds - time())[{s}s:1s]))",
}


EVALUATIONS = 'count_over_time(ALERTS{{alertname="JukeboxWatchdog"}}[{s}s])'  # it fires always


def watched(rig: Rig, minutes: float) -> dict[str, object]:
    """Train and watch for `minutes`; what fired, and how near the figures came to the rules' limits."""
    asked = (
        "log_every=1",
        "evaluation.every=50",
        "checkpointing.every=20",
        "checkpointing.keep_last=2",
    )
    rig.train(
        "quiet", *asked, ranks=2, fault="gentle", steps=100_000, stage="top_prior", preset=NANO
    )
    rig.wait_for_step("quiet", 1)
    rig.wait(lambda: "JukeboxWatcherBlind" not in rig.firing(), 20)  # the exporter was starting
    began = time.time()
    while time.time() < began + 60 * minutes:
        time.sleep(min(5.0, 60 * minutes))
    window = int(time.time() - began)
    fired = rig.query(
        f'count_over_time(ALERTS{{alertstate="firing", alertname!="JukeboxWatchdog"}}[{window}s])'
    )
    told = rig.query(f"max_over_time(megajukebox_alert_active[{window}s]) > 0")
    worst = {name: rig.query(query.format(s=window)) for name, query in WORST.items()}
    return {
        "minutes": round((time.time() - began) / 60, 1),
        "steps": int(rig.query("megajukebox_step")[0]["value"][1]),
        "evaluations_of_each_rule": int(rig.query(EVALUATIONS.format(s=window))[0]["value"][1]),
        "fired": sorted({alert["metric"]["alertname"] for alert in fired}),
        "told_by_watch": sorted({problem["metric"]["alert"] for problem in told}),
        "worst": {
            name: round(float(found[0]["value"][1]), 3) if found else None
            for name, found in worst.items()
        },
    }


def main(minutes: float) -> int:
    with tempfile.TemporaryDirectory(dir=os.environ.get("QUIET_RUN_FOLDER")) as folder:
        rig = Rig(Path(folder), write_codes(Path(folder) / "codes"))
        try:
            found = watched(rig, minutes)
        finally:
            clean(rig)
    about = {
        "date": time.strftime("%Y-%m-%d"),
        "commit": made_by()["commit"],
        "rules_faster": FASTER,
        "scrape": "1s",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, shared with other work",
    }
    before = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    RESULTS.write_text(json.dumps([*before, about | found], indent=1) + "\n")
    print(json.dumps(found, indent=1))
    return int(bool(found["fired"] or found["told_by_watch"]))


if __name__ == "__main__":
    raise SystemExit(main(float(sys.argv[1]) if sys.argv[1:] else 30.0))
