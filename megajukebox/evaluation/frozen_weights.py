"""Weights of a run that stay as they are while they are evaluated, though training replaces them."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megajukebox.common.files import atomic_open
from megajukebox.common.model_files import WEIGHTS, check_fingerprint
from megajukebox.common.untrusted_files import open_inside

RUN_FILES = (".json", ".yaml", ".model")  # what is read with a run's weights
TRIES = 5
RETRY_SECONDS = 2.0  # between the new weights and the model.json that belongs to them


@contextmanager
def frozen(run: Path) -> Iterator[Path]:
    """A folder with the run's weights and what is read with them as they are now; training may replace the run's.

    Training replaces weights by renaming, so a second name (a hard link; else a copy) keeps these.
    """
    with tempfile.TemporaryDirectory(prefix="scoring-", dir=run.parent) as name:
        folder = Path(name)
        for attempt in range(TRIES):
            try:
                link(run / WEIGHTS, folder / WEIGHTS)
                for path in run.iterdir():
                    if path.suffix in RUN_FILES:
                        link(path, folder / path.name)
                check_fingerprint(folder)
                break
            except (ValueError, FileNotFoundError):
                if attempt == TRIES - 1:
                    raise
                time.sleep(RETRY_SECONDS)
        yield folder


def link(path: Path, name: Path) -> None:
    name.unlink(missing_ok=True)
    try:
        os.link(path, name)
    except OSError:  # another file system, or one without links
        with open_inside(path.parent, path.name) as file, atomic_open(name) as copy:
            shutil.copyfileobj(file, copy)
