"""Files of Jukebox weights as others wrote them: opened without running anything in them, and recognised."""

import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megajukebox.common.errors import UserError
from megajukebox.common.model_files import StoredTensors
from megajukebox.common.untrusted_files import open_given, parse_json, read_inside
from megajukebox.common.wrong_downloads import wrong_file
from megajukebox.interop.hugging_face import from_hugging_face, last_convolutions
from megajukebox.interop.label_names import TOKENIZER_CONFIG
from megajukebox.interop.transformers_config import (
    CONFIG_TYPES,
    TransformersConfig,
    TransformersPriorConfig,
    TransformersVQVAEConfig,
    read_config,
)

ALONE = "alone"  # the number of a prior that was saved alone and does not say its level
HUGGING_FACE = re.compile(rf"(vqvae|priors\.(\d+|{ALONE}))\.(.+)")
# Tensors by which a VQ-VAE and a prior that transformers saved alone are known, and the prefixes of all of theirs.
SAVED_ALONE = {
    "vqvae": ("bottleneck.level_blocks.0.codebook", ("encoders.", "decoders.", "bottleneck.")),
    "prior": (
        "prior.embed_tokens.weight",
        ("prior.", "encoder.", "metadata_embedding.", "conditioner_blocks."),
    ),
}
RELEASE_AFTER = 256 << 20  # bytes


@dataclass(frozen=True)
class ForeignCheckpoint:
    """One model in some files: its tensors under OpenAI's names, and what else the files say about it.

    `read_checkpoints` returns tensors with shape and dtype alone (meta), so that many models can be planned without
    holding any; a `Reader` opens the files again.
    """

    files: tuple[Path, ...]
    kind: str  # "vqvae" or "prior"
    tensors: Mapping[str, Tensor]
    level: int | None = None  # OpenAI's number, 0 = bottom; None: unknown
    hps: dict[str, Any] = field(default_factory=dict)
    step: int = 0
    layout: str = "openai"  # or "hugging_face"
    stack: str = "blocks"  # what the file calls a conditioner's residual stacks: blocks or model
    tied: bool = False  # whether the output matrix is the embedding, as in every model without `merged_decoder`
    from_top: int | None = None  # Hugging Face's number, 0 = top; None: unknown

    @property
    def path(self) -> Path:
        return self.files[0]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}


def read_checkpoints(paths: Sequence[Path]) -> list[ForeignCheckpoint]:
    """Every model in the files, which may be OpenAI's (one model each) or Hugging Face's (a whole set in pieces).

    Raises:
        UserError: a file is none of them, is damaged, or would need code to run.
    """
    models: list[ForeignCheckpoint] = []
    pieces: dict[str, Tensor] = {}
    files: list[Path] = []  # of the pieces
    for path in paths:
        content = _open(path)  # one file at a time in memory
        if isinstance(content, ForeignCheckpoint):
            models.append(_outline(content))
        else:
            _add_pieces(pieces, path, content)
            files.append(path)
        del content
    models += map(_outline, _hugging_face(tuple(files), pieces))
    return models


class Reader:
    """The tensors of a checkpoint, one after another. Pages read from a mapped file are let go from time to time."""

    def __init__(self, checkpoint: ForeignCheckpoint):
        self._checkpoint = checkpoint
        self._bytes_read = 0
        self._tensors = _mapped_tensors(checkpoint)
        self._mapped = all(
            path.suffix == ".safetensors" or _is_zip(path) for path in checkpoint.files
        )

    def __call__(self, name: str) -> Tensor:
        if self._mapped and self._bytes_read > RELEASE_AFTER:
            self._tensors = {}  # unmapped here, so that what was read no longer counts as ours
            self._bytes_read = 0
            self._tensors = _mapped_tensors(self._checkpoint)
        tensor = self._tensors[name]
        self._bytes_read += tensor.nbytes
        return tensor


def _mapped_tensors(checkpoint: ForeignCheckpoint) -> Mapping[str, Tensor]:
    """The tensors themselves; those of a zip or safetensors file stay on disk until they are touched."""
    pieces: dict[str, Tensor] = {}
    for path in checkpoint.files:
        content = _open(path)
        if isinstance(content, ForeignCheckpoint):
            return content.tensors
        _add_pieces(pieces, path, content)
    for other in _hugging_face(checkpoint.files, pieces):
        if (other.kind, other.from_top) == (checkpoint.kind, checkpoint.from_top):
            return other.tensors
    raise KeyError(f"{checkpoint.path} no longer holds the {checkpoint.kind} it held before")


def _outline(checkpoint: ForeignCheckpoint) -> ForeignCheckpoint:
    """The checkpoint without its numbers: shapes and precisions on the meta device."""
    outline = {}
    for name, tensor in checkpoint.tensors.items():
        outline[name] = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    embedding = checkpoint.tensors.get("prior.x_emb.weight")
    output = checkpoint.tensors.get("prior.x_out.weight")
    # The output matrix is the embedding: it is not stored, the same memory, or the same numbers.
    tied = embedding is not None
    if embedding is not None and output is not None:
        tied = embedding.data_ptr() == output.data_ptr() or torch.equal(embedding, output)
    return replace(checkpoint, tensors=outline, tied=tied)


def _open(path: Path) -> ForeignCheckpoint | dict[str, Tensor]:
    """OpenAI's model with its tensors, or the tensors of a file in Hugging Face's layout under their names there."""
    content = read_file(path)
    state = _state(path, content)
    if all(map(HUGGING_FACE.fullmatch, state)):
        return state
    alone = _saved_alone(path, state)
    if alone is not None:
        return {f"{alone}.{name}": tensor for name, tensor in state.items()}
    return _openai(path, content, state)


def _saved_alone(path: Path, state: Mapping[str, Tensor]) -> str | None:
    """The name that a model has in a whole set if transformers saved it alone, in one file or in pieces."""
    for kind, (tensor, prefixes) in SAVED_ALONE.items():
        if tensor not in state and not all(name.startswith(prefixes) for name in state):
            continue
        config = read_config(path.parent)
        if tensor not in state and not isinstance(config, CONFIG_TYPES[f"jukebox_{kind}"]):
            continue
        if kind == "vqvae":
            return "vqvae"
        return f"priors.{config.level if isinstance(config, TransformersPriorConfig) else ALONE}"
    return None


def _add_pieces(pieces: dict[str, Tensor], path: Path, more: dict[str, Tensor]) -> None:
    """Put the tensors of one more file beside those of the files before it."""
    twice = sorted(pieces.keys() & more.keys())
    if twice:
        raise UserError(f"{path} repeats {twice[0]}, which another file holds; give each file once")
    pieces.update(more)


def read_file(path: Path) -> Any:
    """The content of a file of weights: only tensors and plain values are let in. Tensors stay on disk if possible."""
    if not path.is_file():
        raise UserError(
            f"{path} is not a file; give checkpoints (.pth.tar, .bin, .safetensors) or their folder"
        )
    if path.suffix == ".safetensors":
        return StoredTensors(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except Exception as error:  # a damaged file makes the unpickler fail in a dozen ways, all of them the file's fault
        other = wrong_file(path, "a checkpoint")
        if other:
            raise UserError(f"{path} {other}") from None
        text = str(error)
        if isinstance(error, pickle.UnpicklingError) and (
            "Unsupported" in text or "GLOBAL" in text
        ):
            why = "holds more than tensors and plain values; nothing in it was run"
        else:
            why = "is damaged or not a checkpoint; fetch it again"
        # The line that names the cause: torch's unpickler writes a page around it.
        lines = text.strip().splitlines() or ["no detail"]
        causes = [line for line in lines if "WeightsUnpickler error" in line]
        cause = (causes or lines)[0].strip().split(" Please use")[0]
        gist = f"{type(error).__name__}: {cause}"[:300]
        raise UserError(f"{path} {why} ({gist})") from None


def _is_zip(path: Path) -> bool:
    with open_given(path) as file:
        return file.read(2) == b"PK"


def _state(path: Path, content: Any) -> dict[str, Tensor]:
    """The state dict in a file's content, without the `module.` that data parallelism puts before the names."""
    state = content
    if isinstance(content, dict) and isinstance(content.get("model"), Mapping):
        state = content["model"]
    if not isinstance(state, Mapping) or not state:
        raise UserError(
            f"{path} holds no weights of Jukebox: expected tensors, or `model` with tensors"
        )
    if isinstance(state, StoredTensors):
        return dict(state.items())
    tensors = {}
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(f"{path} holds no weights of Jukebox: {name!r} is not a named tensor")
        tensors[name.removeprefix("module.")] = value
    return tensors


def _openai(path: Path, content: Any, state: dict[str, Tensor]) -> ForeignCheckpoint:
    """The model of a file in OpenAI's layout. UserError if its tensors are not those of one model."""
    facts = content if isinstance(content, dict) and "model" in content else {}
    hps = facts.get("hps")
    hps = dict(hps) if isinstance(hps, Mapping) else {}
    step = facts.get("step")
    tensors, stack = _one_stack_name(state)
    is_vqvae = any(name.startswith("bottleneck.level_blocks.") for name in tensors)
    is_prior = "prior.x_emb.weight" in tensors
    if is_vqvae == is_prior:
        some = ", ".join(sorted(tensors)[:3])
        raise UserError(
            f"{path} is neither a VQ-VAE nor a prior of Jukebox; its tensors are {some}, ..."
        )
    level: int | None = None
    if is_prior:
        # In the hyper-parameters or in the name of the file; both must agree.
        named = re.search(r"level_?(\d)", path.name)
        if named and "level" in hps and int(named[1]) != hps["level"]:
            raise UserError(
                f"{path} is a prior of level {hps['level']} but is named as one of level {named[1]}; rename it"
            )
        level = hps.get("level", int(named[1]) if named else None)
    return ForeignCheckpoint(
        files=(path,),
        kind="prior" if is_prior else "vqvae",
        tensors=tensors,
        level=level,
        hps=hps,
        step=step if isinstance(step, int) else 0,
        stack=stack,
    )


def _one_stack_name(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Conditioners saved without checkpointing call their stacks `model`, not `blocks`; here they are `blocks`."""
    other = re.compile(r"(conditioner_blocks\.0\.cond\.model\.\d+\.0)\.model\.(\d+\.model\.)")
    stack = "blocks"
    renamed = {}
    for name, tensor in state.items():
        new_name = other.sub(r"\1.blocks.\2", name)
        renamed[new_name] = tensor
        if new_name != name:
            stack = "model"
    return renamed, stack


def _hugging_face(
    paths: tuple[Path, ...], pieces: dict[str, Tensor]
) -> Iterator[ForeignCheckpoint]:
    """The models of a set in Hugging Face's layout: `vqvae.` and `priors.0.` (top), `priors.1.`, ..."""
    models: dict[tuple[str, str | None], dict[str, Tensor]] = {}
    for name, tensor in pieces.items():
        match = HUGGING_FACE.fullmatch(name)
        assert match is not None
        _, number, rest_of_name = match.groups()
        key = ("prior", number) if number else ("vqvae", None)
        models.setdefault(key, {})[rest_of_name] = tensor
    for (kind, number), tensors in models.items():
        lasts = last_convolutions(tensors)
        renamed = {}
        for name, tensor in tensors.items():
            openai = from_hugging_face(name, lasts)
            if openai is None:
                raise UserError(
                    f"{paths[0]}: {name} is not a tensor of Jukebox in Hugging Face's layout"
                )
            renamed[openai] = tensor
        from_top = int(number) if number and number != ALONE else None
        if from_top is None and kind == "prior" and "conditioner_blocks.0.ln.bias" not in renamed:
            from_top = 0  # only the top reads no level above
        hps = transformers_hps(paths, kind, from_top)
        yield ForeignCheckpoint(
            paths, kind, renamed, from_top=from_top, hps=hps, layout="hugging_face"
        )


def transformers_hps(paths: Sequence[Path], kind: str, from_top: int | None) -> dict[str, Any]:
    """What the folders' config.json say of a VQ-VAE or of a prior, under OpenAI's names; {} where there is none."""
    for folder in dict.fromkeys(path.parent for path in paths):
        config = read_config(folder)
        hps: dict[str, Any] | None = None
        if isinstance(config, TransformersVQVAEConfig) and kind == "vqvae":
            hps = config.hps()
        if isinstance(config, TransformersPriorConfig) and from_top == config.level:
            hps = config.hps()
        if isinstance(config, TransformersConfig):
            priors = config.priors()
            if kind == "vqvae" and config.vqvae_config:
                hps = {"sr": config.sampling_rate, **config.vqvae_config.hps()}
            if kind == "prior" and from_top is not None and from_top < len(priors):
                hps = priors[from_top].hps()
                if config.vqvae_config:
                    hps["levels"] = config.vqvae_config.levels
        if hps is not None:
            return hps | _label_version(folder, from_top or 0)
    return {}


def _label_version(folder: Path, from_top: int) -> dict[str, Any]:
    """Whether a prior's labels are v3, by the tokenizer beside it."""
    try:
        versions = parse_json(read_inside(folder, TOKENIZER_CONFIG)).get("version")
        return {"labels_v3": versions[from_top] == "v3"}
    except (OSError, ValueError, AttributeError, TypeError, IndexError):
        return {}  # of the tokenizer alone: nothing hangs on it
