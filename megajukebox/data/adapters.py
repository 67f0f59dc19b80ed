"""Adapters on disk: two files a level, read without trust, and folded into weights while these are loaded.

    adapters/mine/top_prior/adapter.json, adapter.safetensors

Whoever samples sees plain weights: W + sum of scale x change, in float64, in the order of the adapters' names. So every
way of sampling is exact, and the order in which adapters were given does not matter.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from megajukebox.common.errors import UserError
from megajukebox.common.files import atomic_open, sha256_of, write_atomic
from megajukebox.common.levels import LEVELS, PRIOR_FOLDERS
from megajukebox.common.model_files import PendingTensor, StoredTensors, write_safetensors
from megajukebox.common.untrusted_files import UnsafeFileError, parse_json, read_inside
from megajukebox.common.validation_errors import mistakes
from megajukebox.conditioning.vocabulary import UNKNOWN, Vocabulary, normalised
from megajukebox.models.adapters import DOWN, ROWS, AdapterConfig, fold, shapes_of
from megajukebox.models.prior import PriorConfig
from megajukebox.records.adapters import ADAPTER_FACTS, ADAPTER_WEIGHTS, AdapterRecord
from megajukebox.records.schema import from_record, to_record

MAX_RECORD_BYTES = 1 << 20
MAX_SCALE = 4.0  # of an adapter, in what was trained; beyond it songs are noise
MAX_NEW_NAMES = 4096  # of one condition
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Adapter:
    """A trained adapter of one level, checked against nothing but itself yet.

    Raises:
        UserError: by `read_adapter`, where a file is none of an adapter.
    """

    name: str  # of the folder that the user gave
    folder: Path
    record: AdapterRecord
    config: AdapterConfig

    @cached_property
    def tensors(self) -> StoredTensors:
        return StoredTensors(self.folder / ADAPTER_WEIGHTS)

    @property
    def names(self) -> dict[str, tuple[str, ...]]:
        """The new names by condition, in the order of their rows."""
        return {condition: tuple(names) for condition, names in self.record.names.items()}

    def rows(self, condition: str) -> Tensor:
        """[names, W] float32."""
        return self.tensors[rows_name(condition)].float()


def rows_name(condition: str) -> str:
    return f"labels.tables.{condition}.{ROWS}"


# ---- Writing and reading ----------------------------------------------------------------------------------------------


def save_adapter(
    folder: Path, record: AdapterRecord, tensors: Mapping[str, Tensor | PendingTensor]
) -> AdapterRecord:
    """Write an adapter's two files, adapter.json last; returns the record with the fingerprint."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_open(folder / ADAPTER_WEIGHTS) as file:
        fingerprint = write_safetensors(file, tensors)
        file.flush()
        # Until the new record is there, the folder holds no adapter.
        (folder / ADAPTER_FACTS).unlink(missing_ok=True)
    record = replace(record, fingerprint=fingerprint)
    text = json.dumps(to_record(record), indent=1, ensure_ascii=False)
    write_atomic(folder / ADAPTER_FACTS, text.encode())
    return record


def read_adapter(folder: Path, name: str) -> Adapter:
    """The adapter of one level in `folder`.

    Raises:
        UserError: a file is missing, damaged, or none of an adapter.
    """
    path = folder / ADAPTER_FACTS
    try:
        stored = parse_json(read_inside(folder, ADAPTER_FACTS, MAX_RECORD_BYTES))
    except FileNotFoundError:
        raise UserError(
            f"{folder} holds no adapter ({ADAPTER_FACTS} is missing); give a folder that"
            " `megajukebox adapt` made"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); copy the adapter again") from None
    record = from_record(AdapterRecord, stored if isinstance(stored, dict) else {})
    if record.level not in LEVELS or not record.base:
        raise UserError(f"{path} names no level or no base; it is no record of an adapter")
    try:
        config = AdapterConfig(**record.config)
    except (ValidationError, TypeError) as error:
        reasons = [str(error)]
        if isinstance(error, ValidationError):
            reasons = list(mistakes(error, AdapterConfig))
        raise UserError(f"{path}: config {'; '.join(reasons)}; it is of another version") from None
    for condition, names in record.names.items():
        check_names(path, condition, names)
    weights = folder / ADAPTER_WEIGHTS
    try:
        actual = sha256_of(weights)
    except (OSError, UnsafeFileError) as error:
        raise UserError(f"{weights} cannot be read ({error}); copy the adapter again") from None
    if actual != record.fingerprint:
        raise UserError(
            f"{weights} is not the one that {ADAPTER_FACTS} describes; copy both files again"
        )
    return Adapter(name, folder, record, config)


def check_names(path: Path, condition: str, names: object) -> None:
    """Raise UserError unless `names` are new names of a condition, each once."""
    good = isinstance(names, list) and 0 < len(names) <= MAX_NEW_NAMES
    if good:
        assert isinstance(names, list)
        good = all(isinstance(name, str) and normalised(name) for name in names)
        good = good and len({normalised(name) for name in names}) == len(names)
        good = good and UNKNOWN not in names
    if not good:
        raise UserError(f"{path}: names.{condition} is no list of different names")


def check_tensors(adapter: Adapter, base: Mapping[str, tuple[int, ...]]) -> None:
    """Raise UserError unless an adapter's tensors are those of its config beside a prior of these names and shapes.

    Every number is looked at: none may be infinite or NaN.
    """
    wanted = shapes_of(adapter.config, base)
    for condition, names in adapter.names.items():
        table = base.get(f"labels.tables.{condition}.weight")
        if table is None:
            raise UserError(
                f"{adapter.folder} brings names of {condition!r}, which this prior is not told;"
                " use the base that it was trained beside"
            )
        wanted[rows_name(condition)] = (len(names), table[1])
    stored = adapter.tensors
    path = adapter.folder / ADAPTER_WEIGHTS
    for name in stored:
        if name not in wanted:
            raise UserError(f"{path} has {name!r}, which is no tensor of this adapter")
    for name, shape in wanted.items():
        if name not in stored or stored.shape(name) != shape:
            raise UserError(f"{path} has no {name} {shape}; it is of another base, or damaged")
        tensor = stored[name]
        if tensor.dtype not in FLOATS or not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{path}: {name} holds other than finite floats; train it again")


# ---- What the user asks for -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScaledAdapter:
    """An adapter's folder as it is asked for: `adapters/mine:0.8`."""

    path: Path
    scale: float = 1.0

    @property
    def name(self) -> str:
        return self.path.resolve().name


def parse_adapter(text: str) -> ScaledAdapter:
    """`FOLDER` or `FOLDER:SCALE`.

    Raises:
        UserError: the scale is no number from 0 to MAX_SCALE.
    """
    path, colon, number = text.rpartition(":")
    if not colon or "/" in number:
        return ScaledAdapter(Path(text))
    try:
        scale = float(number)
    except ValueError:
        return ScaledAdapter(Path(text))
    if not path or not 0 <= scale <= MAX_SCALE:
        raise UserError(f"adapter {text!r} has no scale from 0 to {MAX_SCALE:g}; write FOLDER:0.8")
    return ScaledAdapter(Path(path), scale)


def adapters_in(folder: Path) -> dict[str, Adapter]:
    """The adapters of a folder by level: of one level, or with a folder a level as `adapt` writes them.

    Raises:
        UserError: there is none.
    """
    if (folder / ADAPTER_FACTS).exists():
        adapter = read_adapter(folder, folder.name)
        return {adapter.record.level: adapter}
    found: dict[str, Adapter] = {}
    for level, name in PRIOR_FOLDERS.items():
        if (folder / name / ADAPTER_FACTS).exists():
            adapter = read_adapter(folder / name, folder.name)
            if adapter.record.level != level:
                raise UserError(
                    f"{folder / name} holds an adapter of the {adapter.record.level} level;"
                    f" move it to {folder / PRIOR_FOLDERS[adapter.record.level]}"
                )
            found[level] = adapter
    if not found:
        raise UserError(
            f"{folder} holds no adapter ({ADAPTER_FACTS}); give a folder that `megajukebox adapt`"
            " made"
        )
    return found


# ---- Folding ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AdapterMix:
    """The adapters that one level's prior is sampled with, and the scale of each, in the order of their names."""

    parts: tuple[tuple[Adapter, float], ...] = ()

    @staticmethod
    def of(adapters: Iterable[tuple[Adapter, float]]) -> "AdapterMix":
        """Raises UserError where two cannot be used together."""
        parts = tuple(sorted(adapters, key=lambda part: part[0].name))
        names = [adapter.name for adapter, _ in parts]
        if len(set(names)) < len(names):
            raise UserError(f"adapters {', '.join(names)} share a name; rename a folder")
        for adapter, scale in parts:
            if adapter.config.kind == "dora" and (len(parts) > 1 or scale not in (0, 1)):
                raise UserError(
                    f"{adapter.name} is a DoRA adapter, whose lengths do not add: use it alone, at"
                    " scale 1"
                )
        return AdapterMix(parts)

    def __bool__(self) -> bool:
        return bool(self.parts)

    def facts(self) -> dict[str, Any]:
        """What fixes what they do, and their licences: for a song's record."""
        facts: dict[str, Any] = {}
        for adapter, scale in self.parts:
            facts[adapter.name] = {"fingerprint": adapter.record.fingerprint, "scale": scale}
            if adapter.record.licence:
                facts[adapter.name]["licence"] = adapter.record.licence
        return facts

    def check(
        self,
        facts: Mapping[str, Any],
        shapes: Mapping[str, tuple[int, ...]],
        any_base: bool = False,
    ) -> None:
        """Raise UserError unless all were trained beside the prior of these facts and shapes.

        `any_base`: other weights of the same shapes will do.
        """
        for adapter, _ in self.parts:
            record = adapter.record
            if record.level != facts.get("level", record.level):
                raise UserError(
                    f"{adapter.folder} is an adapter of the {record.level} level, not of the"
                    f" {facts['level']} level"
                )
            if record.base != facts["fingerprint"] and not any_base:
                raise UserError(
                    f"{adapter.folder} was trained beside other weights (fingerprint"
                    f" {record.base[:12]}, here {facts['fingerprint'][:12]}); use that base,"
                    " adapt this one, or give --adapter-anyway"
                )
            check_tensors(adapter, shapes)

    def grown(
        self, config: PriorConfig, vocabularies: Mapping[str, Vocabulary]
    ) -> tuple[PriorConfig, dict[str, Vocabulary]]:
        """The prior's config and vocabularies with the names that the adapters bring behind those it knows."""
        conditions = dict(config.conditions)
        names = dict(vocabularies)
        for condition, rows in self.new_names(vocabularies).items():
            known = names.get(condition, Vocabulary())
            names[condition] = Vocabulary((*known.names, *rows))
            size = max(conditions[condition].table_size, len(names[condition]))
            conditions[condition] = conditions[condition].model_copy(update={"table_size": size})
        return config.model_copy(update={"conditions": conditions}), names

    def new_names(self, vocabularies: Mapping[str, Vocabulary]) -> dict[str, dict[str, Tensor]]:
        """By condition, the row [W] of each name that the prior does not know.

        Raises:
            UserError: two adapters mean different things by one name.
        """
        found: dict[str, dict[str, Tensor]] = {}
        for adapter, _ in self.parts:
            for condition, names in adapter.names.items():
                known = vocabularies.get(condition, Vocabulary())
                rows = adapter.rows(condition)
                table = found.setdefault(condition, {})
                for name, row in zip(names, rows):
                    if known.id(name):
                        raise UserError(
                            f"{adapter.folder} brings {condition} {name!r}, which the base knows;"
                            " use the base that it was trained beside"
                        )
                    if name in table and not torch.equal(table[name], row):
                        raise UserError(
                            f"two adapters bring {condition} {name!r}, and mean different things;"
                            " use one of them"
                        )
                    table[name] = row
        return found


class FoldedTensors(StoredTensors):
    """The tensors of a prior's file with adapters folded in, each made when asked for."""

    def __init__(self, path: Path, mix: AdapterMix, vocabularies: Mapping[str, Vocabulary]):
        super().__init__(path)
        self.mix = mix
        self.rows: dict[str, Tensor] = {}  # by table, the new rows [names, W]
        self.known: dict[str, int] = {}  # by table, the names that the base knows
        for condition, rows in mix.new_names(vocabularies).items():
            table = f"labels.tables.{condition}.weight"
            self.rows[table] = torch.stack(list(rows.values()))
            self.known[table] = len(vocabularies.get(condition, Vocabulary()))

    def __getitem__(self, name: str) -> Tensor:
        weight = super().__getitem__(name)
        if name in self.rows:
            return self._with_rows(name, weight)
        changes = self._changes(name)
        if not changes:
            return weight
        base = weight.double()
        folded = base.clone()
        for adapter, scale in changes:
            layer = name.removesuffix(".weight")
            folded += scale * (fold(base, adapter.tensors, layer, adapter.config) - base)
        return folded.float()

    def _changes(self, name: str) -> list[tuple[Adapter, float]]:
        """The adapters that change a weight."""
        layer, _, leaf = name.rpartition(".")
        changes = []
        for adapter, scale in self.mix.parts:
            if scale and leaf == "weight" and f"{layer}.{DOWN}" in adapter.tensors:
                changes.append((adapter, scale))
        return changes

    def _with_rows(self, table: str, weight_VW: Tensor) -> Tensor:
        """New rows behind the known names, over spare rows of the table where it has some."""
        known = self.known[table]
        rows = self.rows[table]
        spare_VW = weight_VW[known + len(rows) :]
        return torch.cat([weight_VW[:known].float(), rows, spare_VW.float()])

    def shape(self, name: str) -> tuple[int, ...]:
        shape = super().shape(name)
        if name not in self.rows:
            return shape
        return (max(shape[0], self.known[name] + len(self.rows[name])), shape[1])

    def pending(self, name: str) -> PendingTensor:
        if name in self.rows or self._changes(name):
            return PendingTensor(torch.float32, self.shape(name), lambda: self[name].float())
        return super().pending(name)
