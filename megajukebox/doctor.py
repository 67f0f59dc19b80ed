"""Before a run, and on a sick one: is everything there, alike, fast and in time; what is not is named.

    megajukebox doctor                                                     # this machine
    megajukebox doctor --run runs/vqvae --data shards/songs                # with the run's folder and its shards
    deepspeed --num_gpus 8 megajukebox/doctor.py --data shards/songs       # all ranks: all-reduce, bandwidth, agreement
    srun --ntasks-per-node=8 megajukebox doctor --data shards/songs        # the same under SLURM
    megajukebox supervise --preflight runs/x -- srun ...                   # before a run starts; bad nodes are left

Exit code 0: all is well, 1: worth a look, 2: do not start. Takes seconds; a rank that does not come is named.
"""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import torch
import torch.distributed as dist
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from megajukebox.common.command_line import run_command
from megajukebox.common.files import write_atomic
from megajukebox.common.world import World, host, ranks_here, world
from megajukebox.monitoring.doctor import checks, network
from megajukebox.monitoring.doctor.checks import Finding
from megajukebox.monitoring.exporters.terminal import plain
from megajukebox.resilience.exit_codes import leave_now

COLORS = {"good": "green", "warn": "yellow", "bad": "bold red"}
CODES = {"good": 0, "warn": 1, "bad": 2}


def main(
    run: Annotated[
        Path | None, typer.Option(help="A run folder, there or to be: its disk, flags, settings.")
    ] = None,
    data: Annotated[list[Path] | None, typer.Option(help="Folders of shards.")] = None,
    ds_config: Annotated[
        Path | None, typer.Option(help="A ds_config that all ranks must have alike.")
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=1, help="How long to wait for the other ranks.")
    ] = 60.0,
    as_text: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    leave: Annotated[
        Path | None,
        typer.Option(
            help="A folder in which each rank leaves what it found, before it meets the others."
        ),
    ] = None,
    local_rank: Annotated[
        int, typer.Option("--local_rank", hidden=True, help="The deepspeed launcher gives it.")
    ] = 0,
) -> None:
    """Examine this machine, or, under deepspeed or srun, all ranks together."""
    try:
        here = world()
    except ValueError as error:
        raise SystemExit(f"doctor: {error}") from error
    findings = alone(run, data or [], first_of_node=here.local_rank == 0)
    if leave:
        write_report(leave / f"rank-{here.rank:05d}.json", findings)
    if here.size > 1:
        findings = together(
            here, findings, [run / "run.yaml"] if run else [], ds_config, data or [], seconds
        )
    if leave and here.rank == 0:
        write_report(leave / "together.json", findings)
    if here.rank == 0 and not leave:
        print(json.dumps([asdict(f) for f in findings], indent=1)) if as_text else show(findings)
    code = CODES[checks.worst(findings)] if here.rank == 0 else 0
    if here.size > 1:
        leave_now(code)  # what torch makes of a group that somebody has left would hide it
    raise SystemExit(code)


def write_report(path: Path, findings: list[Finding]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(
        path, json.dumps({"host": host(), "findings": [asdict(f) for f in findings]}).encode()
    )


def alone(run: Path | None, data: list[Path], first_of_node: bool) -> list[Finding]:
    """What one process can tell of its machine; of a node, the first one tells what is common to all."""
    if not first_of_node:
        return []
    found = [checks.check_versions(), checks.check_gpus(ranks_here()), checks.check_locks()]
    found += [checks.check_disk(run or Path.cwd()), *([checks.check_run(run)] if run else [])]
    return [
        replace(f, hosts=(host(),))
        for f in (*found, *(checks.check_shards(folder) for folder in data))
    ]


def together(
    here: World,
    own: list[Finding],
    files: list[Path],
    ds_config: Path | None,
    data: list[Path],
    seconds: float,
) -> list[Finding]:
    """The findings of all nodes (good ones only once), and those about the ranks."""
    device = (
        torch.device("cuda", here.local_rank) if torch.cuda.is_available() else torch.device("cpu")
    )
    compared = [
        *files,
        *([ds_config] if ds_config else []),
        *(folder / "index.json" for folder in data),
    ]
    digests = {str(path): checks.digest(path) for path in compared}
    try:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        network.meet(seconds)
        return compare(here, device, own, digests)
    except (RuntimeError, OSError) as error:
        return [
            *own,
            Finding(
                "ranks", "bad", " ".join(str(error).split())[:300], "look at their nodes and logs"
            ),
        ]


def compare(
    here: World, device: torch.device, own: list[Finding], digests: dict[str, str]
) -> list[Finding]:
    """What the ranks, which have met, find of one another."""
    reports = network.examine(device, host(), checks.versions(), digests)
    everyone: list[list[Finding] | None] = [None] * here.size
    dist.all_gather_object(everyone, own)
    told = network.heard(*network.bandwidth(device), here.size)
    if network.wrong_sum(device):
        told = Finding(
            "all-reduce", "bad", "gives a wrong sum", "exclude nodes by halves until it is right"
        )
    dist.destroy_process_group()
    of_others = [
        replace(finding, about=f"{finding.about} ({report.host})")
        for report, findings in zip(reports, everyone)
        for finding in findings or []
        if report.rank and finding.verdict != "good"
    ]
    return [*own, *of_others, told, *network.judge(reports)]


def show(findings: list[Finding]) -> None:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    for finding in findings:
        told = Text(plain(finding.what))
        if finding.do:
            told.append(f"\ndo: {plain(finding.do)}", style="dim")
        mark = Text(
            {"good": "ok", "warn": "look", "bad": "BAD"}[finding.verdict],
            style=COLORS[finding.verdict],
        )
        table.add_row(mark, Text(plain(finding.about)), told)
    Console(width=None if os.isatty(1) else 160).print(table)


if __name__ == "__main__":
    run_command(main, "doctor")
