"""Keep a run going: start its command again after a fault, leave when it is done, call a person when that is no use.

    megajukebox supervise runs/tiny/top_prior -- deepspeed --num_gpus 2 megajukebox/train.py top_prior ...
    megajukebox supervise runs/top_prior -- srun -K1 --label megajukebox train top_prior ...   # in a SLURM job
    megajukebox supervise --preflight --nodes 64 runs/top_prior -- srun ...   # the doctor first; other nodes are spare

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

from megajukebox.common.files import read_record
from megajukebox.records.run_log import RunLog
from megajukebox.resilience import preflight, slurm, spare_nodes
from megajukebox.resilience.exit_codes import EXIT_FATAL, EXIT_FENCED, EXIT_OK, EXIT_RETRY
from megajukebox.resilience.fencing import FILE
from megajukebox.resilience.job_chain import report_queue
from megajukebox.resilience.restart_policy import (
    NO_PROGRESS,
    AttemptOutcome,
    attempts_without_progress,
    classify_attempt,
    generation_of,
    nodes_to_exclude,
)

HEARD = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
PAUSE = 5.0  # seconds before another attempt, for ports to be free and the dead to be buried


class Child:
    """The command that runs now, and whether a signal was passed on to it."""

    def __init__(self) -> None:
        self.process: subprocess.Popen | None = None
        self.asked = False
        self.starts = 0
        for number in HEARD:
            signal.signal(number, self._pass_on)

    def _pass_on(self, number: int, frame: object) -> None:
        self.asked = True
        if self.process and self.process.poll() is None:
            # srun and mpirun hand SIGUSR1 on to all ranks; the deepspeed launcher only does so with SIGTERM.
            knows = Path(str(self.process.args[0])).name in ("srun", "mpirun")  # type: ignore[index]
            self.process.send_signal(signal.SIGUSR1 if knows else signal.SIGTERM)

    def run(self, command: list[str], nodes: list[str], seconds: float | None = None) -> int:
        """Exit status of the command on `nodes`; it is ended after `seconds`."""
        self.starts += 1
        command, env = (
            spare_nodes.srun_on(command, nodes),
            os.environ | meeting_place(nodes, self.starts),
        )
        self.process = subprocess.Popen(command, env=env)
        if self.asked:  # while it was being started
            self._pass_on(signal.SIGTERM, None)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.terminate()
            return self.process.wait()


def meeting_place(nodes: list[str], start: int) -> dict[str, str]:
    """Where the ranks meet: another port each time, lest the last one be still taken. Empty outside SLURM."""
    number = slurm.job()
    if number is None or not nodes:
        return {}
    port = 20000 + (int(number) * 37 + start * 101) % 12000  # below those that Linux chooses itself
    return {"MASTER_ADDR": slurm.address(nodes[0]), "MASTER_PORT": str(port)}


def main(
    run: Annotated[Path, typer.Argument(help="The run folder.")],
    command: Annotated[
        list[str], typer.Argument(help="After --: the command that trains it, with its launcher.")
    ],
    attempts: Annotated[int, typer.Option(min=1, help="Leave with 75 after this many.")] = 100,
    several_runs: Annotated[
        bool,
        typer.Option(
            "--several-runs",
            help="The command trains runs within the folder; its status 0 means done.",
        ),
    ] = False,
    examined: Annotated[
        bool,
        typer.Option(
            "--preflight",
            help="The doctor looks at all ranks before they train; unfit nodes are left.",
        ),
    ] = False,
    nodes: Annotated[
        int | None,
        typer.Option(
            min=1, help="Train on so many of the SLURM job's nodes; the others are spare."
        ),
    ] = None,
) -> None:
    """Start `command` again after faults, until the run is done, stopped, or needs a person."""
    try:
        doctor = preflight.doctors(command, run) if examined else []
    except ValueError as error:
        raise SystemExit(f"supervise: {error}") from error
    with report_queue(run):
        raise SystemExit(Supervisor(run, command, doctor, nodes, several_runs).work(attempts))


class Supervisor:
    """A job's watch over a run: which nodes train, what became of each attempt, what is next."""

    def __init__(
        self,
        run: Path,
        command: list[str],
        doctor: list[str],
        wanted: int | None,
        several_runs: bool,
    ) -> None:
        self.run, self.command, self.doctor, self.several_runs = run, command, doctor, several_runs
        self.child, self.log = Child(), RunLog(run, writes=True)
        self.here, self.team, self.left = slurm.nodes(), list[str](), set[str]()
        self.wanted = min(wanted or len(self.here), len(self.here))

    def work(self, attempts: int) -> int:
        """Attempt after attempt. Returns this process's exit status."""
        if slurm.runs_elsewhere(read_record(self.run / FILE).get("job")):
            print(
                f"supervise: job {read_record(self.run / FILE)['job']} is training {self.run}; cancel it first"
            )
            return EXIT_FATAL
        doubtful = True  # whether a node may be ill
        for number in range(1, attempts + 1):
            if (self.run / "DONE").exists() or (self.run / "STOP").exists():
                word = "DONE" if (self.run / "DONE").exists() else "STOP"
                print(f"supervise: {self.run} has the file {word}; nothing is started")
                slurm.cancel_successors()
                return EXIT_OK
            answer = self.choose_team(doubtful)
            if (
                answer is None and self.child.asked
            ):  # since the last attempt ended: nobody says it twice
                answer = self.hand_over("asked to stop before training began")
            if answer is None:
                before, found = generation_of(self.run), self.attempt(number)
                answer, doubtful = (
                    self.decide(found),
                    bool(found.nodes) or generation_of(self.run) == before,
                )
            if answer is not None:
                return answer
            time.sleep(PAUSE)
        return EXIT_RETRY

    def attempt(self, number: int) -> AttemptOutcome:
        """Train, and say what became of it."""
        before, started = generation_of(self.run), time.time()
        status = self.child.run(self.command, self.team)
        if self.several_runs and status == 0:
            (self.run / "DONE").touch()
        found = classify_attempt(self.run, before, status)
        if (
            found.kind == "stopped"
            and not self.child.asked
            and (lost := set(self.team) - set(slurm.living_nodes()))
        ):
            found = AttemptOutcome(
                "again", f"SLURM lost {', '.join(sorted(lost))} and stopped the others"
            )
        seconds = round(time.time() - started, 1)
        self.log.note(
            "attempt_end", attempt=number, status=status, seconds=seconds, kind=found.kind, reason=found.reason,
            nodes=list(found.nodes),
        )  # fmt: skip
        print(
            f"supervise: attempt {number} of {self.run}: {found.kind}: {found.reason}", flush=True
        )
        return found

    def decide(self, found: AttemptOutcome) -> int | None:
        """The exit status to leave with; None to try again here."""
        if found.kind == "done" or (self.run / "STOP").exists():
            slurm.cancel_successors()
            return EXIT_OK
        if found.kind == "fenced":
            return EXIT_FENCED
        if found.kind == "person":
            return self.call_person(found.reason)
        if found.kind == "stopped" or self.child.asked:
            return self.hand_over("its time is up")
        return self.no_progress(found.reason)

    def choose_team(self, doubtful: bool) -> int | None:
        """Who trains next, spares taken for nodes that are lost or unfit. An exit status if there are too few."""
        while True:
            before, self.team = self.team, spare_nodes.active_nodes(self.run, self.wanted)
            spare_nodes.log_spare_swap(self.log, before, self.team)
            answer = self.leave_bad_nodes()
            if answer is not None or not self.doctor or not (doubtful or self.team != before):
                return answer
            found = self.examine()
            if self.child.asked or found.verdict == "good":
                return None
            told = "; ".join(
                filter(
                    None, [found.everywhere, *(f"{n}: {what}" for n, what in found.unfit.items())]
                )
            )
            replaced = (
                len(slurm.living_nodes()) - len(spare_nodes.unhealthy_nodes(self.run, self.here))
                >= self.wanted
                > 0
            )
            if found.everywhere or not (replaced or slurm.successors()):
                return self.call_person(told)
            answer = self.no_progress(told)
            if answer is not None:
                return answer
            if not replaced:
                self.exclude(list(found.unfit))
                return EXIT_RETRY
            doubtful = False

    def examine(self) -> preflight.PreflightResult:
        """Let the doctor look at the team."""
        started = time.time()
        found = preflight.examine(
            self.run, self.team, lambda most: self.child.run(self.doctor, self.team, most)
        )
        seconds = round(time.time() - started, 1)
        self.log.note(
            "preflight",
            verdict=found.verdict,
            seconds=seconds,
            nodes=list(found.unfit),
            reason=found.told,
        )
        print(
            f"supervise: preflight of {self.run}: {found.verdict} in {seconds} s: {found.told}",
            flush=True,
        )
        return found

    def leave_bad_nodes(self) -> int | None:
        """If nodes of the team are lost, or failed the run twice, the next job must go on, without them."""
        bad = [
            node
            for node in spare_nodes.unhealthy_nodes(self.run, self.here)
            if node not in self.left
        ]
        spared, successors = not set(bad) & set(self.team), slurm.successors()
        worst = nodes_to_exclude(self.run, most=self.few)
        if bad and (spared or (successors and set(bad) & set(worst))):
            self.exclude(bad)
        if successors and (set(worst) & set(self.team) or len(self.team) < self.wanted):
            return EXIT_RETRY
        return self.hand_over("nodes are lost") if len(self.team) < self.wanted else None

    @property
    def few(self) -> int:
        """Nodes that may be excluded at once: a tenth; for without enough a run waits for ever."""
        return max(1, len(self.here) // 10)

    def exclude(self, nodes: list[str]) -> None:
        """The next jobs do without `nodes`."""
        self.left |= set(nodes)
        self.log.event(
            "exclude_node",
            nodes=nodes,
            reason=f"{', '.join(nodes)} failed this run; events tell how",
        )
        slurm.exclude(nodes_to_exclude(self.run, most=self.few))

    def no_progress(self, reason: str) -> int | None:
        if attempts_without_progress(self.run) < NO_PROGRESS:
            return None
        return self.call_person(
            f"{NO_PROGRESS} attempts in a row saved nothing; the last one: {reason}"
        )

    def call_person(self, reason: str) -> int:
        self.log.event("alert", reason=reason, person=True)
        print(f"supervise: {self.run} needs a person: {reason}", flush=True)
        slurm.hold_successors()
        return EXIT_FATAL

    def hand_over(self, reason: str) -> int:
        """The next task of the array goes on; a job without one puts itself back into the queue."""
        if slurm.job() and not slurm.successors():
            self.log.event("requeue", reason=f"{reason}, and no task of the array is left")
            slurm.requeue()
        return EXIT_OK
