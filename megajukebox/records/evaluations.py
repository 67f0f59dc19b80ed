"""Rows of a run's scores.jsonl: what `megajukebox evaluate` measured of its checkpoints, one line per evaluation.

Written by evaluation/reporting/report.py, drawn by the run page of the explorer. Version 1 had other names for
some fields and metrics; it is read too.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megajukebox.common.files import open_append
from megajukebox.records.jsonl_tail import read_lines

SCORES = "scores.jsonl"  # in a run folder
SCHEMA = 2
RENAMED_METRICS = {  # version 1 -> 2, for each part of a metric's name
    "artist_heard": "artist_accuracy",
    "genre_heard": "genre_accuracy",
    "language_heard": "language_accuracy",
    "beside": "paired",
}
RENAMED_FIELDS = {  # version 1 -> 2, of report.json and of scores.jsonl
    "subject": "target",
    "against": "references",
    "figures": "metrics",
    "scores": "metrics",
}


@dataclass(frozen=True)
class EvaluationRow:
    """One evaluation of a run's weights."""

    time: float  # Unix seconds
    step: int | None
    weights: str  # fingerprint
    references: list[str]  # fingerprints of what they were compared with
    settings: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, Any]]  # name: value, low, high, count, better, unit


def current_name(metric: str) -> str:
    """The name that a metric has since version 2: `samples/top/artist_heard` is `samples/top/artist_accuracy`."""
    return "/".join(RENAMED_METRICS.get(word, word) for word in metric.split("/"))


def upgrade_evaluation(record: Mapping[str, Any]) -> dict[str, Any]:
    """A row or a report of version 1 or 2 with the fields and metric names of version 2."""
    current: dict[str, Any] = {}
    for name, value in record.items():
        current[RENAMED_FIELDS.get(name, name)] = value
    current.pop("version", None)
    current["schema"] = SCHEMA
    metrics = current.get("metrics")
    if isinstance(metrics, dict):
        current["metrics"] = {current_name(name): value for name, value in metrics.items()}
    return current


def append_evaluation(run: Path, row: EvaluationRow) -> None:
    """Append a row to the run's scores.jsonl in one write, so that two jobs cannot mix their lines."""
    line = json.dumps({"schema": SCHEMA, **asdict(row)}, ensure_ascii=False) + "\n"
    with open_append(run / SCORES) as file:
        file.write(line.encode())


def read_evaluations(run: Path) -> list[EvaluationRow]:
    """The rows of a run's scores.jsonl; lines that a crash cut, or of an unknown form, are left out."""
    rows = []
    for record in map(upgrade_evaluation, read_lines(run / SCORES)):
        names = EvaluationRow.__annotations__
        if names.keys() <= record.keys():
            rows.append(EvaluationRow(**{name: record[name] for name in names}))
    return rows
