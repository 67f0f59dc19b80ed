"""Songs in the making, in <out>/.unfinished: their codes so far, to go on after an interruption, and who is at them.

<id>.npz     codes of each level and which of them are done; of which request, weights and engine they are
<id>.claim   the process that is at it; touched as it goes on, so that one that died is known by its age
"""

# T codes of a level
import io
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from megajukebox.common.files import make_folder, write_atomic
from megajukebox.sampling.songs.prompt_sources import KnownCodes

STALE_SECONDS = (
    120.0  # seconds without a touch after which a claim counts as that of a dead process
)


class ResumeStore:
    """The folder of the songs in the making of `out`."""

    def __init__(self, out: Path, stale: float = STALE_SECONDS):
        self.folder, self.stale = out / ".unfinished", stale
        make_folder(self.folder)

    # ---- Codes so far ------------------------------------------------------------------------------------------------

    def save(self, song: str, key: dict[str, Any], known: KnownCodes) -> None:
        """Keep what is known by now of a song; `key` says of which request and weights."""
        arrays: dict[str, Any] = {
            f"codes_{level}": c.astype(np.uint16) for level, c in known.codes.items()
        }
        arrays |= {f"done_{level}": np.packbits(s) for level, s in known.mask.items()}
        file = io.BytesIO()
        np.savez(file, key=np.array(json.dumps(key, sort_keys=True)), **arrays)
        write_atomic(self.folder / f"{song}.npz", file.getvalue())

    def load(self, song: str, key: dict[str, Any]) -> KnownCodes | None:
        """What an earlier attempt at the same song had done; None if there is nothing, or of something else."""
        try:
            with np.load(self.folder / f"{song}.npz", allow_pickle=False) as stored:
                if str(stored["key"]) != json.dumps(key, sort_keys=True):
                    return None
                levels = [
                    name.removeprefix("codes_")
                    for name in stored.files
                    if name.startswith("codes_")
                ]
                codes = {level: stored[f"codes_{level}"].astype(np.int64) for level in levels}
                stays = {
                    n: np.unpackbits(stored[f"done_{n}"], count=len(codes[n])).astype(bool)
                    for n in levels
                }
                return KnownCodes(codes, stays)
        except (OSError, ValueError, KeyError):
            return None

    def remove(self, song: str) -> None:
        for ending in ("npz", "claim"):
            (self.folder / f"{song}.{ending}").unlink(missing_ok=True)

    # ---- Claims ------------------------------------------------------------------------------------------------------

    def claim(self, song: str) -> bool:
        """Whether the song is this process's to make now; not if another one is at it."""
        path = self.folder / f"{song}.claim"
        if path.exists() and not self.is_claimed(song):
            gone = path.with_suffix(f".{socket.gethostname()}-{os.getpid()}")
            try:
                os.rename(path, gone)  # of several that see it stale, one succeeds
                gone.unlink()
            except FileNotFoundError:
                return False
        try:
            with open(path, "x") as file:
                json.dump({"host": socket.gethostname(), "pid": os.getpid()}, file)
        except FileExistsError:
            return False
        return True

    def is_claimed(self, song: str) -> bool:
        """Whether some process is at the song: its claim is young, and if it is one of this machine, it runs."""
        path = self.folder / f"{song}.claim"
        try:
            age, owner = time.time() - path.stat().st_mtime, json.loads(path.read_text() or "{}")
        except (OSError, ValueError):
            return path.exists()  # being written just now
        return age < self.stale and (
            owner.get("host") != socket.gethostname() or _runs(owner.get("pid", 0))
        )

    def touch(self, song: str) -> None:
        path = self.folder / f"{song}.claim"
        if path.exists():
            os.utime(path)

    def release(self, song: str) -> None:
        (self.folder / f"{song}.claim").unlink(missing_ok=True)


def _runs(pid: int) -> bool:
    """Whether a process of this machine is at work; one that died may still be listed until its parent looks."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
