"""The ranks examined together: who computes, talks or keeps time unlike the others, or does not answer at all."""

import json
import os
import socket
import time
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import timedelta
from statistics import median

import torch
import torch.distributed as dist

from megajukebox.common.rank_messages import all_gather_json
from megajukebox.common.untrusted_files import parse_json
from megajukebox.monitoring.alerts import format_bytes
from megajukebox.monitoring.doctor.checks import Finding

SLOW_RATIO = 1.3  # times the median rank
MAX_SKEW = 2.0  # seconds
MATRIX = 512  # rows of the matrices that are multiplied
REPEATS = 20
LARGE = 8 << 20  # float32 numbers of the large all-reduce: 32 MB
NO_DEVICE = "no device"  # of a rank whose GPU, or torch, is not fit
MAX_NAMED = 8  # ranks in one finding
CPU_TOLERANCE = 0.5  # of a checksum: CPUs add up in another order with other instructions


@dataclass(frozen=True)
class RankReport:
    """What one rank found of itself."""

    rank: int
    host: str
    clock: float  # when it left a barrier, by its own clock
    compute_seconds: float  # of some matrix products
    versions: dict[str, str]
    digests: dict[str, str]  # of files that all must have alike
    checksum: float  # of the matrix products: the same on machines of one kind that compute rightly
    device: str = ""  # the kind of GPU; none on a CPU


def meet(seconds: float, kind: str) -> None:
    """Join the other ranks, each of which computes on a `kind` of device: cpu, cuda, or none that is fit.

    Raises:
        RuntimeError: some did not come within `seconds`, or compute on another kind; names them.
    """
    rank = int(os.environ["RANK"])
    size = int(os.environ["WORLD_SIZE"])
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        size,
        is_master=rank == 0,
        timeout=timedelta(seconds=seconds),
        wait_for_workers=False,
    )
    store.set(f"here/{rank}", json.dumps([socket.gethostname(), kind]))
    if rank == 0:
        missing = list(range(size))
        deadline = time.monotonic() + seconds
        while missing and time.monotonic() < deadline:
            missing = [rank for rank in missing if not store.check([f"here/{rank}"])]
            time.sleep(0.05)
        if missing:
            raise RuntimeError(
                f"silent: {len(missing)} of {size} ranks did not come within {seconds:.0f} s:"
                f" {first_names(missing)}"
            )
        devices = [parse_json(store.get(f"here/{rank}")) for rank in range(size)]
        store.set("problem", mixed_devices(devices))
    # A group of NCCL's ranks and gloo's would end in a time limit that names everybody.
    problem = store.get("problem").decode()
    if problem:
        raise RuntimeError(problem)
    dist.init_process_group(
        "nccl" if kind == "cuda" else "gloo",
        store=dist.PrefixStore("doctor", store),
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=seconds),
    )


def mixed_devices(devices: list[tuple[str, str]]) -> str:
    """Which ranks compute on another kind of device than most, or on none; empty if they are alike.

    Args:
        devices: (host, kind) of each rank.
    """
    usual = Counter(kind for _, kind in devices).most_common(1)[0][0]
    if usual == NO_DEVICE:
        return "no rank has a device that is fit; see the finding `device`"
    odd = [rank for rank, (_, kind) in enumerate(devices) if kind != usual]
    if not odd:
        return ""
    kinds = ", ".join(sorted({devices[rank][1] for rank in odd}))
    hosts = ", ".join(sorted({devices[rank][0] for rank in odd})[:MAX_NAMED])
    return f"ranks {first_names(odd)} on {hosts} compute on {kinds}, the others on {usual}"


def first_names(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks[:16])) + (" ..." if len(ranks) > 16 else "")


def examine(
    device: torch.device, host: str, versions: dict[str, str], digests: dict[str, str]
) -> list[RankReport]:
    """Every rank's report, on every rank."""
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    dist.barrier()
    clock = time.time()
    started = time.perf_counter()
    checksum = compute(device)
    seconds = time.perf_counter() - started
    own = RankReport(dist.get_rank(), host, clock, seconds, versions, digests, checksum, kind)
    return [RankReport(**report) for report in all_gather_json(asdict(own))]


def compute(device: torch.device) -> float:
    """A fixed amount of work; its result, which differs on a machine that computes wrongly."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(MATRIX, MATRIX, generator=draw).to(device)
    y = x
    for _ in range(REPEATS):
        y = torch.tanh(x @ y / MATRIX**0.5)
    return float(y.double().sum())


def bandwidth(device: torch.device, numbers: int = LARGE) -> tuple[float, float, float]:
    """Seconds of a small all-reduce, and bytes a second of a large one (as an algorithm, and on the wire)."""
    small = torch.ones(1, device=device)
    large = torch.ones(numbers, device=device)
    latency = min(timed(small) for _ in range(10))
    seconds = min(timed(large) for _ in range(3))
    algorithm = numbers * large.element_size() / seconds
    ranks = dist.get_world_size()
    return latency, algorithm, algorithm * 2 * (ranks - 1) / ranks


def timed(values: torch.Tensor) -> float:
    """Seconds of one all-reduce of `values`, which all ranks begin together."""
    dist.barrier()
    started = time.perf_counter()
    dist.all_reduce(values)
    if values.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def check_all_reduce(device: torch.device) -> Finding:
    """How fast all ranks add up numbers together, and whether the sum is what it must be."""
    latency, algorithm, wire = bandwidth(device)
    ranks = dist.get_world_size()
    value = torch.tensor([float(dist.get_rank())], device=device)
    dist.all_reduce(value)
    if value.item() != ranks * (ranks - 1) / 2:
        advice = "exclude nodes by halves until it is right"
        return Finding("all-reduce", "bad", "gives a wrong sum", advice)
    speed = f"{format_bytes(algorithm)}/s ({format_bytes(wire)}/s a link)"
    what = f"{ranks} ranks: {latency * 1e6:.0f} us for a small one, {speed}"
    return Finding("all-reduce", "good", what)


def compare(reports: list[RankReport]) -> list[Finding]:
    """Who differs from the others, by name."""
    return [slow_ranks(reports), wrong_ranks(reports), skewed(reports), disagreement(reports)]


def slow_ranks(reports: list[RankReport]) -> Finding:
    """Ranks whose matrix products take more than SLOW_RATIO times the median rank's time."""
    middle = median(report.compute_seconds for report in reports)
    slow = [report for report in reports if report.compute_seconds > SLOW_RATIO * middle]
    if not slow:
        what = f"{len(reports)} ranks alike, {middle * 1e3:.0f} ms each"
        return Finding("computing", "good", what)
    names = []
    for report in slow[:MAX_NAMED]:
        ratio = report.compute_seconds / middle
        names.append(f"rank {report.rank} on {report.host} x{ratio:.2f}")
    what = f"slower than the median rank: {'; '.join(names)}"
    return Finding("computing", "warn", what, "exclude these nodes, or free them", hosts_of(slow))


def wrong_ranks(reports: list[RankReport]) -> Finding:
    """GPUs of one kind compute the same to the last bit; CPUs within CPU_TOLERANCE."""
    wrong: list[RankReport] = []
    for device in {report.device for report in reports}:
        alike = [report for report in reports if report.device == device]
        results: Counter[float] = Counter()
        for report in alike:
            results[report.checksum if device else round(report.checksum, 2)] += 1
        usual = results.most_common(1)[0][0]
        tolerance = 0.0 if device else CPU_TOLERANCE
        wrong += [report for report in alike if abs(report.checksum - usual) > tolerance]
    if not wrong:
        return Finding("results", "good", "the same on all ranks")
    names = ", ".join(f"rank {report.rank} on {report.host}" for report in wrong[:MAX_NAMED])
    what = f"another result of the same sums: {names}"
    return Finding("results", "bad", what, "exclude these nodes", hosts_of(wrong))


def skewed(reports: list[RankReport]) -> Finding:
    """Machines whose clocks are more than MAX_SKEW seconds from the median one."""
    middle = median(report.clock for report in reports)
    off = [report for report in reports if abs(report.clock - middle) > MAX_SKEW]
    skews = {report.host: report.clock - middle for report in off}
    if not off:
        largest = max(abs(report.clock - middle) for report in reports)
        return Finding("clocks", "good", f"within {largest:.2f} s")
    names = ", ".join(f"{host} {skews[host]:+.0f} s" for host in hosts_of(off))
    do = "have their time service fixed: events would be misordered"
    return Finding("clocks", "warn", f"wrong: {names}", do, hosts_of(off))


def disagreement(reports: list[RankReport]) -> Finding:
    """Versions, GPUs and files that are not as on most ranks."""
    facts = [{**report.versions, **report.digests, "GPU": report.device} for report in reports]
    differences: list[str] = []
    odd: list[RankReport] = []
    for name in facts[0]:
        usual = Counter(own.get(name) for own in facts).most_common(1)[0][0]
        for report, own in zip(reports, facts):
            if own.get(name) != usual:
                rank = f"rank {report.rank} on {report.host}"
                differences.append(f"{rank} has {name} {own.get(name)}, most have {usual}")
                odd.append(report)
    if not odd:
        return Finding("agreement", "good", "the same versions and settings on all ranks")
    do = "install the same everywhere; check the mounts"
    return Finding("agreement", "bad", "; ".join(differences[:4]), do, hosts_of(odd))


def hosts_of(reports: list[RankReport]) -> tuple[str, ...]:
    """The machines of some ranks."""
    return tuple(sorted({report.host for report in reports}))
