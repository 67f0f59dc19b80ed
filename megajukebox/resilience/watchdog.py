"""The pulse of one process: what it is doing and since when, told to a file every few seconds; hung, it ends.

A collective that one rank never joins leaves all others waiting in it, for half an hour or for ever. Every rank watches
its own section; when one takes too long, every rank writes down its stacks, one names the suspect, and all leave.
"""

import faulthandler
import json
import os
import signal
import statistics
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

from megajukebox.common.world import host
from megajukebox.records.run_log import RunLog
from megajukebox.resilience.exit_codes import ExitRecord, leave_now, say
from megajukebox.resilience.fencing import FencingToken
from megajukebox.resilience.hang_attribution import attribute_hang, read_heartbeats

PHASES = {
    "init": "init",
    "data": "data_wait",
    "step": "productive",
    "save": "ckpt_save",
    "load": "ckpt_restore",
}
PHASES |= {"evaluate": "eval"}
BEAT = 5.0  # seconds
GRACE = (
    3.0  # seconds that a rank which found a hang gives the others to write down their stacks too
)


@dataclass(frozen=True)
class HangTimeouts:
    """Seconds in one section after which a rank counts as hung."""

    step: float = 300.0  # also of waiting for data; a step that is always slow is given ten times its own time
    slow: float = 1800.0  # of starting, loading, saving, evaluating, and of the first step, without any progress


class Watchdog:
    """Knows this process's step and section; `start` lets a thread tell them and watch them."""

    def __init__(
        self,
        log: RunLog,
        generation: FencingToken,
        limits: HangTimeouts,
        end: ExitRecord,
        beat: float = BEAT,
    ) -> None:
        self.log, self.generation, self.limits, self.end, self.beat = (
            log,
            generation,
            limits,
            end,
            beat,
        )
        self.rank, self.step = log.rank, 0
        self.name, self.since, self.begun = "init", time.time(), psutil.Process().create_time()
        self.moved = self.since
        self.seconds: dict[str, float] = defaultdict(float, init=time.time() - self.begun)
        self.steps: deque[float] = deque(maxlen=50)
        self.own: deque[float] = deque(maxlen=50)
        self.met: deque[float] = deque(maxlen=50)
        self.stage = 0  # of a pipeline: only ranks of the same one have equal work
        self._over = threading.Event()

    # ---- What the loop says -----------------------------------------------------------------------------------------

    def enter_phase(self, name: str) -> None:
        """From now on this process is in section `name`."""
        now = time.time()
        self.seconds[PHASES[self.name]] += now - self.since
        self.name, self.since, self.moved = name, now, now

    def keep_alive(self) -> None:
        """This section takes long, but it goes on: its time limit begins anew."""
        self.moved = time.time()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """In section `name` inside, and back in the one before after it."""
        before = self.name
        self.enter_phase(name)
        yield
        self.enter_phase(before)

    def record_step(self, step: int, seconds: float, communication: float) -> None:
        """A step took `seconds`, of which `communication` went into collectives: into waiting for others too."""
        self.step = step
        self.steps.append(seconds)
        self.met.append(communication)
        self.own.append(max(0.0, seconds - communication))

    def phase_seconds(self) -> dict[str, float]:
        """Where the time of this process went since it began: {"time_<phase>_seconds": ...}."""
        running = {PHASES[self.name]: time.time() - self.since}
        total = {phase: self.seconds[phase] + running.get(phase, 0.0) for phase in PHASES.values()}
        return {f"time_{phase}_seconds": round(seconds, 3) for phase, seconds in total.items()}

    # ---- What the thread does ---------------------------------------------------------------------------------------

    def start(self) -> None:
        """Beat until `stop`. SIGUSR2 makes the process write its stacks without being disturbed."""
        folder = self.log.run / "hangs"
        folder.mkdir(parents=True, exist_ok=True)
        self._stacks = (
            folder / f"generation-{self.generation.number:04d}-rank-{self.rank:05d}.txt"
        ).open("a")
        faulthandler.register(signal.SIGUSR2, file=self._stacks, all_threads=True)
        threading.Thread(target=self._beat, name="pulse", daemon=True).start()

    def stop(self) -> None:
        self._over.set()
        faulthandler.cancel_dump_traceback_later()

    def _beat(self) -> None:
        while not self._over.is_set():
            # For code that never lets go of the interpreter, so that this thread cannot run: then C ends the process.
            faulthandler.dump_traceback_later(2 * self.limit(), exit=True, file=self._stacks)
            self.write_heartbeat()
            if not self.generation.is_current():
                self._leave(
                    "fenced", f"another start took over from generation {self.generation.number}"
                )
            if self.is_hung():
                self._hang()
            self._over.wait(self.beat)

    def write_heartbeat(self) -> None:
        """Write the heartbeat; a full or absent disk is no reason to die."""
        path = self.log.run / "heartbeats" / f"rank-{self.rank:05d}.json"
        told = {"rank": self.rank, "host": host(), "pid": os.getpid(), "time": time.time()}
        told |= {"step": self.step, "section": self.name, "section_since": self.since}
        told |= {
            "step_seconds": self.steps[-1] if self.steps else None,
            "generation": self.generation.number,
        }
        told |= {
            "own_seconds": _median(self.own),
            "communication_seconds": _median(self.met),
            "stage": self.stage,
        }
        partial = path.with_suffix(".partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(told))
            os.replace(partial, path)
        except OSError:
            pass

    def limit(self) -> float:
        """Seconds that the present section may take."""
        if self.name not in ("step", "data") or not self.steps:
            return self.limits.slow
        return max(self.limits.step, 10 * sorted(self.steps)[len(self.steps) // 2])

    def is_hung(self) -> bool:
        """Whether nothing has been heard of this section for longer than it may take."""
        return time.time() - self.moved > self.limit()

    def _hang(self) -> None:
        section, seconds = self.name, time.time() - self.since
        faulthandler.cancel_dump_traceback_later()
        faulthandler.dump_traceback(file=self._stacks, all_threads=True)
        beats = read_heartbeats(self.log.run, self.generation.number)
        named = attribute_hang(beats, time.time(), stale=3 * self.beat)
        words = ", ".join(suspect.words for suspect in named) or "none"
        reason = f"rank {self.rank} was in {section} for {seconds:.0f} s; suspects: {words}"
        if self._first_to_say():
            hosts = sorted({suspect.host for suspect in named})
            ranks = [suspect.rank for suspect in named]
            self.log.note(
                "hang", self.step, reason=reason, section=section, suspects=ranks, hosts=hosts
            )
        time.sleep(GRACE)
        self._leave("hang", reason)

    def _first_to_say(self) -> bool:
        """All ranks find the same hang; one reports it."""
        said = self.log.run / "hangs" / f"generation-{self.generation.number:04d}"
        try:
            os.close(os.open(said, os.O_CREAT | os.O_EXCL))
        except OSError:
            return False
        return True

    def _leave(self, kind: str, reason: str) -> None:
        self.end.record(kind, reason)
        say(f"train: {reason}")
        leave_now(self.end.code)


def _median(seconds: deque[float]) -> float | None:
    """Of what another thread goes on filling."""
    return statistics.median(seconds.copy()) if seconds else None
