"""The few things a run asks of SLURM, all through its commands; outside a job each does nothing.

A run is a job array that runs one task at a time (`--array=1-60%1`): when one ends, for whatever reason, the next
starts within seconds and resumes from the newest checkpoint. (`scontrol requeue` was measured to wait two minutes.)
"""

import os
import re
import subprocess
from pathlib import Path

TIMEOUT = 60  # seconds of one command
CONFIGURATIONS = (Path("/etc/slurm/slurm.conf"), Path("/run/slurm/conf/slurm.conf"))


def job() -> str | None:
    return os.environ.get("SLURM_JOB_ID")


def chain() -> str | None:
    """The job array that this job is a task of."""
    return os.environ.get("SLURM_ARRAY_JOB_ID")


def ask(*command: str) -> str:
    """What a command of SLURM prints; nothing if it fails, for a run must outlive its controller."""
    env = os.environ | {"SLURM_BITSTR_LEN": "0"}  # do not shorten the list of an array's tasks
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, env=env)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip()


def would_start(submission: list[str]) -> str:
    """What SLURM says of options and a script for sbatch, without taking them: when they would start, or why not.

    Empty where there is no SLURM. Nodes that are down at the moment are a reason to it, and none not to submit.
    """
    configured = "SLURM_CONF" in os.environ or any(path.exists() for path in CONFIGURATIONS)
    if not submission or not configured or "is UP" not in ask("scontrol", "ping"):
        return ""
    command = ["sbatch", "--test-only", *submission]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    return " ".join(f"{answer.stdout} {answer.stderr}".split())


def squeue(jobs: str, states: str, format: str) -> list[str]:
    """The words that squeue prints of some jobs."""
    listed = ask("squeue", "--noheader", "--jobs", jobs, "--states", states, "--format", format)
    return listed.split()


def successors() -> list[str]:
    """The tasks of this job's array that wait, as scontrol wants them: ["12_[4-60]"].

    squeue prints 12_[4-60%1]: the number of tasks that may run at once is not part of a name.
    """
    array = chain()
    if not array:
        return []
    names = []
    for name in squeue(array, "PENDING", "%i"):
        names.append(name.partition("%")[0].rstrip("]") + "]" if "[" in name else name)
    return names


def cancel_successors() -> None:
    array = chain()
    if array:
        ask("scancel", "--state=PENDING", array)


def hold_successors() -> None:
    """They wait until an operator runs `scontrol release`."""
    for name in successors():
        ask("scontrol", "uhold", name)


def exclude(nodes: list[str]) -> None:
    """The successors will not run on `nodes`."""
    for name in successors():
        ask("scontrol", "update", f"JobId={name}", f"ExcNodeList={','.join(nodes)}")


def requeue() -> None:
    """This job starts again later (measured: after two minutes), under its own number."""
    number = job()
    if number:
        ask("scontrol", "requeue", number)


def nodes() -> list[str]:
    """The nodes of this job, the one of rank 0 first."""
    return ask("scontrol", "show", "hostnames", os.environ.get("SLURM_JOB_NODELIST", "")).split()


def living_nodes() -> list[str]:
    """Those of this job's nodes that SLURM has not lost: a job with --no-kill continues without them."""
    number = job()
    running = squeue(number, "RUNNING", "%N") if number else []
    if not running:
        return nodes()
    return ask("scontrol", "show", "hostnames", running[0]).split()


def address(node: str) -> str:
    """Where SLURM itself reaches a node; its name need not mean anything to other programs."""
    matched = re.search(r"NodeAddr=(\S+)", ask("scontrol", "show", "node", node))
    return matched[1] if matched else node


def runs_elsewhere(number: str | None) -> bool:
    """Whether job `number` is running and is no task of this job's array."""
    if not number or not job() or number == job():
        return False
    state = ask("squeue", "--noheader", "--jobs", number, "--format", "%T %F").split()
    return len(state) == 2 and state[0] == "RUNNING" and state[1] != chain()
