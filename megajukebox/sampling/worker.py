"""A process that keeps a jukebox loaded and makes one song after another: what stands behind the Studio.

    python -m megajukebox.sampling.worker runs/tiny [student ...]      # started by `explore --serve --run runs/tiny`

A line in is an order, a line out its answer, both JSON:

    {"request": {"id": "a", "seconds": 4}, "out": "samples", "progress": "job/progress.json", "stop": "job/STOP"}
    {"state": "done", "reason": "", "memory": 398458880, "gpu_memory": 0}

It stops between two codes when the file `stop` appears. Input that ends ends it.
"""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

import psutil
import torch

from megajukebox.common.levels import STUDENT_TABLE
from megajukebox.common.model_files import FACTS, WEIGHTS
from megajukebox.conditioning.vocabulary import VOCABULARIES
from megajukebox.sampling.jukebox import Jukebox, SamplingInterrupted
from megajukebox.sampling.lyrics.head_selection import ALIGNMENT_FILE as ALIGNMENT
from megajukebox.sampling.memory_budget import LevelMemory, fit_batch, free_memory
from megajukebox.sampling.reporting import ProgressFile
from megajukebox.sampling.songs.requests import SongRequest, parse_requests
from megajukebox.sampling.songs.resume_store import ResumeStore

READ = (
    FACTS,
    WEIGHTS,
    VOCABULARIES,
    ALIGNMENT,
    STUDENT_TABLE,
)  # of a run; where one changes, the jukebox is loaded again
SHARE = 0.5  # of the free memory, for priors that stay loaded; larger ones are loaded level by level, as `sample` does


class SamplerServer:
    """The jukebox of `runs` between songs: loaded for the first, and again when its files have changed."""

    def __init__(self, runs: Path, samplers: Sequence[str] = ()) -> None:
        self.runs, self.samplers = runs, samplers
        self.loaded: Jukebox | None = None
        self.seen: dict[str, tuple[int, int]] = {}

    def answer(self, order: dict[str, Any]) -> dict[str, Any]:
        """Make the song of an order; what is wrong with it is the answer's reason."""
        try:
            state, reason = self.make(order), ""
        except (
            ValueError,
            OSError,
            RuntimeError,
        ) as error:  # torch tells a full GPU as a RuntimeError
            state, reason = "failed", " ".join(str(error).split()) or type(error).__name__
        return {"state": state, "reason": reason, **memory()}

    def make(self, order: dict[str, Any]) -> str:
        """done, or stopped. Raises what is wrong with the request, the runs or the machine."""
        good, wrong = parse_requests([order["request"]])
        if wrong:
            raise ValueError(wrong[0])
        (request,), out, stop = good, Path(order["out"]), Path(order["stop"])
        jukebox = self.jukebox()
        report = ProgressFile(
            Path(order["progress"]), {n: jukebox.num_codes(request, n) for n in jukebox.levels}
        )
        state = ""
        try:
            jukebox.sample([request], 1, report.advance, out=out, stop=stop.exists)
            state = "done"
        except SamplingInterrupted:
            state = "stopped"
        finally:
            if state != "done":
                forget(out, request)
        return state

    def jukebox(self) -> Jukebox:
        now = stamps(self.runs)
        if self.loaded is None or now != self.seen:
            self.loaded = None  # the old one goes before the new one comes
            box = Jukebox(self.runs, students=self.samplers)
            if fits(box):
                for run in box.levels.values():
                    run.keep_loaded(box.device, box.dtype)
            self.loaded, self.seen = box, now
        return self.loaded


def stamps(runs: Path) -> dict[str, tuple[int, int]]:
    """(time, bytes) of every file that a jukebox is made of."""
    paths = [path for name in READ for path in runs.glob(f"*/{name}")]
    return {str(path): ((facts := path.stat()).st_mtime_ns, facts.st_size) for path in paths}


def fits(jukebox: Jukebox) -> bool:
    """Whether all priors may stay loaded together: within a share of what the device has free."""
    needs = [
        LevelMemory(run.config, 1, 2, level in jukebox.students)
        for level, run in jukebox.levels.items()
    ]
    limit = SHARE * free_memory(jukebox.device)
    try:
        return fit_batch(needs, 1, limit, jukebox.dtype, jukebox.device.type == "cpu").keep_loaded
    except ValueError:  # not even one at a time: then a song's own attempt says so
        return False


def forget(out: Path, request: SongRequest) -> None:
    """What a song that was not made has left: nobody will go on with it."""
    ResumeStore(out).remove(request.id)
    for path in out.glob(f"{request.id}.*wav"):
        path.unlink()


def memory() -> dict[str, int]:
    """Bytes that this process holds, and those of the GPU."""
    gpu = torch.cuda.memory_reserved() if torch.cuda.is_available() else 0
    return {"memory": psutil.Process().memory_info().rss, "gpu_memory": gpu}


def work(standing: SamplerServer, orders: Iterable[str], answers: TextIO) -> None:
    for order in orders:
        answers.write(json.dumps(standing.answer(json.loads(order))) + "\n")
        answers.flush()


def main() -> None:
    """Libraries print as they like: what they say goes to the log, and answers alone to the pipe."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    work(SamplerServer(Path(sys.argv[1]), sys.argv[2:]), sys.stdin, answers)


if __name__ == "__main__":
    main()
