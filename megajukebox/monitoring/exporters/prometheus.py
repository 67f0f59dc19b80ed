"""The page that Prometheus reads: the table of metrics (monitoring/metrics.py) filled from what the run folders hold."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from megajukebox import __version__
from megajukebox.monitoring.collect.host import GPU_FIGURES, Machine
from megajukebox.monitoring.collect.run_state import RunState
from megajukebox.monitoring.collect.unreadable import views_of
from megajukebox.monitoring.legacy_names import LEGACY_METRICS
from megajukebox.monitoring.metrics import METRICS, PREFIX, MetricRow, Values

FAMILIES = {
    "gauge": GaugeMetricFamily,
    "counter": CounterMetricFamily,
    "histogram": HistogramMetricFamily,
}
MAY_BE_NAN = ("loss",)
MAX_LABEL_LETTERS = 1024  # as long as the name of a run may be: four folders of 255 letters


def run_families(runs: Sequence[RunState], table: Iterable[MetricRow] = METRICS) -> list[Metric]:
    """Each metric of the table once, with the values of all runs; those without any are left out."""
    rows = tuple(table)
    measured = views_of(runs, partial(values_of, rows=rows))
    families = []
    for row in rows:
        family = FAMILIES[row.kind](PREFIX + row.name, row.help, labels=("run", *row.labels))
        for run, values in measured:
            if row.kind == "histogram":
                histogram = run.histograms.get(str(row.source))
                if histogram:
                    family.add_metric([as_text(run.name)], histogram.cumulative(), histogram.total)
                continue
            for labels, value in values[row.name].items():
                if value is not None and (math.isfinite(value) or row.name in MAY_BE_NAN):
                    family.add_metric([as_text(run.name), *map(as_text, labels)], value)
        if family.samples:
            families.append(family)
    return families


def values_of(run: RunState, rows: Iterable[MetricRow]) -> dict[str, Values]:
    """What each metric is of one run, by its name and the values of its labels."""
    return {row.name: row.values(run) for row in rows if row.kind != "histogram"}


def legacy_families(families: Iterable[Metric]) -> Iterator[Metric]:
    """The same values under the names of version 1."""
    by_name = {family.name.removeprefix(PREFIX): family for family in families}
    for legacy in LEGACY_METRICS:
        now = by_name.get(legacy.now)
        if now is None:
            continue
        names = list(now.samples[0].labels)
        if legacy.labels is not None:
            names = ["run", *legacy.labels]
        about = f"Deprecated: {PREFIX}{legacy.now}."
        family = FAMILIES[legacy.kind](PREFIX + legacy.name, about, labels=names)
        for sample in now.samples:
            family.add_metric(list(sample.labels.values()), sample.value)
        yield family


def as_text(label: str) -> str:
    """A label's value: a file name may hold bytes that are not text, and must not break the whole page."""
    return label[:MAX_LABEL_LETTERS].encode("utf-8", "replace").decode()


def machine_families(machine: Machine) -> Iterator[Metric]:
    """The GPUs and the memory of the machine that the exporter runs on."""
    node = as_text(machine.node)
    memory = GaugeMetricFamily(
        f"{PREFIX}host_memory_available_bytes", "Memory left on a node.", labels=("node",)
    )
    memory.add_metric([node], machine.memory_available)
    yield memory
    for figure in GPU_FIGURES:
        name = f"{PREFIX}gpu_{figure.name}"
        family = GaugeMetricFamily(name, figure.help, labels=("node", "gpu", "model"))
        for gpu in machine.gpus:
            if figure.name in gpu.figures:
                labels = [node, str(gpu.index), as_text(gpu.model)]
                family.add_metric(labels, gpu.figures[figure.name])
        if family.samples:
            yield family
    info = GaugeMetricFamily(
        f"{PREFIX}exporter_info", "The exporter; the value is 1.", labels=("version",)
    )
    info.add_metric([__version__], 1)
    yield info


class FixedCollector(Collector):
    """Families that were made already."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self.families = families

    def collect(self) -> Iterable[Metric]:
        return self.families


def families(
    runs: Sequence[RunState],
    machine: Machine,
    webhook_failures: int = 0,
    legacy_names: bool = False,
) -> list[Metric]:
    """Everything that Prometheus gets; with `legacy_names` under the names of version 1 too."""
    everything = run_families(runs)
    if legacy_names:
        everything += list(legacy_families(everything))
    failures = CounterMetricFamily(
        f"{PREFIX}alert_webhook_failures", "Messages that no webhook took."
    )
    failures.add_metric([], webhook_failures)
    return [*everything, *machine_families(machine), failures]


def page(everything: Iterable[Metric]) -> bytes:
    """The text that Prometheus reads."""
    registry = CollectorRegistry()
    registry.register(FixedCollector(everything))
    return generate_latest(registry)


def exported_names(table: Iterable[MetricRow] = METRICS) -> Mapping[str, str]:
    """Every name that a query may use, and the metric that it is of."""
    endings = {"gauge": ("",), "counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    of_the_machine = [f"gpu_{figure.name}" for figure in GPU_FIGURES]
    of_the_machine += [
        "host_memory_available_bytes",
        "exporter_info",
        "alert_webhook_failures_total",
    ]
    names = {}
    for name in of_the_machine:
        names[PREFIX + name] = PREFIX + name
    for row in table:
        for ending in endings[row.kind]:
            names[PREFIX + row.name + ending] = PREFIX + row.name
    return names
