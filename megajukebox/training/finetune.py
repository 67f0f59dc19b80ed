"""Finetuning: train further from the weights of another run, of an imported model, or of a checkpoint.

What fixes a model's numbers comes with its weights: shape, vocabularies, tokenizer. The preset gives only how to train.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from megajukebox.common.errors import UserError
from megajukebox.common.model_files import FACTS, WEIGHTS, StoredTensors, read_facts
from megajukebox.conditioning.tokenizers import LyricsTokenizer, run_tokenizer
from megajukebox.conditioning.vocabulary import Vocabulary, read_vocabularies
from megajukebox.data.shards.blended_sets import ShardBlend
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.stream.code_dataset import check_codes
from megajukebox.models.prior import Prior, PriorConfig
from megajukebox.models.refiner import Refiner, RefinerConfig
from megajukebox.models.vqvae import VQVAE, VQVAEConfig
from megajukebox.training import checkpoint

MAX_NAMES = 5  # of those that a model does not know, named in the error


class ModelKind(NamedTuple):
    """A kind of model.json: the config that it holds, and the module of that config."""

    config: type[BaseModel]
    module: Callable[[Any], nn.Module]


MODEL_KINDS = {
    "vqvae": ModelKind(VQVAEConfig, VQVAE),
    "prior": ModelKind(PriorConfig, Prior),
    "refiner": ModelKind(RefinerConfig, Refiner),
    "composer": ModelKind(PriorConfig, Prior),
}


@dataclass(frozen=True)
class PretrainedModel:
    """A trained model to start from."""

    folder: Path  # the run
    facts: dict[str, Any]
    weights: Mapping[str, Tensor]

    @property
    def kind(self) -> ModelKind:
        return MODEL_KINDS[self.facts["kind"]]

    @property
    def config(self) -> BaseModel:
        return self.kind.config(**self.facts["config"])

    @property
    def vocabularies(self) -> dict[str, Vocabulary]:
        return read_vocabularies(self.folder)

    @property
    def tokenizer(self) -> LyricsTokenizer:
        return run_tokenizer(self.folder, self.facts)


def read_pretrained(path: Path) -> PretrainedModel:
    """The model of a run, or (path/checkpoints/step-XXXXXXXX) what it was at that step.

    Raises:
        UserError: there is none, it is damaged, or it lacks weights.
    """
    if (path / checkpoint.MANIFEST).is_file():
        flaw = checkpoint.verify(path)
        if flaw:
            raise UserError(f"{path} is damaged: {flaw}; choose another checkpoint")
        # Imports DeepSpeed, which is slow, and logs to stdout that it found no GPU.
        from megajukebox.training.engines.universal_checkpoint import weights_of

        run = path.parent.parent
        facts = read_facts(run) | {"step": checkpoint.read_state(path)["step"]}
        model = PretrainedModel(run, facts, weights_of(path / "state"))
    elif (path / FACTS).is_file():
        model = PretrainedModel(path, read_facts(path), StoredTensors(path / WEIGHTS))
    else:
        raise UserError(
            f"--from {path} is neither a run with {FACTS} nor a checkpoint with {checkpoint.MANIFEST}"
        )
    if model.facts["kind"] not in MODEL_KINDS:
        known = ", ".join(MODEL_KINDS)
        raise UserError(
            f"--from {path} holds a {model.facts['kind']}, which cannot be trained further; give a run of {known}"
        )
    check_complete(model)
    return model


def check_complete(base: PretrainedModel) -> None:
    """Raise UserError unless every weight of the model is there in its shape, a tied one under any of its names."""
    with torch.device("meta"):
        model = base.kind.module(base.config)
    stored = base.weights
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        wanted = tuple(tensor.shape)
        shape = None
        if name in stored and isinstance(stored, StoredTensors):
            shape = stored.shape(name)
        elif name in stored:
            shape = tuple(stored[name].shape)
        if shape != wanted:
            raise UserError(f"{base.folder} lacks {name} {wanted}, which its {FACTS} lists")


def check_prior(
    base: PretrainedModel,
    level: str,
    codes: ShardSet | ShardBlend,
    min_songs: Mapping[str, int],
    unknown_names: bool = False,
) -> None:
    """Raise UserError where the codes, or the names of their songs, are not those that the prior knows.

    `min_songs`: by condition, names on fewer songs may stay unknown; with `unknown_names` all may.
    """
    kind = base.facts["kind"]
    their_level = base.facts.get("level", level)
    if kind != "prior" or their_level != level:
        described = f"{base.facts.get('level', '')} {kind}".strip()
        raise UserError(f"--from {base.folder} holds a {described}, not a {level} prior")
    check_codes(codes, base.folder, base.facts)
    if unknown_names:
        return
    for condition, vocabulary in base.vocabularies.items():
        if condition == "year":
            continue
        least = min_songs.get(condition, 1)
        counts = codes.index["vocabulary"].get(condition, {})
        unknown = []
        for name, count in sorted(counts.items()):
            if count >= least and not vocabulary.id(name):
                unknown.append(name)
        if unknown:
            named = ", ".join(map(repr, unknown[:MAX_NAMES]))
            more = f" and {len(unknown) - MAX_NAMES} more" if len(unknown) > MAX_NAMES else ""
            raise UserError(
                f"{base.folder} does not know {condition} {named}{more}; teach it first:"
                f" megajukebox extend-vocabulary {base.folder} --to {base.folder}_grown --data {codes.folder}"
                f" (or leave names unknown that are on fewer songs: conditions.{condition}.min_songs)"
            )
