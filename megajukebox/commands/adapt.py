"""Your songs in, your style out: train an adapter beside each frozen prior, and report what it did.

    megajukebox prepare my_songs --out shards/mine --preset tiny && megajukebox encode shards/mine --vqvae runs/tiny/vqvae --out codes/mine
    megajukebox adapt runs/tiny --data codes/mine --artist "My Band" --out adapters/mine
    megajukebox adapt runs/tiny --data codes/mine --artist "My Band" --out adapters/mine --also shards/codes    # what it forgot, too
    megajukebox adapt runs/openai --preset jukebox_5b --data codes/mine --out adapters/mine --rank 32 --base nf4
    megajukebox sample runs/tiny --adapter adapters/mine:0.8 --artist "My Band" --out samples

Killed? The same command resumes. OUT holds a run folder a level with adapter.safetensors and adapter.json, report.json,
and OUT/listen: the same seeds without and with the adapter. Several GPUs: `train STAGE training.STAGE.adapter={...}`.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import yaml

from megajukebox.common.child_processes import SAFE_PATH, module_command
from megajukebox.common.command_line import run_command
from megajukebox.common.device import accelerator
from megajukebox.common.errors import UserError
from megajukebox.common.files import make_folder, write_atomic
from megajukebox.common.levels import LEVELS, PRIOR_FOLDERS
from megajukebox.common.untrusted_files import parse_yaml, read_inside
from megajukebox.data.adapters import ScaledAdapter
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.stream.code_dataset import check_kind
from megajukebox.data.stream.song_dataset import held_out_share, split
from megajukebox.evaluation.adapter_report import (
    adapter_report,
    sample_both,
    verdict,
    write_adapter_report,
)
from megajukebox.sampling.jukebox import Jukebox, SongRequest
from megajukebox.training.config import Preset, dump, load_preset, override, validate
from megajukebox.training.planner.profiles import profile_of_device

FEW_SONGS = 20  # below so many a share of them may be none: one whole song is held out
HELD_OUT = 0.1
EVALUATIONS = 20  # of a run that goes to its last step
WARMUP = 50
MAX_BATCHES = 32  # micro-batches of one evaluation


def main(
    runs: Annotated[Path, typer.Argument(help="Folder of the runs.")],
    data: Annotated[Path, typer.Option(help="Code shards of your songs.")],
    out: Annotated[Path, typer.Option(help="Folder for the adapter; its name is the adapter's.")],
    settings: Annotated[
        list[str] | None, typer.Argument(help="Changes to the preset: key.sub=value ...")
    ] = None,
    artist: Annotated[
        str | None,
        typer.Option(help="Artist of all these songs; a new name gets a row that learns."),
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option(help="condition=NAME, a new name that the songs bear; may be repeated."),
    ] = None,
    levels: Annotated[str, typer.Option(help="top, or top,middle,bottom, or all.")] = "top",
    also: Annotated[
        Path | None, typer.Option(help="Code shards of other songs: is anything forgotten?")
    ] = None,
    kind: Annotated[str, typer.Option(help="lora, dora or rslora.")] = "lora",
    rank: Annotated[int, typer.Option(min=1, help="Rank of the adapter's matrices.")] = 16,
    base: Annotated[
        str, typer.Option(help="Frozen weights are kept as_trained, in bfloat16, int8 or nf4.")
    ] = "as_trained",
    learning_rate: Annotated[float, typer.Option(min=0, help="Peak learning rate.")] = 2e-4,
    steps: Annotated[int, typer.Option(min=1, help="Steps, if it does not stop before.")] = 2000,
    patience: Annotated[
        int, typer.Option(min=0, help="Evaluations without a gain that end it; 0: never.")
    ] = 5,
    preset: Annotated[
        str | None, typer.Option(help="Preset of the runs (default: as their run.yaml says).")
    ] = None,
    ds_config: Annotated[
        str | None, typer.Option(help="As of train (default: recipe adapter for this GPU).")
    ] = None,
    listen: Annotated[
        int, typer.Option(min=0, help="Seeds to hear without and with the adapter; 0: none.")
    ] = 4,
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds of each.")] = 5.0,
) -> None:
    """Train an adapter on your songs, and report what it learned."""
    codes = ShardSet(data)
    check_kind(codes)
    wanted = LEVELS if levels == "all" else tuple(levels.split(","))
    if not set(wanted) <= set(LEVELS):
        raise UserError(f"levels {levels!r} are none; give some of {', '.join(LEVELS)}, or all")
    held_out = share_held_out(codes)
    adapter: dict[str, Any] = {
        "kind": kind,
        "rank": rank,
        "alpha": rank,
        "base": base,
        "learning_rate": learning_rate,
        "patience": patience,
        "labels": {"artist": artist} if artist else {},
        "names": names_asked(name or []),
    }
    make_folder(out)
    for level in wanted:
        stage = PRIOR_FOLDERS[level]
        changes = [
            f"training.{stage}.steps={steps}",
            f"training.{stage}.schedule={{warmup: {min(WARMUP, steps // 10)}}}",
            f"training.{stage}.evaluation={{every: {max(1, steps // EVALUATIONS)},"
            f" held_out: {held_out!r}, batches: {MAX_BATCHES}}}",
            f"training.{stage}.checkpointing.every={max(1, steps // EVALUATIONS)}",
            f"training.{stage}.ds_config={ds_config or default_ds_config()}",
            f"training.{stage}.adapter={json.dumps(adapter)}",
            *(settings or []),
        ]
        configured = preset_of(runs / stage, preset, changes, stage)
        make_folder(out / stage)
        file = out / f"{stage}.yaml"
        write_atomic(file, yaml.safe_dump(dump(configured), sort_keys=False).encode())
        train(stage, file, runs / stage, data, out / stage)
    report(runs, data, out, wanted, artist, also, held_out, listen, seconds)


def names_asked(names: list[str]) -> dict[str, list[str]]:
    """`condition=NAME` texts by condition. Raises UserError for one that is none."""
    asked: dict[str, list[str]] = {}
    for text in names:
        condition, equals, name = text.partition("=")
        if not equals or not condition:
            raise UserError(f"--name {text!r} is not condition=name")
        asked.setdefault(condition, []).append(name)
    return asked


def share_held_out(codes: ShardSet) -> float:
    """The share of songs to hold out: HELD_OUT, or of a few songs as much as holds out one.

    Raises:
        UserError: there are not two songs.
    """
    keys = codes.songs["key"]
    if len(keys) < 2:
        raise UserError(
            f"{codes.folder} has {len(keys)} song; give two or more, of which one is held out"
        )
    if len(keys) >= FEW_SONGS and split(keys, HELD_OUT).any():
        return HELD_OUT
    low, high = 0.0, 1.0  # which songs are held out follows from hashes: the share is searched for
    for _ in range(60):
        middle = (low + high) / 2
        if split(keys, middle).any():
            high = middle
        else:
            low = middle
    return high


def default_ds_config() -> str:
    """Recipe `adapter` with the profile of this machine's GPU, or for CPUs."""
    if accelerator() != "cuda" or os.environ.get("DS_ACCELERATOR") == "cpu":
        return "adapter@cpu"
    return f"adapter@{profile_of_device(torch.cuda.get_device_name())}"


def preset_of(run: Path, preset: str | None, changes: list[str], stage: str) -> Preset:
    """The preset that a run was trained with, or the one that is given, with changes.

    Raises:
        UserError: the run does not say, and none is given.
    """
    if preset:
        return load_preset(preset, changes, stage)
    if not (run / "run.yaml").is_file():
        raise UserError(f"{run} has no run.yaml that says its preset; give --preset NAME")
    settings = parse_yaml(read_inside(run, "run.yaml"))["preset"]
    for change in changes:
        override(settings, change)
    return validate(settings, str(run / "run.yaml"), stage)


def train(stage: str, preset: Path, run: Path, data: Path, out: Path) -> None:
    """Train one level in a process of its own, whose memory goes with it. Exits with its status if it fails."""
    command = module_command("megajukebox", "train", stage, "--preset", str(preset))
    command += ["--from", str(run), "--data", str(data), "--out", str(out)]
    environment = {**os.environ, **SAFE_PATH}
    environment.setdefault("OMP_NUM_THREADS", "1")
    if not shutil.which("nvidia-smi"):
        environment["DS_ACCELERATOR"] = "cpu"
    status = subprocess.run(command, env=environment).returncode
    if status:
        raise SystemExit(status)


def report(
    runs: Path,
    data: Path,
    out: Path,
    levels: tuple[str, ...],
    artist: str | None,
    also: Path | None,
    held_out: float,
    listen: int,
    seconds: float,
) -> None:
    """Write report.json and the songs to hear, and print what they say."""
    given = ScaledAdapter(out)
    mine = ShardSet(data)
    others = ShardSet(also) if also else None
    folders = {level: runs / PRIOR_FOLDERS[level] for level in levels}
    listening = None
    if listen and levels[0] == "top":
        jukebox = Jukebox(runs, levels=("top",), adapters=[given], refiners=())
        request = SongRequest.model_validate({"id": "song", "artist": artist, "seconds": seconds})
        listening = sample_both(jukebox, request, given.name, listen)
        for song in (*listening.base, *listening.adapted):
            song.save(out / "listen")
    jukebox = Jukebox(runs, folders=folders, adapters=[given], refiners=())
    reports = []
    for level in levels:
        share = held_out_share(folders[level])
        own = adapter_report(jukebox, level, given.name, mine, others, held_out, share, listening)
        reports.append(own)
        for line in verdict(own):
            typer.echo(f"{level}: {line}")
    write_adapter_report(out, reports)
    bytes_written = sum(path.stat().st_size for path in out.glob("*/adapter.safetensors"))
    typer.echo(
        f"{out} holds the adapter ({bytes_written / 1e6:.1f} MB), report.json, and listen/ with the"
        " same seeds without and with it"
    )


if __name__ == "__main__":
    run_command(main, "adapt")
