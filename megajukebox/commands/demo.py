"""The whole pipeline on made-up songs (or yours), in minutes: what `make demo` runs.

    megajukebox demo                                  # 189 made-up songs -> demo/site/index.html
    megajukebox demo --songs ~/music --out demo_mine  # your own audio

Each stage is the ordinary entry, started as its own process; killed, the same command goes on where it stopped.
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
from typing import Annotated

import typer
import yaml
from rich.console import Console
from rich.table import Table

from megajukebox.common.command_line import run_command
from megajukebox.common.files import make_folder, write_atomic
from megajukebox.common.levels import PRIOR_FOLDERS
from megajukebox.common.world import free_port
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.records.jsonl_tail import read_lines

PACKAGE = Path(__file__).parents[1]
# After minutes of training the upsamplers spread their guesses too wide; colder, tones come out of the noise (docs/decisions/0007).
TEMPERATURES = {"top": 0.9, "middle": 0.6, "bottom": 0.5}


@dataclass(frozen=True)
class Stage:
    name: str
    command: list[str]
    done: Callable[[], bool]


def main(
    out: Annotated[Path, typer.Option(help="The folder for everything.")] = Path("demo"),
    songs: Annotated[
        str | None, typer.Option(help="A folder of songs or a manifest; default: made-up songs.")
    ] = None,
    preset: Annotated[
        str, typer.Option(help="A name in megajukebox/presets, or a YAML file.")
    ] = "tiny",
    ranks: Annotated[
        int, typer.Option(min=1, help="Processes that train and sample together.")
    ] = 2,
    count: Annotated[int, typer.Option(min=1, help="Made-up songs to make.")] = 189,
    samples: Annotated[int, typer.Option(min=1, help="Songs to sample.")] = 27,
    seconds: Annotated[float, typer.Option(help="Length of the sampled songs.")] = 5.0,
    settings: Annotated[
        list[str] | None, typer.Argument(help="Changes to the preset: key.sub=value ...")
    ] = None,
) -> None:
    """From a folder of songs to songs you can hear."""
    try:
        make_folder(out)
    except ValueError as error:
        raise SystemExit(f"demo: {error}") from error
    console = Console()
    check_same_demo(
        out, {"songs": songs or f"demo:{count}", "preset": preset, "settings": settings or []}
    )
    took: dict[str, float] = {}
    for stage in stages(out, songs or f"demo:{count}", preset, ranks, settings or []):
        run_stage(console, stage, took)
        if stage.name == "encode":
            write_requests(out / "requests.yaml", ShardSet(out / "shards/codes"), samples, seconds)
    tell(console, out, took)


def stages(out: Path, source: str, preset: str, ranks: int, settings: list[str]) -> list[Stage]:
    """The pipeline in order; each stage reads what the ones before it wrote."""
    songs, codes, runs, site = (
        out / "shards/songs",
        out / "shards/codes",
        out / "runs",
        out / "site",
    )
    train = on_ranks(ranks, "train")
    common = ["--preset", preset]

    def training(stage: str, data: Path) -> Stage:
        folder = runs / stage
        command = [*train, stage, *common, "--data", str(data), "--out", str(folder), *settings]
        return Stage(f"train {stage}", command, lambda: finished(folder))

    prepare = [*python("prepare"), source, "--out", str(songs), "--songs-per-shard", "8", *common]
    encode = [
        *on_ranks(ranks, "encode"),
        str(songs),
        "--vqvae",
        str(runs / "vqvae"),
        "--out",
        str(codes),
    ]
    asked, samples = str(out / "requests.yaml"), str(out / "samples")
    sample = [*on_ranks(ranks, "sample"), str(runs), "--requests", asked, "--out", samples]
    explore = [*python("explore"), "build", samples, str(runs), "--out", str(site)]
    return [
        Stage("prepare", prepare, (songs / "index.json").exists),
        training("vqvae", songs),
        Stage("encode", encode, (codes / "index.json").exists),
        *(training(stage, codes) for stage in PRIOR_FOLDERS.values()),
        Stage("sample", sample, lambda: False),
        Stage("explore", explore, lambda: False),
    ]


def python(verb: str) -> list[str]:
    return [sys.executable, "-m", "megajukebox.cli", verb]


def on_ranks(ranks: int, entry: str) -> list[str]:
    return [*launch(ranks), str(PACKAGE / f"{entry}.py")]


def launch(ranks: int) -> list[str]:
    """The deepspeed launcher of this environment, on a port of its own."""
    deepspeed = shutil.which(
        "deepspeed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    )
    if deepspeed is None:
        raise SystemExit(
            "demo: the deepspeed command is missing; install this package's dependencies (make install)"
        )
    return [
        deepspeed,
        "--log_level",
        "warning",
        "--num_gpus",
        str(ranks),
        "--master_port",
        str(free_port()),
    ]


def finished(run: Path) -> bool:
    events = read_lines(run / "events.jsonl")
    return bool(events) and events[-1]["event"] == "done"


def check_same_demo(out: Path, asked: dict) -> None:
    """One folder, one demo: other songs or settings belong into another."""
    path = out / "demo.json"
    if path.exists() and json.loads(path.read_text()) != asked:
        raise SystemExit(
            f"demo: {out} holds a demo of other songs or settings ({path}); give another --out, or remove it"
        )
    write_atomic(path, json.dumps(asked).encode())


def run_stage(console: Console, stage: Stage, took: dict[str, float]) -> None:
    """Run one stage to its end; leave with its exit status if it fails."""
    if stage.done():
        console.print(f"[bold]{stage.name}[/] is done")
        return
    console.rule(f"[bold]{stage.name}")
    started = time.perf_counter()
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    quiet = {"DS_ACCELERATOR": "cpu"} if not shutil.which("nvidia-smi") else {}
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": threads,
        "PYTHONWARNINGS": "ignore::FutureWarning",
        **quiet,
    }
    status = subprocess.run(stage.command, env=environment).returncode
    if status:
        raise SystemExit(
            f"demo: {stage.name} failed with exit status {status}; mend it, and the same command goes on from there"
        )
    took[stage.name] = time.perf_counter() - started


def write_requests(path: Path, codes: ShardSet, count: int, seconds: float) -> None:
    """Requests over every artist and genre of the corpus, with words that its songs sing."""
    names = {
        name: list(codes.index["vocabulary"].get(name, {})) or [None]
        for name in ("artist", "genres")
    }
    words = lyrics_by_artist(codes)
    pairs = list(product(names["artist"], names["genres"]))
    requests = []
    for number in range(count):
        artist, genre = pairs[number % len(pairs)]
        lyrics = words.get(artist) or words.get(None) or [""]
        named = {k: v for k, v in (("artist", artist), ("genres", genre)) if v is not None}
        text = lyrics[number // len(pairs) % len(lyrics)]
        what = {
            "lyrics": text,
            "seconds": seconds,
            "seed": number,
            "temperature": dict(TEMPERATURES),
        }
        requests.append({"id": f"song-{number:02d}", **named, **what})
    write_atomic(path, yaml.safe_dump(requests, sort_keys=False, allow_unicode=True).encode())


def lyrics_by_artist(codes: ShardSet) -> dict[str | None, list[str]]:
    """Lyrics of the corpus as they are (timed, where the song has times); under None those of all artists."""
    found: dict[str | None, list[str]] = {}
    for row in range(len(codes)):
        if codes.has(row, "lyrics"):
            artist = json.loads(codes.read_member(row, "json")).get("artist")
            text = codes.read_member(row, "lyrics").decode()
            found.setdefault(artist, []).append(text)
            found.setdefault(None, []).append(text)
    return found


def tell(console: Console, out: Path, took: dict[str, float]) -> None:
    """What each stage took, and where to look."""
    table = Table("stage", "seconds", title="this time")
    for name, seconds in took.items():
        table.add_row(name, f"{seconds:.0f}")
    table.add_row("all", f"{sum(took.values()):.0f}")
    console.print(table)
    before = json.loads((out / "times.json").read_text()) if (out / "times.json").exists() else {}
    write_atomic(out / "times.json", json.dumps({**before, **took}, indent=1).encode())
    console.print(f"Open [bold]{(out / 'site/index.html').resolve()}[/] in a browser.")


if __name__ == "__main__":
    run_command(main, "demo")
