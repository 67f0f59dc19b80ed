"""Weights on disk: a folder with `model.safetensors` (streamed, one tensor in memory at a time) and `model.json`.

`model.json` is written last, so a folder that has it is complete. A tensor known by two names (tied weights) is stored
once, under the first of them.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from pydantic import BaseModel
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from megajukebox.common.errors import UserError
from megajukebox.common.files import atomic_open, sha256_of, write_atomic

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
WEIGHTS, FACTS = "model.safetensors", "model.json"


@dataclass(frozen=True)
class PendingTensor:
    """A tensor of known dtype and shape that is made only when its turn to be written comes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]


# ---- Writing --------------------------------------------------------------------------------------------------------


def save_weights(
    folder: Path | str,
    kind: str,
    config: BaseModel,
    tensors: Mapping[str, Tensor | PendingTensor],
    step: int,
    **facts: Any,
) -> str:
    """Write a model (a state dict will do for `tensors`) and what is known of it; returns its fingerprint.

    `facts` are further entries of model.json, such as level, sample_rate, made_by, licence.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_open(folder / WEIGHTS) as file:
        fingerprint = write_safetensors(file, tensors)
        file.flush()
        StoredTensors(Path(file.name))  # the library's own reading is the check of our writing
        (folder / FACTS).unlink(
            missing_ok=True
        )  # until the new facts are there, the folder holds no model
    known = {
        "kind": kind,
        "config": config.model_dump(mode="json"),
        "fingerprint": fingerprint,
        "step": step,
        **facts,
    }
    write_atomic(folder / FACTS, json.dumps(known, indent=1, ensure_ascii=False).encode())
    return fingerprint


def write_safetensors(file: BinaryIO, tensors: Mapping[str, Tensor | PendingTensor]) -> str:
    """Write a safetensors file, one tensor in memory at a time; returns its sha256."""
    tensors = once(tensors)
    digest = hashlib.sha256()

    def put(data: Any) -> None:
        file.write(data)
        digest.update(data)

    put(header(tensors))
    for name, tensor in tensors.items():
        put(raw_bytes(name, tensor))
    return digest.hexdigest()


def once(tensors: Mapping[str, Tensor | PendingTensor]) -> dict[str, Tensor | PendingTensor]:
    """`tensors` without the second and later names of one piece of memory."""
    seen: dict[Any, str] = {}
    for name, tensor in tensors.items():
        seen.setdefault(_memory(name, tensor), name)
    return {name: tensors[name] for name in seen.values()}


def _memory(name: str, tensor: Tensor | PendingTensor) -> Any:
    if isinstance(tensor, PendingTensor) or tensor.device.type == "meta" or tensor.numel() == 0:
        return name
    return tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def header(tensors: Mapping[str, Tensor | PendingTensor]) -> bytes:
    """The head of a safetensors file: its length (8 bytes, little-endian), then JSON: where each tensor lies."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.dtype.itemsize * _count(tensor.shape)
        entries[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _count(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def raw_bytes(name: str, tensor: Tensor | PendingTensor) -> Any:
    """The bytes of a tensor, row-major, without a copy where it already lies so."""
    made = tensor.make() if isinstance(tensor, PendingTensor) else tensor
    assert made.dtype == tensor.dtype and tuple(made.shape) == tuple(tensor.shape), (
        f"{name} is not what was promised"
    )
    return made.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


# ---- Reading --------------------------------------------------------------------------------------------------------


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of one safetensors file, each read when asked for. ValueError if the file is broken."""

    def __init__(self, path: Path, device: str = "cpu"):
        self.path = path
        try:
            self._file = safe_open(path, framework="pt", device=device)
        except SafetensorError as error:
            raise ValueError(
                f"{path} is damaged or not a safetensors file ({error}); make it again"
            ) from error
        self._names = list(self._file.keys())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return tuple(self._file.get_slice(name).get_shape())

    def pending(self, name: str) -> PendingTensor:
        """A tensor to write elsewhere, read only in its turn."""
        stored = self._file.get_slice(name).get_dtype()
        dtype = next(dtype for dtype, called in DTYPES.items() if called == stored)
        return PendingTensor(dtype, self.shape(name), lambda: self[name])


def read_facts(folder: Path | str) -> dict[str, Any]:
    """What model.json of `folder` says. ValueError where there is no finished model."""
    path = Path(folder) / FACTS
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no finished model ({FACTS} is missing); train it, or import one there"
        )
    facts = json.loads(path.read_text(encoding="utf-8"))
    missing = {"kind", "config", "fingerprint", "step"} - set(facts)
    if missing:
        raise ValueError(
            f"{path} lacks {', '.join(sorted(missing))}; export or import the model again"
        )
    return facts


def check_vqvae(run: Path, facts: Mapping[str, Any], fingerprint: str) -> None:
    """Raise UserError unless the model in `run` was trained on the codes of the VQ-VAE `fingerprint`.

    Imported weights do not name the VQ-VAE that they were trained with; they pass.
    """
    trained_on = facts.get("vqvae")
    if trained_on not in (None, fingerprint):
        raise UserError(
            f"{run} was trained on the codes of another VQ-VAE ({trained_on[:12]}, here"
            f" {fingerprint[:12]}); use that VQ-VAE and the codes it made, or train again"
        )


def load_weights(folder: Path | str, device: str = "cpu") -> tuple[dict[str, Any], StoredTensors]:
    """The facts of a model and its tensors, which stay on disk until asked for."""
    return read_facts(folder), StoredTensors(Path(folder) / WEIGHTS, device)


def check_fingerprint(folder: Path | str) -> None:
    """Read every byte of the weights; ValueError if they are not those that model.json speaks of."""
    said, found = read_facts(folder)["fingerprint"], sha256_of(Path(folder) / WEIGHTS)
    if said != found:
        raise ValueError(
            f"{Path(folder) / WEIGHTS} has sha256 {found}, {FACTS} says {said}; make the model again"
        )


# ---- Into a module --------------------------------------------------------------------------------------------------


def load_into(
    module: nn.Module,
    folder: Path | str,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> dict[str, Any]:
    """Fill `module` (it may lie on the meta device) from `folder`, one tensor at a time; returns the facts.

    Every tensor of the module and of the file is used exactly once. Parameters take `dtype` and everything takes
    `device` where given; else they stay what they are in the module (a module on meta goes to the CPU).
    """
    facts, stored = load_weights(folder)
    fill(module, stored, dtype, device)
    return facts


def fill(
    module: nn.Module,
    stored: StoredTensors,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> None:
    places = _places(module)
    _check_names(places, stored)
    for names in places:
        name = next(n for n in names if n in stored)
        owner = _tensor(module, name)
        if tuple(owner.shape) != stored.shape(name):
            raise ValueError(
                f"{stored.path}: {name} is {stored.shape(name)}, the model wants {tuple(owner.shape)}"
            )
        _put(module, names, owner, stored[name], dtype, device)


def _places(module: nn.Module) -> list[list[str]]:
    """The names of every tensor that the module keeps; a tied one has several."""
    kept = module.state_dict(keep_vars=True)
    places: dict[int, list[str]] = {}
    for name, tensor in kept.items():
        places.setdefault(id(tensor), []).append(name)
    return list(places.values())


def _check_names(places: list[list[str]], stored: StoredTensors) -> None:
    missing = [names[0] for names in places if not any(n in stored for n in names)]
    extra = set(stored) - {n for names in places for n in names}
    twice = [names for names in places if sum(n in stored for n in names) > 1]
    for what, found in (
        ("lacks", missing),
        ("has, unknown to the model,", sorted(extra)),
        ("holds twice", twice),
    ):
        if found:
            more = f" and {len(found) - 5} more" if len(found) > 5 else ""
            raise ValueError(
                f"{stored.path} {what} {', '.join(map(str, found[:5]))}{more}; is it of this model?"
            )


def _tensor(module: nn.Module, name: str) -> Tensor:
    parent, _, leaf = name.rpartition(".")
    return getattr(module.get_submodule(parent), leaf)


def _put(
    module: nn.Module, names: list[str], owner: Tensor, value: Tensor,
    dtype: torch.dtype | None, device: torch.device | str | None,
) -> None:  # fmt: skip
    is_parameter = isinstance(owner, nn.Parameter)
    wanted = dtype if dtype and is_parameter else owner.dtype
    place = device or ("cpu" if owner.is_meta else owner.device)
    if not owner.is_meta and wanted == owner.dtype and torch.device(place) == owner.device:
        with torch.no_grad():
            owner.copy_(value)
        return
    value = value.to(place, wanted)
    new = nn.Parameter(value, requires_grad=owner.requires_grad) if is_parameter else value
    for name in names:
        parent, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(parent), leaf, new)
