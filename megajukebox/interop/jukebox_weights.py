"""Jukebox checkpoints (OpenAI's, Hugging Face's) as run folders of ours: every tensor once, one in memory at a time."""

import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megajukebox.common.errors import UserError
from megajukebox.common.files import make_folder, write_atomic
from megajukebox.common.levels import ALIGNMENT_FILE, VQVAE_FOLDER
from megajukebox.common.model_files import FACTS, read_facts, save_weights
from megajukebox.common.provenance import made_by
from megajukebox.conditioning.jukebox_labels import Version
from megajukebox.conditioning.vocabulary import VOCABULARIES, Vocabulary, vocabularies_json
from megajukebox.interop.checkpoints import Reader, read_checkpoints
from megajukebox.interop.export_record import (
    EXPORT_RECORD,
    KEPT_FACTS,
    ExportedPart,
    read_export_record,
)
from megajukebox.interop.import_plan import Part, converted, plan
from megajukebox.interop.label_names import label_version, named_rows, numbered_rows
from megajukebox.interop.layout_limits import CHARACTER_TOKENIZERS
from megajukebox.interop.own_layout import import_models, is_own_layout
from megajukebox.interop.transformers_config import CONFIG
from megajukebox.models.prior import PriorConfig
from megajukebox.models.vqvae import VQVAEConfig

NOTICE = (
    "OpenAI's Jukebox weights are licensed for non-commercial use only "
    "(Noncommercial Use License, openai/jukebox); so is everything made from them."
)
UNSTATED = (
    "The files name no licence. If they were made from OpenAI's Jukebox weights, they are for non-commercial use only"
    " (Noncommercial Use License, openai/jukebox); else ask who made them."
)
WEIGHT_ENDINGS = (".pth.tar", ".pth", ".pt", ".bin", ".safetensors")

log = logging.getLogger(__name__)


def import_weights(
    paths: Sequence[Path],
    to: Path,
    settings: Mapping[str, Any] | None = None,
    labels: Path | None = None,
) -> dict[str, Path]:
    """Write the models in `paths` (files, or folders of them) as run folders below `to`; returns {part: folder}.

    `settings`: hyper-parameters under OpenAI's names that go before what the files say, `heads` for all parts or
    `top.heads` for one. `labels`: a folder with lists of names (v2_artist_ids.txt ..., or artists.json), which are also
    looked for beside the weights; rows that nobody named are asked for by their number. Nothing is written unless every
    file is whole and fits, nothing is visible under its real name until all is written.

    Raises:
        UserError: a file is damaged, of something else, or does not fit the others.
    """
    own = [path for path in paths if Path(path).is_dir() and is_own_layout(Path(path))]
    if own:
        return _import_own(own, paths, to, settings, labels)
    files = _files(paths)
    checkpoints = read_checkpoints(files)
    vqvae: VQVAEConfig | None = None  # from an import before this one
    if (to / VQVAE_FOLDER / FACTS).is_file():
        vqvae = VQVAEConfig(**read_facts(to / VQVAE_FOLDER)["config"])
    parts: list[ImportedPart] = []
    for planned in plan(checkpoints, settings or {}, vqvae):
        parts.append(_with_record(planned, bool(settings), labels))
    for part in parts:
        if (to / part.folder).exists():
            raise UserError(f"{to / part.folder} exists; remove it or import to another folder")
    return _write(parts, to)


def _import_own(
    own: Sequence[Path],
    paths: Sequence[Path],
    to: Path,
    settings: Mapping[str, Any] | None,
    labels: Path | None,
) -> dict[str, Path]:
    """Import folders of our own layout, which need no settings and no lists."""
    if len(own) < len(paths):
        raise UserError(f"{own[0]} is of megajukebox's own layout; import it and the others apart")
    if settings or labels:
        option = "--set" if settings else "--labels"
        raise UserError(f"{own[0]} holds its settings and names; leave {option} out")
    return import_models(own, to)


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


# ---- What is known of a part beside its tensors ---------------------------------------------------------------------


@dataclass(frozen=True)
class ImportedPart:
    """A planned part, and what its run folder says beside its weights."""

    part: Part
    config: VQVAEConfig | PriorConfig
    facts: dict[str, Any]
    step: int
    names: dict[str, Vocabulary]
    alignment: dict[str, Any] | None

    @property
    def folder(self) -> str:
        return self.part.folder


def _with_record(part: Part, has_settings: bool, labels: Path | None) -> ImportedPart:
    """What lies beside the weights of a part: our own record if it is of them, lists of names, a tokenizer."""
    folder = part.checkpoint.path.parent
    record = read_export_record(folder).get(part.name)
    if record is not None and not record.describes(part.config):
        log.warning(
            "%s describes another %s than the weights beside it; it is not used",
            folder / EXPORT_RECORD,
            part.name,
        )
        record = None
    config = part.config
    if record is not None and not has_settings:
        config = type(config).model_validate(record.config)
    facts: dict[str, Any] = {}
    if record is not None:
        facts = {name: record.facts[name] for name in KEPT_FACTS if name in record.facts}
    if facts.get("licence") is None and record is None:
        facts["licence"] = NOTICE if part.is_released else UNSTATED
    names: dict[str, Vocabulary] = {}
    if isinstance(config, PriorConfig):
        if part.given.get("mask") is False:
            log.warning(
                "%s: mask is false, by which transformers trains and scores the %s prior without a causal mask;"
                " here every prior has one",
                folder / CONFIG,
                part.name,
            )
        _check_tokenizer(part, config, facts)
        if config.conditions:
            version = _version(part, config)
            facts.setdefault("names", f"jukebox_{version}")
            names = _names(config, version, folder, record, labels)
    alignment = record.alignment if record else _known_head(part, config)
    step = part.checkpoint.step or (record.step if record else 0)
    return ImportedPart(part, config, facts, step, names, alignment)


def _check_tokenizer(part: Part, config: PriorConfig, facts: dict[str, Any]) -> None:
    """Put the tokenizer of the lyrics into `facts`; UserError if the files cannot hold it."""
    if not config.lyrics:
        facts.pop("tokenizer", None)
        return
    tokenizer = CHARACTER_TOKENIZERS.get(config.lyrics.size)
    if tokenizer is None:
        raise UserError(
            f"{part.checkpoint.path}: the {part.name} prior's lyrics have {config.lyrics.size} tokens, but OpenAI's"
            " characters are 80 (v2) or 79 (v3): its tokenizer is not in the files; export it with"
            " --layout megajukebox"
        )
    facts["tokenizer"] = tokenizer


def _version(part: Part, config: PriorConfig) -> Version:
    """The version of a prior's labels: as the files say, else that of its lyrics, else by the number of genres."""
    said = part.given.get("labels_v3")
    if said is not None:
        return "v3" if said else "v2"
    if config.lyrics and CHARACTER_TOKENIZERS.get(config.lyrics.size) == "jukebox_v3":
        return "v3"
    return label_version(config)


def _names(
    config: PriorConfig,
    version: Version,
    folder: Path,
    record: ExportedPart | None,
    labels: Path | None,
) -> dict[str, Vocabulary]:
    """The names of a prior's rows: of the lists that were given, of our record, of lists beside the weights."""
    if labels:
        return named_rows(config, version, labels, required=True)
    found = named_rows(config, version, folder, required=False)
    names: dict[str, Vocabulary] = {}
    for condition, label in config.conditions.items():
        if record and len(record.vocabularies.get(condition, [])) == label.table_size:
            names[condition] = Vocabulary(tuple(record.vocabularies[condition]))
        else:
            names[condition] = found.get(condition) or numbered_rows(label.table_size)
    return names


def _known_head(part: Part, config: VQVAEConfig | PriorConfig) -> dict[str, int] | None:
    """The (layer, head) known to follow the lyrics: the files name it, or the released model.

    transformers writes its default pair into the config of every prior: one that reads no lyrics there is none.
    """
    layer = part.given.get("alignment_layer")
    head = part.given.get("alignment_head")
    if not isinstance(config, PriorConfig) or not config.lyrics or layer is None:
        return None
    patterns = config.transformer.patterns
    if not 0 <= layer < len(patterns) or not 0 <= head < config.transformer.heads:
        return None
    return {"layer": layer, "head": head} if patterns[layer] in ("lyrics", "prefix") else None


# ---- Writing --------------------------------------------------------------------------------------------------------


def _write(parts: list[ImportedPart], to: Path) -> dict[str, Path]:
    """Write all parts into `<to>.partial`, then move them to their names. The VQ-VAE is the first of the parts."""
    partial = to.with_name(f"{to.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)  # what an import that was killed left
    beside = to / VQVAE_FOLDER
    vqvae = read_facts(beside)["fingerprint"] if (beside / FACTS).is_file() else None
    try:
        for imported in parts:
            fingerprint = _save(imported, partial / imported.folder, vqvae)
            if imported.part.name == "vqvae":
                vqvae = fingerprint
        make_folder(to)
        for imported in parts:
            os.replace(partial / imported.folder, to / imported.folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return {imported.part.name: to / imported.folder for imported in parts}


def _save(imported: ImportedPart, folder: Path, vqvae: str | None) -> str:
    """Write one part; returns the fingerprint of its weights. `vqvae`: that of a prior's VQ-VAE."""
    checkpoint = imported.part.checkpoint
    config = imported.config
    origin = {"file": checkpoint.path.name, "layout": checkpoint.layout, "stack": checkpoint.stack}
    facts: dict[str, Any] = {
        "sample_rate": config.sample_rate,
        "made_by": made_by(),
        **imported.facts,
        "imported": origin | {"hps": plain(checkpoint.hps)},
    }
    if isinstance(config, PriorConfig):
        facts["level"] = config.level
        if vqvae:
            facts["vqvae"] = vqvae
    kind = "vqvae" if isinstance(config, VQVAEConfig) else "prior"
    tensors = converted(imported.part, Reader(checkpoint))
    fingerprint = save_weights(folder, kind, config, tensors, imported.step, **facts)
    if imported.alignment is not None:
        write_atomic(folder / ALIGNMENT_FILE, json.dumps(imported.alignment).encode())
    if imported.names:
        write_atomic(folder / VOCABULARIES, vocabularies_json(imported.names))
    return fingerprint


def plain(value: Any) -> Any:
    """Hyper-parameters as JSON can hold them; anything else becomes its `repr`."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return list(map(plain, value))
    is_plain = value is None or isinstance(value, str | int | float | bool)
    return value if is_plain else repr(value)
