"""What `supervise`, or a script of slurm/, would start: every rank's place, its settings and its memory. Nothing is.

    slurm/top_prior.sh --dry-run --nodes=34                  # without SLURM, too; options as for sbatch
    DRY_RUN=1 sbatch slurm/top_prior.sh                      # in a job: with its nodes and its environment
    megajukebox supervise --dry-run runs/top_prior -- deepspeed --num_gpus 8 megajukebox/train.py top_prior ...

What would fail is refused with one line and 93, behind what could be worked out.
"""

import os
import shlex
import socket
from pathlib import Path

from megajukebox.common.errors import UserError
from megajukebox.common.redaction import redact
from megajukebox.common.world import PORTS
from megajukebox.resilience import slurm, spare_nodes
from megajukebox.resilience.launch_layout import (
    PORT_OPTIONS,
    LaunchLayout,
    job_nodes,
    launch_layout,
    option_number,
    parse_training,
)

# What ranks find in their environment because of slurm/cluster.sh, the profile or the site.
VARIABLES = ("CUDA_", "DS_", "MASTER_", "NCCL_", "OMP_", "SRUN_", "TORCH_")
ANY_PORT = f"a random port of {PORTS[0]} to {PORTS[1] - 1}, another at each start"


def dry_run(
    run: Path, command: list[str], doctor: list[str], wanted: int | None, profile: str | None
) -> None:
    """Print what would be started in `run`.

    Args:
        wanted: nodes of the SLURM job that train; None: all.
        profile: the GPUs that memory is planned for; None: those of the ds_config.

    Raises:
        UserError: it would fail; after all that is known in spite of that.
    """
    slurm.cancel_successors()  # each job of an array would print the same
    nodes = job_nodes()
    active = nodes[:wanted]
    if slurm.job():
        active = spare_nodes.active_nodes(run, min(wanted or len(nodes), len(nodes)))
    layout = launch_layout(command, active)
    print_launch(run, layout, spare_nodes.srun_on(command, active, nodes), doctor, nodes)
    training = parse_training(command)
    stages = 1
    if training:
        from megajukebox.commands.dry_run_stage import preview_stage  # and torch with it

        stages = preview_stage(training, run, layout, profile)
    print_ranks(layout, gpus_per_node(layout), stages)
    for flag in ("DONE", "STOP"):
        if (run / flag).exists():
            raise UserError(f"{run} has the file {flag}, so nothing would be started; remove it")


# ---- The launch ----------------------------------------------------------------------------------------------------


def print_launch(
    run: Path, layout: LaunchLayout, command: list[str], doctor: list[str], nodes: list[str]
) -> None:
    """Nodes, commands, where the ranks meet, and what they find in their environment."""
    job = os.environ.get("SLURM_JOB_NAME", "")
    print(f"dry run{f' of {job}' if job else ''}: nothing is started in {run}")
    facts = {
        "sbatch": os.environ.get("DRY_RUN_SBATCH", ""),
        "SLURM says": slurm.would_start(shlex.split(os.environ.get("DRY_RUN_SUBMISSION", ""))),
        "jobs": os.environ.get("SLURM_ARRAY_TASK_COUNT", ""),
        "nodes": f"{len(layout.nodes)}, spare: {max(0, len(nodes) - len(layout.nodes))}",
        "ranks": f"{layout.ranks}, on each node: {layout.per_node}",
        "GPUs of a node": str(gpus_per_node(layout) or "none are used"),
        "cores": os.environ.get("SLURM_CPUS_PER_TASK", ""),
        "preflight": shlex.join(doctor),
        "command": shlex.join(command),
        "ranks meet at": meeting_point(layout, command),
    }
    for name, text in facts.items():
        if text:
            print(f"{name:14s} {redact(text)}")
    print("environment of every rank, beside its RANK, LOCAL_RANK and WORLD_SIZE:")
    for name, value in sorted(os.environ.items()):
        if name.startswith(VARIABLES):
            print(f"    {name}={redact(value)}")


def gpus_per_node(layout: LaunchLayout) -> int:
    """GPUs that the ranks of a node share.

    Raises:
        UserError: there are fewer than ranks.
    """
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        return 0
    if layout.launcher != "srun":
        return layout.per_node
    gpus = int(os.environ.get("SLURM_GPUS_ON_NODE") or 0)
    if 0 < gpus < layout.per_node:
        raise UserError(
            f"{layout.per_node} tasks of a node share {gpus} GPUs; sbatch --gres=gpu:{layout.per_node},"
            f" or --ntasks-per-node={gpus}"
        )
    return gpus


def meeting_point(layout: LaunchLayout, command: list[str]) -> str:
    """Address and port of rank 0.

    Raises:
        UserError: something listens on that port of this machine.
    """
    if layout.ranks == 1:
        return ""
    if layout.launcher == "srun":
        return f"{slurm.address(layout.nodes[0])}, {ANY_PORT}"
    if layout.launcher not in PORT_OPTIONS:
        return ""
    port = option_number(command, ("--master_port", "--master-port"))
    if port is None:
        return f"{layout.nodes[0]}, {ANY_PORT}"
    with socket.socket() as probe:
        if len(layout.nodes) == 1 and probe.connect_ex(("127.0.0.1", port)) == 0:
            raise UserError(f"port {port} is taken on this machine; give another --master_port")
    return f"{layout.nodes[0]}, port {port}"


def print_ranks(layout: LaunchLayout, gpus: int, stages: int) -> None:
    """A line for each rank."""
    for place in layout.placements(gpus):
        device = "CPU" if place.gpu is None else f"GPU {place.gpu}"
        stage = f", pipeline stage {place.rank * stages // layout.ranks}" if stages > 1 else ""
        print(f"rank {place.rank} on {place.node}: local rank {place.local_rank}, {device}{stage}")
