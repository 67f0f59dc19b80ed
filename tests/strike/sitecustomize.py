"""Faults for a training process that is otherwise the real one: Python runs this file where it is on PYTHONPATH.

FAULT is a list such as "slow=0.2 kill=1@7": what happens to which rank before which step (0-based). Each happens once:
a file in the folder FAULT_MARKS remembers. A file `hurry` there ends slowness. With "slow_disk=2" every file of a
checkpoint rests for so many seconds when half of it is written.
"""

import ctypes
import importlib.abc
import importlib.machinery
import os
import signal
import sys
import time
from pathlib import Path


def strike(rank: int, step: int) -> None:
    for fault in os.environ.get("FAULT", "").split():
        name, _, value = fault.partition("=")
        if name == "slow":
            if not (Path(os.environ["FAULT_MARKS"]) / "hurry").exists():
                time.sleep(float(value))
        elif value == f"{rank}@{step}" and first_time(fault):
            HOW[name]()


def first_time(fault: str) -> bool:
    try:
        (Path(os.environ["FAULT_MARKS"]) / fault).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def raise_bug() -> None:
    raise RuntimeError("a bug of ours")


HOW = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "freeze": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "lock": lambda: ctypes.PyDLL(None).sleep(600),  # keeps the interpreter's lock: no Python thread runs
    "bug": raise_bug,
}


class Patch(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Puts `strike` before every step as soon as the loop is imported."""

    def find_spec(self, name, path, target=None):
        if name != "megajukebox.training.loop":
            return None
        self.real = importlib.machinery.PathFinder.find_spec(name, path)
        return importlib.machinery.ModuleSpec(name, self, origin=self.real.origin)

    def exec_module(self, module):
        self.real.loader.exec_module(module)
        plain = module.train_one_step

        def struck(run, task, engine, batches, stream, step, *more):
            strike(run.rank, step)
            return plain(run, task, engine, batches, stream, step, *more)

        module.train_one_step = struck
        slow_disk(sum(float(f.partition("=")[2]) for f in os.environ["FAULT"].split() if f.startswith("slow_disk=")))


def slow_disk(seconds):
    from megajukebox.training.engines.storage import Hashing

    plain = Hashing.write

    def slowly(file, data):
        half = len(data) // 2 if seconds and len(data) > 5000 else 0
        plain(file, data[:half])
        file.flush()
        time.sleep(seconds if half else 0)
        return plain(file, data[half:])

    Hashing.write = slowly


if "FAULT" in os.environ:
    sys.meta_path.insert(0, Patch())
