"""Keep a run going: start its command again after a fault, leave when it is done, call a person when that is no use.

    megajukebox supervise runs/tiny/top_prior -- deepspeed --num_gpus 2 megajukebox/train.py top_prior ...
    megajukebox supervise runs/top_prior -- srun -K1 --label megajukebox train top_prior ...   # in a SLURM job

Every decision is an event in the run's events.jsonl. Signals go on to the command, which saves. Exit status: 0 when the
run is done or was asked to stop, 75 when the next job should go on, 93 when a person is needed, 98 when replaced.
"""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Annotated

import typer

from megajukebox.data.files import read_record
from megajukebox.monitoring.metrics import RunLog
from megajukebox.training.survival import slurm
from megajukebox.training.survival.attempts import (
    NO_PROGRESS,
    Verdict,
    bad_nodes,
    generation_of,
    verdict,
    without_progress,
)
from megajukebox.training.survival.chain import telling
from megajukebox.training.survival.exits import DONE, FENCED, PERSON, TEMPORARY
from megajukebox.training.survival.generation import FILE

HEARD = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
PAUSE = 5.0  # seconds before another attempt, for ports to be free and the dead to be buried


class Child:
    """The command that trains, and the signal that was passed on to it."""

    def __init__(self) -> None:
        self.process: subprocess.Popen | None = None
        self.asked = False
        for number in HEARD:
            signal.signal(number, self._pass_on)

    def _pass_on(self, number: int, frame: object) -> None:
        self.asked = True
        if self.process and self.process.poll() is None:
            # srun and mpirun hand SIGUSR1 on to all ranks; the deepspeed launcher only does so with SIGTERM.
            knows = Path(str(self.process.args[0])).name in ("srun", "mpirun")  # type: ignore[index]
            self.process.send_signal(signal.SIGUSR1 if knows else signal.SIGTERM)

    def run(self, command: list[str], attempt: int) -> int:
        """Exit status of the command."""
        self.process = subprocess.Popen(command, env=os.environ | meeting_place(attempt))
        return self.process.wait()


def meeting_place(attempt: int) -> dict[str, str]:
    """Where the ranks meet: another port each time, lest the last attempt's still be taken. Empty outside SLURM."""
    number, nodes = slurm.job(), slurm.nodes()
    if number is None or not nodes:
        return {}
    port = 20000 + (int(number) * 37 + attempt * 101) % 20000
    return {"MASTER_ADDR": slurm.address(nodes[0]), "MASTER_PORT": str(port)}


def main(
    run: Annotated[Path, typer.Argument(help="The run folder.")],
    command: Annotated[list[str], typer.Argument(help="After --: the command that trains it, with its launcher.")],
    attempts: Annotated[int, typer.Option(min=1, help="Leave with 75 after this many.")] = 100,
    several_runs: Annotated[
        bool, typer.Option("--several-runs", help="The command trains runs within the folder; its status 0 means done.")
    ] = False,
) -> None:
    """Start `command` again after faults, until the run is done, stopped, or needs a person."""
    with telling(run):
        raise SystemExit(supervise(run, command, attempts, several_runs))


def supervise(run: Path, command: list[str], attempts: int, several_runs: bool = False) -> int:
    """Attempt after attempt. Returns this process's exit status."""
    child, log = Child(), RunLog(run, writes=True)
    if slurm.runs_elsewhere(read_record(run / FILE).get("job")):
        print(f"supervise: job {read_record(run / FILE)['job']} is training {run}; cancel it first")
        return PERSON
    for attempt in range(1, attempts + 1):
        if (run / "DONE").exists() or (run / "STOP").exists():
            print(f"supervise: {run} has the file {'DONE' if (run / 'DONE').exists() else 'STOP'}; nothing is started")
            slurm.cancel_successors()
            return DONE
        before, started = generation_of(run), time.time()
        status = child.run(command, attempt)
        if several_runs and status == 0:
            (run / "DONE").touch()
        found = verdict(run, before, status)
        seconds = round(time.time() - started, 1)
        log.note(
            "attempt_end", attempt=attempt, status=status, seconds=seconds, kind=found.kind, reason=found.reason,
            nodes=list(found.nodes),
        )  # fmt: skip
        print(f"supervise: attempt {attempt} of {run}: {found.kind}: {found.reason}", flush=True)
        answer = decide(run, log, found, child.asked)
        if answer is not None:
            return answer
        time.sleep(PAUSE)
    return TEMPORARY


def decide(run: Path, log: RunLog, found: Verdict, asked: bool) -> int | None:
    """The exit status to leave with; None to try again here."""
    if found.kind == "done" or (run / "STOP").exists():
        slurm.cancel_successors()
        return DONE
    if found.kind == "fenced":
        return FENCED
    if found.kind == "person":
        return call_person(log, found.reason)
    if found.kind == "stopped" or asked:
        return hand_over(log)
    if without_progress(run) >= NO_PROGRESS:
        return call_person(log, f"{NO_PROGRESS} attempts in a row saved nothing; the last one: {found.reason}")
    return leave_bad_nodes(run, log)


def call_person(log: RunLog, reason: str) -> int:
    log.event("alert", reason=reason)
    slurm.hold_successors()
    return PERSON


def hand_over(log: RunLog) -> int:
    """The time is up: the next task of the array goes on; a job without one puts itself back into the queue."""
    if slurm.job() and not slurm.successors():
        log.event("requeue", reason="no task of the array is left")
        slurm.requeue()
    return DONE


def leave_bad_nodes(run: Path, log: RunLog) -> int | None:
    """If a node of this job has failed the run twice, the next job must go on without it."""
    here = slurm.nodes()
    bad = bad_nodes(run, most=max(1, len(here) // 10))
    if not set(bad) & set(here) or not slurm.successors():
        return None
    log.event("exclude_node", nodes=bad, reason=f"ranks on {', '.join(bad)} died twice within a day")
    slurm.exclude(bad)
    return TEMPORARY
