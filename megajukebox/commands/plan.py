"""What a run will take, before it is submitted: memory of each GPU, pace, days, disk, failures. No
GPU is needed.

    megajukebox plan jukebox_5b_lyrics                                        # every stage at the size of Jukebox's own
    megajukebox plan jukebox_5b_lyrics --stage top_prior --gpus 512 --profile v100
    megajukebox plan jukebox_5b_lyrics --stage top_prior --gpus 64 --gpu h200-141gb --mfu 0.4 --json
    megajukebox plan jukebox_5b --stage top_prior --gpus 256 --ds-config prior_pipeline_v100.json
    megajukebox plan jukebox_5b --stage top_prior --adapter rank=16 --base nf4 --gpu rtx3060-12gb    # an adapter on one card

The models are built on the meta device and run there, so nothing is allocated. What cannot be done
is refused with the nearest that can. Memory and peaks of cards are those of megajukebox/profiles,
and so is the share of the peak that training is assumed to reach.
"""

import json
from collections.abc import Iterable
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from megajukebox.common.command_line import renamed_options, run_command
from megajukebox.common.errors import UserError
from megajukebox.common.validation_errors import mistakes
from megajukebox.training.config import Preset, load_preset
from megajukebox.training.engines.ds_config import ds_config_name_for, read_ds_config
from megajukebox.training.planner.adapter_plan import AdapterPlan, adapter_plan
from megajukebox.training.planner.gpus import GPU, gpu_named, gpu_of_profile
from megajukebox.training.planner.memory import PARTS
from megajukebox.training.planner.plan import Assumptions, TrainingPlan, plan
from megajukebox.training.planner.profiles import load_profile
from megajukebox.training.settings import AdapterSettings
from megajukebox.training.stages import planned_stage, stages_of

NARROWEST_SCREEN = 110  # columns, below which the tables break their lines


@renamed_options({"--share": "--mfu", "--ds": "--ds-config"})
def main(
    preset: Annotated[str, typer.Argument(help="A name in megajukebox/presets, or a YAML file.")],
    settings: Annotated[
        list[str] | None, typer.Argument(help="Changes to the preset: key.sub=value ...")
    ] = None,
    stage: Annotated[
        str | None, typer.Option(help="One stage in full (default: a line for each).")
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="Number of GPUs (default: as many as Jukebox had).")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help="A card of a profile, such as v100-16gb or h200-141gb.")
    ] = None,
    profile: Annotated[
        str, typer.Option(help="A name in megajukebox/profiles, or a YAML file: its default card.")
    ] = "v100",
    ds_config: Annotated[
        str | None, typer.Option(help="RECIPE_PROFILE.json of ds_configs/, or a JSON file.")
    ] = None,
    mfu: Annotated[
        float | None,
        typer.Option(min=0.001, max=1, help="Share of the peak reached (default: the profile's)."),
    ] = None,
    save_seconds: Annotated[
        float, typer.Option(min=0.01, help="Seconds that training stands still for a checkpoint.")
    ] = 10,
    restart_minutes: Annotated[
        float, typer.Option(min=0, help="Minutes from a failure to the next step.")
    ] = 15,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything, as JSON.")] = False,
    adapter: Annotated[
        str | None,
        typer.Option(help="Plan an adapter on one card: rank=16, or rank=8,kind=dora ..."),
    ] = None,
    base: Annotated[
        str, typer.Option(help="With --adapter: frozen weights in bfloat16, int8 or nf4.")
    ] = "bfloat16",
    steps: Annotated[int, typer.Option(min=1, help="With --adapter: steps to train.")] = 2000,
) -> None:
    """Forecast what training a preset takes."""
    chosen = load_preset(preset, settings)
    hardware = load_profile(profile)
    device = (
        gpu_of_profile(hardware, gpu) if gpu is None or gpu in hardware.cards else gpu_named(gpu)
    )
    if adapter is not None:
        row = planned_stage(chosen, stage or "top_prior")
        asked = adapter_settings(adapter, base)
        print_adapter_plan(adapter_plan(chosen.name, row, device, asked, steps, mfu), as_json)
        return
    assumed = Assumptions(mfu=mfu, save_seconds=save_seconds, restart_seconds=60 * restart_minutes)
    stages = [stage] if stage else [row.name for row in stages_of(chosen)]
    plans = []
    for name in stages:
        plans.append(plan_stage(chosen, name, gpus, device, ds_config, assumed))
    if as_json:
        records = [stage_plan.model_dump(mode="json") for stage_plan in plans]
        print(json.dumps(records[0] if stage else records, indent=1))
        return
    console = Console(width=max(Console().width, NARROWEST_SCREEN))
    if not stage:
        console.print(overview_table(plans))
        return
    for table in (run_table(plans[0]), memory_table(plans[0]), failures_table(plans[0])):
        console.print(table)


def adapter_settings(text: str, base: str) -> AdapterSettings:
    """The adapter of `rank=16,kind=dora`. Raises UserError for what is no setting of one."""
    settings: dict[str, str] = {"base": base}
    for pair in text.replace(",", " ").split():
        name, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"--adapter {pair!r} is not of the form rank=16")
        settings[name] = value
        if name == "rank":
            settings.setdefault("alpha", value)
    try:
        return AdapterSettings.model_validate(settings)
    except ValidationError as error:
        reasons = "; ".join(mistakes(error, AdapterSettings))
        raise UserError(f"--adapter {text}: {reasons}") from None


def print_adapter_plan(found: AdapterPlan, as_json: bool) -> None:
    """A table of its memory, and a line of its hours; or all as JSON."""
    if as_json:
        print(found.model_dump_json(indent=1))
        return
    title = f"{found.preset} {found.stage}, adapter of rank {found.rank}, base {found.base}"
    table = empty_table(title, ("memory", "GiB"), left=("memory",))
    for part, size in found.memory_gib.items():
        table.add_row(part, f"{size:.2f}")
    table.add_row("with CUDA and gaps", f"{found.needed_gib:.2f}")
    table.add_row(f"of {found.gpu}", f"{found.available_gib:.2f}")
    console = Console(width=max(Console().width, NARROWEST_SCREEN))
    console.print(table)
    share = found.adapter_parameters / found.parameters
    print(
        f"{found.adapter_parameters / 1e6:.1f} M of {found.parameters / 1e6:,.0f} M weights learn"
        f" ({share:.2%}); {found.step_seconds:.2f} s a step, {found.hours:.1f} h for"
        f" {found.steps:,} steps ({found.share_from})"
    )


def plan_stage(
    preset: Preset,
    stage: str,
    gpus: int | None,
    device: GPU,
    ds_config: str | None,
    assumed: Assumptions,
) -> TrainingPlan:
    """The plan of one stage.

    Raises:
        UserError: it cannot be done; names the stage and its ds_config.
    """
    name = ds_config or preset.stage(stage).ds_config
    if ds_config is None and device.profile:
        name = ds_config_name_for(name, device.profile)
    planned = planned_stage(preset, stage)
    count = gpus or planned.default_gpus
    try:
        return plan(preset, planned, count, device, read_ds_config(name), name, assumed)
    except UserError as error:
        raise UserError(f"{stage} with {name}: {error}") from None


# ---- Tables ------------------------------------------------------------


def empty_table(title: str, columns: Iterable[str], left: Iterable[str] = ()) -> Table:
    """A table whose columns are set right, but for those in `left`."""
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right")
    return table


def overview_table(plans: list[TrainingPlan]) -> Table:
    """A line for each stage."""
    columns = "stage|parameters|GPUs|ds_config|GiB a GPU|samples|s a step|steps|days|GPU-days"
    title = f"{plans[0].preset} on {plans[0].gpu}"
    table = empty_table(title, columns.split("|"), left=("stage", "ds_config"))
    smaller = []
    for p in plans:
        table.add_row(
            p.stage,
            f"{p.parameters / 1e6:,.1f} M",
            str(p.gpus),
            p.ds_config,
            f"{p.memory.needed:.1f} of {p.memory.available:.1f}",
            f"{p.samples_per_step:,}",
            f"{p.step_seconds:.2f}",
            f"{p.steps:,}",
            f"{p.days:.1f}",
            f"{p.gpu_days:,.0f}",
        )
        if p.samples_of_jukebox:
            smaller.append(f"{p.stage}: {jukebox_step(p)}")
    table.caption = "\n".join(smaller) or None
    return table


def jukebox_step(p: TrainingPlan) -> str:
    """How to have Jukebox's step on other numbers of GPUs: the nearest that the ranks can share."""
    ranks = p.recipe.data_ranks(p.gpus)
    batch = max(1, round((p.samples_of_jukebox or 0) / ranks)) * ranks
    days = p.days * batch / p.samples_per_step
    return (
        f"{p.samples_of_jukebox} a step on Jukebox's GPUs: training.{p.stage}.batch={batch},"
        f" about {days:,.0f} days"
    )


def run_table(p: TrainingPlan) -> Table:
    """The run in two columns."""
    way = p.recipe
    pipeline = f"{way.pipeline} pipeline stages x " if way.pipeline > 1 else ""
    step = (
        f"{way.micro} x {way.accumulation} a rank, {p.samples_per_step:,} samples,"
        f" {p.units_per_step:,.0f} {p.unit}"
    )
    if p.samples_of_jukebox:
        step += f" ({jukebox_step(p)})"
    rows = {
        "parameters": f"{p.parameters:,}",
        "how": f"{p.ds_config}: ZeRO-{way.stage}, {way.precision},"
        f" {pipeline}{way.data_ranks(p.gpus)} data-parallel ranks",
        "a step": step,
        "largest micro-batch": f"{p.memory.largest_micro_batch} (of 1, 2, 4 ... 64)",
        "work": f"{p.teraflops_per_sample:.2f} TFLOP a sample, forward and backward",
        "pace": f"{p.share_of_peak:.1%} of the peak ({p.share_from}): {p.step_seconds:.2f} s a step"
        f" ({p.pace.bound_by}-bound; network {p.pace.network:.2f} s,"
        f" pipeline waits {p.pace.waiting:.2f} s)",
        "the run": f"{p.steps:,} steps, {p.days:.1f} days, {p.gpu_days:,.0f} GPU-days",
        "checkpoints": f"{p.checkpoint_gib:.1f} GiB every {p.save_every_minutes:.0f} min;"
        f" on disk {p.disk_gib:.0f} GiB",
    }
    table = Table(title=f"{p.stage} of {p.preset} on {p.gpus} {p.gpu}", show_header=False)
    for name, text in rows.items():
        table.add_row(name, text)
    return table


def memory_table(p: TrainingPlan) -> Table:
    """GiB by part at the two fullest moments."""
    memory = p.memory
    table = empty_table("GiB of each GPU", ("part", "backward", "update"), left=("part",))
    for part in PARTS:
        table.add_row(part, f"{memory.backward[part]:.2f}", f"{memory.update[part]:.2f}")
    table.add_section()
    backward = sum(memory.backward.values())
    update = sum(memory.update.values())
    table.add_row("all of them", f"{backward:.2f}", f"{update:.2f}")
    table.add_row("with CUDA, NCCL and gaps", f"{memory.needed:.2f}", f"of {memory.available:.1f}")
    table.add_row(
        "activations: kept, recomputed",
        f"{memory.activations_kept:.2f}",
        f"{memory.activations_recomputed:.2f}",
    )
    if memory.host:
        table.add_row("in the machine's memory", f"{memory.host:.2f}", "")
    return table


def failures_table(p: TrainingPlan) -> Table:
    """What failures cost."""
    columns = (
        "per 1000 node-days",
        "expected",
        "best interval of checkpoints",
        "time in training",
        "calendar days",
    )
    table = empty_table(f"Failures on {p.nodes} nodes in {p.days:.1f} days", columns)
    for forecast in p.failures:
        steps = max(1, round(forecast.interval / p.step_seconds))
        table.add_row(
            f"{forecast.per_1000_node_days:g}",
            f"{forecast.expected:.1f}",
            f"{forecast.interval / 60:.0f} min, {steps:,} steps",
            f"{forecast.ettr:.1%}",
            f"{p.days / forecast.ettr:.1f}" if forecast.ettr else "never",
        )
    return table


if __name__ == "__main__":
    run_command(main, "plan")
