"""`megajukebox.json` beside exported weights: what the layouts of others have no words for, and no number depends on.

Licence, maker, spelling and names of conditions, and settings of training (losses, initial scales). Other programs
ignore the file; without it the weights are the same model.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from megajukebox.common.errors import UserError
from megajukebox.common.files import write_atomic
from megajukebox.common.untrusted_files import parse_json, read_inside
from megajukebox.conditioning.vocabulary import MAX_VOCABULARIES_BYTES
from megajukebox.models.transformer import TransformerConfig

EXPORT_RECORD = "megajukebox.json"
MAX_LAYERS = 10_000
KEPT_FACTS = ("licence", "made_by", "names", "tokenizer")  # of model.json
# Settings on which no number of a trained model depends; ratios show in the shapes.
OF_TRAINING = frozenset(
    (
        *("commit", "codebook_decay", "codebook_threshold", "fresh_restarts", "loss", "bandwidth"),
        *("init_scale", "zero_out", "loss_weight", "max_values"),
        *("attention_ratio", "mlp_ratio", "hidden_ratio"),
    )
)


class ExportedPart(BaseModel):
    """What is kept of one model beside its weights."""

    model_config = ConfigDict(extra="ignore")

    config: dict[str, Any]
    step: int = 0
    facts: dict[str, Any] = {}
    vocabularies: dict[str, list[str]] = {}
    alignment: dict[str, Any] | None = None

    def describes(self, config: BaseModel) -> bool:
        """Whether this is of a model with the numbers of `config`, which was read from the weights' own files."""
        if _numbers(self.config) != _numbers(config.model_dump(mode="json")):
            return False
        try:
            type(config).model_validate(self.config)
        except (ValidationError, TypeError, ArithmeticError):
            return False
        return True


class ExportRecord(BaseModel):
    """The whole file: its parts by name, `vqvae` or a level."""

    model_config = ConfigDict(extra="ignore")

    format: int = 1
    parts: dict[str, ExportedPart]


def write_export_record(folder: Path, parts: Mapping[str, ExportedPart]) -> Path:
    record = ExportRecord(parts=dict(parts))
    write_atomic(folder / EXPORT_RECORD, (record.model_dump_json(indent=1) + "\n").encode())
    return folder / EXPORT_RECORD


def read_export_record(folder: Path) -> dict[str, ExportedPart]:
    """The parts in a folder's record; none if it has none.

    Raises:
        UserError: the file is damaged, or of a later version.
    """
    path = folder / EXPORT_RECORD
    try:
        record = ExportRecord.model_validate(
            parse_json(read_inside(folder, EXPORT_RECORD, MAX_VOCABULARIES_BYTES))
        )
    except FileNotFoundError:
        return {}
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {field}: {first['msg']}; take the file away") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path} {reason}; take the file away") from None
    if record.format != 1:
        raise UserError(
            f"{path} has format {record.format}, this version reads 1; take the file away"
        )
    return record.parts


def _numbers(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a config fixes the numbers of a model: a schedule as its layers, all else without `OF_TRAINING`."""
    kept: dict[str, Any] = {}
    for name, value in config.items():
        if name in OF_TRAINING:
            continue
        kept[name] = _numbers(value) if isinstance(value, Mapping) else value
    if "schedule" in kept:
        kept["schedule"] = _layers(config)
    return kept


def _layers(config: Mapping[str, Any]) -> Any:
    depth = config.get("depth")
    if not isinstance(depth, int) or depth > MAX_LAYERS:
        return None
    try:
        return TransformerConfig(**config).patterns
    except (ValidationError, TypeError):  # the record's, written by hand: it describes no model
        return None
