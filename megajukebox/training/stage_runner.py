"""One stage of a jukebox in a run folder, whatever is trained: from settings and a task to the last step."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import yaml
from pydantic import BaseModel, ValidationError
from torch import Tensor

from megajukebox.common.files import make_run_folder, write_atomic
from megajukebox.common.world import host
from megajukebox.records.run_log import RunLog
from megajukebox.resilience.exit_codes import ExitRecord, TerminateRun, within
from megajukebox.training.batching import batch_of_run, share_batch
from megajukebox.training.checkpoint import candidates
from megajukebox.training.checkpointing.disk_space import no_room
from megajukebox.training.config import Preset, dump
from megajukebox.training.engines import collectives
from megajukebox.training.engines.factory import build_engine
from megajukebox.training.engines.pipeline import reader, sees_data
from megajukebox.training.loop import train
from megajukebox.training.planner.mfu import peak, seconds_at_peak, step_flops
from megajukebox.training.planner.recipe import precision
from megajukebox.training.run_context import RunContext
from megajukebox.training.settings import TrainingSettings
from megajukebox.training.tasks import ReaderShare, Task


def run_task(
    preset: Preset, stage: str, settings: TrainingSettings, make: Callable[[ReaderShare], Task], out: Path,
    stop_after: int | None, end: ExitRecord, weights: Mapping[str, Tensor] | None = None,
) -> bool:  # fmt: skip
    """Build the task, its engine (with `weights` to start from) and its run, and train. Whether it was finished."""
    as_given = collectives.read_ds_config(settings.ds_config)
    with within(settings.watchdog.phase_timeout_seconds, "the ranks did not find each other"):
        place = collectives.start()
    reads = reader(place, as_given)
    before = collectives.broadcast_from_rank_0(
        batch_of_run(record_of(out), as_given) if place.rank == 0 else None
    )
    ds_config = share_batch(as_given, reads.size, settings.batch or before)
    total, micro = ds_config["train_batch_size"], ds_config["train_micro_batch_size_per_gpu"]
    log = RunLog(out, writes=place.rank == 0, rank=place.rank)
    task = make(
        ReaderShare(reads, total, micro, on_bad=log.bad_sample, needed=sees_data(place, as_given))
    )
    check_alike(task, ds_config)
    if place.rank == 0:
        write_run_folder(out, preset, stage, task, {"ds_config": as_given, "global_batch": total})
    lacking = collectives.broadcast_from_rank_0(
        no_room(out, task.build, settings.ema_decay > 0) if place.rank == 0 else None
    )
    if lacking:
        raise ValueError(lacking)
    run = RunContext(
        out, settings, place, end, log, stop_after, at_peak(task, ds_config, place.size)
    )
    try:
        return train(run, task, build_engine(task.config, task.build, ds_config, settings, weights))
    finally:
        run.watchdog.stop()  # this process may train another: a pulse left behind would take it for a hung run


def check_alike(task: Task, ds_config: dict) -> None:
    """Raises Leave, naming them, where ranks would train another model, in another way or on other clips than rank 0.

    The preset, the package or the shards may differ between machines; or a clip could not be read on one alone, of
    which the scale of the losses is measured.
    """
    mine = {
        "model": task.config,
        "settings": task.settings,
        "ds_config": ds_config,
        "data": task.stream_state(0),
    }
    told = collectives.all_gather((host(), {part: str(value) for part, value in mine.items()}))
    odd = [rank for rank, (_, theirs) in enumerate(told) if theirs != told[0][1]]
    if odd:
        where, theirs = told[odd[0]]
        parts = ", ".join(sorted(part for part in mine if theirs[part] != told[0][1][part]))
        more = f" (and {len(odd) - 1} more ranks)" if len(odd) > 1 else ""
        raise TerminateRun(
            "storage",
            f"rank {odd[0]} on {where}{more} has another {parts} than rank 0; start again, and if it comes again make"
            " preset, package and shards alike on all machines",
        )


def at_peak(task: Task, ds_config: dict, devices: int) -> float | None:
    """Seconds that a step would take at the devices' peak. None where it is not known, or parts are frozen."""
    most = peak(precision(ds_config), task.settings.peak_tflops)
    if most is None or task.settings.freeze:
        return None
    flops = task.reading.global_batch * step_flops(task.config, task.settings.clip or 0)
    return seconds_at_peak(flops, devices, most)


def record_of(out: Path) -> dict:
    """What run.yaml of a run says; nothing if it is new."""
    path = out / "run.yaml"
    return yaml.safe_load(path.read_text()) if path.exists() else {}


def write_run_folder(out: Path, preset: Preset, stage: str, task: Task, batch: dict) -> None:
    """run.yaml and what the stages after this one read. Raises ValueError if the folder holds another run."""
    make_run_folder(out)
    record = {
        "stage": stage,
        "preset": dump(preset),
        "model": task.config.model_dump(mode="json"),
        **batch,
        "facts": {k: v for k, v in task.facts.items() if k != "made_by"},
        "made_by": task.facts["made_by"],
    }
    path = out / "run.yaml"
    if path.exists():
        before = record_of(out)
        before["model"] = in_present_keys(task.config, before["model"])
        check_same_run(path, before, record)
        check_same_batch(path, before, record, task.settings.loader.data_mode)
    write_atomic(path, yaml.safe_dump(record, sort_keys=False, allow_unicode=True).encode())
    # As DeepSpeed is given it, whatever recipe and profile it came from: to look at, and to start others with.
    write_atomic(out / "ds_config.json", json.dumps(record["ds_config"], indent=2).encode())
    for name, content in task.files.items():
        write_atomic(out / name, content)


def in_present_keys(config: BaseModel, stored: dict) -> dict:
    """The model of a run.yaml, which an older version may have written, in the keys of `config`."""
    try:
        return type(config)(**stored).model_dump(mode="json")
    except ValidationError:
        return stored  # of another kind of model


def check_same_run(path: Path, before: dict, now: dict) -> None:
    """How long and how often may change between two starts of a run; what is trained, and on what, may not."""
    for part in ("stage", "model", "facts"):
        if before[part] != now[part]:
            names = now[part] if isinstance(now[part], dict) else ()
            differing = ", ".join(k for k in names if before[part].get(k) != now[part][k]) or part
            raise ValueError(
                f"{path} is of a run with another {part} (differing: {differing});"
                " use another --out, or the settings in that file"
            )


def check_same_batch(path: Path, before: dict, now: dict, data_mode: str) -> None:
    """Once there is a checkpoint, the order of the data hangs on the clips of a step; data_mode=unindexed knows no order.

    Before run.yaml is written: the next start takes the clips of a step from there, and would be refused in its turn.
    """
    had, has = before.get("global_batch"), now["global_batch"]
    if had not in (None, has) and data_mode != "unindexed" and candidates(path.parent):
        raise ValueError(
            f"{path} is of a run with {had} clips a step, not {has};"
            " leave out what changes that, or start another --out with --from"
        )
