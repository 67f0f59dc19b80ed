"""What can be wrong with a machine before a run: versions, GPUs, disks, shards, locks, ports, one function each."""

import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from random import Random

from megajukebox.common.errors import EXIT_FATAL
from megajukebox.common.files import create_new, sha256_of, sha256_of_open
from megajukebox.common.untrusted_files import open_given, open_inside
from megajukebox.common.world import ranks_here
from megajukebox.monitoring.alerts import format_bytes, format_duration
from megajukebox.monitoring.collect.host import Gpu, disk, gpus
from megajukebox.records.exits import read_exits
from megajukebox.records.jsonl_tail import read_object
from megajukebox.resilience import slurm

PACKAGES = ("megajukebox", "torch", "deepspeed", "numpy", "webdataset", "soundfile")
# Before it, torch.load(weights_only=True) could be made to run code (CVE-2026-24747).
MIN_TORCH = (2, 10)
STALE_LOCK = 600.0  # seconds: a build of an extension takes minutes, not more
SLOW_DISK = 50e6  # bytes a second
TEST_FILE_BYTES = 64 << 20  # of the file that measures a disk
MAX_CELSIUS = 85.0
CHECKED_SHARDS = 4  # whose checksum is computed
CHECKPOINTS_OF_SPACE = 3  # that should fit on the disk
# Errors of NVIDIA's driver that mean broken hardware (memory, a link, off the bus); others are mostly programs' faults.
XIDS = (48, 64, 74, 79, 92, 94, 95, 119, 120)
XID_HOURS = 24.0


@dataclass(frozen=True)
class Finding:
    """One line of the doctor: `verdict` is good, warn or bad; `do` is what to do about it; `hosts` have it."""

    about: str
    verdict: str
    what: str
    do: str = ""
    hosts: tuple[str, ...] = ()


def versions() -> dict[str, str]:
    """Of everything that ranks must have alike."""
    numbers = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            numbers[name] = version(name)
        except PackageNotFoundError:
            numbers[name] = "missing"
    if (
        "torch" in sys.modules
    ):  # it names its build, +cu126 or +cpu, which a package of PyPI does not
        numbers["torch"] = str(sys.modules["torch"].__version__)
    return numbers


def check_versions() -> Finding:
    numbers = versions()
    missing = [name for name, number in numbers.items() if number == "missing"]
    if missing:
        what = f"missing: {', '.join(missing)}"
        return Finding("versions", "bad", what, "pip install megajukebox")
    what = ", ".join(f"{name} {number}" for name, number in numbers.items())
    torch = tuple(map(int, numbers["torch"].split("+")[0].split(".")[:2]))
    if torch < MIN_TORCH:
        return Finding("versions", "bad", what, "install torch 2.10 or newer")
    return Finding("versions", "good", what)


def needed_gpus() -> int:
    """GPUs that the ranks of this machine need; none where they are to train on the CPU."""
    asked = os.environ.get("DS_ACCELERATOR")
    if asked == "cpu":
        return 0
    if "SLURM_GPUS_PER_TASK" in os.environ:  # each task sees its own alone
        return int(os.environ["SLURM_GPUS_PER_TASK"].rpartition(":")[2])
    is_alone = int(os.environ.get("WORLD_SIZE", "1")) == 1 and slurm.job() is None
    if asked is None and is_alone and version("torch").endswith("+cpu"):
        return 0  # a laptop
    return ranks_here()


def check_gpus(needed: int = 0) -> Finding:
    """Fewer than the `needed`, not alike, hot, or with errors: the slowest sets the pace of all."""
    present = gpus()
    if len(present) < needed:
        what = f"{len(present)} answer, {needed} are needed"
        do = "exclude this node; to train on CPUs set DS_ACCELERATOR=cpu"
        return Finding("GPUs", "bad", what, do)
    if not present:
        return Finding("GPUs", "good", "none that NVML knows of: training uses the CPU")
    models = {gpu.model for gpu in present}
    broken = xids()
    if broken:
        what = f"Xid {', '.join(map(str, broken))} in the last {XID_HOURS:.0f} hours"
        return Finding("GPUs", "bad", what, "exclude this node")
    if len(models) > 1:
        what = f"of different kinds: {', '.join(sorted(models))}"
        return Finding("GPUs", "warn", what, "choose nodes of one kind")
    faulty = indices_above(present, "ecc_uncorrected_errors", 0)
    if faulty:
        return Finding("GPUs", "bad", f"memory errors on {faulty}", "exclude this node")
    hot = indices_above(present, "temperature_celsius", MAX_CELSIUS)
    if hot:
        return Finding("GPUs", "warn", f"above {MAX_CELSIUS:.0f} C: {hot}", "check its fans")
    return Finding("GPUs", "good", f"{len(present)} x {models.pop()}")


def indices_above(present: list[Gpu], figure: str, limit: float) -> str:
    """The GPUs whose figure is above a limit, as in `0, 3`."""
    return ", ".join(str(gpu.index) for gpu in present if gpu.figures.get(figure, 0) > limit)


def xids(now: float | None = None) -> list[int]:
    """Numbers of the last day's driver errors that mean broken hardware; none where we may not read the kernel's log.

    2026-11-25T17:00:00,123456+00:00 NVRM: Xid (PCI:0000:3b:00): 79, pid=...
    """
    command = ["dmesg", "--time-format=iso"]
    try:
        log = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    end = time.time() if now is None else now
    since = datetime.fromtimestamp(end - XID_HOURS * 3600, timezone.utc)
    lines = re.findall(r"^([\d-]+T[\d:]+),\d+(\S+) NVRM: Xid \(.*?\): (\d+)", log, re.MULTILINE)
    recent = set()
    for day, zone, number in lines:
        if datetime.fromisoformat(day + zone) >= since:
            recent.add(int(number))
    return sorted(recent & set(XIDS))


def check_locks(folder: Path | None = None) -> Finding:
    """A killed build of a torch extension leaves a lock that every later start waits for, for ever."""
    cache = Path.home() / ".cache" / "torch_extensions"
    extensions = folder or Path(os.environ.get("TORCH_EXTENSIONS_DIR", cache))
    for lock in sorted(extensions.glob("**/lock")):
        age = time.time() - lock.stat().st_mtime
        if age > STALE_LOCK:
            return Finding("locks", "bad", f"{lock} is {format_duration(age)} old", "delete it")
    return Finding("locks", "good", "no stale lock of a torch extension")


def check_disk(folder: Path, test_bytes: int = TEST_FILE_BYTES) -> Finding:
    """Free space, and the speed of writing (to the disk) and reading; a read may come from the memory."""
    about = f"disk of {folder}"
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = disk(existing).free_bytes or 0
    try:
        write, read = throughput(existing, min(test_bytes, int(free) // 10))
    except OSError as error:
        what = f"cannot be written to: {error.strerror}"
        return Finding(about, "bad", what, "fix the mount, or choose another")
    speed = f"writes {format_bytes(write)}/s, reads {format_bytes(read)}/s"
    what = f"{format_bytes(free)} free, {speed}"
    if write < SLOW_DISK:
        do = f"under {format_bytes(SLOW_DISK)}/s: saves will be slow"
        return Finding(about, "warn", what, do)
    # The size of the run's newest checkpoint, if it has any.
    manifests = sorted(folder.glob("checkpoints/step-*/manifest.json"))
    files = read_object(manifests[-1], 1 << 28).get("files", {}) if manifests else {}
    needed = float(sum(facts.get("bytes", 0) for facts in files.values()))
    if needed and free < CHECKPOINTS_OF_SPACE * needed:
        verdict = "bad" if free < needed else "warn"
        what = f"{what}; a checkpoint takes {format_bytes(needed)}"
        return Finding(about, verdict, what, "free three checkpoints' space")
    return Finding(about, "good", what)


def throughput(folder: Path, size: int) -> tuple[float, float]:
    """Bytes a second of writing (fsync included) and of reading a file of `size` bytes in `folder`."""
    path = folder / f".megajukebox-doctor-{os.getpid()}"
    block = os.urandom(min(size, 1 << 20) or 1)
    try:
        started = time.perf_counter()
        with create_new(path) as file:
            for _ in range(max(1, size // len(block))):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        written = time.perf_counter()
        with open_inside(folder, path.name) as file:
            while file.read(1 << 20):
                pass
        return size / (written - started), size / (time.perf_counter() - written)
    finally:
        path.unlink(missing_ok=True)


def check_shards(folder: Path, checked: int = CHECKED_SHARDS) -> Finding:
    """The index, every shard's size, and the checksums of some (all: `megajukebox shards check`)."""
    about = f"shards of {folder}"
    repair = "restore them; megajukebox shards check reads every one"
    listed = read_object(folder / "index.json", 1 << 30).get("shards")
    if not isinstance(listed, list) or not listed:
        what = "there is no index.json that lists shards"
        return Finding(about, "bad", what, "prepare or encode them again")
    wrong = []
    for shard in listed:
        path = folder / shard["name"]
        if not path.is_file() or path.stat().st_size != shard["bytes"]:
            wrong.append(shard["name"])
    if wrong:
        what = f"{len(wrong)} of {len(listed)} missing or cut, first {wrong[0]}"
        return Finding(about, "bad", what, repair)
    sample = Random(os.getpid()).sample(listed, min(checked, len(listed)))
    for shard in sample:
        if sha256_of(folder / shard["name"]) != shard["sha256"]:
            return Finding(about, "bad", f"{shard['name']} has another checksum", repair)
    what = f"{len(listed)} shards, sizes right, {len(sample)} checksums right"
    return Finding(about, "good", what)


def check_run(folder: Path) -> Finding:
    """Whether a run may be started, by its flags and the exits of its last attempt."""
    about = f"run {folder.name}"
    if (folder / "DONE").exists():
        return Finding(about, "good", "is done")
    stop = folder / "STOP"
    if stop.exists():
        what = "the file STOP is there: a start would end at once"
        return Finding(about, "warn", what, f"rm {stop}")
    fatal = [record for record in read_exits(folder) if record.code == EXIT_FATAL]
    if fatal:
        what = f"needs an operator since its last attempt: {fatal[0].reason}"
        return Finding(about, "warn", what, "fix that before a start")
    return Finding(about, "good", "may be started")


def digest(path: Path) -> str:
    """Of a file that must be the same on every rank; of what is not there too."""
    if not path.is_file():
        return "missing"
    with open_given(path) as file:
        return sha256_of_open(file)[:12]


def worst(findings: Iterable[Finding]) -> str:
    """The verdict of the worst finding: bad, warn or good; good of none."""
    verdicts = {finding.verdict for finding in findings}
    if "bad" in verdicts:
        return "bad"
    return "warn" if "warn" in verdicts else "good"
