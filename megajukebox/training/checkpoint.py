"""Checkpoints, complete or not there: written aside, given a manifest, renamed, and only then named `latest`."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from megajukebox.common.errors import UserError
from megajukebox.common.files import sha256_of, sync_folder, write_atomic
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


def step_of(folder: Path) -> int:
    """The inverse of `folder_of`, also of a partial folder."""
    return int(folder.name.split("-")[1])


def partial(run: Path, step: int, generation: int = 0) -> Path:
    """The folder to write step `step` into before `commit` makes it a checkpoint.

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
    """Make the partial folder `written` a checkpoint, after every rank has written its part; one process calls this.

    Args:
        stored: by path, files whose size and checksum are known already; the others are read.
        check: called last before the rename; if it raises, nothing has become final.
    """
    run = written.parent.parent
    write_atomic(written / STATE, json.dumps(state, indent=1).encode())
    files = write_manifest(written, step, stored or {})
    for folder in {path.parent for path in files}:
        sync_folder(folder)
    check()
    final = folder_of(run, step)
    if final.exists():
        shutil.rmtree(final)
    os.replace(written, final)
    sync_folder(final.parent)
    write_atomic(run / "checkpoints" / "latest", final.name.encode())
    remove_old(final, keep)
    return final


def write_manifest(folder: Path, step: int, stored: Mapping[str, StoredFile]) -> list[Path]:
    """Write sizes and checksums of all files in `folder`; returns those files."""
    # A start that was killed while it committed this same folder may have left half a manifest there.
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix != ".partial")
    unread = [path for path in files if str(path) not in stored]
    known = dict(stored)
    with ThreadPoolExecutor() as pool:
        for path, digest in zip(unread, pool.map(sha256_of, unread)):
            known[str(path)] = StoredFile(path.stat().st_size, digest)
    listed = {}
    for path in files:
        listed[str(path.relative_to(folder))] = known[str(path)]._asdict()
    text = json.dumps({"step": step, "files": listed}, indent=1)
    write_atomic(folder / MANIFEST, text.encode())
    return files


def newest(run: Path) -> tuple[Path | None, list[str]]:
    """The newest valid checkpoint, and why newer ones are not. None if the run never saved.

    Raises:
        UserError: there are checkpoints and none is valid: a run never starts again from zero by accident.
    """
    rejected: list[str] = []
    for folder in candidates(run):
        flaw = verify(folder)
        if flaw is None:
            return folder, rejected
        rejected.append(f"{folder.name}: {flaw}")
    refuse_restart_from_scratch(run, rejected)
    return None, rejected


def candidates(run: Path) -> list[Path]:
    """The checkpoints of a run, newest first, valid or not."""
    return sorted((run / "checkpoints").glob("step-????????"), reverse=True)


def refuse_restart_from_scratch(run: Path, rejected: list[str]) -> None:
    """Raise UserError if the run has saved before, since none of its checkpoints is valid."""
    if rejected or (run / "checkpoints" / "latest").exists():
        raise UserError(
            f"{run} has checkpoints but none is whole ({'; '.join(rejected) or 'all are missing'});"
            " restore one, or start in another folder"
        )


def verify(folder: Path, share: tuple[int, int] = (0, 1)) -> str | None:
    """What is wrong with a checkpoint, None if every file has the size and checksum that its manifest lists.

    `share` (i, n): of n processes that verify together, the i-th; each reads its n-th part of the files.
    """
    try:
        files = _listed(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its manifest cannot be read ({error!r})"
    if STATE not in files:
        return f"its manifest does not list {STATE}"
    for name, listed in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != listed.bytes:
            return f"{name} is missing or has another size"
    own = sorted(files)[share[0] :: share[1]]
    with ThreadPoolExecutor() as pool:
        for name, digest in zip(own, pool.map(lambda name: sha256_of(folder / name), own)):
            if digest != files[name].sha256:
                return f"{name} has another checksum"
    return None


def _listed(folder: Path) -> dict[str, StoredFile]:
    """The files that a checkpoint's manifest lists."""
    listed = json.loads((folder / MANIFEST).read_text(), object_pairs_hook=_each_once)["files"]
    return {name: StoredFile(facts["bytes"], facts["sha256"]) for name, facts in listed.items()}


def size_of(folder: Path) -> int:
    """Bytes of a checkpoint, by its manifest."""
    return sum(file.bytes for file in _listed(folder).values())


def _each_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """One flipped bit can give a file the name of another; as a plain dict the list would hide that one is missing."""
    unique = dict(pairs)
    if len(unique) < len(pairs):
        raise ValueError(f"a name comes twice among {list(unique)}")
    return unique


def read_state(folder: Path) -> dict:
    return json.loads((folder / STATE).read_text())


def remove_old(newest: Path, keep: RetentionPolicy) -> None:
    """Remove the checkpoints up to `newest` that `keep` does not keep.

    A later one is left from before a restart: it must not count, or the one just saved could be the one that goes.
    """
    folders = sorted(newest.parent.glob("step-????????"))
    until_newest = [folder for folder in folders if folder.name <= newest.name]
    last_good = None  # from before no step could be taken
    if keep.stuck is not None:
        for step in map(step_of, until_newest):  # the newest comes last
            if step < keep.stuck:
                last_good = step
    for folder in until_newest[: -keep.last]:
        step = step_of(folder)
        is_kept = keep.every and step % keep.every == 0
        if not is_kept and step != last_good:
            shutil.rmtree(folder)
    for stale in newest.parent.glob("*.partial"):
        if stale.is_dir():
            shutil.rmtree(stale)
        else:
            stale.unlink()
