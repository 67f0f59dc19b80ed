"""Scores with their intervals and slices as plain data (report.json), and as a line of a run's scores.jsonl."""

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from megajukebox.common.files import write_atomic
from megajukebox.evaluation.metrics import MetricValue
from megajukebox.evaluation.reporting.intervals import bootstrap

VERSION = 1
FEWEST, MOST_SLICES = 2, 50  # songs of a slice; slices a label, the commonest
SCORES = "scores.jsonl"  # of a run folder: a line for each checkpoint that was scored

Labels = Mapping[str, Mapping[str, str]]  # {song: {"artist": ..., "genre": ..., "language": ...}}


def report_of(
    scores: Iterable[MetricValue], labels: Labels, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """The whole report. `facts` says what was scored, against what, and by whom."""
    figures = {score.name: figure_of(score, labels) for score in scores}
    named = {
        key: dict(labels[key])
        for key in sorted({k for f in figures.values() for k in f["items"]} & labels.keys())
    }
    return {"version": VERSION, **facts, "songs": named, "figures": figures}


def figure_of(score: MetricValue, labels: Labels) -> dict[str, Any]:
    """One figure: value, 95 % interval, songs, slices by label."""
    measure = score.measure
    slices = {} if score.pooled else slices_of(score, labels)
    return {
        "value": finite(score.value),
        **interval(score),
        "count": len(score.items),
        "unit": measure.unit,
        "better": measure.better,
        "about": measure.about,
        "slices": slices,
        "items": {key: finite(value) for key, value in sorted(score.items.items())},
    }


def interval(score: MetricValue) -> dict[str, float | None]:
    """Its bootstrap interval. That of a figure of all songs at once is as wide as its pseudo-values say, around it."""
    values = np.array(list(score.items.values()))
    found = bootstrap(values, seed=score.name, binary=score.measure.answers)
    if found is None or not np.isfinite(found).all():
        return {"low": None, "high": None}
    shift = score.value - values.mean() if score.pooled else 0.0
    low, high = np.clip(np.array(found) + shift, *score.measure.limits).tolist()
    return {"low": low, "high": high}


def slices_of(score: MetricValue, labels: Labels) -> dict[str, dict[str, Any]]:
    """{"artist=...": {"value", "low", "high", "count"}} of every label that several of the songs share."""
    found = {}
    for name, keys in sliced(score.items, labels).items():
        some = {key: score.items[key] for key in keys}
        value = float(np.mean(list(some.values())))
        found[name] = {
            "value": finite(value),
            **interval(MetricValue(f"{score.name}", value, some)),
            "count": len(keys),
        }
    return found


def sliced(items: Iterable[str], labels: Labels) -> dict[str, list[str]]:
    """{"artist=...": songs}; no slice of all songs, or of fewer than FEWEST."""
    keys = list(items)
    groups: dict[str, list[str]] = {}
    for key in keys:
        for label, name in labels.get(key, {}).items():
            groups.setdefault(f"{label}={name}", []).append(key)
    counts = Counter(
        {name: len(some) for name, some in groups.items() if FEWEST <= len(some) < len(keys)}
    )
    kept: Counter[str] = Counter()
    for name, _ in counts.most_common():
        label = name.partition("=")[0]
        kept[label] += 1
        if kept[label] > MOST_SLICES:
            del groups[name]
    return {name: some for name, some in sorted(groups.items()) if name in counts}


def finite(value: float) -> float | None:
    """JSON has no NaN."""
    return float(value) if math.isfinite(value) else None


# ---- Files


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())


def read_report(path: Path) -> dict[str, Any]:
    """A report.json. ValueError if it is none, or of another version."""
    try:
        report = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"report {str(path)!r} cannot be read ({error}); give a report.json of megajukebox evaluate"
        ) from None
    if not isinstance(report, dict) or report.get("version") != VERSION or "figures" not in report:
        raise ValueError(
            f"report {path} is not of version {VERSION}; score again with this version"
        )
    return report


def append_scores(run: Path, report: Mapping[str, Any]) -> None:
    """A line in the run's scores.jsonl: {"time", "step", "weights", "against", "scores": {name: {value, low, high}}}.

    One write to the file's end, so that two jobs cannot mix their lines.
    """
    keep = ("value", "low", "high", "count", "better", "unit")
    scores = {name: {k: figure[k] for k in keep} for name, figure in report["figures"].items()}
    subject = report["subject"]
    line = {
        "time": report["time"], "step": subject["step"], "weights": subject["weights"],
        "against": [source["fingerprint"] for source in report["against"]], "settings": report["settings"],
        "scores": scores,
    }  # fmt: skip
    file = os.open(run / SCORES, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(file, (json.dumps(line, ensure_ascii=False) + "\n").encode())
    finally:
        os.close(file)


def is_scored(run: Path, weights: str, against: list[str], settings: Mapping[str, Any]) -> bool:
    """Whether these weights were scored in the same way before."""
    path = run / SCORES
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue  # cut by a crash
        if (record["weights"], record["against"], record["settings"]) == (
            weights,
            against,
            dict(settings),
        ):
            return True
    return False
