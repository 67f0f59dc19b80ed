"""Train one stage of a jukebox, from its first step or from its last checkpoint.

    megajukebox train vqvae --preset tiny --data shards/songs --out runs/tiny/vqvae                  # one process
    deepspeed --num_gpus 2 megajukebox/train.py top_prior --preset tiny --data shards/codes --out runs/tiny/top_prior
    deepspeed --num_gpus 2 megajukebox/train.py middle_upsampler --preset tiny --data shards/codes \\
        --out runs/tiny/middle_upsampler training.middle_upsampler.steps=50                          # a setting changed
    megajukebox train refiner --preset tiny --vqvae runs/tiny/vqvae --data shards/songs --out runs/tiny/refiner_bottom
    megajukebox train top_prior --data shards/a:3 --data shards/b:1 --out runs/both/top_prior        # sets by weight
    megajukebox train top_prior --from runs/tiny/top_prior --preset tiny --data shards/mine --out runs/mine/top_prior

Killed? Run the same command again. The run folder holds run.yaml (all settings), metrics.jsonl, events.jsonl,
checkpoints/, and model.safetensors + model.json for the stages after it. Its exit status (resilience/exit_codes.py):
0 done, 85 stopped and saved, 75 start again, 93 an operator is needed, 98 another start took over.
"""

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from megajukebox.common.command_line import renamed_options, run_command
from megajukebox.common.levels import VQVAE_FOLDER
from megajukebox.data.shards.remote import DEFAULT_CACHE, RemoteConfig
from megajukebox.data.shards.remote_options import (
    RedirectHostOption,
    TokenFileOption,
    remote_config,
)
from megajukebox.resilience.exit_codes import ExitRecord, exit_guard, print_error
from megajukebox.training.config import STAGE_NAMES, Preset, load_preset
from megajukebox.training.engines import collectives
from megajukebox.training.finetune import read_pretrained
from megajukebox.training.stage_runner import StageRun, run_task
from megajukebox.training.stages import stage_named
from megajukebox.training.tasks import TaskRequest


class LostShardAction(str, Enum):
    stop = "stop"
    skip = "skip"


@renamed_options({"--stop-when-lost": "--on-lost-shard=stop"})
def main(
    stage: Annotated[str, typer.Argument(help=f"One of {', '.join(STAGE_NAMES)}.")],
    data: Annotated[
        list[str],
        typer.Option(
            help="Shards, a folder or URL: songs for vqvae and refiner, codes for the others."
            " Several are blended: A:3, B:1."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The run folder.")],
    settings: Annotated[
        list[str] | None, typer.Argument(help="Changes to the preset: key.sub=value ...")
    ] = None,
    preset: Annotated[
        str, typer.Option(help="A name in megajukebox/presets, or a YAML file.")
    ] = "tiny",
    ds_config: Annotated[
        str | None,
        typer.Option(
            help="RECIPE_PROFILE.json, RECIPE@PROFILE.yaml or a JSON file instead of the preset's."
        ),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option("--from", help="Start from a run's weights, or from one of its checkpoints."),
    ] = None,
    vqvae: Annotated[
        Path | None,
        typer.Option(help="Of train refiner: the run that it refines (default: beside --out)."),
    ] = None,
    stop_after: Annotated[
        int | None, typer.Option(min=1, help="Save and leave after this many steps.")
    ] = None,
    cache: Annotated[
        Path, typer.Option(help="Where shards behind a URL are kept.")
    ] = DEFAULT_CACHE,
    cache_gb: Annotated[
        float, typer.Option(min=0, help="GB of that disk that they may fill.")
    ] = 64,
    on_lost_shard: Annotated[
        LostShardAction, typer.Option(help="Skip shards that cannot be read, or stop the run.")
    ] = LostShardAction.skip,
    allow_pipe: Annotated[
        bool, typer.Option("--allow-pipe", help="Allow URLs that run commands.")
    ] = False,
    data_token_file: TokenFileOption = None,
    redirect_host: RedirectHostOption = None,
    local_rank: Annotated[
        int, typer.Option("--local_rank", hidden=True, help="Set by the deepspeed launcher.")
    ] = 0,
) -> None:
    """Train one stage; the same command resumes it."""
    with exit_guard(out, "train") as end:
        overrides = list(settings or [])
        if ds_config:
            overrides.append(f"training.{stage}.ds_config={ds_config}")
        remote = remote_config(
            data,
            data_token_file,
            redirect_host,
            cache=cache,
            cache_bytes=int(cache_gb * 2**30),
            lost=LostShardAction(on_lost_shard).value,
            allow_pipe=allow_pipe,
        )
        finished = run_stage(
            load_preset(preset, overrides, stage),
            stage,
            data,
            remote,
            out,
            base,
            vqvae,
            stop_after,
            end,
        )
        collectives.stop()
        if not finished:
            end.exit_class = "done" if stop_after else "stopped"
            print_error(f"stopped before the last step; the same command resumes {out}")


def run_stage(
    preset: Preset,
    stage: str,
    data: str | Sequence[str],
    remote: RemoteConfig,
    out: Path,
    base: Path | None,
    vqvae: Path | None,
    stop_after: int | None,
    end: ExitRecord,
) -> bool:
    """Train a stage of `preset`. Returns whether the last step was reached."""
    settings = preset.stage(stage)
    task = stage_named(stage).task
    pretrained = read_pretrained(base) if base else None
    beside = out.parent / VQVAE_FOLDER
    addresses = data if isinstance(data, str) else tuple(data)
    request = TaskRequest(preset, settings, addresses, remote, pretrained, vqvae or beside)
    return run_task(
        StageRun(preset, stage, settings, out, stop_after),
        lambda reading: task(request, reading),
        end,
        pretrained.weights if pretrained else None,
    )


if __name__ == "__main__":
    run_command(main, "train")
