"""A job's supervisor of a run: which nodes train, what became of each attempt, what is next."""

import logging
import os
import signal
import subprocess
import time
from pathlib import Path

from megajukebox.common.errors import EXIT_FATAL
from megajukebox.common.files import open_append
from megajukebox.common.world import free_port
from megajukebox.records.events import (
    NEEDS_OPERATOR,
    AlertRaised,
    AttemptEnded,
    NodeExcluded,
    PreflightFinished,
    Requeued,
)
from megajukebox.records.jsonl_tail import read_object
from megajukebox.records.run_log import RunLog
from megajukebox.resilience import preflight, slurm, spare_nodes
from megajukebox.resilience.exit_codes import EXIT_FENCED, EXIT_OK, EXIT_RETRY
from megajukebox.resilience.fencing import FILE
from megajukebox.resilience.handover import ADDRESS
from megajukebox.resilience.launch_layout import safe_path, with_random_port
from megajukebox.resilience.restart_policy import (
    MAX_FRUITLESS_ATTEMPTS,
    AttemptOutcome,
    attempts_without_progress,
    classify_attempt,
    generation_of,
    nodes_to_exclude,
)
from megajukebox.resilience.standby_launcher import StandbyLauncher, with_standby

log = logging.getLogger(__name__)

FORWARDED_SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
# Before another attempt, so that ports are released and killed processes reaped; less after one that made progress.
PAUSE_SECONDS = 5.0
FIRST_PAUSE_SECONDS = 1.0


class TrainingProcess:
    """The command that runs now, and whether a signal was passed on to it."""

    def __init__(self) -> None:
        self.process: subprocess.Popen | None = None
        self.stop_requested = False
        for number in FORWARDED_SIGNALS:
            signal.signal(number, self._pass_on)

    def _pass_on(self, number: int, frame: object) -> None:
        self.stop_requested = True
        if self.process and self.process.poll() is None:
            # srun and mpirun hand SIGUSR1 on to all ranks; the deepspeed launcher only does so with SIGTERM.
            launcher = Path(str(self.process.args[0])).name  # type: ignore[index]
            forwards = launcher in ("srun", "mpirun")
            self.process.send_signal(signal.SIGUSR1 if forwards else signal.SIGTERM)

    def run(
        self,
        command: list[str],
        nodes: list[str],
        seconds: float | None = None,
        environment: dict[str, str] | None = None,
    ) -> int:
        """Exit status of the command on `nodes`; it is ended after `seconds`."""
        env = os.environ | (environment or {}) | rendezvous(nodes) | safe_path(command)
        started = with_random_port(spare_nodes.srun_on(command, nodes))
        self.process = subprocess.Popen(started, env=env)
        if self.stop_requested:  # while it was being started
            self._pass_on(signal.SIGTERM, None)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.terminate()
        try:
            return self.process.wait(preflight.ENDING_SECONDS)
        except (
            subprocess.TimeoutExpired
        ):  # a task of it waits for a node or a disk that does not answer
            self.process.kill()
            return self.process.wait()


def rendezvous(nodes: list[str]) -> dict[str, str]:
    """Where the ranks meet: a port drawn at random for each start, lest the last one be still taken, or somebody
    else reckon it and come first. Empty outside SLURM.

    It is told in the environment of the ranks, which their user alone can read (docs/decisions/0043).
    """
    if slurm.job() is None or not nodes:
        return {}
    return {"MASTER_ADDR": slurm.address(nodes[0]), "MASTER_PORT": str(free_port())}


class Supervisor:
    """Starts `command` again after faults, until the run is done, stopped, or needs an operator."""

    def __init__(
        self,
        run: Path,
        command: list[str],
        doctor: list[str],
        wanted: int | None,
        several_runs: bool,
        standby: bool = False,
    ) -> None:
        self.run = run
        self.command = command
        self.doctor = doctor  # the command of the preflight check; empty: none
        self.several_runs = several_runs
        self.child = TrainingProcess()
        self.log = RunLog(run, writes=True)
        self.job_nodes = slurm.nodes()
        self.active: list[str] = []  # nodes that train
        self.excluded: set[str] = set()
        self.wanted = min(wanted or len(self.job_nodes), len(self.job_nodes))
        self.standby = self._standby() if standby else None
        # Nodes that may be excluded at once: a tenth; for without enough a run waits for ever.
        self.max_excluded = max(1, len(self.job_nodes) // 10)

    def _standby(self) -> StandbyLauncher | None:
        """Let the commands start their ranks in a warm standby, if they start ranks of ours."""
        command = with_standby(self.command)
        if command is None:
            log.info("no warm standby: %s starts no entry of this package", " ".join(self.command))
            return None
        self.command = command
        self.doctor = with_standby(self.doctor) or self.doctor
        return StandbyLauncher(self.job_nodes)

    def work(self, attempts: int) -> int:
        """Attempt after attempt. Returns this process's exit status."""
        try:
            return self._attempts(attempts)
        finally:
            if self.standby:
                self.standby.stop()

    def start(self, command: list[str], seconds: float | None = None) -> int:
        """Exit status of a command on the active nodes."""
        environment = {}
        if self.standby:
            self.standby.start()
            environment = {ADDRESS: self.standby.address}
        return self.child.run(command, self.active, seconds, environment)

    def _attempts(self, attempts: int) -> int:
        job = read_object(self.run / FILE).get("job")
        if slurm.runs_elsewhere(job):
            log.error("job %s is training %s; cancel it first", job, self.run)
            return EXIT_FATAL
        nodes_in_doubt = True
        for number in range(1, attempts + 1):
            flags = [name for name in ("DONE", "STOP") if (self.run / name).exists()]
            if flags:
                log.info("%s has the file %s; nothing is started", self.run, flags[0])
                slurm.cancel_successors()
                return EXIT_OK
            status = self.choose_nodes(nodes_in_doubt)
            if status is None and self.child.stop_requested:
                # Since the last attempt ended: no signal comes a second time.
                status = self.hand_over("asked to stop before training began")
            if status is None:
                before = generation_of(self.run)
                outcome = self.attempt(number)
                status = self.decide(outcome)
                nodes_in_doubt = bool(outcome.nodes) or generation_of(self.run) == before
            if status is not None:
                return status
            in_a_row = attempts_without_progress(self.run)
            time.sleep(FIRST_PAUSE_SECONDS if in_a_row <= 1 else PAUSE_SECONDS)
        return EXIT_RETRY

    def attempt(self, number: int) -> AttemptOutcome:
        """Train, and log what became of it."""
        before = generation_of(self.run)
        started = time.time()
        status = self.start(self.command)
        if self.several_runs and status == 0:
            open_append(self.run / "DONE").close()
        outcome = classify_attempt(self.run, before, status)
        if outcome.kind == "stopped" and not self.child.stop_requested:
            lost = set(self.active) - set(slurm.living_nodes())
            if lost:
                reason = f"SLURM lost {', '.join(sorted(lost))} and stopped the others"
                outcome = AttemptOutcome("retry", reason)
        event = AttemptEnded(
            attempt=number,
            status=status,
            seconds=round(time.time() - started, 1),
            kind=outcome.kind,
            reason=outcome.reason,
            nodes=list(outcome.nodes),
        )
        self.log.note(event)
        log.info("attempt %d of %s: %s: %s", number, self.run, outcome.kind, outcome.reason)
        return outcome

    def decide(self, outcome: AttemptOutcome) -> int | None:
        """The exit status to leave with; None to retry here."""
        if outcome.kind == "done" or (self.run / "STOP").exists():
            slurm.cancel_successors()
            return EXIT_OK
        if outcome.kind == "fenced":
            return EXIT_FENCED
        if outcome.kind == "fatal":
            return self.call_operator(outcome.reason)
        if outcome.kind == "stopped" or self.child.stop_requested:
            return self.hand_over("its time is up")
        return self.check_progress(outcome.reason)

    def choose_nodes(self, in_doubt: bool) -> int | None:
        """Who trains next, spares taken for nodes that are lost or unfit. An exit status if there are too few."""
        while True:
            before = self.active
            self.active = spare_nodes.active_nodes(self.run, self.wanted)
            spare_nodes.log_spare_swap(self.log, before, self.active)
            status = self.leave_bad_nodes()
            checked = not in_doubt and self.active == before
            if status is not None or not self.doctor or checked:
                return status
            result = self.examine()
            if self.child.stop_requested or result.verdict == "good":
                return None
            problems = [f"{node}: {what}" for node, what in result.unfit.items()]
            reason = "; ".join(filter(None, [result.everywhere, *problems]))
            unhealthy = spare_nodes.unhealthy_nodes(self.run, self.job_nodes)
            enough_spares = len(slurm.living_nodes()) - len(unhealthy) >= self.wanted > 0
            if result.everywhere or not (enough_spares or slurm.successors()):
                return self.call_operator(reason)
            status = self.check_progress(reason)
            if status is not None:
                return status
            if not enough_spares:
                self.exclude(list(result.unfit))
                return EXIT_RETRY
            in_doubt = False

    def examine(self) -> preflight.PreflightResult:
        """Let the doctor look at the active nodes."""
        started = time.time()
        result = preflight.examine(
            self.run,
            self.active,
            lambda limit: self.start(self.doctor, limit),
        )
        seconds = round(time.time() - started, 1)
        event = PreflightFinished(
            verdict=result.verdict,
            seconds=seconds,
            nodes=list(result.unfit),
            reason=result.summary,
        )
        self.log.note(event)
        found = f"{result.verdict} in {seconds} s: {result.summary}"
        log.info("preflight of %s: %s", self.run, found)
        return result

    def leave_bad_nodes(self) -> int | None:
        """If active nodes are lost, or failed the run twice, the next job must continue, without them."""
        unhealthy = spare_nodes.unhealthy_nodes(self.run, self.job_nodes)
        bad = [node for node in unhealthy if node not in self.excluded]
        successors = slurm.successors()
        worst = nodes_to_exclude(self.run, most=self.max_excluded)
        spared = not set(bad) & set(self.active)
        if bad and (spared or (successors and set(bad) & set(worst))):
            self.exclude(bad)
        too_few = len(self.active) < self.wanted
        if successors and (set(worst) & set(self.active) or too_few):
            return EXIT_RETRY
        return self.hand_over("nodes are lost") if too_few else None

    def exclude(self, nodes: list[str]) -> None:
        """The next jobs do without `nodes`."""
        self.excluded |= set(nodes)
        reason = f"{', '.join(nodes)} failed this run; see the events before"
        self.log.event(NodeExcluded(nodes=nodes, reason=reason))
        slurm.exclude(nodes_to_exclude(self.run, most=self.max_excluded))

    def check_progress(self, reason: str) -> int | None:
        """None while retrying has a use."""
        if attempts_without_progress(self.run) < MAX_FRUITLESS_ATTEMPTS:
            return None
        return self.call_operator(
            f"{MAX_FRUITLESS_ATTEMPTS} attempts in a row saved nothing; the last one: {reason}"
        )

    def call_operator(self, reason: str) -> int:
        """Hold the jobs that wait until a person has looked. Returns the exit status to leave with."""
        self.log.event(AlertRaised(kind=NEEDS_OPERATOR, reason=reason))
        log.error("%s needs an operator: %s", self.run, reason)
        slurm.hold_successors()
        return EXIT_FATAL

    def hand_over(self, reason: str) -> int:
        """The next task of the array continues; a job without one puts itself back into the queue."""
        if slurm.job() and not slurm.successors():
            self.log.event(Requeued(reason=f"{reason}, and no task of the array is left"))
            slurm.requeue()
        return EXIT_OK
