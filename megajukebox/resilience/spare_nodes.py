"""Which nodes of a job train and which wait: one that fails is replaced by a spare at once, without asking the queue.

    NODES=64, sbatch --nodes=66 --no-kill      n01 ... n64 train        n65 n66 wait
    n07 is lost, or the doctor finds it ill    n01 ... n06 n08 ... n65  n66 waits

Nothing is remembered but the run's events: which nodes were blamed within a day, and how often (`attempts.blames`).
"""

import os
from pathlib import Path

from megajukebox.records.run_log import RunLog
from megajukebox.resilience import slurm
from megajukebox.resilience.restart_policy import DEATHS, node_failures


def active_nodes(run: Path, wanted: int) -> list[str]:
    """The `wanted` nodes of this job, or fewer, that train next: alive, the least blamed ones, in SLURM's order."""
    alive, blamed = slurm.living_nodes(), node_failures(run)
    chosen = sorted(alive, key=lambda node: blamed[node])[:wanted]
    return [node for node in alive if node in chosen]


def unhealthy_nodes(run: Path, nodes: list[str]) -> list[str]:
    """Those of `nodes` that the run must leave."""
    blamed = node_failures(run)
    return [node for node in nodes if blamed[node] >= DEATHS]


def log_spare_swap(log: RunLog, before: list[str], now: list[str]) -> None:
    """The event `spare` if others train now."""
    came, left = [n for n in now if n not in before], [n for n in before if n not in now]
    if before and came:
        log.event(
            "spare", nodes=came, instead_of=left, reason=f"{', '.join(came)} for {', '.join(left)}"
        )


def srun_on(command: list[str], nodes: list[str]) -> list[str]:
    """An srun command kept to `nodes`; others, and an srun over the whole job, are as they were."""
    if not nodes or Path(command[0]).name != "srun" or nodes == slurm.nodes():
        return command
    tasks = len(nodes) * tasks_per_node()
    return [
        command[0],
        f"--nodes={len(nodes)}",
        f"--ntasks={tasks}",
        f"--nodelist={','.join(nodes)}",
        *command[1:],
    ]


def tasks_per_node() -> int:
    told = os.environ.get("SLURM_NTASKS_PER_NODE")
    return int(told) if told else int(os.environ["SLURM_NTASKS"]) // len(slurm.nodes())
