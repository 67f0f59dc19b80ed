"""Reads run folders: metrics, events, config. Only reads, and tolerates a run that is being written right now."""

import json
import logging
import math
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megajukebox.common.errors import UserError
from megajukebox.common.untrusted_files import open_inside, parse_json, parse_yaml, read_inside
from megajukebox.explorer.loaders.samples import UnreadableSample
from megajukebox.monitoring.collect.run_reader import MAX_SETTINGS_BYTES, RunReader, find_runs
from megajukebox.monitoring.collect.run_state import AlertThresholds, RunState
from megajukebox.monitoring.collect.unreadable import unreadable_run, views_of
from megajukebox.monitoring.exporters.terminal import run_record
from megajukebox.records.evaluations import SCORES, upgrade_evaluation
from megajukebox.records.events import upgrade_event
from megajukebox.records.jsonl_tail import MAX_OBJECT_BYTES, lines_of, parsed
from megajukebox.records.metrics import upgrade_row
from megajukebox.records.run_log import EVENTS_FILE, METRICS_FILE, SETTINGS_FILE

log = logging.getLogger(__name__)

DEPTH = 3  # folders between the one given and a run
CONFIG_DEPTH = 12  # nested settings that are shown one by one; deeper ones stay JSON
MODEL_FILE = "model.json"
STEP_DIGITS = r"\d{1,12}"  # of a folder of previews
AUDIO_EXTENSIONS = (".wav", ".flac", ".ogg", ".mp3")
NOT_CURVES = {"schema", "step", "time", "epoch"}
LARGEST_DRAWN = 1e300  # a larger number would overflow when it is drawn
Points = list[tuple[float, float]]  # (step, value)
Curves = dict[str, dict[str, Points]]  # metric -> split -> points


@dataclass(frozen=True)
class PreviewRecording:
    """A recording that a run wrote during training."""

    step: int
    path: Path


@dataclass(frozen=True)
class ListedRun:
    """What a run folder holds."""

    name: str
    curves: Curves
    events: list[dict[str, Any]]
    config: str
    model: dict[str, Any]
    started: float  # unix time of the first line of the metrics
    state: RunState
    previews: list[PreviewRecording] = field(default_factory=list)
    scores: list[dict[str, Any]] = field(default_factory=list)  # from `megajukebox evaluate`
    problems: list[UnreadableSample] = field(default_factory=list)


def read_runs(folders: list[Path]) -> list[ListedRun]:
    """The runs in and under `folders`, in the order in which they were started.

    Raises:
        UserError: one of `folders` is not a folder.
    """
    runs = []
    for folder in folders:
        if not folder.is_dir():
            raise UserError(
                f"runs {str(folder)!r} is not a folder; give the folder that `megajukebox train` wrote"
            )
        for path in find_runs(folder, DEPTH):
            name = path.name if path == folder else str(path.relative_to(folder))
            try:
                runs.append(read_run(path, name))
            except Exception as error:  # whatever a file of it makes of our reading
                log.debug("%s cannot be read", path, exc_info=True)
                runs.append(unreadable(path, name, error))
    return sorted(runs, key=lambda run: (run.started, run.name))


def read_run(folder: Path, name: str) -> ListedRun:
    """What a run folder holds; lines and files that cannot be read become its `problems`."""
    problems: list[UnreadableSample] = []
    metrics = list(map(upgrade_row, read_lines(folder / METRICS_FILE, problems)))
    times = [row["time"] for row in metrics if is_finite_number(row.get("time"))]
    config = read_file(folder, SETTINGS_FILE, MAX_SETTINGS_BYTES, problems)
    ((state, _),) = views_of([RunReader(folder, name).read()], run_record)
    return ListedRun(
        name=name,
        curves=read_curves(metrics),
        events=list(map(upgrade_event, read_lines(folder / EVENTS_FILE, problems))),
        config=config.decode(errors="replace"),
        model=read_model(folder, problems),
        started=min(times, default=math.inf),
        state=state,
        previews=find_previews(folder),
        scores=list(map(upgrade_evaluation, read_lines(folder / SCORES, problems))),
        problems=problems,
    )


def unreadable(folder: Path, name: str, error: Exception) -> ListedRun:
    """A run of which nothing is known but why."""
    state = unreadable_run(name, folder, AlertThresholds(), error)
    problem = UnreadableSample(name, state.problem)
    return ListedRun(name, {}, [], "", {}, math.inf, state, problems=[problem])


def find_previews(folder: Path) -> list[PreviewRecording]:
    """Recordings in samples/step-*/, the newest step first. Links and what lies behind one are left out."""
    previews = []
    for path in folder.glob("samples/step-*/*"):
        step = path.parent.name.removeprefix("step-")
        if path.suffix not in AUDIO_EXTENSIONS or not re.fullmatch(STEP_DIGITS, step):
            continue
        with suppress(OSError):
            open_inside(folder, path.relative_to(folder)).close()
            previews.append(PreviewRecording(int(step), path))
    return sorted(
        previews,
        key=lambda preview: (
            -preview.step,
            preview.path.stem != "original",
            preview.path.name,
        ),
    )


def flat_settings(config: str) -> dict[str, str]:
    """Every setting of a run.yaml by its dotted name; {} if it is not YAML."""
    try:
        loaded = parse_yaml(config)
    except ValueError:
        return {}
    return dict(_flatten(loaded, "", CONFIG_DEPTH)) if isinstance(loaded, dict) else {}


def _flatten(value: object, name: str, depth: int) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value and depth:
        for key, inner in value.items():
            yield from _flatten(inner, f"{name}.{key}" if name else str(key), depth - 1)
    else:
        yield name, json.dumps(value, ensure_ascii=False, default=str, skipkeys=True)


def read_file(folder: Path, name: str, max_bytes: int, problems: list[UnreadableSample]) -> bytes:
    """A file of the run; empty where there is none, and a problem where it cannot be read."""
    try:
        return read_inside(folder, name, max_bytes)
    except FileNotFoundError:
        return b""
    except OSError as error:
        problems.append(UnreadableSample(name, error.strerror or str(error)))
        return b""


def read_model(folder: Path, problems: list[UnreadableSample]) -> dict[str, Any]:
    """The run's model.json; {} where there is none, and a problem where it is broken."""
    data = read_file(folder, MODEL_FILE, MAX_OBJECT_BYTES, problems)
    if not data:
        return {}
    try:
        model = parse_json(data)
    except ValueError as error:
        problems.append(UnreadableSample(MODEL_FILE, str(error)))
        return {}
    return model if isinstance(model, dict) else {}


def read_lines(path: Path, problems: list[UnreadableSample]) -> list[dict[str, Any]]:
    """The JSON objects in `path`, one a line; the other lines are counted in `problems`."""
    objects = []
    broken = 0
    try:
        for line in lines_of(path):
            found = parsed(line)
            if found is None:
                broken += 1
            else:
                objects.append(found)
    except OSError as error:
        problems.append(UnreadableSample(path.name, error.strerror or str(error)))
    if broken:
        reason = f"{broken} of {broken + len(objects)} lines are not JSON objects"
        problems.append(UnreadableSample(path.name, reason))
    return objects


def read_curves(metrics: list[dict[str, Any]]) -> Curves:
    """Every number logged, loss first. A step logged again after a restart replaces what was logged before."""
    values: dict[str, dict[str, dict[float, float]]] = {"loss": {}}
    for line in metrics:
        step = line.get("step")
        if not is_finite_number(step):
            continue
        split = str(line.get("split", "train"))
        for name, value in line.items():
            # The accounts of where the time went only grow: they are no curves to read.
            is_account = name.startswith("time_") and name.endswith("_seconds")
            if name not in NOT_CURVES and not is_account and is_number(value):
                values.setdefault(name, {}).setdefault(split, {})[step] = value  # type: ignore[index]
    curves: Curves = {}
    for name, splits in values.items():
        for split, by_step in sorted(splits.items(), reverse=True):
            curves.setdefault(name, {})[split] = sorted(by_step.items())
    return curves


def is_number(value: object) -> bool:
    """NaN and infinity are numbers here: a curve shows them as gaps. What would overflow when drawn is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return not LARGEST_DRAWN < abs(value) < math.inf


def is_finite_number(value: object) -> bool:
    return is_number(value) and math.isfinite(value)  # type: ignore[arg-type]
