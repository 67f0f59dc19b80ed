"""Metrics with their intervals and slices as plain data: report.json, and a row of a run's scores.jsonl."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from megajukebox.common.errors import UserError
from megajukebox.common.files import write_atomic
from megajukebox.common.untrusted_files import parse_json, read_given
from megajukebox.evaluation.metrics import MetricValue
from megajukebox.evaluation.reporting.intervals import bootstrap
from megajukebox.records.evaluations import (
    SCHEMA,
    EvaluationRow,
    append_evaluation,
    read_evaluations,
    upgrade_evaluation,
)

MIN_SLICE_SONGS = 2
MAX_REPORT_BYTES = 1 << 28
MAX_SLICES = 50  # of each label, the most common ones
ROW_FIELDS = ("value", "low", "high", "count", "better", "unit")  # of a metric in scores.jsonl

Labels = Mapping[str, Mapping[str, str]]  # {song: {"artist": ..., "genre": ..., "language": ...}}


def build_report(
    metrics: Iterable[MetricValue], labels: Labels, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """The whole report. `facts` says what was evaluated, against which references, and by which version."""
    described = {}
    keys: set[str] = set()
    for metric in metrics:
        described[metric.name] = describe_metric(metric, labels)
        keys |= metric.items.keys()
    songs = {key: dict(labels[key]) for key in sorted(keys & labels.keys())}
    return {"schema": SCHEMA, **facts, "songs": songs, "metrics": described}


def describe_metric(metric: MetricValue, labels: Labels) -> dict[str, Any]:
    """Value, 95 % interval, definition, slices by label, and each song's value."""
    definition = metric.definition
    items = {}
    for key in sorted(metric.items):
        items[key] = finite_or_none(metric.items[key])
    return {
        "value": finite_or_none(metric.value),
        **interval(metric),
        "count": len(metric.items),
        "unit": definition.unit,
        "better": definition.better,
        "about": definition.about,
        "slices": {} if metric.pooled else describe_slices(metric, labels),
        "items": items,
    }


def interval(metric: MetricValue) -> dict[str, float | None]:
    """Compute the 95 % interval; around a pooled metric it is as wide as its pseudo-values say."""
    definition = metric.definition
    values = np.array(list(metric.items.values()))
    ends = bootstrap(values, seed=metric.name, binary=definition.binary)
    if ends is None or not np.isfinite(ends).all():
        return {"low": None, "high": None}
    shift = metric.value - values.mean() if metric.pooled else 0.0
    low, high = np.clip(np.array(ends) + shift, *definition.limits).tolist()
    return {"low": low, "high": high}


def describe_slices(metric: MetricValue, labels: Labels) -> dict[str, dict[str, Any]]:
    """{"artist=...": {"value", "low", "high", "count"}} of every label that several of the songs share."""
    slices = {}
    for name, keys in slice_songs(metric.items, labels).items():
        items = {key: metric.items[key] for key in keys}
        value = float(np.mean(list(items.values())))
        slices[name] = {
            "value": finite_or_none(value),
            **interval(MetricValue(metric.name, value, items)),
            "count": len(keys),
        }
    return slices


def slice_songs(keys: Iterable[str], labels: Labels) -> dict[str, list[str]]:
    """{"artist=...": songs}; no slice of all songs, or of fewer than MIN_SLICE_SONGS."""
    keys = list(keys)
    groups: dict[str, list[str]] = {}
    for key in keys:
        for label, name in labels.get(key, {}).items():
            groups.setdefault(f"{label}={name}", []).append(key)
    sizes: Counter[str] = Counter()
    for name, songs in groups.items():
        if MIN_SLICE_SONGS <= len(songs) < len(keys):
            sizes[name] = len(songs)
    kept: set[str] = set()
    per_label: Counter[str] = Counter()
    for name, _ in sizes.most_common():
        label = name.partition("=")[0]
        per_label[label] += 1
        if per_label[label] <= MAX_SLICES:
            kept.add(name)
    return {name: groups[name] for name in sorted(kept)}


def finite_or_none(value: float) -> float | None:
    """JSON has no NaN."""
    return float(value) if math.isfinite(value) else None


# ---- Files


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())


def read_report(path: Path) -> dict[str, Any]:
    """Read a report.json of version 1 or 2, with the names of version 2.

    Raises:
        UserError: the file is no report, or of another version.
    """
    try:
        report = parse_json(read_given(path, MAX_REPORT_BYTES))
    except (OSError, ValueError) as error:
        raise UserError(
            f"report {str(path)!r} cannot be read ({error}); give a report.json of megajukebox evaluate"
        ) from None
    version = None
    if isinstance(report, dict):
        version = report.get("schema", report.get("version"))
        report = upgrade_evaluation(report)
    if version not in (1, SCHEMA) or "metrics" not in report:
        raise UserError(
            f"report {path} is of version {version}, not 1 to {SCHEMA}; evaluate again with this version"
        )
    return report


def append_report(run: Path, report: Mapping[str, Any]) -> None:
    """Append the report's metrics, without slices and items, to the run's scores.jsonl."""
    metrics = {}
    for name, metric in report["metrics"].items():
        metrics[name] = {field: metric[field] for field in ROW_FIELDS}
    target = report["target"]
    row = EvaluationRow(
        time=report["time"],
        step=target["step"],
        weights=target["weights"],
        references=[reference["fingerprint"] for reference in report["references"]],
        settings=report["settings"],
        metrics=metrics,
    )
    append_evaluation(run, row)


def is_evaluated(
    run: Path, weights: str, references: list[str], settings: Mapping[str, Any]
) -> bool:
    """Whether these weights were evaluated against the same references with the same settings before."""
    wanted = (weights, references, dict(settings))
    known = [(row.weights, row.references, row.settings) for row in read_evaluations(run)]
    return wanted in known
