"""Checkpoints, whole or not there: written aside, sealed by a manifest, renamed, and only then named `latest`."""

import hashlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from megajukebox.data.files import write_whole

MANIFEST = "manifest.json"
STATE = "state.json"


def folder_of(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def partial(run: Path, step: int) -> Path:
    """The folder to write step `step` into before `seal` makes it a checkpoint."""
    return folder_of(run, step).with_suffix(".partial")


def seal(run: Path, step: int, state: dict, keep: int) -> Path:
    """Make the partial folder a checkpoint: state, manifest with sizes and checksums, rename, `latest`, retention.

    Called by one process after every rank has written its part.
    """
    written = partial(run, step)
    (written / STATE).write_text(json.dumps(state, indent=1))
    files = sorted(p for p in written.rglob("*") if p.is_file())
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(_digest, files))
    manifest = {str(p.relative_to(written)): {"bytes": p.stat().st_size, "sha256": d} for p, d in zip(files, digests)}
    write_whole(written / MANIFEST, json.dumps({"step": step, "files": manifest}, indent=1).encode())
    final = folder_of(run, step)
    if final.exists():
        shutil.rmtree(final)
    os.replace(written, final)
    write_whole(run / "checkpoints" / "latest", final.name.encode())
    _forget_old(final, keep)
    return final


def newest(run: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that passes `flaws`, and why newer ones did not. None if the run never saved.

    Raises ValueError if there are checkpoints and none is whole: a run never starts again from zero by accident.
    """
    found = sorted((run / "checkpoints").glob("step-????????"), reverse=True)
    rejected: list[str] = []
    for folder in found:
        wrong = flaws(folder)
        if wrong is None:
            return folder, rejected
        rejected.append(f"{folder.name}: {wrong}")
    if found or (run / "checkpoints" / "latest").exists():
        raise ValueError(
            f"{run} has checkpoints but none is whole ({'; '.join(rejected) or 'all are missing'});"
            " restore one, or start in another folder"
        )
    return None, rejected


def flaws(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None: every file is there with the size and checksum its manifest gives."""
    try:
        listed = json.loads((folder / MANIFEST).read_text(), object_pairs_hook=_each_once)["files"]
        files = {name: (facts["bytes"], facts["sha256"]) for name, facts in listed.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its manifest cannot be read ({error!r})"
    if STATE not in files:
        return f"its manifest does not list {STATE}"
    for name, (size, _) in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            return f"{name} is missing or has another size"
    with ThreadPoolExecutor() as pool:
        for (name, (_, expected)), digest in zip(files.items(), pool.map(lambda n: _digest(folder / n), files)):
            if digest != expected:
                return f"{name} has another checksum"
    return None


def _each_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """One flipped bit can give a file the name of another; as a plain dict the list would hide that one is missing."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"a name comes twice among {[name for name, _ in pairs]}")
    return found


def read_state(folder: Path) -> dict:
    return json.loads((folder / STATE).read_text())


def _forget_old(newest: Path, keep: int) -> None:
    """Leave the `keep` checkpoints up to `newest`. A later one is left from before a restart: it must not count, or the
    one just saved could be the one that goes.
    """
    until = sorted(path for path in newest.parent.glob("step-????????") if path.name <= newest.name)
    for old in until[:-keep]:
        shutil.rmtree(old)
    for stale in newest.parent.glob("*.partial"):
        shutil.rmtree(stale) if stale.is_dir() else stale.unlink()


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
