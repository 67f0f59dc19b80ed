"""Reads run folders: metrics, events, config. Only reads, and tolerates a run that is being written right now."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from megajukebox.explorer.loaders.samples import UnreadableSample
from megajukebox.monitoring.collect.run_reader import RunReader
from megajukebox.monitoring.collect.run_state import RunState
from megajukebox.records.evaluations import SCORES, upgrade_evaluation
from megajukebox.records.events import upgrade_event
from megajukebox.records.jsonl_tail import parsed
from megajukebox.records.metrics import upgrade_row

DEPTH = 3  # folders between the one given and a run
AUDIO = (".wav", ".flac", ".ogg", ".mp3")
NOT_CURVES = {"schema", "step", "time", "epoch"}
Points = list[tuple[float, float]]  # (step, value)


@dataclass(frozen=True)
class StepSample:
    """A recording that a run left along its training."""

    step: int
    path: Path


@dataclass(frozen=True)
class ListedRun:
    """What a run folder holds. `curves` maps the name of a metric to its points by split."""

    name: str
    curves: dict[str, dict[str, Points]]
    events: list[dict[str, Any]]
    config: str
    model: dict[str, Any]
    seconds: float  # between the first and the last line of the metrics
    started: float  # unix time of the first line
    checkpoints: int
    state: RunState
    samples: list[StepSample] = field(default_factory=list)
    scores: list[dict[str, Any]] = field(
        default_factory=list
    )  # what `megajukebox evaluate` said of its checkpoints
    problems: list[UnreadableSample] = field(default_factory=list)

    @property
    def last_step(self) -> int:
        return int(
            max(
                (points[-1][0] for splits in self.curves.values() for points in splits.values()),
                default=0,
            )
        )


def read_runs(folders: list[Path]) -> list[ListedRun]:
    """The runs in and under `folders`, in the order in which they were started."""
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(
                f"runs {str(folder)!r} is not a folder; give the folder that `megajukebox train` wrote"
            )
    found = [(run, folder) for folder in folders for run in find_runs(folder, DEPTH)]
    runs = [
        read_run(path, str(path.relative_to(root)) if path != root else path.name)
        for path, root in found
    ]
    return sorted(runs, key=lambda run: (run.started, run.name))


def is_curve(name: str) -> bool:
    """The account of where the time went only ever grows: it is no curve to look at."""
    return name not in NOT_CURVES and not (name.startswith("time_") and name.endswith("_seconds"))


def find_runs(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / "run.yaml").exists() or (folder / "metrics.jsonl").exists():
        yield folder
    elif depth:
        for child in sorted(path for path in folder.iterdir() if path.is_dir()):
            yield from find_runs(child, depth - 1)


def read_run(folder: Path, name: str) -> ListedRun:
    problems: list[UnreadableSample] = []
    metrics = [upgrade_row(row) for row in read_lines(folder / "metrics.jsonl", problems)]
    times = [
        line["time"]
        for line in metrics
        if is_number(line.get("time")) and math.isfinite(line["time"])
    ]
    config, model = folder / "run.yaml", folder / "model.json"
    state = RunReader(folder, name).read()
    return ListedRun(
        name=name,
        curves=curves(metrics),
        events=[upgrade_event(e) for e in read_lines(folder / "events.jsonl", problems)],
        config=config.read_text(encoding="utf-8", errors="replace") if config.is_file() else "",
        model=read_model(model, problems),
        seconds=max(times) - min(times) if times else 0.0,
        started=min(times, default=math.inf),
        checkpoints=len(state.checkpoints),
        state=state,
        samples=step_samples(folder),
        scores=[upgrade_evaluation(row) for row in read_lines(folder / SCORES, problems)],
        problems=problems,
    )


def step_samples(folder: Path) -> list[StepSample]:
    """Recordings in samples/step-*/, the newest step first. What leads out of the run's folder is left out."""
    inside = folder.resolve()
    found = [
        StepSample(int(path.parent.name.removeprefix("step-")), path)
        for path in folder.glob("samples/step-*/*")
        if path.suffix in AUDIO and path.parent.name.removeprefix("step-").isdecimal()
    ]
    kept = [
        sample
        for sample in found
        if sample.path.is_file() and sample.path.resolve().is_relative_to(inside)
    ]
    return sorted(
        kept, key=lambda sample: (-sample.step, sample.path.stem != "original", sample.path.name)
    )


def settings(config: str) -> dict[str, str]:
    """Every setting of a run.yaml by its dotted name; {} if it is not YAML."""
    try:
        loaded = yaml.safe_load(config)
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    return dict(flat(loaded)) if isinstance(loaded, dict) else {}


def flat(value: object, name: str = "", depth: int = 12) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value and depth:
        for key, inner in value.items():
            yield from flat(inner, f"{name}.{key}" if name else str(key), depth - 1)
    else:
        yield name, json.dumps(value, ensure_ascii=False, default=str)


def read_model(path: Path, problems: list[UnreadableSample]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        model = json.loads(path.read_bytes())
    except ValueError as error:
        problems.append(UnreadableSample(path.name, str(error)))
        return {}
    return model if isinstance(model, dict) else {}


def read_lines(path: Path, problems: list[UnreadableSample]) -> list[dict[str, Any]]:
    """The JSON objects in `path`, one a line; the other lines are counted in `problems`."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        found = [parsed(line) for line in file if line.strip()]
    objects = [line for line in found if line is not None]
    if len(objects) < len(found):
        problems.append(
            UnreadableSample(
                path.name, f"{len(found) - len(objects)} of {len(found)} lines are not JSON objects"
            )
        )
    return objects


def curves(metrics: list[dict[str, Any]]) -> dict[str, dict[str, Points]]:
    """Every number logged, loss first. A step logged again after a restart replaces what was logged before."""
    values: dict[str, dict[str, dict[float, float]]] = {"loss": {}}
    for line in (
        line for line in metrics if is_number(line.get("step")) and math.isfinite(line["step"])
    ):
        for name in (key for key, value in line.items() if is_curve(key) and is_number(value)):
            values.setdefault(name, {}).setdefault(str(line.get("split", "train")), {})[
                line["step"]
            ] = line[name]
    return {
        name: {
            split: sorted(by_step.items())
            for split, by_step in sorted(splits.items(), reverse=True)
        }
        for name, splits in values.items()
        if splits
    }


def is_number(value: object) -> bool:
    """NaN is a number here: a curve shows it as a gap. Left out is what would overflow when drawn."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and not 1e300 < abs(value) < math.inf
    )
