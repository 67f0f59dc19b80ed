"""Files of Jukebox weights as others wrote them: opened without running anything in them, and recognised."""

import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megajukebox.common.model_files import StoredTensors
from megajukebox.interop.hugging_face import from_hugging_face, last_convolutions

HUGGING_FACE = re.compile(r"(vqvae|priors\.(\d+))\.(.+)")
RELEASE_AFTER = 256 << 20  # bytes
TOP = 2  # Hugging Face counts the priors from the top, OpenAI levels from the bottom


@dataclass(frozen=True)
class ForeignCheckpoint:
    """One model in some files: its tensors under OpenAI's names, and what else the files tell.

    As `read_checkpoints` gives it the tensors have shape and dtype alone (meta), so that many models can be planned
    without holding any; a `Reader` opens the files again.
    """

    files: tuple[Path, ...]
    kind: str  # "vqvae" or "prior"
    tensors: Mapping[str, Tensor]
    level: int | None = None  # the reference's number, 0 = bottom; None = the file does not say
    hps: dict[str, Any] = field(default_factory=dict)
    step: int = 0
    layout: str = "openai"  # or "hugging_face"
    stack: str = "blocks"  # what the file calls a conditioner's residual stacks: blocks or model
    tied: bool = False  # whether the output matrix is the embedding, as in every model without `merged_decoder`

    @property
    def path(self) -> Path:
        return self.files[0]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}


def read_checkpoints(paths: Sequence[Path]) -> list[ForeignCheckpoint]:
    """Every model in the files, which may be OpenAI's (one model each) or Hugging Face's (a whole set in pieces).

    ValueError for a file that is none of them, is damaged, or would need code to run.
    """
    models: list[ForeignCheckpoint] = []
    pieces: dict[str, Tensor] = {}
    for path in paths:
        found = _outline_of(path)  # one file at a time in memory
        if isinstance(found, ForeignCheckpoint):
            models.append(found)
        else:
            _add_pieces(pieces, path, found)
    return models + [_outline(checkpoint) for checkpoint in _hugging_face(tuple(paths), pieces)]


class Reader:
    """The tensors of a checkpoint, one after another. Pages read from a mapped file are let go from time to time."""

    def __init__(self, checkpoint: ForeignCheckpoint):
        self._checkpoint, self._read = checkpoint, 0
        self._tensors = _live(checkpoint)
        self._mapped = all(
            path.suffix == ".safetensors" or _is_zip(path) for path in checkpoint.files
        )

    def __call__(self, name: str) -> Tensor:
        if self._mapped and self._read > RELEASE_AFTER:
            self._tensors, self._read = (
                {},
                0,
            )  # unmapped here, so that what was read no longer counts as ours
            self._tensors = _live(self._checkpoint)
        tensor = self._tensors[name]
        self._read += tensor.nbytes
        return tensor


def _live(checkpoint: ForeignCheckpoint) -> Mapping[str, Tensor]:
    """The tensors themselves; those of a zip or safetensors file stay on disk until they are touched."""
    pieces: dict[str, Tensor] = {}
    for path in checkpoint.files:
        found = _open(path)
        if isinstance(found, ForeignCheckpoint):
            return found.tensors
        _add_pieces(pieces, path, found)
    key = checkpoint.kind, checkpoint.level
    return next(
        c.tensors for c in _hugging_face(checkpoint.files, pieces) if (c.kind, c.level) == key
    )


def _outline_of(path: Path) -> ForeignCheckpoint | dict[str, Tensor]:
    found = _open(path)
    return _outline(found) if isinstance(found, ForeignCheckpoint) else found


def _outline(checkpoint: ForeignCheckpoint) -> ForeignCheckpoint:
    tensors = checkpoint.tensors
    one, other = tensors.get("prior.x_emb.weight"), tensors.get("prior.x_out.weight")
    tied = one is not None and (
        other is None or one.data_ptr() == other.data_ptr() or torch.equal(one, other)
    )
    outline = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        for name, tensor in tensors.items()
    }
    return replace(checkpoint, tensors=outline, tied=tied)


def _open(path: Path) -> ForeignCheckpoint | dict[str, Tensor]:
    """OpenAI's model with its tensors, or the tensors of a file in Hugging Face's layout under their names there."""
    content = read_file(path)
    state = _state(path, content)
    return (
        state
        if all(HUGGING_FACE.fullmatch(name) for name in state)
        else _openai(path, content, state)
    )


def _add_pieces(pieces: dict[str, Tensor], path: Path, found: dict[str, Tensor]) -> None:
    twice = pieces.keys() & found.keys()
    if twice:
        raise ValueError(
            f"{path} repeats {sorted(twice)[0]}, which another file holds; give each file once"
        )
    pieces.update(found)


def read_file(path: Path) -> Any:
    """The content of a file of weights: only tensors and plain values are let in. Tensors stay on disk if possible."""
    if not path.is_file():
        raise ValueError(
            f"{path} is not a file; give checkpoints (.pth.tar, .bin, .safetensors) or their folder"
        )
    if path.suffix == ".safetensors":
        return StoredTensors(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except Exception as error:  # a damaged file makes the unpickler fail in a dozen ways, all of them the file's fault
        text = str(error)
        if isinstance(error, pickle.UnpicklingError) and (
            "Unsupported" in text or "GLOBAL" in text
        ):
            why = "holds more than tensors and plain values; nothing in it was run"
        else:
            why = "is damaged or not a checkpoint; fetch it again"
        raise ValueError(f"{path} {why} ({_gist(error)})") from None


def _is_zip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"PK"


def _gist(error: Exception) -> str:
    """The telling line of an error: torch's unpickler writes a page around it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = next(
        (line for line in lines if "WeightsUnpickler error" in line),
        lines[0] if lines else "no detail",
    )
    return f"{type(error).__name__}: {told.split(' Please use')[0]}"[:300]


def _state(path: Path, content: Any) -> dict[str, Tensor]:
    """The state dict in a file's content, without the `module.` that data parallelism puts before the names."""
    state = content
    if isinstance(content, dict) and isinstance(content.get("model"), Mapping):
        state = content["model"]
    if not isinstance(state, Mapping) or not state:
        raise ValueError(
            f"{path} holds no weights of Jukebox: expected tensors, or `model` with tensors"
        )
    if isinstance(state, StoredTensors):
        return {name: state[name] for name in state}
    wrong = [
        name
        for name, value in state.items()
        if not isinstance(name, str) or not isinstance(value, Tensor)
    ]
    if wrong:
        raise ValueError(f"{path} holds no weights of Jukebox: {wrong[0]!r} is not a named tensor")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def _openai(path: Path, content: Any, state: dict[str, Tensor]) -> ForeignCheckpoint:
    facts = content if isinstance(content, dict) and "model" in content else {}
    hps, step = facts.get("hps"), facts.get("step")
    hps = dict(hps) if isinstance(hps, Mapping) else {}
    tensors, stack = _one_stack_name(state)
    kind = _kind(path, tensors)
    level = _level(path, hps) if kind == "prior" else None
    return ForeignCheckpoint(
        (path,), kind, tensors, level, hps, step if isinstance(step, int) else 0, "openai", stack
    )


def _kind(path: Path, tensors: Mapping[str, Tensor]) -> str:
    vqvae = any(name.startswith("bottleneck.level_blocks.") for name in tensors)
    prior = "prior.x_emb.weight" in tensors
    if vqvae == prior:
        some = ", ".join(sorted(tensors)[:3])
        raise ValueError(
            f"{path} is neither a VQ-VAE nor a prior of Jukebox; its tensors are {some}, ..."
        )
    return "vqvae" if vqvae else "prior"


def _level(path: Path, hps: dict[str, Any]) -> int | None:
    """The level that the file's hyper-parameters and its name speak of; they must not disagree."""
    named = re.search(r"level_?(\d)", path.name)
    if named and "level" in hps and int(named[1]) != hps["level"]:
        raise ValueError(
            f"{path} is a prior of level {hps['level']} but is named as one of level {named[1]}; rename it"
        )
    return hps.get("level", int(named[1]) if named else None)


def _one_stack_name(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Conditioners saved without checkpointing call their stacks `model`, not `blocks`; here they are `blocks`."""
    other = re.compile(r"(conditioner_blocks\.0\.cond\.model\.\d+\.0)\.model\.(\d+\.model\.)")
    stack = "model" if any(other.match(name) for name in state) else "blocks"
    return {other.sub(r"\1.blocks.\2", name): tensor for name, tensor in state.items()}, stack


def _hugging_face(
    paths: tuple[Path, ...], pieces: dict[str, Tensor]
) -> Iterator[ForeignCheckpoint]:
    """The models of a set in Hugging Face's layout: `vqvae.` and `priors.0.` (top) to `priors.2.` (bottom)."""
    models: dict[tuple[str, int | None], dict[str, Tensor]] = {}
    for name, tensor in pieces.items():
        found = HUGGING_FACE.fullmatch(name)
        assert found is not None
        key = ("prior", TOP - int(found[2])) if found[2] else ("vqvae", None)
        models.setdefault(key, {})[found[3]] = tensor
    for (kind, level), tensors in models.items():
        yield ForeignCheckpoint(
            paths, kind, _openai_names(paths[0], tensors), level, layout="hugging_face"
        )


def _openai_names(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    lasts, renamed = last_convolutions(tensors), {}
    for name, tensor in tensors.items():
        openai = from_hugging_face(name, lasts)
        if openai is None:
            raise ValueError(f"{path}: {name} is not a tensor of Jukebox in Hugging Face's layout")
        renamed[openai] = tensor
    return renamed
