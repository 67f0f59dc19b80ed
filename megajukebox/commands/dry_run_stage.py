"""The stage that a supervised command would train: its ds_config, batch and memory on so many ranks, without starting it.

    megajukebox supervise --dry-run runs/x -- deepspeed --num_gpus 8 megajukebox/train.py top_prior --preset tiny ...

The part of a dry run that needs torch.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from megajukebox.commands.plan import NARROWEST_SCREEN, memory_table, run_table
from megajukebox.common.errors import UserError
from megajukebox.common.levels import LEVELS, STUDENT_FOLDERS
from megajukebox.common.untrusted_files import parse_yaml, read_inside
from megajukebox.resilience import slurm
from megajukebox.resilience.launch_layout import LaunchLayout, TrainingCommand
from megajukebox.training.batching import ACCUMULATION, MICRO, TOTAL, batch_of_run, share_batch
from megajukebox.training.checkpointing.disk_space import missing_disk_space
from megajukebox.training.config import Preset, load_preset
from megajukebox.training.engines.ds_config import (
    parse_name,
    read_ds_config,
    require_gpu,
    require_optimizer,
)
from megajukebox.training.planner.fit import check_whole, memory_need
from megajukebox.training.planner.gpus import GIB, gpu_of_profile
from megajukebox.training.planner.plan import Assumptions, plan
from megajukebox.training.planner.profiles import load_profile
from megajukebox.training.planner.recipe import pipeline_stages, recipe
from megajukebox.training.planner.workload import PlannedStage, code_workload
from megajukebox.training.settings import TrainingSettings
from megajukebox.training.stages import planned_stage


@dataclass(frozen=True)
class ResolvedStage:
    """A stage with the settings that it would train with."""

    preset: Preset
    planned: PlannedStage
    settings: TrainingSettings
    ds_config: dict[str, Any]  # before the batch is shared

    @property
    def ds_config_name(self) -> str:
        return self.settings.ds_config


def preview_stage(
    training: TrainingCommand, run: Path, layout: LaunchLayout, profile: str | None
) -> int:
    """Print what `training` would train on the ranks of `layout`. Returns the number of pipeline stages.

    Raises:
        UserError: settings, memory, disk or this job's devices would make it fail.
    """
    stage = resolve(training, run)
    require_optimizer(stage.ds_config, stage.ds_config_name)
    stages = pipeline_stages(stage.ds_config, layout.ranks)
    check_whole(layout.ranks, stages, layout.per_node)
    shared = share_batch(stage.ds_config, layout.ranks // stages, stage.settings.batch)
    print(f"ds_config {stage.ds_config_name}:")
    print(json.dumps(shared, indent=2))
    pipelines = f" ({stages} pipeline stages)" if stages > 1 else ""
    print(
        f"a step: micro-batch {shared[MICRO]} x accumulation {shared[ACCUMULATION]}"
        f" x {layout.ranks // stages} data-parallel ranks{pipelines} = {shared[TOTAL]} samples",
        flush=True,
    )
    print_memory(stage, shared, layout.ranks, profile)
    if run.parent.is_dir():
        check_disk(run, stage)
    if slurm.job():
        require_gpu(stage.ds_config_name)
    return stages


def resolve(training: TrainingCommand, run: Path) -> ResolvedStage:
    """Preset, stage and ds_config that the command would train with; a run that has begun keeps its batch."""
    preset_name = training.options.get("--preset", "tiny")
    ds_config_option = training.options.get("--ds-config")
    if training.verb == "distill":
        from megajukebox.distillation.task import student_settings  # and all that sampling needs

        level = training.subject
        if level not in LEVELS:
            raise UserError(f"level {level!r} is unknown; choose one of {', '.join(LEVELS)}")
        name = STUDENT_FOLDERS[level]
        preset = load_preset(preset_name, training.settings)
        settings = student_settings(preset, level, ds_config_option)
        planned = PlannedStage(name, code_workload(level, preset, name), default_gpus=0)
    else:
        name = training.subject
        changes = list(training.settings)
        if ds_config_option:
            changes.append(f"training.{name}.ds_config={ds_config_option}")
        preset = load_preset(preset_name, changes)
        settings = preset.stage(name)
        planned = planned_stage(preset, name)
    ds_config = read_ds_config(settings.ds_config)
    batch = settings.batch or batch_of_run(read_run(run, name), ds_config)
    settings = settings.model_copy(update={"batch": batch})
    preset = preset.model_copy(update={"training": {**preset.training, name: settings}})
    return ResolvedStage(preset, planned, settings, ds_config)


def read_run(run: Path, stage: str) -> dict[str, Any]:
    """run.yaml; {} if the run is new. Raises UserError if it is of another stage."""
    path = run / "run.yaml"
    if not path.exists():
        return {}
    try:
        record = parse_yaml(read_inside(run, path.name))
    except ValueError as error:
        raise UserError(f"{path} {error}; restore it, or use another --out") from None
    if not isinstance(record, dict):
        raise UserError(f"{path} holds no settings; restore it, or use another --out")
    if record.get("stage") != stage:
        raise UserError(f"{path} is of stage {record.get('stage')}, not {stage}; use another --out")
    return record


def print_memory(
    stage: ResolvedStage, shared: dict[str, Any], ranks: int, profile: str | None
) -> None:
    """Pace and memory on the GPUs of `profile`, or of the ds_config's; without GPUs the memory of a process.

    Raises:
        UserError: it does not fit, or the card does not compute in that precision.
    """
    name = stage.ds_config_name
    if profile:
        kind = load_profile(profile)
    elif Path(name).is_file():
        kind = None
    else:
        kind = parse_name(name).profile
    if kind is None or not kind.cards:
        need = memory_need(stage.planned.workload, recipe(shared, ranks), ranks, None)
        print(f"memory: {need.total / GIB:.1f} GiB a process on CPUs; for GPUs give --profile")
        return
    card = gpu_of_profile(kind)
    forecast = plan(stage.preset, stage.planned, ranks, card, stage.ds_config, name, Assumptions())
    console = Console(width=max(Console().width, NARROWEST_SCREEN))
    console.print(run_table(forecast))
    console.print(memory_table(forecast))


def check_disk(run: Path, stage: ResolvedStage) -> None:
    """Raises UserError if the first checkpoint would not fit on the disk of the run."""
    folder = run if run.is_dir() else run.parent
    averaged = stage.settings.ema_decay > 0
    missing = missing_disk_space(folder, stage.planned.workload.build, averaged)
    if missing:
        raise UserError(missing)
