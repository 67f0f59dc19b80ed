"""Checkpoints, whole or not there: written aside, sealed by a manifest, renamed, and only then named `latest`."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from megajukebox.common.files import sync_folder, write_atomic
from megajukebox.training.engines.checkpoint_engine import StoredFile

MANIFEST = "manifest.json"
STATE = "state.json"


class RetentionPolicy(NamedTuple):
    """Which checkpoints stay: the `last` ones, every one whose step is a multiple of `every` (0: none), and the newest
    from before step `stuck`, since when no step could be taken (None: all were).
    """

    last: int
    every: int = 0
    stuck: int | None = None


def folder_of(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def partial(run: Path, step: int, generation: int = 0) -> Path:
    """The folder to write step `step` into before `seal` makes it a checkpoint.

    Each start of the run has its own, so that one which was thought dead cannot write into another's.
    """
    folder = folder_of(run, step)
    return folder.with_name(f"{folder.name}.g{generation:04d}.partial")


def commit(
    written: Path,
    step: int,
    state: dict,
    keep: RetentionPolicy,
    stored: Mapping[str, StoredFile] | None = None,
    check: Callable[[], None] = lambda: None,
) -> Path:
    """Make the partial folder `written` a checkpoint: state, manifest with sizes and checksums, `check`, rename,
    `latest`, retention.

    Called by one process after every rank has written its part. `stored`, by path, are the files whose sums are known
    already; the others are read. `check` may raise: then nothing has become final.
    """
    run = written.parent.parent
    write_atomic(written / STATE, json.dumps(state, indent=1).encode())
    # A start that was killed while it sealed this same folder may have left a half manifest there.
    files = sorted(p for p in written.rglob("*") if p.is_file() and p.suffix != ".partial")
    facts = dict(stored or {})
    unread = [path for path in files if str(path) not in facts]
    with ThreadPoolExecutor() as pool:
        facts |= {
            str(path): StoredFile(path.stat().st_size, d)
            for path, d in zip(unread, pool.map(_digest, unread))
        }
    manifest = {str(path.relative_to(written)): facts[str(path)]._asdict() for path in files}
    write_atomic(
        written / MANIFEST, json.dumps({"step": step, "files": manifest}, indent=1).encode()
    )
    for folder in {path.parent for path in files}:
        sync_folder(folder)
    check()
    final = folder_of(run, step)
    if final.exists():
        shutil.rmtree(final)
    os.replace(written, final)
    sync_folder(final.parent)
    write_atomic(run / "checkpoints" / "latest", final.name.encode())
    _forget_old(final, keep)
    return final


def newest(run: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that passes `flaws`, and why newer ones did not. None if the run never saved.

    Raises ValueError if there are checkpoints and none is whole: a run never starts again from zero by accident.
    """
    rejected: list[str] = []
    for folder in candidates(run):
        wrong = verify(folder)
        if wrong is None:
            return folder, rejected
        rejected.append(f"{folder.name}: {wrong}")
    refuse_restart_from_scratch(run, rejected)
    return None, rejected


def candidates(run: Path) -> list[Path]:
    """The checkpoints of a run, newest first, whole or not."""
    return sorted((run / "checkpoints").glob("step-????????"), reverse=True)


def refuse_restart_from_scratch(run: Path, rejected: list[str]) -> None:
    """Raises ValueError if the run has saved, now that none of its checkpoints was found whole."""
    if rejected or (run / "checkpoints" / "latest").exists():
        raise ValueError(
            f"{run} has checkpoints but none is whole ({'; '.join(rejected) or 'all are missing'});"
            " restore one, or start in another folder"
        )


def verify(folder: Path, share: tuple[int, int] = (0, 1)) -> str | None:
    """What is wrong with a checkpoint, or None: every file is there with the size and checksum its manifest gives.

    `share` (i, n): of n processes that look together, the i-th; each reads its n-th part of the files.
    """
    try:
        files = _listed(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its manifest cannot be read ({error!r})"
    if STATE not in files:
        return f"its manifest does not list {STATE}"
    for name, known in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != known.bytes:
            return f"{name} is missing or has another size"
    mine = sorted(files)[share[0] :: share[1]]
    with ThreadPoolExecutor() as pool:
        for name, digest in zip(mine, pool.map(lambda n: _digest(folder / n), mine)):
            if digest != files[name].sha256:
                return f"{name} has another checksum"
    return None


def _listed(folder: Path) -> dict[str, StoredFile]:
    """The files that a checkpoint's manifest lists."""
    listed = json.loads((folder / MANIFEST).read_text(), object_pairs_hook=_each_once)["files"]
    return {name: StoredFile(facts["bytes"], facts["sha256"]) for name, facts in listed.items()}


def size_of(folder: Path) -> int:
    """Bytes of a checkpoint, by its manifest."""
    return sum(known.bytes for known in _listed(folder).values())


def _each_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """One flipped bit can give a file the name of another; as a plain dict the list would hide that one is missing."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"a name comes twice among {[name for name, _ in pairs]}")
    return found


def read_state(folder: Path) -> dict:
    return json.loads((folder / STATE).read_text())


def _forget_old(newest: Path, keep: RetentionPolicy) -> None:
    """Leave the last checkpoints up to `newest`, and those kept for good. A later one is left from before a restart: it
    must not count, or the one just saved could be the one that goes.
    """
    until = sorted(path for path in newest.parent.glob("step-????????") if path.name <= newest.name)
    steps = {path: int(path.name.split("-")[1]) for path in until}
    good = max(
        (step for step in steps.values() if keep.stuck is not None and step < keep.stuck),
        default=None,
    )
    for old in until[: -keep.last]:
        if not (keep.every and steps[old] % keep.every == 0) and steps[old] != good:
            shutil.rmtree(old)
    for stale in newest.parent.glob("*.partial"):
        shutil.rmtree(stale) if stale.is_dir() else stale.unlink()


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
