"""Run one stage in its run folder, whatever it trains: from settings and a task to the last step."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import BaseModel, ValidationError
from torch import Tensor

from megajukebox.common.device import check_precision
from megajukebox.common.errors import UserError
from megajukebox.common.files import make_run_folder, write_atomic
from megajukebox.common.untrusted_files import UnsafeFileError, parse_yaml, read_inside
from megajukebox.common.world import host
from megajukebox.data.stream.stream_identity import differing_sets
from megajukebox.records.run_log import RunLog
from megajukebox.resilience.exit_codes import ExitRecord, TerminateRun, within
from megajukebox.resilience.flight_recorder import NCCL_PREFIX
from megajukebox.training.batching import MICRO, TOTAL, batch_of_run, share_batch
from megajukebox.training.checkpoint import candidates
from megajukebox.training.checkpointing.disk_space import missing_disk_space
from megajukebox.training.config import Preset, dump
from megajukebox.training.engines import collectives
from megajukebox.training.engines.ds_config import require_gpu, require_optimizer
from megajukebox.training.engines.factory import build_engine
from megajukebox.training.engines.pipeline import reader, sees_data
from megajukebox.training.loop import train
from megajukebox.training.planner.mfu import peak, seconds_at_peak, step_flops
from megajukebox.training.planner.recipe import precision
from megajukebox.training.run_context import RunContext
from megajukebox.training.settings import TrainingSettings
from megajukebox.training.tasks import ReaderShare, Task


@dataclass(frozen=True)
class StageRun:
    """A stage that is to be trained, and where."""

    preset: Preset
    stage: str
    settings: TrainingSettings
    out: Path  # the run folder
    stop_after: int | None = None  # save and leave after so many steps


def run_task(
    stage_run: StageRun,
    make_task: Callable[[ReaderShare], Task],
    end: ExitRecord,
    weights: Mapping[str, Tensor] | None = None,
) -> bool:
    """Build the task, its engine (starting from `weights`) and its run, and train. Returns whether it is finished.

    Raises:
        UserError: settings, data, run folder and number of processes do not go together.
        TrainingDiverged, TerminateRun: as `train`.
    """
    out = stage_run.out
    settings = stage_run.settings
    as_given = collectives.read_ds_config(settings.ds_config)
    require_optimizer(as_given, settings.ds_config)
    require_gpu(settings.ds_config)
    # Where NCCL's own watchdog leaves its record, an hour after ours has.
    os.environ.setdefault("TORCH_NCCL_DEBUG_INFO_TEMP_FILE", str(out / "hangs" / NCCL_PREFIX))
    timeout = settings.watchdog.phase_timeout_seconds
    with within(timeout, "the ranks did not find each other"):
        world = collectives.start()
    check_precision(collectives.device(), precision(as_given))
    readers = reader(world, as_given)
    before = batch_of_run(read_run_record(out), as_given) if world.rank == 0 else None
    before = collectives.broadcast_from_rank_0(before)
    ds_config = share_batch(as_given, readers.size, settings.batch or before or 0)
    log = RunLog(out, writes=world.rank == 0, rank=world.rank)
    reading = ReaderShare(
        readers,
        global_batch=ds_config[TOTAL],
        micro_batch=ds_config[MICRO],
        on_bad=log.bad_sample,
        reads=sees_data(world, as_given),
    )
    task = make_task(reading)
    check_ranks_agree(task, ds_config)
    missing = None
    if world.rank == 0:
        write_run_folder(stage_run, task, as_given)
        missing = missing_disk_space(out, task.build, settings.ema_decay > 0, task.adapter)
    missing = collectives.broadcast_from_rank_0(missing)
    if missing:
        raise UserError(missing)
    run = RunContext(
        out,
        settings,
        world,
        end,
        log,
        stage_run.stop_after,
        step_seconds_at_peak(task, ds_config, world.size),
    )
    try:
        engine = build_engine(task.config, task.build, ds_config, settings, weights, task.adapter)
        return train(run, task, engine)
    finally:
        # This process may train another: a watchdog left behind would take it for a hung run.
        run.watchdog.stop()


def check_ranks_agree(task: Task, ds_config: dict) -> None:
    """Compare what the ranks are about to train.

    The preset, the package or the shards may differ between machines; or a clip could not be read on one alone, of
    which the scale of the losses is measured.

    Raises:
        TerminateRun: some train another model, in another way or on other clips than rank 0; it names them.
    """
    parts = {
        "model": task.config,
        "settings": task.settings,
        "ds_config": ds_config,
        "data": task.stream_state(0),
    }
    own = {name: str(value) for name, value in parts.items()}
    reports: list[tuple[str, dict[str, str]]] = collectives.all_gather([host(), own])
    _, wanted = reports[0]
    differing = [rank for rank, (_, report) in enumerate(reports) if report != wanted]
    if not differing:
        return
    where, theirs = reports[differing[0]]
    names = ", ".join(sorted(name for name in parts if theirs[name] != wanted[name]))
    more = f" (and {len(differing) - 1} more ranks)" if len(differing) > 1 else ""
    raise TerminateRun(
        "storage",
        f"rank {differing[0]} on {where}{more} has another {names} than rank 0; start again, and if it comes again make"
        " preset, package and shards alike on all machines",
    )


def step_seconds_at_peak(task: Task, ds_config: dict, devices: int) -> float | None:
    """Seconds that a step would take at the devices' peak. None where that is not known, or parts are frozen."""
    tflops = peak(precision(ds_config), task.settings.peak_tflops)
    # A refiner's step is for the most part its frozen VQ-VAE and spectra: no measure of its products.
    is_partial = bool(task.settings.freeze or task.adapter)
    if tflops is None or is_partial or task.kind == "refiner":
        return None
    flops = task.reading.global_batch * step_flops(task.config, task.settings.clip or 0)
    return seconds_at_peak(flops, devices, tflops)


# ---- The run folder ---------------------------------------------------------------------------------------------------


def read_run_record(out: Path) -> dict:
    """run.yaml of a run; {} if the run is new.

    Raises:
        UserError: it is no record of a run.
    """
    try:
        record = parse_yaml(read_inside(out, "run.yaml"))
    except (FileNotFoundError, NotADirectoryError):  # make_run_folder will say which
        return {}
    except (ValueError, UnsafeFileError) as error:
        raise UserError(f"{out / 'run.yaml'} cannot be read: {error}") from None
    if not isinstance(record, dict):
        raise UserError(f"{out / 'run.yaml'} is no record of a run; restore it")
    return record


def write_run_folder(stage_run: StageRun, task: Task, ds_config: dict) -> None:
    """Write run.yaml and what the stages after this one read; `ds_config` is the one before sharing the batch.

    Raises:
        UserError: the folder holds another run.
    """
    out = stage_run.out
    make_run_folder(out)
    facts = dict(task.facts)
    made_by = facts.pop("made_by")
    record = {
        "stage": stage_run.stage,
        "preset": dump(stage_run.preset),
        "model": task.config.model_dump(mode="json"),
        "ds_config": ds_config,
        "global_batch": task.reading.global_batch,
        "facts": facts,
        "made_by": made_by,
    }
    before = read_run_record(out)
    if before:
        check_same_run(out, upgrade_model(task.config, before), record)
        check_same_batch(out, before, record, task.settings.loader.data_mode)
    text = yaml.safe_dump(record, sort_keys=False, allow_unicode=True)
    write_atomic(out / "run.yaml", text.encode())
    # As DeepSpeed is given it, whatever recipe and profile it came from: to look at, and to start others with.
    write_atomic(out / "ds_config.json", json.dumps(ds_config, indent=2).encode())
    for name, content in task.files.items():
        write_atomic(out / name, content)


RENAMED_FACTS = {"manner": "teacher_sampling"}  # name in version 1 -> now


def upgrade_model(config: BaseModel, record: dict) -> dict:
    """A copy of run.yaml's `record` with model and facts in the present keys, as an older version may have written it."""
    try:
        model = type(config)(**record["model"]).model_dump(mode="json")
    except ValidationError:
        return record  # of another kind of model
    facts = {RENAMED_FACTS.get(name, name): value for name, value in record["facts"].items()}
    return {**record, "model": model, "facts": facts}


def check_same_run(out: Path, before: dict, now: dict) -> None:
    """Raise UserError if something else is trained now: only how long and how often may change between two starts."""
    for part in ("stage", "model", "facts"):
        if before[part] == now[part]:
            continue
        names = now[part] if isinstance(now[part], dict) else ()
        differing = ", ".join(n for n in names if before[part].get(n) != now[part][n]) or part
        if part == "facts" and before[part].get("sets") != now[part].get("sets"):
            differing += f"; {differing_sets(before[part], now[part])}"
        raise UserError(
            f"{out / 'run.yaml'} is of a run with another {part} (differing: {differing});"
            " use another --out, or the settings in that file"
        )


def check_same_batch(out: Path, before: dict, now: dict, data_mode: str) -> None:
    """Raise UserError if the clips of a step changed, once there is a checkpoint: the order of the data depends on them.

    Tars without an index have no order. Checked before run.yaml is written: the next start takes the clips of a step
    from there, and would be refused in its turn.
    """
    clips = before.get("global_batch")
    if clips is None or clips == now["global_batch"] or data_mode == "unindexed":
        return
    if candidates(out):
        raise UserError(
            f"{out / 'run.yaml'} is of a run with {clips} clips a step, not {now['global_batch']};"
            " leave out what changes that, or start another --out with --from"
        )
