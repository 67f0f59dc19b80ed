"""What watching, scraping, preflight and heartbeats take for a run of 512 ranks, without 512 GPUs.

    python benchmarks/scale.py --name before       # of this version; then change something
    python benchmarks/scale.py --name after        # about three minutes on two cores

The run folder is that of Jukebox's top prior after four weeks (tests/fixtures/many_ranks.py): 310,000 steps, 30
attempts, 20,000 samples that could not be read, a heartbeat, an exit record and a preflight report a rank, on a local
file system. Figures are medians, by the clock and in CPU-seconds: on a machine with other work the second is the one
to compare. What only 512 processes could show is not in them: srun's start, and an all-reduce over all ranks.
Adds to benchmarks/results/scale.json under the name given.
"""

import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from multiprocessing import Process
from pathlib import Path
from statistics import median
from typing import Annotated, Any
from unittest.mock import patch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
# 512 clients of one machine ask its name server for one address at once; some servers let all of them wait 10 seconds.
os.environ |= {"RES_OPTIONS": "timeout:1 attempts:1", "TORCH_CPP_LOG_LEVEL": "ERROR"}

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
import typer  # noqa: E402
from fixtures.many_ranks import STEP_SECONDS, ManyRanks  # noqa: E402
from metrics_overhead import COLLECTIVES, LINE, microseconds, timing_of_a_collective  # noqa: E402
from rich.console import Console  # noqa: E402

from megajukebox.commands.exporter import Exporter  # noqa: E402
from megajukebox.common.provenance import made_by  # noqa: E402
from megajukebox.common.world import free_port  # noqa: E402
from megajukebox.monitoring.collect.run_reader import Runs  # noqa: E402
from megajukebox.monitoring.doctor import checks, network  # noqa: E402
from megajukebox.monitoring.exporters.metrics_server import MetricsServer, application  # noqa: E402
from megajukebox.monitoring.exporters.terminal import screen  # noqa: E402
from megajukebox.records.run_log import RunLog  # noqa: E402
from megajukebox.resilience import preflight  # noqa: E402
from megajukebox.resilience.exit_codes import ExitRecord  # noqa: E402
from megajukebox.resilience.fencing import FencingToken  # noqa: E402
from megajukebox.resilience.restart_policy import (  # noqa: E402
    attempts_without_progress,
    classify_attempt,
    node_failures,
)
from megajukebox.resilience.watchdog import (  # noqa: E402
    HEARTBEAT_SECONDS,
    HangTimeouts,
    Watchdog,
)
from megajukebox.training.engines.comm_timing import Communication  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "scale.json"
REPEATS = 5
SCREEN_COLUMNS = 200
SHORT_MEETING_SECONDS = 5.0  # that ranks wait here for a node that does not come; 60 in earnest
LOG_EVERY = 20  # steps, in the preset
# Steps against which the cost is set: of the top prior on 512 V100s, and of the VQ-VAE on H200s (`megajukebox plan`).
STEPS = {"top prior, 512 V100s": STEP_SECONDS, "VQ-VAE, H200s": 0.25}

Figures = dict[str, float]


def timed(call: Callable[[], object], repeats: int = REPEATS) -> Figures:
    """Medians of seconds by the clock, and of this process's CPU-seconds."""
    wall: list[float] = []
    cpu: list[float] = []
    for _ in range(repeats):
        started = time.perf_counter(), time.process_time()
        call()
        wall.append(time.perf_counter() - started[0])
        cpu.append(time.process_time() - started[1])
    return {"seconds": round(median(wall), 4), "cpu_seconds": round(median(cpu), 4)}


def timed_command(*words: str) -> Figures:
    """The same of a whole process, from its start to its exit."""
    wall: list[float] = []
    cpu: list[float] = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-m", "megajukebox", *words], stdout=-3)
        _, _, usage = os.wait4(process.pid, 0)
        wall.append(time.perf_counter() - started)
        cpu.append(usage.ru_utime + usage.ru_stime)
    return {"seconds": round(median(wall), 4), "cpu_seconds": round(median(cpu), 4)}


# ---- Watching ------------------------------------------------------------------------------------------------------


def watch(run: ManyRanks) -> dict[str, Figures]:
    """`watch --once` from start to exit, and one refresh of a screen that is open."""
    runs = Runs([run.folder])
    runs.read()

    def refresh() -> None:
        Console(file=sys.stderr, width=SCREEN_COLUMNS, quiet=True).print(
            screen(runs.read(), time.time(), SCREEN_COLUMNS)
        )

    return {
        "watch --once, the whole process": timed_command("watch", str(run.folder), "--once"),
        "watch, a refresh": timed(refresh),
    }


def exporter(run: ManyRanks) -> dict[str, Figures]:
    """The first scrape of an exporter, and the ones after it, over HTTP."""

    def serve() -> str:
        server = MetricsServer(
            ("127.0.0.1", 0), application(Exporter(Runs([run.folder]), every=1e9), token=None)
        )
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}/metrics"

    def scrape(address: str) -> bytes:
        with urllib.request.urlopen(address) as answer:
            return answer.read()

    address = serve()
    assert scrape(address).count(b"megajukebox_rank_silent{") == run.ranks
    return {
        "exporter, the first scrape": timed(lambda: scrape(serve())),
        "exporter, a scrape": timed(lambda: scrape(address)),
    }


# ---- Preflight -----------------------------------------------------------------------------------------------------


def preflight_decision(run: ManyRanks) -> dict[str, Figures]:
    """From the start of the doctor to the decision, part by part."""
    reports = [
        network.RankReport(
            rank, run.host(rank), 0.0, 1.0, checks.versions(), {"run.yaml": "0"}, 7.0
        )
        for rank in range(run.ranks)
    ]
    run.write_preflight()
    with tempfile.TemporaryDirectory() as folder:
        doctor = timed_command("doctor", "--run", str(run.folder), "--report-dir", folder)
    return {
        "doctor of one rank, the whole process": doctor,
        "all ranks meet": timed(lambda: meeting(run.ranks, 0, preflight.MEETING_SECONDS)),
        f"a node does not come (limit {SHORT_MEETING_SECONDS:.0f} s)": timed(
            lambda: meeting(run.ranks, 8, SHORT_MEETING_SECONDS), repeats=1
        ),
        "comparing the ranks": timed(lambda: network.compare(reports)),
        "reading the reports, deciding": timed(lambda: decide(run)),
    }


def meeting(ranks: int, absent: int, limit: float) -> None:
    """Rank 0 meets the others, of which the last `absent` do not come within `limit` seconds; a thread is a rank."""
    port = free_port()

    def come(rank: int) -> None:
        store = dist.TCPStore("127.0.0.1", port, ranks, wait_for_workers=False)
        store.set(f"here/{rank}", json.dumps(["node", "cpu"]))

    def all_come() -> None:
        with socket.socket() as probe:
            while probe.connect_ex(("127.0.0.1", port)):
                time.sleep(0.01)
        comers = [threading.Thread(target=come, args=(rank,)) for rank in range(1, ranks - absent)]
        for comer in comers:
            comer.start()
        for comer in comers:
            comer.join()

    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    others = threading.Thread(target=all_come)
    others.start()
    with (
        patch.dict(os.environ, {"RANK": "0", "WORLD_SIZE": str(ranks), **address}),
        patch.object(dist, "init_process_group"),
    ):
        try:
            network.meet(limit, "cpu")
        except RuntimeError as error:
            assert f"{absent} of {ranks} ranks did not come" in str(error), error
        else:
            assert not absent
    others.join()


def decide(run: ManyRanks) -> None:
    """What `preflight.examine` does once the doctor has ended."""
    folder = run.folder / preflight.FOLDER
    reports = [preflight.read_object(path) for path in sorted(folder.glob("rank-*.json"))]
    together = preflight.read_object(folder / "together.json")
    result = preflight.evaluate_reports(reports, together, run.nodes, 0)
    assert result.verdict == "good", result


# ---- Restarts ------------------------------------------------------------------------------------------------------


def restart(run: ManyRanks) -> dict[str, Figures]:
    """What the supervisor reads between the end of an attempt and the next start."""

    def between_attempts() -> None:
        outcome = classify_attempt(run.folder, run.attempts - 1, 137)
        assert outcome.kind == "retry" and outcome.nodes == (run.nodes[3],)
        attempts_without_progress(run.folder)
        for _ in range(3):  # who trains, who is unhealthy, who is excluded
            node_failures(run.folder)

    for rank in range(run.ranks):
        if run.host(rank) != run.nodes[3]:
            run.write_exit(rank)
    return {"supervisor, between two attempts": timed(between_attempts)}


# ---- A training step -----------------------------------------------------------------------------------------------


def step_cost(run: ManyRanks) -> dict[str, Any]:
    """Microseconds of each part on rank 0, while all other ranks renew their heartbeats; and the share of a step."""
    others = Process(target=beat_for_ever, args=(run,), daemon=True)
    others.start()
    try:
        parts = step_parts(run)
    finally:
        others.terminate()
    each_step = parts["every step"] + COLLECTIVES * parts["every collective"]
    each_step += parts["every logged step"] / LOG_EVERY
    each_beat = parts["a heartbeat and the look at the fencing token, on its own thread"]
    shares = {
        name: round((each_step + each_beat * seconds / HEARTBEAT_SECONDS) * 1e-6 / seconds, 6)
        for name, seconds in STEPS.items()
    }
    return {"microseconds": parts, "share_of_a_step": shares}


def step_parts(run: ManyRanks) -> Figures:
    log = RunLog(run.folder, writes=True)
    token = FencingToken(run.folder, run.attempts, "ours")
    watchdog = Watchdog(log, token, HangTimeouts(), ExitRecord(run.folder))
    clock = Communication(torch.device("cpu"))

    def every_step() -> None:
        with watchdog.phase("data_wait"):
            pass
        watchdog.record_step(7, STEP_SECONDS, clock.seconds())

    def every_heartbeat() -> None:
        watchdog.write_heartbeat()
        token.is_current()

    parts = {
        "every step": microseconds(every_step),
        "every collective": timing_of_a_collective(clock),
        "every logged step": microseconds(
            lambda: log.metrics(7, "train", LINE | watchdog.phase_seconds()), 300
        ),
        "a heartbeat and the look at the fencing token, on its own thread": microseconds(
            every_heartbeat, 300
        ),
    }
    return {name: round(value, 2) for name, value in parts.items()}


def beat_for_ever(run: ManyRanks) -> None:
    """Heartbeats of all ranks but rank 0, evenly over HEARTBEAT_SECONDS."""
    while True:
        for rank in range(1, run.ranks):
            run.write_heartbeat(rank)
            time.sleep(HEARTBEAT_SECONDS / run.ranks)


def main(
    name: Annotated[str, typer.Option(help="What the figures are kept under.")],
    ranks: Annotated[int, typer.Option(min=8, help="A multiple of 8.")] = 512,
    steps: Annotated[int, typer.Option(min=1000)] = 310_000,
) -> None:
    """Measure all of it."""
    with tempfile.TemporaryDirectory() as folder:
        run = ManyRanks(Path(folder) / "top_prior", ranks, steps)
        run.write()
        figures = watch(run) | exporter(run) | preflight_decision(run) | restart(run)
        cost = step_cost(run)
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "commit": made_by()["commit"],
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "ranks": ranks,
        "steps": steps,
        "figures": figures,
        "a_training_step": cost,
    }
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps(kept | {name: report}, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    typer.run(main)
