"""Keep a run going: start its command again after a fault, leave when it is done, call an operator when retrying is no use.

    megajukebox supervise runs/tiny/top_prior -- deepspeed --num_gpus 2 megajukebox/train.py top_prior ...
    megajukebox supervise runs/top_prior -- srun -K1 --label megajukebox train top_prior ...   # in a SLURM job
    megajukebox supervise --preflight --nodes 64 runs/top_prior -- srun ...   # the doctor first; other nodes are spare
    megajukebox supervise --dry-run runs/top_prior -- deepspeed --num_gpus 8 megajukebox/train.py top_prior ...

Every decision is an event in the run's events.jsonl. Signals are passed on to the command, which saves. Exit status: 0
when the run is done or was asked to stop, 75 when the next job should continue, 93 when an operator is needed, 98 when
another start has taken over.
"""

import os
from pathlib import Path
from typing import Annotated

import typer

from megajukebox.commands.dry_run import dry_run
from megajukebox.common.command_line import run_command
from megajukebox.data.shards.source_url import move_secrets
from megajukebox.resilience import preflight
from megajukebox.resilience.job_chain import report_queue
from megajukebox.resilience.supervisor import Supervisor


def main(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    command: Annotated[
        list[str], typer.Argument(help="After --: the command that trains it, with its launcher.")
    ],
    attempts: Annotated[
        int, typer.Option(min=1, help="Exit with 75 after this many attempts.")
    ] = 100,
    several_runs: Annotated[
        bool,
        typer.Option(
            "--several-runs",
            help="The command trains runs within the folder; its status 0 means done.",
        ),
    ] = False,
    examined: Annotated[
        bool,
        typer.Option("--preflight", help="Run the doctor on all ranks first; leave unfit nodes."),
    ] = False,
    nodes: Annotated[
        int | None,
        typer.Option(min=1, help="Nodes of the SLURM job that train; the others are spares."),
    ] = None,
    standby: Annotated[
        bool,
        typer.Option(
            "--standby/--no-standby",
            help="Keep a process on each node that has imported torch: restarts take half the time.",
        ),
    ] = True,
    only_print: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print every rank's place, settings, batch and memory, and start nothing.",
        ),
    ] = False,
    profile: Annotated[
        str | None,
        typer.Option(help="With --dry-run: the GPUs to plan for (default: the ds_config's)."),
    ] = None,
) -> None:
    """Start COMMAND again after faults, until the run is done, stopped, or needs an operator."""
    # A launcher may print its command line, and `ps` shows it: a secret in it goes by the environment.
    command = move_secrets(command, os.environ)
    doctor = preflight.doctor_command(command, run) if examined else []
    if only_print:
        dry_run(run, command, doctor, nodes, profile)
        return
    supervisor = Supervisor(run, command, doctor, nodes, several_runs, standby)
    with report_queue(run):
        raise SystemExit(supervisor.work(attempts))


if __name__ == "__main__":
    run_command(main, "supervise")
