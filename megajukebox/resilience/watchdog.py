"""The heartbeat of one process and its watchdog: which phase it is in and since when, every few seconds; hung, it ends.

A collective that one rank never joins leaves all others waiting in it, for half an hour or for ever. Every rank watches
its own phase; when one takes too long, every rank writes down its stacks, one names the suspect, and all leave.
"""

import faulthandler
import json
import os
import signal
import statistics
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from megajukebox.common.files import create_new, open_append, write_atomic
from megajukebox.common.world import host
from megajukebox.records.events import CollectiveStuck, HangDetected
from megajukebox.records.heartbeat import Heartbeat, heartbeat_path, read_heartbeats
from megajukebox.records.phases import DATA_WAIT, INIT, PHASES, STEP
from megajukebox.records.run_log import RunLog
from megajukebox.records.schema import to_record
from megajukebox.resilience.exit_codes import ExitRecord, leave_now, print_error
from megajukebox.resilience.fencing import FencingToken
from megajukebox.resilience.flight_recorder import dump_path, read_dumps, stuck_collectives
from megajukebox.resilience.hang_attribution import attribute_hang

HEARTBEAT_SECONDS = 5.0
POLL_SECONDS = 0.1
STACKS_GRACE = (
    3.0  # seconds that a rank which found a hang gives the others to write down their stacks too
)
OTHERS_GRACE = (
    5.0  # seconds that they stay longer than the rank that reports: srun ends all when one leaves
)
STEPS_KEPT = 50  # of which the medians in a heartbeat are
SLOW_STEP_FACTOR = 10  # times its own median step: a step that is always slow is no hang


@dataclass(frozen=True)
class HangTimeouts:
    """Seconds in one phase after which a rank counts as hung."""

    step: float = 300.0  # also of waiting for data; a step that is always slow is given ten times its own time
    slow: float = 1800.0  # of starting, loading, saving, evaluating, and of the first step, without any progress


class Watchdog:
    """Knows this process's step and phase; `start` lets a thread report and watch them."""

    def __init__(
        self,
        log: RunLog,
        generation: FencingToken,
        timeouts: HangTimeouts,
        end: ExitRecord,
        interval: float = HEARTBEAT_SECONDS,
        flight_record: Callable[[], bytes | None] = lambda: None,
    ) -> None:
        """`flight_record`: the last collectives of this process, as torch's flight recorder writes them."""
        self.log = log
        self.generation = generation
        self.timeouts = timeouts
        self.end = end
        self.interval = interval
        self.flight_record = flight_record
        self.rank = log.rank
        self.step = 0
        self.stage = 0  # of a pipeline: only ranks of the same one have equal work
        self.current_phase = INIT
        self.phase_since = time.time()
        self.last_progress = self.phase_since
        born = psutil.Process().create_time()
        self.seconds: dict[str, float] = defaultdict(float, {INIT: time.time() - born})
        self.step_seconds: deque[float] = deque(maxlen=STEPS_KEPT)
        self.own_seconds: deque[float] = deque(maxlen=STEPS_KEPT)
        self.communication_seconds: deque[float] = deque(maxlen=STEPS_KEPT)
        self._over = threading.Event()

    # ---- Called by the training loop ----------------------------------------------------------------------------------

    def enter_phase(self, name: str) -> None:
        """From now on this process is in phase `name`, one of records.phases.PHASES."""
        assert name in PHASES, name
        now = time.time()
        self.seconds[self.current_phase] += now - self.phase_since
        self.current_phase = name
        self.phase_since = now
        self.last_progress = now

    def keep_alive(self) -> None:
        """This phase takes long, but it proceeds: its time limit begins anew."""
        self.last_progress = time.time()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """In phase `name` inside, and back in the one before after it."""
        before = self.current_phase
        self.enter_phase(name)
        yield
        self.enter_phase(before)

    def record_step(self, step: int, seconds: float, communication: float) -> None:
        """A step took `seconds`, of which `communication` went into collectives: into waiting for others too."""
        self.step = step
        self.step_seconds.append(seconds)
        self.communication_seconds.append(communication)
        self.own_seconds.append(max(0.0, seconds - communication))

    def phase_seconds(self) -> dict[str, float]:
        """Where the time of this process went since it began: {"time_<phase>_seconds": ...}."""
        total = {phase: self.seconds[phase] for phase in PHASES}
        total[self.current_phase] += time.time() - self.phase_since
        return {f"time_{phase}_seconds": round(seconds, 3) for phase, seconds in total.items()}

    # ---- The thread ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Write heartbeats until `stop`. SIGUSR2 makes the process write its stacks without being disturbed."""
        folder = self.log.run / "hangs"
        folder.mkdir(parents=True, exist_ok=True)
        name = f"generation-{self.generation.number:04d}-rank-{self.rank:05d}.txt"
        self._stacks = open_append(folder / name)
        faulthandler.register(signal.SIGUSR2, file=self._stacks, all_threads=True)
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        self._over.set()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        while not self._over.is_set():
            # For code that never lets go of the interpreter, so that this thread cannot run: then C ends the process.
            faulthandler.dump_traceback_later(2 * self.timeout(), exit=True, file=self._stacks)
            self.write_heartbeat()
            if not self.generation.is_current():
                number = self.generation.number
                self._leave("fenced", f"another start took over from generation {number}")
            if self.is_hung() or self._hang_claim().exists():
                self._end_hang()
            self._over.wait(self.interval)

    def write_heartbeat(self) -> None:
        """Write the heartbeat; a full or absent disk is no reason to die."""
        beat = Heartbeat(
            rank=self.rank,
            host=host(),
            pid=os.getpid(),
            time=time.time(),
            step=self.step,
            phase=self.current_phase,
            phase_since=self.phase_since,
            generation=self.generation.number,
            step_seconds=self.step_seconds[-1] if self.step_seconds else None,
            own_seconds=_median(self.own_seconds),
            communication_seconds=_median(self.communication_seconds),
            stage=self.stage,
        )
        path = heartbeat_path(self.log.run, self.rank)
        partial = path.with_suffix(".partial")  # without fsync: another comes in seconds
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with create_new(partial) as file:
                file.write(json.dumps(to_record(beat)).encode())
            os.replace(partial, path)

    def timeout(self) -> float:
        """Seconds that the present phase may take."""
        if self.current_phase not in (STEP, DATA_WAIT) or not self.step_seconds:
            return self.timeouts.slow
        median = sorted(self.step_seconds)[len(self.step_seconds) // 2]
        return max(self.timeouts.step, SLOW_STEP_FACTOR * median)

    def is_hung(self) -> bool:
        """Whether this phase has made no progress for longer than it may take."""
        return time.time() - self.last_progress > self.timeout()

    def _end_hang(self) -> None:
        phase = self.current_phase
        seconds = time.time() - self.phase_since
        faulthandler.cancel_dump_traceback_later()
        faulthandler.dump_traceback(file=self._stacks, all_threads=True)
        self._dump_collectives()
        claim = self._hang_claim()
        grace = self.interval + STACKS_GRACE + OTHERS_GRACE
        with suppress(OSError), claim.open("x") as file:  # else another rank reports the same hang
            beats = read_heartbeats(self.log.run, self.generation.number)
            file.write(self._report_hang(beats, phase, seconds))
            file.flush()
            self._report_collectives(beats)
            grace = 0.0
        time.sleep(grace)
        suspects = ""
        with suppress(OSError):
            suspects = claim.read_text()
        reason = f"rank {self.rank} was in {phase} for {seconds:.0f} s"
        self._leave("hang", f"{reason}; suspects: {suspects or 'see events.jsonl'}")

    def _report_hang(self, beats: list[Heartbeat], phase: str, seconds: float) -> str:
        """Log the hang. Returns its suspects in words.

        By one rank alone, for it reads the heartbeats of all: 512 ranks would open 262,144 files at once.
        """
        suspects = attribute_hang(beats, time.time(), stale=3 * self.interval)
        names = ", ".join(map(str, suspects)) or "none"
        event = HangDetected(
            step=self.step,
            phase=phase,
            suspects=[suspect.rank for suspect in suspects],
            hosts=sorted({suspect.host for suspect in suspects}),
            reason=f"rank {self.rank} was in {phase} for {seconds:.0f} s; suspects: {names}",
        )
        self.log.note(event)
        return names

    def _dump_collectives(self) -> None:
        """Write this rank's flight record, unless that takes too long: a driver may hang too."""
        path = dump_path(self.log.run, self.generation.number, self.rank)

        def dump() -> None:
            with suppress(OSError, RuntimeError):
                record = self.flight_record()
                if record:
                    write_atomic(path, record)

        thread = threading.Thread(target=dump, name="flight recorder", daemon=True)
        thread.start()
        thread.join(STACKS_GRACE)

    def _report_collectives(self, beats: list[Heartbeat]) -> None:
        """Give the others time to write their stacks and records; then say which collective they wait in."""
        generation = self.generation.number
        awaited = [dump_path(self.log.run, generation, beat.rank) for beat in beats]
        deadline = time.monotonic() + self.interval + STACKS_GRACE
        while awaited and time.monotonic() < deadline:
            awaited = [path for path in awaited if not path.exists()]
            time.sleep(POLL_SECONDS)
        hosts = {beat.rank: beat.host for beat in beats}
        for stuck in stuck_collectives(read_dumps(self.log.run, generation), len(beats))[:1]:
            blamed = [*stuck.missing, *stuck.differing]
            event = CollectiveStuck(
                step=self.step,
                group=stuck.group,
                collective=stuck.collective,
                sequence=stuck.sequence,
                missing=stuck.missing,
                differing=sorted(stuck.differing),
                hosts=sorted({hosts[rank] for rank in blamed if rank in hosts}),
                reason=str(stuck),
            )
            self.log.note(event)

    def _hang_claim(self) -> Path:
        """Made by the first rank that finds a hang; the others then leave their stacks too, and end."""
        return self.log.run / "hangs" / f"generation-{self.generation.number:04d}"

    def _leave(self, exit_class: str, reason: str) -> None:
        self.end.record(exit_class, reason)
        print_error(f"train: {reason}")
        leave_now(self.end.code)


def _median(seconds: deque[float]) -> float | None:
    """Of what another thread continues to fill."""
    return statistics.median(seconds.copy()) if seconds else None
