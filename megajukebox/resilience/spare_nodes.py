"""Which nodes of a job train and which wait: one that fails is replaced by a spare at once, without asking the queue.

    NODES=64, sbatch --nodes=66 --no-kill      n01 ... n64 train        n65 n66 wait
    n07 is lost, or the doctor finds it ill    n01 ... n06 n08 ... n65  n66 waits

Nothing is kept but the run's events: which nodes were blamed within a day, and how often (`node_failures`).
"""

import os
from pathlib import Path

from megajukebox.records.events import SpareSwap
from megajukebox.records.run_log import RunLog
from megajukebox.resilience import slurm
from megajukebox.resilience.restart_policy import FAILURES_TO_EXCLUDE, node_failures


def active_nodes(run: Path, wanted: int) -> list[str]:
    """The `wanted` nodes of this job, or fewer, that train next: alive, the least blamed ones, in SLURM's order."""
    alive = slurm.living_nodes()
    failures = node_failures(run)
    chosen = sorted(alive, key=lambda node: failures[node])[:wanted]
    return [node for node in alive if node in chosen]


def unhealthy_nodes(run: Path, nodes: list[str]) -> list[str]:
    """Those of `nodes` that the run must leave."""
    failures = node_failures(run)
    return [node for node in nodes if failures[node] >= FAILURES_TO_EXCLUDE]


def log_spare_swap(log: RunLog, before: list[str], now: list[str]) -> None:
    """The event SpareSwap if others train now."""
    joined = [node for node in now if node not in before]
    replaced = [node for node in before if node not in now]
    if before and joined:
        reason = f"{', '.join(joined)} for {', '.join(replaced)}"
        log.event(SpareSwap(nodes=joined, replaced=replaced, reason=reason))


def srun_on(command: list[str], nodes: list[str], of_job: list[str] | None = None) -> list[str]:
    """An srun command kept to `nodes`; others, and an srun over the whole job, are as they were."""
    job_nodes = slurm.nodes() if of_job is None else of_job
    if not nodes or Path(command[0]).name != "srun" or nodes == job_nodes:
        return command
    per_node = os.environ.get("SLURM_NTASKS_PER_NODE")
    tasks_per_node = int(per_node or int(os.environ["SLURM_NTASKS"]) // len(job_nodes))
    options = [
        f"--nodes={len(nodes)}",
        f"--ntasks={len(nodes) * tasks_per_node}",
        f"--nodelist={','.join(nodes)}",
    ]
    return [command[0], *options, *command[1:]]
