"""Recordings from outside: bounded on the way in, decoded in a process of their own that may not grow."""

import json
import os
import secrets
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

MOST_BYTES = 64 << 20
MOST_SECONDS = 180.0
MEMORY = 2 << 30  # bytes of address space of the process that decodes
PATIENCE = 60  # seconds it may take
KEPT = 50  # recordings; the oldest goes first

# Runs in the other process: limits itself before it touches a byte, then decodes and writes plain 16-bit PCM.
WORKER = """
import json, resource, sys
source, target, seconds, memory, cpu = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
from megajukebox.data import audio
resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
try:
    facts = audio.facts(source)
    wave = audio.read(source, facts.sample_rate, max_seconds=seconds)
    if not len(wave):
        raise ValueError("it holds no sound")
    audio.write_wav(target, audio.downmix(wave) if wave.shape[1] > 2 else wave, facts.sample_rate)
except (ValueError, MemoryError) as error:
    print(json.dumps({"error": str(error) or "it takes too much memory"}))
else:
    print(json.dumps({"seconds": len(wave) / facts.sample_rate, "sample_rate": facts.sample_rate}))
"""


@dataclass(frozen=True)
class Upload:
    """A recording that was decoded: a plain WAV under a name of ours."""

    id: str
    path: Path
    seconds: float


class Uploads:
    """The recordings in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known: dict[str, Upload] = {}

    def decode(self, source: Path) -> Upload:
        """Keep the recording at `source`. ValueError, in words for its owner, if it is none or too long."""
        self.folder.mkdir(parents=True, exist_ok=True)
        identity = secrets.token_hex(8)
        target = self.folder / f"{identity}.wav"
        told = run_worker(source, target)
        if "error" in told or not target.is_file():
            target.unlink(missing_ok=True)
            raise ValueError(
                f"This recording cannot be used: {told.get('error', 'it could not be decoded')}."
            )
        self.known[identity] = Upload(identity, target, told["seconds"])
        while len(self.known) > KEPT:
            self.known.pop(next(iter(self.known))).path.unlink(missing_ok=True)
        return self.known[identity]

    def find(self, identity: object) -> Upload:
        """ValueError if there is no such recording: a request cannot name a file."""
        upload = self.known.get(identity) if isinstance(identity, str) else None
        if upload is None or not upload.path.is_file():
            raise ValueError("the recording to begin with is not here any more; choose it again")
        return upload


def run_worker(source: Path, target: Path) -> dict:
    """Decode in another process: whatever a hostile file does to the decoder, it does it there."""
    limits = [str(MOST_SECONDS), str(MEMORY), str(PATIENCE)]
    command = [sys.executable, "-c", WORKER, str(source), str(target), *limits]
    with TemporaryDirectory() as nowhere:
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                timeout=PATIENCE,
                cwd=nowhere,
                env=environment(),
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            return {"error": f"decoding it takes over {PATIENCE} seconds"}
    try:
        return json.loads(done.stdout) if done.returncode == 0 else {}
    except ValueError:
        return {}


def environment() -> dict[str, str]:
    """Of a process that the server starts: one thread, and this very package."""
    package = str(Path(__file__).parents[3])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    return {
        **os.environ,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "PYTHONPATH": path,
    }
