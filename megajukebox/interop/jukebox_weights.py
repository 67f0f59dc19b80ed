"""Jukebox checkpoints (OpenAI's, Hugging Face's) as run folders of ours: every tensor once, one in memory at a time."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
    every file is whole and fits, nothing is visible under its real name until all is written. ValueError tells what is
    wrong with a file.
    """
    parts = plan(read_checkpoints(_files(paths)), settings or {}, _vqvae_beside(to))
    taken = [str(to / part.folder) for part in parts if (to / part.folder).exists()]
    if taken:
        raise ValueError(f"{taken[0]} exists; remove it or import to another folder")
    return _write(
        parts,
        to,
        {part.name: vocabularies(part.config, labels) for part in parts} if labels else {},
    )


def _files(paths: Sequence[Path]) -> list[Path]:
    """The files of weights in `paths`, looking one folder deep."""
    endings = (".pth.tar", ".pth", ".pt", ".bin", ".safetensors")
    files = []
    for path in map(Path, paths):
        inside = (
            sorted(p for p in path.iterdir() if p.name.endswith(endings))
            if path.is_dir()
            else [path]
        )
        if not inside:
            raise ValueError(f"{path} holds no file ending in {', '.join(endings)}")
        files += inside
    return files


def _vqvae_beside(to: Path) -> VQVAEConfig | None:
    """The config of a VQ-VAE that is there already, from an import before this one."""
    folder = to / VQVAE_FOLDER
    return VQVAEConfig(**read_facts(folder)["config"]) if (folder / FACTS).is_file() else None


# ---- Writing --------------------------------------------------------------------------------------------------------


def _write(
    parts: list[Part], to: Path, names: Mapping[str, dict[str, Vocabulary]]
) -> dict[str, Path]:
    """All parts into `<to>.partial`, then under their real names. The VQ-VAE is the first of the parts."""
    partial = to.with_name(f"{to.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)  # what an import that was killed left
    beside = to / VQVAE_FOLDER
    vqvae = read_facts(beside)["fingerprint"] if (beside / FACTS).is_file() else None
    try:
        for part in parts:
            fingerprint = _save(part, partial / part.folder, vqvae)
            vqvae = fingerprint if part.name == "vqvae" else vqvae
            if part.name in names:
                lists = {
                    name: list(vocabulary.names) for name, vocabulary in names[part.name].items()
                }
                write_atomic(
                    partial / part.folder / VOCABULARIES,
                    json.dumps(lists, ensure_ascii=False).encode(),
                )
            _save_alignment(part, partial / part.folder)
        make_folder(to)
        for part in parts:
            os.replace(partial / part.folder, to / part.folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return {part.name: to / part.folder for part in parts}


def _save(part: Part, folder: Path, vqvae: str | None) -> str:
    checkpoint, config = part.checkpoint, part.config
    facts: dict[str, Any] = {
        "sample_rate": config.sample_rate,
        "made_by": made_by(),
        "licence": NOTICE,
    }
    origin = {"file": checkpoint.path.name, "layout": checkpoint.layout, "stack": checkpoint.stack}
    facts["imported"] = origin | {"hps": plain(checkpoint.hps)}
    if isinstance(config, PriorConfig):
        facts |= {"level": config.level} | ({"vqvae": vqvae} if vqvae else {})
        facts |= {"names": f"jukebox_{label_version(config)}"} if config.conditions else {}
        facts |= {"tokenizer": f"jukebox_{text_version(config)}"} if config.lyrics else {}
    kind = "vqvae" if isinstance(config, VQVAEConfig) else "prior"
    return save_weights(
        folder, kind, config, converted(part, Reader(checkpoint)), checkpoint.step, **facts
    )


def _save_alignment(part: Part, folder: Path) -> None:
    """The (layer, head) known to follow the lyrics, where the file, or the released model like it, names one."""
    if isinstance(part.config, PriorConfig) and part.config.lyrics:
        known = {
            **like_released_prior(part.checkpoint.shapes, part.checkpoint.level),
            **part.checkpoint.hps,
        }
        if known.get("alignment_layer") is not None:
            pair = {"layer": known["alignment_layer"], "head": known["alignment_head"]}
            write_atomic(folder / "alignment.json", json.dumps(pair).encode())


def label_version(config: PriorConfig) -> Version:
    """v3 labels name one genre, v2 labels a bag of them."""
    return "v3" if config.conditions["genres"].max_values == 1 else "v2"


def text_version(config: PriorConfig) -> Version:
    """v3 has no `+` among its characters."""
    assert config.lyrics is not None
    return "v3" if config.lyrics.size == 79 else "v2"


def vocabularies(config: VQVAEConfig | PriorConfig, folder: Path) -> dict[str, Vocabulary]:
    """Names of the rows of the label tables, from OpenAI's lists in `folder`."""
    if isinstance(config, VQVAEConfig) or not config.conditions:
        return {}
    files = {
        name: folder / f"{label_version(config)}_{LABEL_FILES[name]}_ids.txt"
        for name in config.conditions
    }
    missing = [str(path) for path in files.values() if not path.is_file()]
    if missing:
        raise ValueError(
            f"{missing[0]} is missing; the {config.level} prior's labels are {label_version(config)} ids"
        )
    return {
        name: read_label_file(path, config.conditions[name].table_size)
        for name, path in files.items()
    }


def plain(value: Any) -> Any:
    """Hyper-parameters as JSON can hold them; what it cannot hold is written out in words."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, str | int | float | bool) else repr(value)
