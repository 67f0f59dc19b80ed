"""Further training from weights that are there: another run's, an imported model's, or those in one of its checkpoints.

What fixes a model's numbers comes with its weights: shape, vocabularies, tokenizer. The preset gives only how to train.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor

from megajukebox.common.model_files import FACTS, WEIGHTS, StoredTensors, read_facts
from megajukebox.conditioning.tokenizers import (
    LyricsTokenizer,
    run_tokenizer,
)
from megajukebox.conditioning.vocabulary import Vocabulary, read_vocabularies
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.stream.code_dataset import check_codes
from megajukebox.models.prior import Prior, PriorConfig
from megajukebox.models.vqvae import VQVAE, VQVAEConfig
from megajukebox.training import checkpoint
from megajukebox.training.engines.universal_checkpoint import weights_of

NAMED = 5  # of the names that a model does not know, so many are told


@dataclass(frozen=True)
class PretrainedModel:
    """A trained model to go on from."""

    folder: Path  # the run
    facts: dict[str, Any]
    weights: Mapping[str, Tensor]

    @property
    def config(self) -> BaseModel:
        kinds = {"prior": PriorConfig, "vqvae": VQVAEConfig}
        return kinds[self.facts["kind"]](**self.facts["config"])

    @property
    def vocabularies(self) -> dict[str, Vocabulary]:
        return read_vocabularies(self.folder)

    @property
    def tokenizer(self) -> LyricsTokenizer:
        return run_tokenizer(self.folder, self.facts)


def read_base(path: Path) -> PretrainedModel:
    """The model of a run, or (path/checkpoints/step-XXXXXXXX) what it was at that step. ValueError if there is none."""
    if (path / checkpoint.MANIFEST).is_file():
        wrong = checkpoint.verify(path)
        if wrong:
            raise ValueError(f"{path} is damaged: {wrong}; choose another checkpoint")
        run = path.parent.parent
        facts = read_facts(run) | {"step": checkpoint.read_state(path)["step"]}
        return _checked(PretrainedModel(run, facts, weights_of(path / "state")))
    if not (path / FACTS).is_file():
        raise ValueError(
            f"--from {path} is neither a run with {FACTS} nor a checkpoint with {checkpoint.MANIFEST}"
        )
    return _checked(PretrainedModel(path, read_facts(path), StoredTensors(path / WEIGHTS)))


def _checked(base: PretrainedModel) -> PretrainedModel:
    """Every weight of the model must be there in its shape; what a tied weight is called does not matter."""
    with torch.device("meta"):
        model = Prior(base.config) if isinstance(base.config, PriorConfig) else VQVAE(base.config)  # type: ignore[arg-type]
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name not in base.weights or _shape(base.weights, name) != tuple(tensor.shape):
            raise ValueError(
                f"{base.folder} lacks {name} {tuple(tensor.shape)}, which its {FACTS} speaks of"
            )
    return base


def _shape(weights: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    """Of a stored tensor, without reading it."""
    return weights.shape(name) if isinstance(weights, StoredTensors) else tuple(weights[name].shape)


def check_prior(
    base: PretrainedModel, level: str, codes: ShardSet, min_songs: Mapping[str, int]
) -> None:
    """Raises ValueError where codes, or what their songs are called, are not those that the model knows."""
    if base.facts["kind"] != "prior" or base.facts.get("level", level) != level:
        raise ValueError(
            f"--from {base.folder} holds a {base.facts.get('level', '')} {base.facts['kind']}, not a {level} prior"
        )
    check_codes(codes, base.folder, base.facts)
    for label, known in base.vocabularies.items():
        if label != "year":
            _check_names(base, label, known, codes, min_songs.get(label, 1))


def _check_names(
    base: PretrainedModel, label: str, known: Vocabulary, codes: ShardSet, min_songs: int
) -> None:
    counts = codes.index["vocabulary"].get(label, {})
    unknown = sorted(
        name for name, count in counts.items() if count >= min_songs and not known.id(name)
    )
    if unknown:
        more = f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else ""
        raise ValueError(
            f"{base.folder} does not know {label} {', '.join(map(repr, unknown[:NAMED]))}{more}; teach it first:"
            f" megajukebox extend-vocabulary {base.folder} --to {base.folder}_grown --data {codes.folder}"
            f" (or leave names unknown that are on fewer songs: conditions.{label}.min_songs)"
        )
