"""The ranks examined together: who computes, talks or keeps time unlike the others, or does not answer at all."""

import os
import socket
import time
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import timedelta
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from megajukebox.monitoring.alerts import format_bytes
from megajukebox.monitoring.doctor.checks import Finding

SLOW = 1.3  # times the median rank
SKEW = 2.0  # seconds
MATRIX = 512
REPEATS = 20
LOUD = 8 << 20  # float32 numbers of the largest all-reduce: 32 MB


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


def meet(seconds: float) -> None:
    """Join the other ranks. Raises RuntimeError, naming who did not come, after `seconds`."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    limit = timedelta(seconds=seconds)
    store = dist.TCPStore(
        address, port, size, is_master=rank == 0, timeout=limit, wait_for_workers=False
    )
    store.set(f"here/{rank}", socket.gethostname())
    if rank == 0:
        silent = not_heard(store, size, seconds)
        if silent:
            named = ", ".join(map(str, silent[:16])) + (" ..." if len(silent) > 16 else "")
            raise RuntimeError(
                f"silent: {len(silent)} of {size} ranks did not come within {seconds:.0f} s: {named}"
            )
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(
        backend, store=dist.PrefixStore("doctor", store), rank=rank, world_size=size, timeout=limit
    )


def not_heard(store: dist.TCPStore, size: int, seconds: float) -> list[int]:
    until, missing = time.monotonic() + seconds, list(range(size))
    while missing and time.monotonic() < until:
        missing = [rank for rank in missing if not store.check([f"here/{rank}"])]
        time.sleep(0.05)
    return missing


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
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, asdict(own))
    return [RankReport(**report) for report in told]


def compute(device: torch.device) -> float:
    """A fixed amount of work; its result, which tells a machine that computes wrongly."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(MATRIX, MATRIX, generator=draw).to(device)
    y = x
    for _ in range(REPEATS):
        y = torch.tanh(x @ y / MATRIX**0.5)
    return float(y.double().sum())


def bandwidth(device: torch.device, numbers: int = LOUD) -> tuple[float, float, float]:
    """Seconds of a small all-reduce, and bytes a second of a large one (as an algorithm, and on the wire)."""
    small, large = torch.ones(1, device=device), torch.ones(numbers, device=device)
    latency, slow = min(timed(small) for _ in range(10)), min(timed(large) for _ in range(3))
    size, ranks = numbers * large.element_size(), dist.get_world_size()
    return latency, size / slow, size / slow * 2 * (ranks - 1) / ranks


def timed(values: torch.Tensor) -> float:
    dist.barrier()
    started = time.perf_counter()
    dist.all_reduce(values)
    if values.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def wrong_sum(device: torch.device) -> bool:
    """Whether an all-reduce gives another result than it must."""
    value = torch.tensor([float(dist.get_rank())], device=device)
    dist.all_reduce(value)
    return value.item() != dist.get_world_size() * (dist.get_world_size() - 1) / 2


def judge(reports: list[RankReport]) -> list[Finding]:
    """Who differs from the others, by name."""
    return [slow_ranks(reports), wrong_ranks(reports), skewed(reports), disagreement(reports)]


def slow_ranks(reports: list[RankReport]) -> Finding:
    middle = median(report.compute_seconds for report in reports)
    slow = [r for r in reports if r.compute_seconds > SLOW * middle]
    if slow:
        named = "; ".join(
            f"rank {r.rank} on {r.host} x{r.compute_seconds / middle:.2f}" for r in slow[:8]
        )
        return Finding(
            "computing",
            "warn",
            f"slower than the median rank: {named}",
            "exclude these nodes, or free them",
            of(slow),
        )
    return Finding("computing", "good", f"{len(reports)} ranks alike, {middle * 1e3:.0f} ms each")


def wrong_ranks(reports: list[RankReport]) -> Finding:
    """GPUs of one kind compute the same to the last bit; CPUs add up in another order with other instructions."""
    wrong = []
    for kind in {report.device for report in reports}:
        alike = [report for report in reports if report.device == kind]
        usual = Counter(r.checksum if kind else round(r.checksum, 2) for r in alike).most_common(1)[
            0
        ][0]
        wrong += [r for r in alike if abs(r.checksum - usual) > (0.0 if kind else 0.5)]
    if wrong:
        named = ", ".join(f"rank {r.rank} on {r.host}" for r in wrong[:8])
        return Finding(
            "results",
            "bad",
            f"another result of the same sums: {named}",
            "exclude these nodes",
            of(wrong),
        )
    return Finding("results", "good", "the same on all ranks")


def skewed(reports: list[RankReport]) -> Finding:
    middle = median(report.clock for report in reports)
    off = [r for r in reports if abs(r.clock - middle) > SKEW]
    if off:
        named = ", ".join(
            f"{host} {seconds:+.0f} s"
            for host, seconds in {r.host: r.clock - middle for r in off}.items()
        )
        return Finding(
            "clocks",
            "warn",
            f"wrong: {named}",
            "have their time service mended: events would be misordered",
            of(off),
        )
    return Finding("clocks", "good", f"within {max(abs(r.clock - middle) for r in reports):.2f} s")


def disagreement(reports: list[RankReport]) -> Finding:
    """Versions, GPUs and files that are not as on most ranks."""
    told, odd, where = [{**r.versions, **r.digests, "GPU": r.device} for r in reports], [], []
    for name in told[0]:
        usual = Counter(facts.get(name) for facts in told).most_common(1)[0][0]
        for report, facts in zip(reports, told):
            if facts.get(name) != usual:
                odd.append(
                    f"rank {report.rank} on {report.host} has {name} {facts.get(name)}, most have {usual}"
                )
                where.append(report)
    if odd:
        do = "install the same everywhere; look at the mounts"
        return Finding("agreement", "bad", "; ".join(odd[:4]), do, of(where))
    return Finding("agreement", "good", "the same versions and settings on all ranks")


def of(reports: list[RankReport]) -> tuple[str, ...]:
    """The machines of some ranks."""
    return tuple(sorted({report.host for report in reports}))


def heard(latency: float, algorithm: float, wire: float, ranks: int) -> Finding:
    told = f"{ranks} ranks: {latency * 1e6:.0f} us for a small one, {format_bytes(algorithm)}/s ({format_bytes(wire)}/s a link)"
    return Finding("all-reduce", "good", told)
