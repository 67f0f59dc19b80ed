"""Train one stage of a jukebox, from its first step or from where it stopped.

    megajukebox train vqvae --preset tiny --data shards/songs --out runs/tiny/vqvae                  # one process
    deepspeed --num_gpus 2 megajukebox/train.py top_prior --preset tiny --data shards/codes --out runs/tiny/top_prior
    deepspeed --num_gpus 2 megajukebox/train.py middle_upsampler --preset tiny --data shards/codes \\
        --out runs/tiny/middle_upsampler training.middle_upsampler.steps=50                          # a setting changed

Killed? Run the same command again. The run folder holds run.yaml (all settings), metrics.jsonl, events.jsonl,
checkpoints/, and model.safetensors + model.json for the stages after it. How it ended is its exit status
(training/exits.py): 0 done, 85 stopped and saved, 75 start again, 93 a person is needed, 98 another start took over.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer
import yaml
from torch import Tensor

from megajukebox.data.files import write_whole
from megajukebox.data.remote import DEFAULT_CACHE, Remote
from megajukebox.data.shards import ShardSet
from megajukebox.monitoring.metrics import RunLog
from megajukebox.training import parallel
from megajukebox.training.batching import batch_of_run, share_batch
from megajukebox.training.config import STAGES, Preset, TrainingSettings, dump, load_preset
from megajukebox.training.engines import engine_of
from megajukebox.training.exits import Ending, ending, within
from megajukebox.training.loop import train
from megajukebox.training.pipeline import reader
from megajukebox.training.run import Run
from megajukebox.training.tasks import Reading, Task, piped_task, prior_task, vqvae_task


def main(
    stage: Annotated[str, typer.Argument(help=f"One of {', '.join(STAGES)}.")],
    data: Annotated[str, typer.Option(help="Shards, a folder or URL: songs for vqvae, codes for the others.")],
    out: Annotated[Path, typer.Option(help="The run folder.")],
    settings: Annotated[list[str] | None, typer.Argument(help="Changes to the preset: key.sub=value ...")] = None,
    preset: Annotated[str, typer.Option(help="A name in megajukebox/presets, or a YAML file.")] = "tiny",
    ds_config: Annotated[str | None, typer.Option(help="Another JSON, from ds_configs/ or a path.")] = None,
    stop_after: Annotated[int | None, typer.Option(min=1, help="Save and leave after this many steps.")] = None,
    cache: Annotated[Path, typer.Option(help="Where shards behind a URL are kept.")] = DEFAULT_CACHE,
    cache_gb: Annotated[float, typer.Option(min=0, help="How much of that disk they may fill.")] = 64,
    stop_when_lost: Annotated[bool, typer.Option("--stop-when-lost", help="Do not skip shards that are lost.")] = False,
    allow_pipe: Annotated[bool, typer.Option("--allow-pipe", help="Allow URLs that run commands.")] = False,
    local_rank: Annotated[int, typer.Option("--local_rank", hidden=True, help="The deepspeed launcher gives it.")] = 0,
) -> None:
    """Train one stage; the same command goes on where it stopped."""
    with ending(out, "train") as end:
        chosen = load_preset(preset, settings)
        if ds_config:
            chosen = load_preset(preset, [*(settings or []), f"training.{stage}.ds_config={ds_config}"])
        remote = Remote(cache, int(cache_gb * 2**30), lost="stop" if stop_when_lost else "skip", allow_pipe=allow_pipe)
        finished = run_stage(chosen, stage, data, remote, out, stop_after, end)
        parallel.stop()
        if not finished:
            end.kind = "done" if stop_after else "stopped"
            print(f"stopped before the last step; the same command goes on from {out}")


def run_stage(
    preset: Preset, stage: str, data: str, remote: Remote, out: Path, stop_after: int | None, end: Ending
) -> bool:
    """Train a stage of `preset`. Returns whether the last step was reached."""
    settings = preset.stage(stage)

    def make(reading: Reading) -> Task:
        return task_of(preset, stage, data, remote, settings, reading)

    return run_task(preset, stage, settings, make, out, stop_after, end)


def run_task(
    preset: Preset, stage: str, settings: TrainingSettings, make: Callable[[Reading], Task], out: Path,
    stop_after: int | None, end: Ending, weights: Mapping[str, Tensor] | None = None,
) -> bool:  # fmt: skip
    """Build the task, its engine (with `weights` to start from) and its run, and train. Whether it was finished."""
    as_given = parallel.read_ds_config(settings.ds_config)
    with within(settings.hang_slow_seconds, "the ranks did not find each other"):
        place = parallel.start()
    reads = reader(place, as_given)
    before = parallel.from_rank_0(batch_of_run(record_of(out), as_given) if place.rank == 0 else None)
    ds_config = share_batch(as_given, reads.size, before)
    total, micro = ds_config["train_batch_size"], ds_config["train_micro_batch_size_per_gpu"]
    log = RunLog(out, writes=place.rank == 0, rank=place.rank)
    task = make(Reading(reads, total, micro, on_bad=log.skip))
    if place.rank == 0:
        write_run_folder(out, preset, stage, task, {"ds_config": as_given, "global_batch": total})
    run = Run(out, settings, place, end, log, stop_after)
    return train(run, task, engine_of(task.config, task.build, ds_config, settings.seed, weights))


def task_of(
    preset: Preset, stage: str, data: str, remote: Remote, settings: TrainingSettings, reading: Reading
) -> Task:
    if stage == "vqvae" and settings.mode == "stream" and not has_index(data):
        return piped_task(preset, data, remote.allow_pipe, settings, reading)
    shards = ShardSet(data, remote)
    if stage == "vqvae":
        return vqvae_task(preset, shards, settings, reading)
    return prior_task(preset, stage, shards, settings, reading)


def has_index(data: str) -> bool:
    """A folder, which mode=stream is not for: it wants tars."""
    return Path(data).is_dir()


def record_of(out: Path) -> dict:
    """What run.yaml of a run says; nothing if it is new."""
    path = out / "run.yaml"
    return yaml.safe_load(path.read_text()) if path.exists() else {}


def write_run_folder(out: Path, preset: Preset, stage: str, task: Task, batch: dict) -> None:
    """run.yaml and what the stages after this one read. Raises ValueError if the folder holds another run."""
    out.mkdir(parents=True, exist_ok=True)
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
        check_same_run(path, record_of(out), record)
    write_whole(path, yaml.safe_dump(record, sort_keys=False, allow_unicode=True).encode())
    for name, content in task.files.items():
        write_whole(out / name, content)


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


if __name__ == "__main__":
    typer.run(main)
