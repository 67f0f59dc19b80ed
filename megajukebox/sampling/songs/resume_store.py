"""Unfinished songs, in <out>/.unfinished: their codes so far, to resume after an interruption, and who works on them.

<id>.npz     codes of each level and which of them are sampled; the key of the request, weights and decoding
<id>.claim   the process that works on it; touched meanwhile, so that one that died is known by the file's age
"""

# T codes of a level
import io
import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from megajukebox.common.files import make_folder, write_atomic
from megajukebox.common.npz import codes_of, read_npz
from megajukebox.common.untrusted_files import parse_json, read_inside
from megajukebox.records.sample_record import current_song_key
from megajukebox.sampling.songs.prompt_sources import KnownCodes

FOLDER = ".unfinished"
STALE_SECONDS = 120.0  # without a touch, after which a claim counts as that of a dead process
WRITING_SECONDS = 5.0  # in which a claim that cannot be read may be one that is just written
MAX_FILE_BYTES = 1 << 27  # of <id>.npz; the codes of an hour are 60 MB
MAX_CLAIM_BYTES = 1 << 12
MAX_PID = 1 << 22  # of Linux
CODES_PREFIX = "codes_"  # of the arrays of a level's codes [T]
MASK_PREFIX = "done_"  # of the packed bits [T] that say which of them are known


class ResumeStore:
    """The folder of the unfinished songs of `out`."""

    def __init__(self, out: Path, stale: float = STALE_SECONDS):
        self.folder = out / FOLDER
        self.stale = stale
        make_folder(self.folder)

    # ---- Codes so far -----------------------------------------------------------------------------------------------

    def save(self, song: str, key: dict[str, Any], known: KnownCodes) -> None:
        """Save the codes of a song that are known by now; `key` fixes request, weights and decoding."""
        arrays: dict[str, Any] = {"key": np.array(json.dumps(key, sort_keys=True))}
        for level, codes_T in known.codes.items():
            arrays[CODES_PREFIX + level] = codes_T.astype(np.uint16)
            arrays[MASK_PREFIX + level] = np.packbits(known.mask[level])
        file = io.BytesIO()
        np.savez(file, **arrays)
        write_atomic(self.folder / f"{song}.npz", file.getvalue())

    def load(self, song: str, key: dict[str, Any]) -> KnownCodes | None:
        """What an interrupted attempt at the same song saved; None if there is nothing, or of another key."""
        known = KnownCodes()
        try:
            stored = read_npz(read_inside(self.folder, f"{song}.npz", MAX_FILE_BYTES))
            stored_key = parse_json(str(stored["key"]))
            if not isinstance(stored_key, dict):
                return None
            if current_song_key(stored_key) != json.loads(json.dumps(key)):  # lists, no tuples
                return None
            for name, array in stored.items():
                if name.startswith(CODES_PREFIX):
                    level = name.removeprefix(CODES_PREFIX)
                    codes_T = codes_of(array, name)
                    packed = stored[MASK_PREFIX + level]
                    known.codes[level] = codes_T
                    known.mask[level] = np.unpackbits(packed, count=len(codes_T)).astype(bool)
        except (OSError, ValueError, KeyError, TypeError):  # torn or damaged: the song starts again
            return None
        return known

    def remove(self, song: str) -> None:
        for suffix in ("npz", "claim"):
            (self.folder / f"{song}.{suffix}").unlink(missing_ok=True)

    # ---- Claims ------------------------------------------------------------------------------------------------------

    def claim(self, song: str) -> bool:
        """Claim the song for this process; False if another living process works on it."""
        path = self.folder / f"{song}.claim"
        if path.exists() and not self.is_claimed(song):
            taken = path.with_suffix(f".{socket.gethostname()}-{os.getpid()}")
            try:
                os.rename(path, taken)  # of several that see it stale, one succeeds
                taken.unlink()
            except FileNotFoundError:
                return False
        try:
            with open(path, "x") as file:  # never through a link: a link of that name exists
                json.dump({"host": socket.gethostname(), "pid": os.getpid()}, file)
        except FileExistsError:
            return False
        return True

    def is_claimed(self, song: str) -> bool:
        """Whether a process works on the song: its claim is young, and if it is of this machine, it runs."""
        path = self.folder / f"{song}.claim"
        owner: Any = None
        try:
            age = time.time() - path.lstat().st_mtime
        except OSError:
            return False
        if age >= self.stale:
            return False
        with suppress(OSError, ValueError):
            owner = parse_json(read_inside(self.folder, path.name, MAX_CLAIM_BYTES))
        if not isinstance(owner, dict):
            return age < WRITING_SECONDS  # perhaps it is being written just now
        if owner.get("host") != socket.gethostname():
            return True
        pid = owner.get("pid")
        if not isinstance(pid, int) or not 0 < pid <= MAX_PID:
            return False
        try:  # a process that died may be listed until its parent reaps it
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:
            return True

    def touch(self, song: str) -> None:
        with suppress(FileNotFoundError):
            os.utime(self.folder / f"{song}.claim", follow_symlinks=False)

    def release(self, song: str) -> None:
        (self.folder / f"{song}.claim").unlink(missing_ok=True)
