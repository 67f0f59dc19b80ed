"""The faults that the monitoring is tried with, on real tiny runs: how each is put in, and the alert it must raise."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rig import Rig


@dataclass(frozen=True)
class Fault:
    """`inject` starts a run with it (or spoils one) and returns when the fault began."""

    name: str
    alert: str
    limit: float  # seconds within which the alert must fire, with everything 60 times faster
    inject: Callable[[Rig, str], float]


def by_wrapper(fault: str, *settings: str, ranks: int = 1) -> Callable[[Rig, str], float]:
    """The training entry with the fault put in after some healthy steps."""

    def inject(rig: Rig, name: str) -> float:
        rig.train(name, *settings, ranks=ranks, fault=fault)
        began = rig.runs / name / "fault_began"
        rig.wait(began.exists, 240)
        return float(began.read_text().split()[0])

    return inject


def hung_rank(rig: Rig, name: str) -> float:
    rig.train(name, ranks=2)
    rig.wait_for_step(name, 12)
    os.kill(rig.pids(name)[1], signal.SIGSTOP)
    return time.time()


def whole_job_gone(rig: Rig, name: str) -> float:
    child = rig.train(name)
    rig.wait_for_step(name, 12)
    rig.end(child)
    return time.time()


def empty_shards(rig: Rig, name: str) -> float:
    """Every tar cut to nothing while the index still lists its songs."""
    broken, healthy = rig.folder / f"{name}_songs", rig.songs
    shutil.copytree(healthy, broken)
    for tar in broken.glob("*.tar"):
        tar.write_bytes(b"")
    rig.songs = broken
    rig.train(name, "bandwidth_seconds=0")
    rig.songs = healthy
    record = rig.runs / name / "exits" / "rank-00000.json"
    rig.wait(lambda: record.exists() or rig.query(f'megajukebox_bad_samples_ratio{{run="{name}"}} > 0'), 240)
    return time.time() if not record.exists() else record.stat().st_mtime


def full_disk(rig: Rig, name: str) -> float:
    """The run lives on a small tmpfs that somebody fills: nothing can be written, not even that."""
    return filled(rig, name, left=0)


def no_room(rig: Rig, name: str) -> float:
    """The same, but for a few lines: no room for a checkpoint."""
    return filled(rig, name, left=96 << 10)


def filled(rig: Rig, name: str, left: int) -> float:
    folder = rig.runs / name
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)], check=True)
    rig.train(name, "save_every=10", "keep=1")
    rig.wait_for_step(name, 12)
    began = time.time()
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(b"\0" * 4096):
                pass
        except OSError:
            file.truncate(max(0, file.tell() - left))
            return began
    raise AssertionError("the disk did not fill")


def crash_loop(rig: Rig, name: str) -> float:
    for _ in range(6):
        rig.train(name, fault="crash").wait(240)
    return float((rig.runs / name / "fault_began").read_text().split()[0])


def exporter_gone(rig: Rig, name: str) -> float:
    rig.end(rig.exporter)
    return time.time()


def chain_short(rig: Rig, name: str) -> float:
    """The queue holds one more job of ten seconds: far less than the run needs."""
    rig.train(name, steps=10**6)
    rig.wait_for_step(name, 12)
    now = time.time()
    told = {"time": now, "job": "7", "array": "1", "ends": now + 600, "queued": 1, "queued_seconds": 10.0}
    (rig.runs / name / "chain.json").write_text(json.dumps(told))
    return now


FAULTS = {
    fault.name: fault
    for fault in (
        Fault("loss is not a number", "JukeboxLossNaN", 30, by_wrapper("nan")),
        Fault("loss spike", "JukeboxLossSpike", 30, by_wrapper("spike", "log_every=1")),
        Fault("slow rank", "JukeboxStraggler", 90, by_wrapper("slow_rank", "log_every=1", ranks=2)),
        Fault("slow rank, speed", "JukeboxThroughputDrop", 120, by_wrapper("rank_gets_slow", "log_every=1", ranks=2)),
        Fault("slow data", "JukeboxDataWait", 60, by_wrapper("slow_data", "log_every=1")),
        Fault("data stall", "JukeboxStalled", 60, by_wrapper("data_stall")),
        Fault("empty shards", "JukeboxNoRestart", 60, empty_shards),
        Fault("codebook collapse", "JukeboxCodebookCollapse", 60, by_wrapper("collapse", "log_every=1")),
        Fault("full disk", "JukeboxDiskFull", 60, full_disk),
        Fault("no room for a checkpoint", "JukeboxSaveFailed", 60, no_room),
        Fault("stale checkpoint", "JukeboxCheckpointStale", 90, by_wrapper("no_saves", "save_every=5")),
        Fault("hung rank", "JukeboxRankSilent", 40, hung_rank),
        Fault("job gone", "JukeboxDown", 60, whole_job_gone),
        Fault("crash loop", "JukeboxRestartStorm", 300, crash_loop),
        Fault("too few jobs queued", "JukeboxChainShort", 60, chain_short),
        Fault("exporter gone", "JukeboxWatcherBlind", 20, exporter_gone),
    )
}


def seconds_to_alert(rig: Rig, fault: Fault) -> float:
    """Puts the fault into a run of its own; seconds from its beginning until the alert fires."""
    name = fault.name.replace(" ", "_").replace(",", "")
    began = fault.inject(rig, name)
    run = None if fault.alert == "JukeboxWatcherBlind" else name
    return rig.wait(lambda: fault.alert in rig.firing(run), fault.limit) - began


def clean(rig: Rig) -> None:
    rig.end_all()
    for mounted in {Path(line.split()[1]) for line in Path("/proc/mounts").read_text().splitlines()}:
        if rig.runs in mounted.parents:
            subprocess.run(["umount", str(mounted)], check=False)
