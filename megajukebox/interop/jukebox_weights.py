"""Jukebox checkpoints (OpenAI's, Hugging Face's) as run folders of ours: every tensor once, one in memory at a time."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megajukebox.common.errors import UserError
from megajukebox.common.files import make_folder, write_atomic
from megajukebox.common.levels import VQVAE_FOLDER
from megajukebox.common.model_files import FACTS, read_facts, save_weights
from megajukebox.common.provenance import made_by
from megajukebox.conditioning.jukebox_labels import Version, read_label_file
from megajukebox.conditioning.vocabulary import Vocabulary
from megajukebox.interop.checkpoints import Reader, read_checkpoints
from megajukebox.interop.import_plan import Part, converted, plan
from megajukebox.interop.released_configs import like_released_prior
from megajukebox.models.prior import PriorConfig
from megajukebox.models.vqvae import VQVAEConfig

NOTICE = (
    "OpenAI's Jukebox weights are licensed for non-commercial use only "
    "(Noncommercial Use License, openai/jukebox); so is everything made from them."
)
VOCABULARIES = "vocabularies.json"
WEIGHT_ENDINGS = (".pth.tar", ".pth", ".pt", ".bin", ".safetensors")
LABEL_FILES = {"artist": "artist", "genres": "genre"}


def import_weights(
    paths: Sequence[Path],
    to: Path,
    settings: Mapping[str, Any] | None = None,
    labels: Path | None = None,
) -> dict[str, Path]:
    """Write the models in `paths` (files, or folders of them) as run folders below `to`; returns {part: folder}.

    `settings`: hyper-parameters under the reference's names that go before what the files say. `labels`: a folder with
    OpenAI's lists of names (v2_artist_ids.txt ...), without which only ids can be asked for. Nothing is written unless
    every file is whole and fits, nothing is visible under its real name until all is written.

    Raises:
        UserError: a file is damaged, of something else, or does not fit the others.
    """
    checkpoints = read_checkpoints(_files(paths))
    vqvae: VQVAEConfig | None = None  # from an import before this one
    if (to / VQVAE_FOLDER / FACTS).is_file():
        vqvae = VQVAEConfig(**read_facts(to / VQVAE_FOLDER)["config"])
    parts = plan(checkpoints, settings or {}, vqvae)
    for part in parts:
        if (to / part.folder).exists():
            raise UserError(f"{to / part.folder} exists; remove it or import to another folder")
    names: dict[str, dict[str, Vocabulary]] = {}
    if labels:
        for part in parts:
            names[part.name] = vocabularies(part.config, labels)
    return _write(parts, to, names)


def _files(paths: Sequence[Path]) -> list[Path]:
    """The files of weights in `paths`, looking one folder deep."""
    files: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            files.append(path)
            continue
        inside = sorted(file for file in path.iterdir() if file.name.endswith(WEIGHT_ENDINGS))
        if not inside:
            raise UserError(f"{path} holds no file ending in {', '.join(WEIGHT_ENDINGS)}")
        files += inside
    return files


# ---- Writing --------------------------------------------------------------------------------------------------------


def _write(
    parts: list[Part], to: Path, names: Mapping[str, dict[str, Vocabulary]]
) -> dict[str, Path]:
    """Write all parts into `<to>.partial`, then move them to their names. The VQ-VAE is the first of the parts."""
    partial = to.with_name(f"{to.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)  # what an import that was killed left
    beside = to / VQVAE_FOLDER
    vqvae = read_facts(beside)["fingerprint"] if (beside / FACTS).is_file() else None
    try:
        for part in parts:
            folder = partial / part.folder
            fingerprint = _save(part, folder, vqvae)
            if part.name == "vqvae":
                vqvae = fingerprint
            if part.name in names:
                lists: dict[str, list[str]] = {}
                for name, words in names[part.name].items():
                    lists[name] = list(words.names)
                text = json.dumps(lists, ensure_ascii=False)
                write_atomic(folder / VOCABULARIES, text.encode())
        make_folder(to)
        for part in parts:
            os.replace(partial / part.folder, to / part.folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return {part.name: to / part.folder for part in parts}


def _save(part: Part, folder: Path, vqvae: str | None) -> str:
    """Write one part; returns the fingerprint of its weights. `vqvae`: that of a prior's VQ-VAE."""
    checkpoint = part.checkpoint
    config = part.config
    facts: dict[str, Any] = {
        "sample_rate": config.sample_rate,
        "made_by": made_by(),
        "licence": NOTICE,
    }
    origin = {"file": checkpoint.path.name, "layout": checkpoint.layout, "stack": checkpoint.stack}
    facts["imported"] = origin | {"hps": plain(checkpoint.hps)}
    if isinstance(config, PriorConfig):
        facts["level"] = config.level
        if vqvae:
            facts["vqvae"] = vqvae
        if config.conditions:
            facts["names"] = f"jukebox_{label_version(config)}"
        if config.lyrics:
            # v3 has no `+` among its characters.
            facts["tokenizer"] = "jukebox_v3" if config.lyrics.size == 79 else "jukebox_v2"
    kind = "vqvae" if isinstance(config, VQVAEConfig) else "prior"
    tensors = converted(part, Reader(checkpoint))
    fingerprint = save_weights(folder, kind, config, tensors, checkpoint.step, **facts)
    if isinstance(config, PriorConfig) and config.lyrics:
        # The (layer, head) known to follow the lyrics: the file names it, or the released model.
        released = like_released_prior(checkpoint.shapes, checkpoint.level)
        known = {**released, **checkpoint.hps}
        if known.get("alignment_layer") is not None:
            pair = {"layer": known["alignment_layer"], "head": known["alignment_head"]}
            write_atomic(folder / "alignment.json", json.dumps(pair).encode())
    return fingerprint


def label_version(config: PriorConfig) -> Version:
    """v3 labels name one genre, v2 labels a bag of them."""
    return "v3" if config.conditions["genres"].max_values == 1 else "v2"


def vocabularies(config: VQVAEConfig | PriorConfig, folder: Path) -> dict[str, Vocabulary]:
    """Names of the rows of the label tables, from OpenAI's lists in `folder`."""
    if isinstance(config, VQVAEConfig) or not config.conditions:
        return {}
    version = label_version(config)
    names: dict[str, Vocabulary] = {}
    for name, label in config.conditions.items():
        path = folder / f"{version}_{LABEL_FILES[name]}_ids.txt"
        if not path.is_file():
            raise UserError(
                f"{path} is missing; the {config.level} prior's labels are {version} ids"
            )
        names[name] = read_label_file(path, label.table_size)
    return names


def plain(value: Any) -> Any:
    """Hyper-parameters as JSON can hold them; anything else becomes its `repr`."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return list(map(plain, value))
    is_plain = value is None or isinstance(value, str | int | float | bool)
    return value if is_plain else repr(value)
