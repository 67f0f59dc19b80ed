"""A process that keeps a jukebox loaded and samples one song after another: what the explorer's Studio starts.

    python -m megajukebox.sampling.worker runs/tiny [student ...]

A line in is a command, a line out its answer, both JSON:

    {"request": {"id": "a", "seconds": 4}, "out": "samples", "progress": "job/progress.json", "stop": "job/STOP"}
    {"state": "done", "reason": "", "memory": 398458880, "gpu_memory": 0}

It stops between two codes when the file `stop` appears. The process ends when its input does.
"""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

import psutil
import torch

from megajukebox.common.device import accelerator
from megajukebox.common.errors import UserError
from megajukebox.common.levels import ALIGNMENT_FILE, STUDENT_TABLE
from megajukebox.common.model_files import FACTS, WEIGHTS
from megajukebox.conditioning.vocabulary import VOCABULARIES
from megajukebox.records.adapters import ADAPTER_FACTS
from megajukebox.sampling.adapter_library import ADAPTERS_FOLDER
from megajukebox.sampling.jukebox import Jukebox, SamplingInterrupted
from megajukebox.sampling.memory_budget import fit_batch, free_memory, level_memory
from megajukebox.sampling.progress import ProgressFile
from megajukebox.sampling.songs.requests import parse_requests
from megajukebox.sampling.songs.resume_store import ResumeStore
from megajukebox.sampling.songs.song_writer import SongWriter

# Files of a run that a jukebox reads; when one changes, the jukebox is loaded again.
WATCHED_FILES = (FACTS, WEIGHTS, VOCABULARIES, ALIGNMENT_FILE, STUDENT_TABLE)
# Of the free memory, for priors that stay loaded; larger ones are loaded level by level, as `sample` does.
KEPT_MEMORY_SHARE = 0.5


class SamplerServer:
    """The jukebox of `runs` between songs: loaded for the first one, and again when its files have changed."""

    def __init__(self, runs: Path, samplers: Sequence[str] = ()) -> None:
        self.runs = runs
        self.samplers = samplers
        self.loaded: Jukebox | None = None
        self.loaded_files: dict[str, tuple[int, int]] = {}

    def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        """Sample the song of a command; what goes wrong becomes the answer's reason."""
        reason = ""
        try:
            state = self.sample(command)
        except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: a full GPU, too
            state = "failed"
            reason = " ".join(str(error).split()) or type(error).__name__
        memory = psutil.Process().memory_info().rss  # bytes
        gpu = torch.cuda.memory_reserved() if accelerator() == "cuda" else 0
        return {"state": state, "reason": reason, "memory": memory, "gpu_memory": gpu}

    def sample(self, command: dict[str, Any]) -> str:
        """`done`, or `stopped`. Raises what is wrong with the request, the runs or the machine."""
        valid, refused = parse_requests([command["request"]])
        if refused:
            raise UserError(refused[0])
        request = valid[0]
        out = Path(command["out"])
        jukebox = self.jukebox()
        totals = {level: jukebox.num_codes(request, level) for level in jukebox.levels}
        progress = ProgressFile(Path(command["progress"]), totals)
        writer = SongWriter(jukebox, out, stop=Path(command["stop"]).exists)
        state = ""
        try:
            jukebox.sample([request], 1, progress.advance, sink=writer)
            state = "done"
        except SamplingInterrupted:
            state = "stopped"
        finally:
            if state != "done":  # nobody will resume it
                ResumeStore(out).remove(request.id)
                for path in out.glob(f"{request.id}.*wav"):
                    path.unlink()
        return state

    def jukebox(self) -> Jukebox:
        """The jukebox of the files as they are now; its priors stay loaded where they fit together."""
        files = {}  # of every file that it reads, (modification time in ns, bytes)
        patterns = [f"*/{name}" for name in WATCHED_FILES]
        patterns.append(f"{ADAPTERS_FOLDER}/**/{ADAPTER_FACTS}")
        for pattern in patterns:
            for path in self.runs.glob(pattern):
                facts = path.stat()
                files[str(path)] = (facts.st_mtime_ns, facts.st_size)
        if self.loaded is None or files != self.loaded_files:
            self.loaded = None  # frees the old one before the new one is loaded
            jukebox = Jukebox(self.runs, students=self.samplers)
            if fits(jukebox):
                for run in jukebox.levels.values():
                    run.keep_loaded(jukebox.device, jukebox.dtype)
            self.loaded = jukebox
            self.loaded_files = files
        return self.loaded


def fits(jukebox: Jukebox) -> bool:
    """Whether all priors may stay loaded together: within a share of what the device has free."""
    needs = level_memory(jukebox, [], guided=True)
    limit = KEPT_MEMORY_SHARE * free_memory(jukebox.device)
    on_cpu = jukebox.device.type == "cpu"
    try:
        return fit_batch(needs, 1, limit, jukebox.dtype, on_cpu).keep_loaded
    except UserError:  # not even one at a time: then a song's own attempt says so
        return False


def serve(server: SamplerServer, commands: Iterable[str], answers: TextIO) -> None:
    for command in commands:
        answers.write(json.dumps(server.answer(json.loads(command))) + "\n")
        answers.flush()


def main() -> None:
    """Serve stdin. What libraries print goes to stderr; the pipe carries answers alone."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    serve(SamplerServer(Path(sys.argv[1]), sys.argv[2:]), sys.stdin, answers)


if __name__ == "__main__":
    main()
