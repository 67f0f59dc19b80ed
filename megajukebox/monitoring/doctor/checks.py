"""What can be wrong with a machine before a run: versions, GPUs, disks, shards, locks, ports, one function each."""

import hashlib
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from random import Random

from megajukebox.common.files import sha256_of
from megajukebox.monitoring.alerts import format_bytes, format_duration
from megajukebox.monitoring.collect.host import disk, gpus
from megajukebox.records.jsonl_tail import read_object

PACKAGES = ("megajukebox", "torch", "deepspeed", "numpy", "webdataset", "soundfile")
OLDEST_TORCH = (
    2,
    10,
)  # before it, torch.load(weights_only=True) could be made to run code (CVE-2026-24747)
STALE_LOCK = 600.0  # seconds: a build of an extension takes minutes, not more
SLOW_DISK = 50e6  # bytes a second
WRITTEN = 64 << 20  # bytes of the file that measures a disk
HOT = 85.0  # degrees Celsius
CHECKED = 4  # shards whose checksum is computed
# Errors of NVIDIA's driver that mean broken hardware (memory, a link, off the bus); others are mostly programs' faults.
XIDS = (48, 64, 74, 79, 92, 94, 95, 119, 120)
XID_HOURS = 24.0


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's: `verdict` is good, warn or bad; `do` is what to do about it; `hosts` have it."""

    about: str
    verdict: str
    what: str
    do: str = ""
    hosts: tuple[str, ...] = ()


def versions() -> dict[str, str]:
    """Of everything that ranks must have alike."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def check_versions() -> Finding:
    found = versions()
    missing = [name for name, number in found.items() if number == "missing"]
    told = ", ".join(f"{name} {number}" for name, number in found.items())
    if missing:
        return Finding(
            "versions", "bad", f"missing: {', '.join(missing)}", "pip install megajukebox"
        )
    if tuple(int(part) for part in found["torch"].split("+")[0].split(".")[:2]) < OLDEST_TORCH:
        return Finding("versions", "bad", told, "install torch 2.10 or newer")
    return Finding("versions", "good", told)


def check_gpus(needed: int = 0) -> Finding:
    """Fewer than the `needed`, not alike, hot, or with errors: the slowest sets the pace of all."""
    found = gpus()
    if not found:
        return Finding("GPUs", "good", "none that NVML knows of: training uses the CPU")
    models = {gpu.model for gpu in found}
    ill = [gpu for gpu in found if gpu.figures.get("ecc_uncorrected_errors", 0) > 0]
    hot = [gpu for gpu in found if gpu.figures.get("temperature_celsius", 0) > HOT]
    broken = xids()
    if len(found) < needed:
        return Finding(
            "GPUs", "bad", f"{len(found)} answer, {needed} are needed", "exclude this node"
        )
    if broken:
        told = ", ".join(map(str, broken))
        return Finding(
            "GPUs", "bad", f"Xid {told} in the last {XID_HOURS:.0f} hours", "exclude this node"
        )
    if len(models) > 1:
        return Finding(
            "GPUs",
            "warn",
            f"of different kinds: {', '.join(sorted(models))}",
            "choose nodes of one kind",
        )
    if ill:
        return Finding(
            "GPUs",
            "bad",
            f"memory errors on {', '.join(str(g.index) for g in ill)}",
            "exclude this node",
        )
    if hot:
        return Finding(
            "GPUs",
            "warn",
            f"above {HOT:.0f} C: {', '.join(str(g.index) for g in hot)}",
            "look at its fans",
        )
    return Finding("GPUs", "good", f"{len(found)} x {models.pop()}")


def xids(now: float | None = None) -> list[int]:
    """Numbers of the last day's driver errors that mean broken hardware; none where we may not read the kernel's log.

    2026-11-25T17:00:00,123456+00:00 NVRM: Xid (PCI:0000:3b:00): 79, pid=...
    """
    try:
        told = subprocess.run(
            ["dmesg", "--time-format=iso"], capture_output=True, text=True, timeout=20
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    since = datetime.fromtimestamp(
        (time.time() if now is None else now) - XID_HOURS * 3600, timezone.utc
    )
    lines = re.findall(r"^([\d-]+T[\d:]+),\d+(\S+) NVRM: Xid \(.*?\): (\d+)", told, re.MULTILINE)
    recent = {
        int(number) for day, zone, number in lines if datetime.fromisoformat(day + zone) >= since
    }
    return sorted(recent & set(XIDS))


def check_locks(folder: Path | None = None) -> Finding:
    """A killed build of a torch extension leaves a lock that every later start waits for, for ever."""
    default = Path(
        os.environ.get("TORCH_EXTENSIONS_DIR", Path.home() / ".cache" / "torch_extensions")
    )
    locks = sorted((folder or default).glob("**/lock"))
    stale = [lock for lock in locks if time.time() - lock.stat().st_mtime > STALE_LOCK]
    if stale:
        return Finding(
            "locks",
            "bad",
            f"{stale[0]} is {format_duration(time.time() - stale[0].stat().st_mtime)} old",
            "delete it",
        )
    return Finding("locks", "good", "no stale lock of a torch extension")


def check_disk(folder: Path, written: int = WRITTEN) -> Finding:
    """Free space, and the speed of writing (to the disk) and reading; a read may come from the memory."""
    about = f"disk of {folder}"
    place = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = disk(place)
    try:
        write, read = throughput(place, min(written, int(free.free_bytes or 0) // 10))
    except OSError as error:
        return Finding(
            about,
            "bad",
            f"cannot be written to: {error.strerror}",
            "mend the mount, or choose another",
        )
    told = f"{format_bytes(free.free_bytes or 0)} free, writes {format_bytes(write)}/s, reads {format_bytes(read)}/s"
    if write < SLOW_DISK:
        return Finding(
            about, "warn", told, f"under {format_bytes(SLOW_DISK)}/s: saves will be slow"
        )
    needed = checkpoint_bytes(folder)
    if needed and (free.free_bytes or 0) < 3 * needed:
        verdict = "bad" if (free.free_bytes or 0) < needed else "warn"
        return Finding(
            about,
            verdict,
            f"{told}; a checkpoint takes {format_bytes(needed)}",
            "free three checkpoints' space",
        )
    return Finding(about, "good", told)


def throughput(folder: Path, size: int) -> tuple[float, float]:
    """Bytes a second of writing (fsync included) and of reading a file of `size` bytes in `folder`."""
    path, block = folder / f".megajukebox-doctor-{os.getpid()}", os.urandom(min(size, 1 << 20) or 1)
    try:
        started = time.perf_counter()
        with path.open("wb") as file:
            for _ in range(max(1, size // len(block))):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        wrote = time.perf_counter()
        with path.open("rb") as file:
            while file.read(1 << 20):
                pass
        return size / (wrote - started), size / (time.perf_counter() - wrote)
    finally:
        path.unlink(missing_ok=True)


def checkpoint_bytes(run: Path) -> float:
    """The size of a run's newest checkpoint; 0 if it has none."""
    manifests = sorted(run.glob("checkpoints/step-*/manifest.json"))
    files = read_object(manifests[-1], 1 << 28).get("files", {}) if manifests else {}
    return float(sum(facts.get("bytes", 0) for facts in files.values()))


def check_shards(folder: Path, checked: int = CHECKED) -> Finding:
    """The index, every shard's size, and the checksums of some (all: `megajukebox shards check`)."""
    about, repair = f"shards of {folder}", "restore them; megajukebox shards check reads every one"
    listed = read_object(folder / "index.json", 1 << 30).get("shards")
    if not isinstance(listed, list) or not listed:
        return Finding(
            about, "bad", "there is no index.json that lists shards", "prepare or encode them again"
        )
    wrong = [s["name"] for s in listed if not same_size(folder / s["name"], s["bytes"])]
    if wrong:
        return Finding(
            about, "bad", f"{len(wrong)} of {len(listed)} missing or cut, first {wrong[0]}", repair
        )
    for shard in Random(os.getpid()).sample(listed, min(checked, len(listed))):
        if sha256_of(folder / shard["name"]) != shard["sha256"]:
            return Finding(about, "bad", f"{shard['name']} has another checksum", repair)
    return Finding(
        about,
        "good",
        f"{len(listed)} shards, sizes right, {min(checked, len(listed))} checksums right",
    )


def same_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def check_run(folder: Path) -> Finding:
    """Whether a run may be started: what its flags and last endings say."""
    about = f"run {folder.name}"
    ends = [read_object(path) for path in sorted(folder.glob("exits/rank-*.json"))]
    person = [end for end in ends if end.get("code") == 93]
    if (folder / "DONE").exists():
        return Finding(about, "good", "is done")
    if (folder / "STOP").exists():
        return Finding(
            about,
            "warn",
            "the file STOP is there: a start would end at once",
            f"rm {folder / 'STOP'}",
        )
    if person:
        return Finding(
            about,
            "warn",
            f"ended last for a person: {person[0].get('reason')}",
            "mend that before a start",
        )
    return Finding(about, "good", "may be started")


def digest(path: Path) -> str:
    """Of a file that must be the same on every rank; of what is not there too."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path.is_file() else "missing"


def worst(findings: Iterable[Finding]) -> str:
    verdicts = {finding.verdict for finding in findings}
    return next((verdict for verdict in ("bad", "warn") if verdict in verdicts), "good")
