"""Distil a prior into a student that emits many codes in each step and is sampled several times faster than it plays.

    megajukebox distill bottom --teacher runs/tiny/bottom_upsampler --data shards/codes --out runs/tiny/bottom_student
    megajukebox distill middle --teacher runs/tiny/middle_upsampler --data shards/codes --order 0,1 --windows 1000 \\
        --out runs/tiny/middle_student training.middle_student.steps=100            # one order, less of everything
    deepspeed --num_gpus 2 megajukebox/distill.py top --teacher runs/tiny/top_prior --data shards/codes \\
        --out runs/tiny/top_student

First the teacher samples windows into <out>/windows (ordinary shards); then a student learns each order of a curriculum
from them, from most steps per window to fewest, each in a run folder of its own (<out>/order-0-1, ...) and each usable;
it ends where a student is further from the teacher than the gate allows. <out>/student.json is the table. Killed? Run
the same command again. Exit codes are those of train (resilience/exit_codes.py). docs/distillation.md explains it.
"""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from megajukebox.common.command_line import renamed_options, run_command
from megajukebox.common.errors import UserError
from megajukebox.data.shards.remote import DEFAULT_CACHE
from megajukebox.data.shards.remote_options import (
    RedirectHostOption,
    TokenFileOption,
    remote_config,
)
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.distillation.curriculum import GATES, curriculum
from megajukebox.distillation.divergence import SamplingSettings
from megajukebox.distillation.run import EVALUATED_WINDOWS, DistillationRun
from megajukebox.distillation.task import TeacherRun, student_settings
from megajukebox.distillation.teacher_sampling import TeacherDataConfig
from megajukebox.models.grid_order import GridOrder
from megajukebox.resilience.exit_codes import exit_guard
from megajukebox.training.config import load_preset
from megajukebox.training.engines import collectives

Settings = Annotated[list[str] | None, Argument(help="Changes to the preset: key.sub=value ...")]
Order = Annotated[
    list[str] | None, Option(help="a,b or a,b,k instead of the curriculum (repeatable).")
]
Guidance = Annotated[
    float, Option(min=0, help="Guidance of their sampling, learned by the student; 1 is none.")
]
RealFraction = Annotated[
    float, Option(min=0, max=1, help="Fraction of them that keeps the songs' own codes.")
]
KeepGoing = Annotated[
    bool, Option("--keep-going", help="Continue after an order that fails the gate.")
]
Chain = Annotated[
    bool, Option("--chain", help="Start from the order before, not from the teacher.")
]
StopAfter = Annotated[int | None, Option(min=1, help="Save and stop after this many steps.")]
LocalRank = Annotated[
    int, Option("--local_rank", hidden=True, help="Set by the deepspeed launcher.")
]


@renamed_options({"--real-share": "--real-fraction"})
def main(
    level: Annotated[str, Argument(help="top, middle or bottom.")],
    teacher: Annotated[Path, Option(help="Run of the prior.")],
    data: Annotated[str, Option(help="Code shards it was trained on, a folder or URL.")],
    out: Annotated[Path, Option(help="Folder of the student.")],
    settings: Settings = None,
    preset: Annotated[str, Option(help="Preset with the training settings.")] = "tiny",
    ds_config: Annotated[
        str | None,
        Option(
            help="RECIPE_PROFILE.json, RECIPE@PROFILE.yaml or a JSON file instead of the preset's."
        ),
    ] = None,
    order: Order = None,
    windows: Annotated[int, Option(min=1, help="Sample this many windows to train on.")] = 2048,
    temperature: Annotated[float, Option(min=0.01, help="Temperature of their sampling.")] = 0.99,
    guidance: Guidance = 1.0,
    real_fraction: RealFraction = 0.2,
    data_only: Annotated[bool, Option("--data-only", help="Train on songs' codes alone.")] = False,
    keep_going: KeepGoing = False,
    chain: Chain = False,
    stop_after: StopAfter = None,
    cache: Annotated[Path, Option(help="Folder for copies of remote shards.")] = DEFAULT_CACHE,
    cache_gb: Annotated[float, Option(min=0, help="Gigabytes that the copies may fill.")] = 64,
    data_token_file: TokenFileOption = None,
    redirect_host: RedirectHostOption = None,
    local_rank: LocalRank = 0,
) -> None:
    """Train a student of every order of a curriculum; the same command resumes."""
    with exit_guard(out, "distill") as exit_record:
        if level not in GATES:
            raise UserError(f"level {level!r} is unknown; choose one of {', '.join(GATES)}")
        chosen = load_preset(preset, settings)
        prior = TeacherRun.open(teacher, level)
        orders = [GridOrder.parse(text) for text in order or []]
        if not orders:
            orders = curriculum(level, prior.config.window, prior.config.transformer.blocks)
        sampling = SamplingSettings(temperature, guidance)
        remote = remote_config(
            data,
            data_token_file,
            redirect_host,
            cache=cache,
            cache_bytes=int(cache_gb * 2**30),
        )
        run = DistillationRun(
            prior,
            ShardSet(data, remote),
            TeacherDataConfig(windows, EVALUATED_WINDOWS, sampling, real_fraction),
            out,
            chosen,
            student_settings(chosen, level, ds_config),
            data_only,
            exit_record,
        )
        finished = run.run(orders, keep_going, chain, stop_after)
        collectives.stop()
        if not finished:
            exit_record.exit_class = "done" if stop_after else "stopped"
            print(f"stopped before the last step; the same command resumes from {out}")


if __name__ == "__main__":
    run_command(main, "distill")
