"""Our own layout, which is exact: a folder for each model with every file that sampling and training read of it.

It holds whatever a run holds (conditions at every position, moods, an own tokenizer, students), which OpenAI's and
Hugging Face's layouts cannot.
"""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from megajukebox.common.errors import UserError
from megajukebox.common.files import atomic_open, make_folder
from megajukebox.common.levels import (
    ALIGNMENT_FILE,
    PRIOR_FOLDERS,
    RUN_FOLDERS,
    STUDENT_FOLDERS,
    STUDENT_TABLE,
    VQVAE_FOLDER,
)
from megajukebox.common.model_files import FACTS, WEIGHTS, check_fingerprint, read_facts
from megajukebox.common.untrusted_files import open_inside
from megajukebox.conditioning.tokenizers import LYRICS_MODEL
from megajukebox.conditioning.vocabulary import VOCABULARIES
from megajukebox.models.prior import PriorConfig
from megajukebox.models.vqvae import VQVAEConfig

# model.json comes last: a folder that has it is complete.
MODEL_FILES = (WEIGHTS, VOCABULARIES, LYRICS_MODEL, ALIGNMENT_FILE, STUDENT_TABLE, FACTS)
COPY_BLOCK_BYTES = 4 << 20
CONFIGS = {"vqvae": VQVAEConfig, "prior": PriorConfig}


def is_own_layout(path: Path) -> bool:
    """Whether `path` is a model's folder, or a folder of them."""
    return any(model_folders(path))


def model_folders(path: Path) -> Iterator[Path]:
    """The folders of models in `path`: itself, or those that a set of runs has, students after their table."""
    if (path / FACTS).is_file():
        yield path
        return
    for name in RUN_FOLDERS.values():
        if (path / name / FACTS).is_file():
            yield path / name
    for name in STUDENT_FOLDERS.values():
        if (path / name / STUDENT_TABLE).is_file():
            yield path / name
            for student in sorted((path / name).iterdir()):
                if (student / FACTS).is_file():
                    yield student


def export_models(path: Path, to: Path) -> list[Path]:
    """Copies of the models at `path`, without checkpoints and logs; returns the files.

    Raises:
        UserError: `path` holds no exported model.
    """
    folders = list(model_folders(path))
    if not folders:
        raise UserError(
            f"{path} holds no exported model; give a run folder, or a folder with"
            f" {', '.join(RUN_FOLDERS.values())}"
        )
    copies: list[Path] = []
    for folder in folders:
        name = path.resolve().name if folder == path else folder.relative_to(path)
        copies += _copy(folder, to / name)
    return copies


def import_models(paths: Sequence[Path], to: Path) -> dict[str, Path]:
    """The models at `paths` as run folders below `to`, to the bit; returns {name of the folder: folder}.

    Nothing is visible under its real name until every byte has been compared with its fingerprint.

    Raises:
        UserError: a model is damaged, is given twice, or is there already.
    """
    sources: dict[str, Path] = {}
    for path in paths:
        for folder in model_folders(path):
            name = folder.relative_to(path).as_posix() if folder != path else run_name(folder)
            first = sources.setdefault(name, folder)
            if first != folder:
                raise UserError(f"{first} and {folder} both hold the {name}; give one of them")
            if (to / name).exists():
                raise UserError(f"{to / name} exists; remove it or import to another folder")
    partial = to.with_name(f"{to.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # what an import that was killed left
    try:
        for name, folder in sources.items():
            _copy(folder, partial / name)
            if (folder / FACTS).is_file():
                _check(partial / name, folder)
        make_folder(to)
        for made in sorted(partial.iterdir()):
            os.replace(made, to / made.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return {name: to / name for name in sources}


def run_name(folder: Path) -> str:
    """The name that a set of runs has for the model in `folder`."""
    facts = read_facts(folder)
    if facts["kind"] == "vqvae":
        return VQVAE_FOLDER
    if facts["kind"] == "prior":
        return PRIOR_FOLDERS[_config(folder, facts).level]
    raise UserError(
        f"{folder} holds a {facts['kind']} alone; give the folder with {', '.join(RUN_FOLDERS.values())}"
    )


def _config(folder: Path, facts: Mapping[str, Any]) -> Any:
    """The config of a VQ-VAE or a prior; UserError if it is none."""
    try:
        return CONFIGS[facts["kind"]](**facts["config"])
    except (ValidationError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{folder / FACTS}: the config is no {facts['kind']}'s ({reason}); export the model again"
        ) from None


def _check(copy: Path, source: Path) -> None:
    """Raise UserError unless the copy of a model is what its model.json says."""
    facts = read_facts(copy)
    if facts["kind"] in CONFIGS:
        _config(source, facts)
    try:
        check_fingerprint(copy)
    except UserError as error:
        raise UserError(str(error).replace(str(copy), str(source))) from None
    except FileNotFoundError:
        raise UserError(f"{source} lacks {WEIGHTS}; copy the whole folder again") from None


def _copy(folder: Path, to: Path) -> list[Path]:
    """Copy those of `MODEL_FILES` that a folder has, model.json last; returns the copies."""
    make_folder(to)
    copies: list[Path] = []
    for name in MODEL_FILES:
        if not (folder / name).is_file():
            continue
        with open_inside(folder, name) as source, atomic_open(to / name) as copy:
            shutil.copyfileobj(source, copy, COPY_BLOCK_BYTES)
        copies.append(to / name)
    return copies
