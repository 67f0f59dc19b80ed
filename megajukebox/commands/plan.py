"""What a run will take, before it is submitted: memory of each GPU, pace, days, disk, failures. No GPU is needed.

    megajukebox plan jukebox_5b_lyrics                                        # every stage at the size of Jukebox's own
    megajukebox plan jukebox_5b_lyrics --stage top_prior --gpus 512 --gpu v100-32gb
    megajukebox plan jukebox_5b_lyrics --stage top_prior --gpus 64 --gpu h200-141gb --share 0.4 --json
    megajukebox plan jukebox_5b --stage top_prior --gpus 256 --ds prior_pipeline_v100.json

The models are built on the meta device and run there, so nothing is allocated. What cannot be done is refused with
exit status 1 and the nearest that can. Peaks, and the share of them that is reached, are assumptions:
training/planner/gpus.py.
"""

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from megajukebox.common.command_line import run_command
from megajukebox.training.config import STAGE_NAMES, Preset, load_preset
from megajukebox.training.engines.ds_config import ds_config_name_for, read_ds_config
from megajukebox.training.planner.gpus import GPU, gpu_named, gpu_of_profile
from megajukebox.training.planner.memory import PARTS
from megajukebox.training.planner.plan import (
    Assumptions,
    TrainingPlan,
    default_gpus,
    plan,
)
from megajukebox.training.planner.profiles import load_profile


def main(
    preset: Annotated[str, typer.Argument(help="A name in megajukebox/presets, or a YAML file.")],
    settings: Annotated[
        list[str] | None, typer.Argument(help="Changes to the preset: key.sub=value ...")
    ] = None,
    stage: Annotated[
        str | None, typer.Option(help="One stage in full; else a line for each.")
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="How many; as many as Jukebox had if not given.")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help="A card of a profile, such as v100-16gb or h200-141gb.")
    ] = None,
    profile: Annotated[
        str, typer.Option(help="A name in megajukebox/profiles, or a YAML file: its default card.")
    ] = "v100",
    ds: Annotated[
        str | None,
        typer.Option("--ds", "--ds-config", help="Another JSON, from ds_configs/ or a path."),
    ] = None,
    share: Annotated[
        float | None, typer.Option(min=0.001, max=1, help="Of the peak that training reaches.")
    ] = None,
    save_seconds: Annotated[
        float, typer.Option(min=0.01, help="Training stands still for a checkpoint.")
    ] = 10,
    restart_minutes: Annotated[
        float, typer.Option(min=0, help="From a failure to the next step.")
    ] = 15,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
) -> None:
    """Say what training a preset takes."""
    try:
        chosen = load_preset(preset, settings)
        assumed = Assumptions(
            share=share, save_seconds=save_seconds, restart_seconds=60 * restart_minutes
        )
        stages = (
            [stage] if stage else [name for name in STAGE_NAMES if name in chosen.training]
        )  # no students
        device = card(gpu, profile)
        plans = [plan_of(chosen, name, gpus, device, ds, assumed) for name in stages]
    except ValueError as error:
        raise SystemExit(f"plan: {error}") from error
    if as_json:
        told = [made.model_dump(mode="json") for made in plans]
        print(json.dumps(told[0] if stage else told, indent=1))
        return
    console = Console(width=max(Console().width, 110))
    for table in tables(plans[0]) if stage else [overview(plans)]:
        console.print(table)


def card(name: str | None, profile: str) -> GPU:
    """The card of that name, of the profile if it has it; the profile's default card if none is named."""
    chosen = load_profile(profile)
    if name is None or name in chosen.cards:
        return gpu_of_profile(chosen, name)
    return gpu_named(name)


def plan_of(
    preset: Preset, stage: str, gpus: int | None, device: GPU, ds: str | None, assumed: Assumptions
) -> TrainingPlan:
    """The plan of one stage; errors name the stage and its ds_config."""
    name = preset.stage(stage).ds_config
    if ds:
        name = ds
    elif device.profile:
        name = ds_config_name_for(name, device.profile)
    try:
        return plan(
            preset, stage, gpus or default_gpus(stage), device, read_ds_config(name), name, assumed
        )
    except ValueError as error:
        raise ValueError(f"{stage} with {name}: {error}") from None


# ---- Tables ----------------------------------------------------------------------------------------------------------


def overview(plans: list[TrainingPlan]) -> Table:
    """A line for each stage."""
    made = Table(title=f"{plans[0].preset} on {plans[0].gpu}")
    for column in (
        "stage",
        "parameters",
        "GPUs",
        "ds_config",
        "GiB a GPU",
        "samples",
        "s a step",
        "steps",
        "days",
        "GPU-days",
    ):
        made.add_column(column, justify="left" if column in ("stage", "ds_config") else "right")
    for p in plans:
        made.add_row(
            p.stage, f"{p.parameters / 1e6:,.1f} M", str(p.gpus), p.ds_config,
            f"{p.memory.needed:.1f} of {p.memory.available:.1f}", f"{p.samples_per_step:,}",
            f"{p.step_seconds:.2f}", f"{p.steps:,}", f"{p.days:.1f}", f"{p.gpu_days:,.0f}",
        )  # fmt: skip
    smaller = [p for p in plans if p.samples_of_jukebox]
    made.caption = "\n".join(f"{p.stage}: {same_step(p)}" for p in smaller) or None
    return made


def same_step(p: TrainingPlan) -> str:
    """How to have Jukebox's step on other numbers of GPUs: the nearest that the ranks can share."""
    ranks = p.recipe.data_ranks(p.gpus)
    batch = max(1, round((p.samples_of_jukebox or 0) / ranks)) * ranks
    days = f"about {p.days * batch / p.samples_per_step:,.0f} days"
    return (
        f"{p.samples_of_jukebox} a step on Jukebox's GPUs: training.{p.stage}.batch={batch}, {days}"
    )


def tables(p: TrainingPlan) -> list[Table]:
    return [what(p), memory(p), broken(p)]


def what(p: TrainingPlan) -> Table:
    """The run in two columns."""
    way, made = (
        p.recipe,
        Table(title=f"{p.stage} of {p.preset} on {p.gpus} {p.gpu}", show_header=False),
    )
    split = f"{way.pipeline} pipeline stages x " if way.pipeline > 1 else ""
    rows = {
        "parameters": f"{p.parameters:,}",
        "how": f"{p.ds_config}: ZeRO-{way.stage}, {way.precision}, {split}{way.data_ranks(p.gpus)} data-parallel ranks",
        "a step": f"{way.micro} x {way.accumulation} a rank, {p.samples_per_step:,} samples, "
        f"{p.units_per_step:,.0f} {p.unit}"
        + (f" ({same_step(p)})" if p.samples_of_jukebox else ""),
        "largest micro-batch": f"{p.memory.largest_micro_batch} (of 1, 2, 4 ... 64)",
        "work": f"{p.teraflops_per_sample:.2f} TFLOP a sample, forward and backward",
        "pace": f"{p.share_of_peak:.1%} of the peak ({p.share_from}): {p.step_seconds:.2f} s a step"
        f" ({p.pace.bound_by}-bound; network {p.pace.network:.2f} s, pipeline waits {p.pace.waiting:.2f} s)",
        "the run": f"{p.steps:,} steps, {p.days:.1f} days, {p.gpu_days:,.0f} GPU-days",
        "checkpoints": f"{p.checkpoint_gib:.1f} GiB every {p.save_every_minutes:.0f} min; on disk {p.disk_gib:.0f} GiB",
    }
    for name, text in rows.items():
        made.add_row(name, text)
    return made


def memory(p: TrainingPlan) -> Table:
    """GiB by part at the two fullest moments."""
    made = Table(title="GiB of each GPU")
    for column in ("part", "backward", "update"):
        made.add_column(column, justify="left" if column == "part" else "right")
    for part in PARTS:
        made.add_row(part, f"{p.memory.backward[part]:.2f}", f"{p.memory.update[part]:.2f}")
    backward, update = (sum(parts.values()) for parts in (p.memory.backward, p.memory.update))
    made.add_section()
    made.add_row("all of them", f"{backward:.2f}", f"{update:.2f}")
    made.add_row(
        "with CUDA, NCCL and gaps", f"{p.memory.needed:.2f}", f"of {p.memory.available:.1f}"
    )
    made.add_row(
        "activations: kept, recomputed",
        f"{p.memory.activations_kept:.2f}",
        f"{p.memory.activations_recomputed:.2f}",
    )
    if p.memory.host:
        made.add_row("in the machine's memory", f"{p.memory.host:.2f}", "")
    return made


def broken(p: TrainingPlan) -> Table:
    """What failures cost."""
    made = Table(title=f"Failures on {p.nodes} nodes in {p.days:.1f} days")
    for column in (
        "per 1000 node-days",
        "expected",
        "best interval of checkpoints",
        "time in training",
        "calendar days",
    ):
        made.add_column(column, justify="right")
    for f in p.failures:
        interval = (
            f"{f.interval / 60:.0f} min, {max(1, round(f.interval / p.step_seconds)):,} steps"
        )
        made.add_row(
            f"{f.per_1000_node_days:g}",
            f"{f.expected:.1f}",
            interval,
            f"{f.ettr:.1%}",
            f"{p.days / f.ettr:.1f}" if f.ettr else "never",
        )
    return made


if __name__ == "__main__":
    run_command(main, "plan")
