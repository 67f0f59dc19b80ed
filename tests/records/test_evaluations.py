"""Evaluations of a run: rows of version 1 and 2 are read with the names of version 2."""

import json
from pathlib import Path

import pytest

from megajukebox.evaluation.metrics import METRICS
from megajukebox.records.evaluations import (
    RENAMED_METRICS,
    SCORES,
    EvaluationRow,
    append_evaluation,
    current_name,
    read_evaluations,
)

ROW = EvaluationRow(
    time=1.5,
    step=40,
    weights="w",
    references=["r"],
    settings={"songs": 64},
    metrics={"samples/top/artist_accuracy": {"value": 0.5}, "bits/top/bits_per_code": {"value": 6}},
)
ROW_OF_VERSION_1 = {
    "time": 1.5,
    "step": 40,
    "weights": "w",
    "against": ["r"],
    "settings": {"songs": 64},
    "scores": {"samples/top/artist_heard": {"value": 0.5}, "bits/top/bits_per_code": {"value": 6}},
}


def test_a_row_is_read_as_it_was_appended(tmp_path: Path) -> None:
    append_evaluation(tmp_path, ROW)
    assert read_evaluations(tmp_path) == [ROW]


def test_rows_of_version_1_are_read_and_cut_lines_are_not(tmp_path: Path) -> None:
    lines = [json.dumps(ROW_OF_VERSION_1), "[1]", '{"time": 1', json.dumps({"time": 2})]
    (tmp_path / SCORES).write_text("\n".join(lines) + "\n")
    append_evaluation(tmp_path, ROW)
    assert read_evaluations(tmp_path) == [ROW, ROW]


def test_a_run_without_evaluations_has_none(tmp_path: Path) -> None:
    assert read_evaluations(tmp_path) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("sample_codes/top_held_out/genre_heard", "sample_codes/top_held_out/genre_accuracy"),
        ("beside/bottom/chroma_agreement", "paired/bottom/chroma_agreement"),
        ("bits/top/bits_per_code", "bits/top/bits_per_code"),
    ],
)
def test_metrics_of_version_1_have_their_new_names(old: str, new: str) -> None:
    assert current_name(old) == new == current_name(new)


def test_every_new_name_of_a_metric_is_defined() -> None:
    metrics = [new for new in RENAMED_METRICS.values() if new.endswith("_accuracy")]
    assert len(metrics) == 3 and set(metrics) <= set(METRICS)
