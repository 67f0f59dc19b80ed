"""Checkpoints, complete or not there: written aside, given a manifest, renamed, and only then named `latest`."""

import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from megajukebox.common.errors import UserError
from megajukebox.common.files import sha256_of, sha256_of_open, sync_folder, write_atomic
from megajukebox.common.untrusted_files import (
    UnsafeFileError,
    open_inside,
    parse_json,
    read_inside,
)
from megajukebox.training.engines.checkpoint_engine import StoredFile

MANIFEST = "manifest.json"
STATE = "state.json"
MAX_DOCUMENT_BYTES = 1 << 26  # of a manifest (150 bytes a file, two files a rank) and of a state
MAX_NAME = 255  # characters of a file's path within a checkpoint: none of ours has more than 60
# What NFS keeps for a process that still has a removed file open; no reader of a checkpoint looks at it.
REMOVED_ON_NFS = re.compile(r"\.nfs[0-9a-f]+")


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
    # A start that was killed while it committed this same folder may have left a manifest there, or half of one.
    (folder / MANIFEST).unlink(missing_ok=True)
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
    folders = (run / "checkpoints").glob("step-????????")
    return sorted(
        (folder for folder in folders if folder.name[len("step-") :].isdecimal()), reverse=True
    )


def refuse_restart_from_scratch(run: Path, rejected: list[str]) -> None:
    """Raise UserError if the run has saved before, since none of its checkpoints is valid."""
    if rejected or (run / "checkpoints" / "latest").exists():
        raise UserError(
            f"{run} has checkpoints but none is whole ({'; '.join(rejected) or 'all are missing'});"
            " restore one, or start in another folder"
        )


def verify(folder: Path, share: tuple[int, int] = (0, 1)) -> str | None:
    """What is wrong with a checkpoint, None if it holds the files that its manifest lists, with their sizes and
    checksums, and no others: DeepSpeed's readers take files by the beginnings of their names.

    `share` (i, n): of n processes that verify together, the i-th; each reads its n-th part of the files.
    """
    try:
        files = _listed(folder)
    except (OSError, ValueError) as error:
        return f"its manifest cannot be read ({error!r})"
    if STATE not in files:
        return f"its manifest does not list {STATE}"
    for name, listed in files.items():
        path = folder / name
        facts = path.lstat() if path.exists() else None
        if facts is None or not stat.S_ISREG(facts.st_mode) or facts.st_size != listed.bytes:
            return f"{name} is missing, no plain file, or has another size"
    unlisted = _unlisted(folder, files)
    if unlisted:
        return f"{unlisted} is not in its manifest: take it out of there"
    own = sorted(files)[share[0] :: share[1]]
    with ThreadPoolExecutor() as pool:
        for name, digest in zip(own, pool.map(lambda name: _sha256_inside(folder, name), own)):
            if digest != files[name].sha256:
                return f"{name} has another checksum"
    return None


def _unlisted(folder: Path, files: Mapping[str, StoredFile]) -> str | None:
    """The first name below `folder` that no listed file accounts for: of a file, a link or a folder."""
    expected = {MANIFEST, *files}
    for name in files:
        expected |= {str(parent) for parent in PurePath(name).parents}
    for parent, folders, names in os.walk(folder):
        for name in sorted([*folders, *names]):
            path = Path(parent, name)
            known = str(path.relative_to(folder)) in expected and not path.is_symlink()
            if not known and not REMOVED_ON_NFS.fullmatch(name):
                return str(path.relative_to(folder))
    return None


def _sha256_inside(folder: Path, name: str) -> str:
    """The sha256 of a listed file; empty if it was exchanged for something else than a plain file."""
    try:
        with open_inside(folder, name) as file:
            return sha256_of_open(file)
    except UnsafeFileError:
        return ""


def _listed(folder: Path) -> dict[str, StoredFile]:
    """The files that a checkpoint's manifest lists.

    Raises:
        ValueError: it is no manifest. One flipped bit can give a file the name of another: a name that comes twice is
            refused, for the list would hide that one is missing.
    """
    manifest = parse_json(read_inside(folder, MANIFEST, MAX_DOCUMENT_BYTES))
    listed = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(listed, dict):
        raise ValueError("it has no list of files")
    files = {}
    for name, facts in listed.items():
        path = PurePath(name)
        is_odd = str(path) != name or not name.isascii() or len(name) > MAX_NAME
        if path.is_absolute() or ".." in path.parts or name == "." or is_odd:
            raise ValueError(f"{name!r} is no file within the checkpoint")
        size = facts.get("bytes") if isinstance(facts, dict) else None
        digest = facts.get("sha256") if isinstance(facts, dict) else None
        if type(size) is not int or size < 0 or not isinstance(digest, str):
            raise ValueError(f"{name!r} has no size and checksum")
        files[name] = StoredFile(size, digest)
    return files


def size_of(folder: Path) -> int:
    """Bytes of a checkpoint, by its manifest."""
    return sum(file.bytes for file in _listed(folder).values())


def read_state(folder: Path) -> dict[str, Any]:
    """What the next step depends on beside weights and optimizer.

    Raises:
        UserError: the file is not what `commit` writes.
    """
    path = folder / STATE
    try:
        state = parse_json(read_inside(folder, STATE, MAX_DOCUMENT_BYTES))
    except (ValueError, UnsafeFileError) as error:
        raise UserError(f"{path} cannot be read ({error}); choose another checkpoint") from None
    step = state.get("step") if isinstance(state, dict) else None
    if type(step) is not int or step < 0 or not isinstance(state.get("stream", {}), dict):
        raise UserError(f"{path} holds no state of a run; choose another checkpoint")
    return state


def remove_old(newest: Path, keep: RetentionPolicy) -> None:
    """Remove the checkpoints up to `newest` that `keep` does not keep.

    A later one is left from before a restart: it must not count, or the one just saved could be the one that goes.
    """
    folders = reversed(candidates(newest.parent.parent))
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
