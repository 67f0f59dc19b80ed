"""Check a machine, or all ranks, before a run and on a sick one: complete, alike, fast, in time; faults are named.

    megajukebox doctor                                                     # this machine
    megajukebox doctor --run runs/vqvae --data shards/songs                # with the run's folder and its shards
    deepspeed --num_gpus 8 megajukebox/doctor.py --data shards/songs       # all ranks: all-reduce, bandwidth, agreement
    srun --ntasks-per-node=8 megajukebox doctor --data shards/songs        # the same under SLURM
    megajukebox supervise --preflight runs/x -- srun ...                   # before a run starts; bad nodes are excluded

Exit code 0: all is well, 1: warnings, 2: do not start. Takes seconds; ranks that do not answer are named.
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

from megajukebox.common.command_line import renamed_options, run_command
from megajukebox.common.device import check_precision, choose_device, device_name
from megajukebox.common.errors import UserError
from megajukebox.common.files import write_atomic
from megajukebox.common.plain_text import plain
from megajukebox.common.rank_messages import all_gather_json
from megajukebox.common.world import World, host, world
from megajukebox.monitoring.doctor import checks, network
from megajukebox.monitoring.doctor.checks import Finding
from megajukebox.resilience.exit_codes import leave_now
from megajukebox.training.engines.ds_config import read_ds_config
from megajukebox.training.planner.recipe import precision

COLORS = {"good": "green", "warn": "yellow", "bad": "bold red"}
MARKS = {"good": "ok", "warn": "look", "bad": "BAD"}
EXIT_CODES = {"good": 0, "warn": 1, "bad": 2}
ERROR_LETTERS = 300  # of an error that all ranks together ended with
WIDTH_OF_FILES = 160  # characters a line where the output is not a terminal


@renamed_options({"--leave": "--report-dir"})
def main(
    run: Annotated[
        Path | None,
        typer.Option(help="A run folder, which need not exist: check its disk, flags, settings."),
    ] = None,
    data: Annotated[list[Path] | None, typer.Option(help="Check these folders of shards.")] = None,
    ds_config: Annotated[
        Path | None, typer.Option(help="Check that all ranks have the same ds_config.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, help="Seconds to wait for other ranks.")] = 60.0,
    as_text: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    report_dir: Annotated[
        Path | None,
        typer.Option(help="Write each rank's findings here, before it waits for the others."),
    ] = None,
    local_rank: Annotated[
        int, typer.Option("--local_rank", hidden=True, help="Set by the deepspeed launcher.")
    ] = 0,
) -> None:
    """Check this machine or, under deepspeed or srun, all ranks together."""
    this = world()
    folders = data or []
    device, fitness = check_device(this.local_rank, ds_config_of(run, ds_config))
    findings = check_node(run, folders) if this.local_rank == 0 else []
    if this.local_rank == 0 or fitness.verdict == "bad":
        findings.append(fitness)
    if report_dir:
        write_report(report_dir / f"rank-{this.rank:05d}.json", findings)
    if this.size > 1:
        files = [run / "run.yaml"] if run else []  # that must be the same for all ranks
        files += [ds_config] if ds_config else []
        files += [folder / "index.json" for folder in folders]
        findings = check_ranks(this, device, findings, files, seconds)
    if report_dir and this.rank == 0:
        write_report(report_dir / "together.json", findings)
    if this.rank == 0 and not report_dir:
        if as_text:
            print(json.dumps([asdict(finding) for finding in findings], indent=1))
        else:
            print_table(findings)
    code = EXIT_CODES[checks.worst(findings)] if this.rank == 0 else 0
    if this.size > 1:
        leave_now(code)  # torch's own exit after a rank was lost would hide the code
    raise SystemExit(code)


def write_report(path: Path, findings: list[Finding]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    report = {"host": host(), "findings": [asdict(finding) for finding in findings]}
    write_atomic(path, json.dumps(report).encode())


def check_node(run: Path | None, data: list[Path]) -> list[Finding]:
    """What one process sees of its node; only the first rank of a node checks it."""
    findings = [
        checks.check_versions(),
        checks.check_gpus(checks.needed_gpus()),
        checks.check_locks(),
        checks.check_disk(run or Path.cwd()),
    ]
    if run:
        findings.append(checks.check_run(run))
    findings += map(checks.check_shards, data)
    return [replace(finding, hosts=(host(),)) for finding in findings]


def ds_config_of(run: Path | None, ds_config: Path | None) -> dict:
    """The ds_config that is given, else the one that the run was started with; {} for a new run.

    Raises:
        UserError: it is unknown or not valid.
    """
    if ds_config:
        return read_ds_config(str(ds_config))
    stored = run / "ds_config.json" if run else None
    return read_ds_config(str(stored)) if stored and stored.is_file() else {}


def check_device(local_rank: int, ds_config: dict) -> tuple[torch.device | None, Finding]:
    """What this rank computes on, and whether torch and the card can; None where they cannot."""
    try:
        device = choose_device(local_rank)
        check_precision(device, precision(ds_config))
    except (UserError, RuntimeError) as error:  # RuntimeError: CUDA's own
        what = " ".join(str(error).split())[:ERROR_LETTERS]
        do = "install the build of torch for this card (docs/runs.md), or exclude this node"
        return None, Finding("device", "bad", what, do, (host(),))
    what = device_name(device)
    if device.type == "cuda":
        what = f"{device}, {what}: torch {torch.__version__} has kernels for it"
    return device, Finding("device", "good", what, hosts=(host(),))


def check_ranks(
    this: World, device: torch.device | None, own: list[Finding], files: list[Path], seconds: float
) -> list[Finding]:
    """The findings of all nodes (good ones only once), and those about the ranks together."""
    digests = {str(path): checks.digest(path) for path in files}
    try:
        network.meet(seconds, device.type if device else network.NO_DEVICE)
        assert device  # else the ranks have parted
        return compare_ranks(this, device, own, digests)
    except (RuntimeError, OSError) as error:
        message = " ".join(str(error).split())[:ERROR_LETTERS]
        return [*own, Finding("ranks", "bad", message, "look at their nodes and logs")]


def compare_ranks(
    this: World, device: torch.device, own: list[Finding], digests: dict[str, str]
) -> list[Finding]:
    """What the ranks, all of which have answered, find when they compare themselves."""
    reports = network.examine(device, host(), checks.versions(), digests)
    messages = [{**asdict(finding), "hosts": list(finding.hosts)} for finding in own]
    findings_of_ranks = all_gather_json(messages)
    all_reduce = network.check_all_reduce(device)
    dist.destroy_process_group()
    of_others: list[Finding] = []
    for report, findings in zip(reports, findings_of_ranks):
        if report.rank == 0:
            continue
        for message in findings:
            finding = Finding(**{**message, "hosts": tuple(message["hosts"])})
            if finding.verdict != "good":
                of_others.append(replace(finding, about=f"{finding.about} ({report.host})"))
    return [*own, *of_others, all_reduce, *network.compare(reports)]


def print_table(findings: list[Finding]) -> None:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    for finding in findings:
        text = Text(plain(finding.what))
        if finding.do:
            text.append(f"\ndo: {plain(finding.do)}", style="dim")
        mark = Text(MARKS[finding.verdict], style=COLORS[finding.verdict])
        table.add_row(mark, Text(plain(finding.about)), text)
    Console(width=None if os.isatty(1) else WIDTH_OF_FILES).print(table)


if __name__ == "__main__":
    run_command(main, "doctor")
