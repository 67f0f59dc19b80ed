"""Runs as Prometheus metrics: the table of names (families.py) filled from what the run folders say."""

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from prometheus_client import generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from megajukebox import __version__
from megajukebox.common.levels import LEVELS
from megajukebox.monitoring.alerts import diagnose
from megajukebox.monitoring.collect.host import GPU_FIGURES, Machine
from megajukebox.monitoring.collect.run_state import RunState
from megajukebox.monitoring.collect.step_breakdown import step_parts
from megajukebox.monitoring.exporters.families import FAMILIES
from megajukebox.records.events import (
    CheckpointRejected,
    CheckpointSaved,
    NodeExcluded,
    Rewound,
    RunResumed,
    RunStarted,
    SaveFailed,
)
from megajukebox.records.productive_time import number

PREFIX = "megajukebox_"
STATUSES = (
    "new",
    "starting",
    "training",
    "stalled",
    "waiting",
    "down",
    "stopped",
    "failed",
    "done",
)

KNOWN = {  # logged numbers that have a family of their own
    "schema", "step", "time", "loss", "grad_norm", "learning_rate", "loss_scale", "overflows", "bits_per_code",
    "bits_per_lyric", "audio_seconds_per_second", "tokens_per_second", "step_seconds", "data_seconds", "data_wait_ratio",
    "prefetch_fill_ratio", "mfu", "memory_host_bytes", "memory_gpu_bytes", "communication_seconds",
}  # fmt: skip
HISTOGRAMS = {
    "step_seconds": "step_seconds",
    "data_wait_seconds": "data_seconds",
    "checkpoint_save_seconds": "save",
}
MEMORY = {"memory_gpu_bytes": "gpu_peak", "memory_host_bytes": "host"}


class Value(NamedTuple):
    name: str
    labels: tuple[str, ...]  # without `run`
    value: float


def values(run: RunState) -> Iterator[Value]:
    """Every number of a run but the histograms."""
    for part in (
        told,
        where,
        queue,
        logged,
        speed,
        codebooks,
        ranks,
        saving,
        counted,
        accounted,
        disk,
    ):
        yield from part(run)
    for problem in diagnose(run):
        yield Value("problem", (problem.alert, problem.severity), 1)


def gauge(name: str, value: float | None, *labels: str) -> Iterator[Value]:
    if value is not None and math.isfinite(value):
        yield Value(name, labels, value)


def told(run: RunState) -> Iterator[Value]:
    made = run.settings.get("made_by")
    made = made if isinstance(made, dict) else {}
    preset = run.settings.get("preset")
    name = preset.get("name", "") if isinstance(preset, dict) else ""
    commit, version = (str(made.get(fact) or "") for fact in ("commit", "version"))
    yield Value("run_info", (run.stage, str(name), commit, version, run.config_digest), 1)
    for status in STATUSES:
        yield Value("status", (status,), float(status == run.status))
    yield Value("running", (), float(run.alive))
    yield Value("finished", (), float(run.status in ("done", "stopped")))
    yield Value("needs_person", (), float(run.status == "failed"))
    yield Value("unreadable_lines", (), run.unreadable)


def where(run: RunState) -> Iterator[Value]:
    yield Value("step", (), run.step)
    yield Value("steps", (), run.step)
    yield from gauge("target_steps", run.target)
    yield from gauge("eta_seconds", run.eta_seconds)
    yield from gauge("last_step_timestamp_seconds", run.last_step_time)
    yield Value("stall_after_seconds", (), run.stall_after)
    yield from gauge("heartbeat_timestamp_seconds", run.heartbeat or run.last_seen)
    yield Value("generation", (), run.counts[RunStarted] + run.counts[RunResumed])


def queue(run: RunState) -> Iterator[Value]:
    if run.chain is not None and run.alive:
        yield from gauge("job_time_left_seconds", run.chain.job_seconds_left(run.now))
        yield Value("chain_queued", (), run.chain.queued)
        yield from gauge("chain_seconds", run.chain_seconds_left)


def logged(run: RunState) -> Iterator[Value]:
    for split, line in (("train", run.last), ("held_out", run.held_out)):
        loss = line.get("loss")
        if isinstance(loss, float) and not math.isfinite(loss):
            yield Value("loss", (split, "all"), math.nan)  # told as it is: an alert asks for it
        yield from gauge("loss", number(loss), split, "all")
        for level in LEVELS:
            yield from gauge("loss", number(line.get(f"{level}/reconstruction")), split, level)
        for name in ("bits_per_code", "bits_per_lyric"):
            yield from gauge(name, number(line.get(name)), split)
        for name, value in line.items():
            if name not in KNOWN and not name.startswith("time_"):
                yield from gauge("metric", number(value), split, str(name)[:100])
    yield from gauge("grad_norm", run.value("grad_norm"))
    for name in ("learning_rate", "loss_scale", "overflows"):
        yield from gauge(name, run.value(name))
    yield from gauge("spike_score", run.spike_score)


def speed(run: RunState) -> Iterator[Value]:
    seconds, step = run.value("step_seconds"), number(run.last.get("step"))
    for name in ("audio_seconds", "tokens"):
        rate = run.value(f"{name}_per_second")
        yield from gauge(
            f"{name}_per_second", rate if run.alive else 0.0 if rate is not None else None
        )
        if rate is not None and seconds is not None and step is not None:
            yield Value(name, (), step * rate * seconds)
    yield from gauge("model_flops_utilization_ratio", run.value("mfu"))
    for part, spent in step_parts(run).items():
        yield Value("step_part_seconds", (part,), spent)
    yield from gauge("data_wait_ratio", run.data_wait_ratio)
    yield from gauge("prefetch_depth", run.value("prefetch_fill_ratio"))
    for name, kind in MEMORY.items():
        yield from gauge("memory_bytes", run.value(name), kind)


def codebooks(run: RunState) -> Iterator[Value]:
    for level in LEVELS:
        usage, size = run.value(f"{level}/usage"), run.codebook_size
        yield from gauge("codebook_usage_ratio", run.codebook_usage(level), level)
        if usage is not None and size:
            yield Value("codebook_dead_codes", (level,), size - usage)
        entropy = run.value(f"{level}/entropy")
        if entropy is not None:
            yield Value("codebook_entropy_bits", (level,), entropy / math.log(2))


def ranks(run: RunState) -> Iterator[Value]:
    silent = {rank.rank for rank in run.silent_ranks}
    slow = run.slowdowns
    for rank in run.ranks:
        place = (str(rank.rank), rank.host)
        yield Value("rank_heartbeat_timestamp_seconds", place, rank.time)
        yield Value("rank_silent", place, float(rank.rank in silent))
        yield from gauge("rank_slowdown_ratio", slow.get(rank.rank), *place)
        yield from gauge("rank_communication_seconds", rank.communication_seconds, *place)
    if run.ranks:
        yield Value("ranks", (), len(run.ranks))


def saving(run: RunState) -> Iterator[Value]:
    whole = [checkpoint for checkpoint in run.checkpoints if checkpoint.whole]
    yield Value("checkpoint_valid_count", (), len(whole))
    if whole:
        yield Value("last_checkpoint_timestamp_seconds", (), whole[-1].time)
        yield Value("last_checkpoint_bytes", (), whole[-1].bytes)
        yield Value("last_checkpoint_step", (), whole[-1].step)
    yield from gauge("checkpoint_interval_seconds", run.save_interval)
    yield from gauge("checkpoint_due_timestamp_seconds", run.checkpoint_due)


def counted(run: RunState) -> Iterator[Value]:
    yield Value("checkpoints", ("saved",), run.counts[CheckpointSaved])
    yield Value("checkpoints", ("failed",), run.counts[SaveFailed])
    yield Value("checkpoint_rejects", (), run.counts[CheckpointRejected])
    for reason in ("nan", "spike", "overflow", "other"):
        yield Value("steps_skipped", (reason,), run.skipped_steps[reason])
    for reason in dict.fromkeys(("crash", "stop", "hang", *run.restarts)):
        yield Value("restarts", (reason,), run.restarts[reason])
    for reason, count in run.bad_samples.items():
        yield Value("bad_samples", (reason,), count)
    yield from gauge("bad_samples_ratio", run.bad_sample_ratio)
    yield Value("rewinds", (), run.counts[Rewound])
    yield Value("wasted_steps", (), run.recomputed_steps)
    for phase, count in run.hangs.items():
        yield Value("hang_detected", (phase[:40] or "step",), count)
    yield Value("node_excluded", (), run.counts[NodeExcluded])
    yield Value("sdc_mismatch", (), run.sdc_mismatches)


def accounted(run: RunState) -> Iterator[Value]:
    for phase, seconds in run.account.seconds.items():
        yield Value("time_seconds", (phase,), seconds)
    yield from gauge("goodput_ratio", run.account.goodput, "total")
    yield from gauge("goodput_ratio", run.account.goodput_since(run.now - 86400), "24h")


def disk(run: RunState) -> Iterator[Value]:
    yield from gauge("fs_free_bytes", run.disk.free_bytes, run.disk.mount)
    yield from gauge("fs_free_inodes", run.disk.free_inodes, run.disk.mount)


def families(runs: Iterable[RunState]) -> Iterator[Metric]:
    """What `prometheus_client` writes out: each family once, with the values of all runs."""
    made: dict[str, Metric] = {name: family(name) for name in FAMILIES}
    for run in runs:
        for name, labels, value in values(run):
            made[name].add_metric([text(run.name), *map(text, labels)], value)  # type: ignore[attr-defined]
        for name, source in HISTOGRAMS.items():
            seen = run.histograms.get(source)
            if seen:
                made[name].add_metric([text(run.name)], seen.cumulative(), seen.total)  # type: ignore[attr-defined, call-arg]
    yield from (metric for metric in made.values() if metric.samples)


def family(name: str) -> Metric:
    kind, labels, about = FAMILIES[name]
    made = {
        "gauge": GaugeMetricFamily,
        "counter": CounterMetricFamily,
        "histogram": HistogramMetricFamily,
    }[kind]
    return made(PREFIX + name, about, labels=("run", *labels))


def text(label: str) -> str:
    """A label's value: a file name may hold bytes that are not text, and must not break the whole page."""
    return label.encode("utf-8", "replace").decode()


def machine_families(machine: Machine) -> Iterator[Metric]:
    """The GPUs and the memory of the machine that the exporter runs on."""
    host = GaugeMetricFamily(
        f"{PREFIX}host_memory_available_bytes", "Memory left on a node.", labels=("node",)
    )
    host.add_metric([text(machine.node)], machine.memory_available)
    yield host
    for figure in GPU_FIGURES:
        name = figure.name
        metric = GaugeMetricFamily(
            f"{PREFIX}gpu_{name}", figure.help, labels=("node", "gpu", "model")
        )
        for gpu in machine.gpus:
            if name in gpu.figures:
                metric.add_metric(
                    [text(machine.node), str(gpu.index), text(gpu.model)], gpu.figures[name]
                )
        if metric.samples:
            yield metric
    info = GaugeMetricFamily(
        f"{PREFIX}exporter_info", "The exporter; the value is 1.", labels=("version",)
    )
    info.add_metric([__version__], 1)
    yield info


class _Page:
    """A collector whose families were made already."""

    def __init__(self, families: list[Metric]) -> None:
        self.families = families

    def collect(self) -> list[Metric]:
        return self.families


def page(runs: list[RunState], machine: Machine, webhook_failures: int = 0) -> bytes:
    """The text that Prometheus reads."""
    failures = CounterMetricFamily(
        f"{PREFIX}alert_webhook_failures", "Messages that no webhook took."
    )
    failures.add_metric([], webhook_failures)
    return generate_latest(_Page([*families(runs), *machine_families(machine), failures]))  # type: ignore[arg-type]
