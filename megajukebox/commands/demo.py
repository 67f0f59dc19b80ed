"""Run the whole pipeline on generated songs (or yours), in minutes: what `make demo` runs.

    megajukebox demo                                  # 189 generated songs -> demo/site/index.html
    megajukebox demo --songs ~/music --out demo_mine  # your own audio

Each stage is the ordinary verb in a process of its own; killed, the same command resumes where it stopped.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from megajukebox.common.child_processes import SAFE_PATH, module_command
from megajukebox.common.command_line import run_command
from megajukebox.common.errors import UserError
from megajukebox.common.files import make_folder, write_atomic
from megajukebox.common.levels import VQVAE_FOLDER
from megajukebox.common.untrusted_files import parse_json, read_inside
from megajukebox.common.world import free_port
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.records.jsonl_tail import read_lines
from megajukebox.training.config import load_preset
from megajukebox.training.stages import TrainingStage, stages_of

PACKAGE = Path(__file__).parents[1]
SONGS_PER_SHARD = (
    8  # several shards even of few songs, so that ranks and readers have something to share
)
# After minutes of training the upsamplers' distributions are too wide; colder, tones emerge from the noise
# (docs/decisions/0007).
TEMPERATURES = {"top": 0.9, "middle": 0.6, "bottom": 0.5}


@dataclass(frozen=True)
class DemoStage:
    name: str
    command: list[str]
    is_done: Callable[[], bool]


def main(
    out: Annotated[Path, typer.Option(help="The folder for everything.")] = Path("demo"),
    songs: Annotated[
        str | None,
        typer.Option(help="A folder of songs or a manifest (default: generated songs)."),
    ] = None,
    preset: Annotated[
        str, typer.Option(help="A name in megajukebox/presets, or a YAML file.")
    ] = "tiny",
    ranks: Annotated[
        int, typer.Option(min=1, help="Processes that train and sample together.")
    ] = 2,
    count: Annotated[int, typer.Option(min=1, help="Songs to generate as training data.")] = 189,
    samples: Annotated[int, typer.Option(min=1, help="Songs to sample.")] = 27,
    seconds: Annotated[float, typer.Option(help="Seconds of each sampled song.")] = 5.0,
    settings: Annotated[
        list[str] | None, typer.Argument(help="Changes to the preset: key.sub=value ...")
    ] = None,
) -> None:
    """Train on a folder of songs and sample new ones, all stages."""
    make_folder(out)
    source = songs or f"demo:{count}"
    refuse_other_demo(out, {"songs": source, "preset": preset, "settings": settings or []})
    console = Console()
    seconds_taken: dict[str, float] = {}
    for stage in stages(out, source, preset, ranks, settings or []):
        run_stage(console, stage, seconds_taken)
        if stage.name == "encode":
            write_requests(out / "requests.yaml", ShardSet(out / "shards/codes"), samples, seconds)
    times = out / "times.json"  # of this start and those before
    before = parse_json(read_inside(out, times.name)) if times.exists() else {}
    write_atomic(times, json.dumps({**before, **seconds_taken}, indent=1).encode())
    table = Table("stage", "seconds", title="this time")
    for name, taken in seconds_taken.items():
        table.add_row(name, f"{taken:.0f}")
    table.add_row("all", f"{sum(seconds_taken.values()):.0f}")
    console.print(table)
    page = (out / "site/index.html").resolve()
    console.print(f"Open [bold]{escape(str(page))}[/] in a browser.")


def stages(out: Path, source: str, preset: str, ranks: int, settings: list[str]) -> list[DemoStage]:
    """The pipeline in order; each stage reads what the ones before it wrote."""
    songs = out / "shards/songs"
    codes = out / "shards/codes"
    runs = out / "runs"
    vqvae = runs / VQVAE_FOLDER
    common = ["--preset", preset]
    configured = load_preset(preset, settings)
    # The composer reads written music, which generated songs do not have (docs/notes.md).
    trained = [row for row in stages_of(configured) if row.data != "notes"]

    def training(row: TrainingStage, data: Path) -> DemoStage:
        stage = row.name
        folder = runs / row.folder(configured)
        arguments = [stage, *common, "--data", str(data), "--out", str(folder), *settings]
        command = [*on_ranks(ranks, "train"), *arguments]
        return DemoStage(f"train {stage}", command, lambda: is_finished(folder))

    shard_size = ["--songs-per-shard", str(SONGS_PER_SHARD)]
    prepare = [*verb("prepare"), source, "--out", str(songs), *shard_size, *common]
    encode = [str(songs), "--vqvae", str(vqvae), "--out", str(codes)]
    requests = ["--requests", str(out / "requests.yaml")]
    sample = [str(runs), *requests, "--out", str(out / "samples")]
    explore = [str(out / "samples"), str(runs), "--out", str(out / "site")]
    return [
        DemoStage("prepare", prepare, (songs / "index.json").exists),
        *(training(row, songs) for row in trained if row.data == "songs"),
        DemoStage("encode", [*on_ranks(ranks, "encode"), *encode], (codes / "index.json").exists),
        *(training(row, codes) for row in trained if row.data == "codes"),
        DemoStage("sample", [*on_ranks(ranks, "sample"), *sample], lambda: False),
        DemoStage("explore", [*verb("explore"), "build", *explore], lambda: False),
    ]


def verb(name: str) -> list[str]:
    return module_command("megajukebox", name)


def on_ranks(ranks: int, entry: str) -> list[str]:
    """An entry under the deepspeed launcher of this environment, on a port of its own."""
    search_path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    deepspeed = shutil.which("deepspeed", path=search_path)
    if deepspeed is None:
        raise UserError(
            "the deepspeed command is missing; install this package's dependencies (make install)"
        )
    options = ["--log_level", "warning", "--num_gpus", str(ranks), "--master_port"]
    return [deepspeed, *options, str(free_port()), str(PACKAGE / f"{entry}.py")]


def is_finished(run: Path) -> bool:
    events = read_lines(run / "events.jsonl")
    return bool(events) and events[-1]["event"] == "done"


def refuse_other_demo(out: Path, source: dict[str, Any]) -> None:
    """Keep one demo in one folder.

    Raises:
        UserError: `out` holds a demo of other songs or settings.
    """
    path = out / "demo.json"
    if path.exists() and parse_json(read_inside(out, path.name)) != source:
        raise UserError(
            f"{out} holds a demo of other songs or settings ({path});"
            " give another --out, or remove it"
        )
    write_atomic(path, json.dumps(source).encode())


def run_stage(console: Console, stage: DemoStage, seconds_taken: dict[str, float]) -> None:
    """Run one stage to its end; exit with its status if it fails."""
    if stage.is_done():
        console.print(f"[bold]{stage.name}[/] is done")
        return
    console.rule(f"[bold]{stage.name}")
    environment = {
        **os.environ,
        **SAFE_PATH,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "PYTHONWARNINGS": "ignore::FutureWarning",
    }
    if not shutil.which("nvidia-smi"):
        environment["DS_ACCELERATOR"] = "cpu"  # else DeepSpeed warns in every process
    started = time.perf_counter()
    status = subprocess.run(stage.command, env=environment).returncode
    if status:
        raise SystemExit(
            f"demo: {stage.name} failed with exit status {status};"
            " fix the cause, then the same command resumes there"
        )
    seconds_taken[stage.name] = time.perf_counter() - started


def write_requests(path: Path, codes: ShardSet, count: int, seconds: float) -> None:
    """Write requests for every artist and genre of the corpus, with lyrics of its songs."""
    vocabulary = codes.index["vocabulary"]
    artists = list(vocabulary.get("artist", {})) or [None]
    genres = list(vocabulary.get("genres", {})) or [None]
    pairs = list(product(artists, genres))
    # As they are (with times, where the song has them); under None those of all artists.
    lyrics: dict[str | None, list[str]] = {}
    for row in range(len(codes)):
        if codes.has(row, "lyrics"):
            artist = codes.read_facts(row).get("artist")
            text = codes.read_member(row, "lyrics").decode()
            lyrics.setdefault(artist, []).append(text)
            lyrics.setdefault(None, []).append(text)
    requests = []
    for number in range(count):
        artist, genre = pairs[number % len(pairs)]
        texts = lyrics.get(artist) or lyrics.get(None) or [""]
        request: dict[str, Any] = {"id": f"song-{number:02d}"}
        if artist is not None:
            request["artist"] = artist
        if genre is not None:
            request["genres"] = genre
        request["lyrics"] = texts[number // len(pairs) % len(texts)]
        request["seconds"] = seconds
        request["seed"] = number
        request["temperature"] = dict(TEMPERATURES)
        requests.append(request)
    write_atomic(path, yaml.safe_dump(requests, sort_keys=False, allow_unicode=True).encode())


if __name__ == "__main__":
    run_command(main, "demo")
