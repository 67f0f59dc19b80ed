"""Weights on disk: a folder with `model.safetensors` (streamed, one tensor in memory at a time) and
`model.json`.

`model.json` is written last, so a folder that has it is complete. A tensor known by two names (tied
weights) is stored once, under the first of them.
"""

import errno
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
from megajukebox.common.untrusted_files import (
    UnsafeFileError,
    open_given,
    parse_json,
    read_inside,
)
from megajukebox.common.wrong_downloads import wrong_file

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
WEIGHTS = "model.safetensors"
FACTS = "model.json"
MAX_NAMES = 5  # of tensors in an error message
MAX_HEADER_BYTES = (
    16 << 20
)  # of a safetensors file: 100 bytes a tensor; the library alone would take 100 MB


@dataclass(frozen=True)
class PendingTensor:
    """A tensor of known dtype and shape that is made only when its turn to be written comes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]


# ---- Writing


def save_weights(
    folder: Path | str,
    kind: str,
    config: BaseModel,
    tensors: Mapping[str, Tensor | PendingTensor],
    step: int,
    **facts: Any,
) -> str:
    """Write a model (a state dict will do for `tensors`) and what is known of it; returns its
    fingerprint.

    `facts` are further entries of model.json, such as level, sample_rate, made_by, licence.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_open(folder / WEIGHTS) as file:
        fingerprint = write_safetensors(file, tensors)
        file.flush()
        StoredTensors(Path(file.name))  # the library's own reading is the check of our writing
        # until the new facts are there, the folder holds no model
        (folder / FACTS).unlink(missing_ok=True)
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
    """Write a safetensors file, one tensor in memory at a time; returns its sha256.

    Tensors are written row-major, without a copy where they already lie so on the CPU.
    """
    tensors = without_ties(tensors)
    digest = hashlib.sha256()
    head = header(tensors)
    file.write(head)
    digest.update(head)
    for name, tensor in tensors.items():
        value = tensor.make() if isinstance(tensor, PendingTensor) else tensor
        assert value.dtype == tensor.dtype and tuple(value.shape) == tuple(tensor.shape), (
            f"{name} is not what was promised"
        )
        data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        file.write(data)
        digest.update(data)
        del value, data  # before the next one is made
    return digest.hexdigest()


def without_ties(
    tensors: Mapping[str, Tensor | PendingTensor],
) -> dict[str, Tensor | PendingTensor]:
    """`tensors` without the second and later names of one piece of memory."""
    first_names: dict[Any, str] = {}
    for name, tensor in tensors.items():
        memory: Any = name
        if isinstance(tensor, Tensor) and tensor.device.type != "meta" and tensor.numel() > 0:
            layout = (tensor.dtype, tuple(tensor.shape), tensor.stride())
            memory = (tensor.device, tensor.data_ptr(), *layout)
        first_names.setdefault(memory, name)
    return {name: tensors[name] for name in first_names.values()}


def header(tensors: Mapping[str, Tensor | PendingTensor]) -> bytes:
    """The head of a safetensors file: its length (8 bytes, little-endian), then JSON: each
    tensor's position.
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start = end
        end = start + tensor.dtype.itemsize * torch.Size(tensor.shape).numel()
        entries[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


# ---- Reading


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of one safetensors file, each read when asked for.

    Raises UserError if the file is broken.
    """

    def __init__(self, path: Path, device: str = "cpu"):
        self.path = path
        try:
            check_header_size(path)
            self._file = safe_open(path, framework="pt", device=device)
        except (SafetensorError, UnsafeFileError) as error:
            other = wrong_file(path, "a safetensors file")
            if other:
                raise UserError(f"{path} {other}") from error
            raise UserError(
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
        dtype = next((dtype for dtype, called in DTYPES.items() if called == stored), None)
        if dtype is None:
            raise UserError(f"{self.path}: {name} is of type {stored}, which is none of a model")
        return PendingTensor(dtype, self.shape(name), lambda: self[name])


def check_header_size(path: Path) -> None:
    """Raise UnsafeFileError unless `path` is a regular file that says of itself a head of a likely size."""
    with open_given(path) as file:
        size = int.from_bytes(file.read(8), "little")
    if size > MAX_HEADER_BYTES:
        raise UnsafeFileError(errno.EFBIG, f"says that its head has {size:,} bytes", str(path))


def read_facts(folder: Path | str) -> dict[str, Any]:
    """What model.json of `folder` says. Raises UserError where there is no finished model."""
    path = Path(folder) / FACTS
    try:
        facts = parse_json(read_inside(folder, FACTS))
    except FileNotFoundError:
        raise UserError(
            f"{folder} holds no finished model ({FACTS} is missing); train it, or import one there"
        ) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path} {reason}; export or import the model again") from None
    known = set(facts) if isinstance(facts, dict) else set()
    missing = {"kind", "config", "fingerprint", "step"} - known
    if missing:
        raise UserError(
            f"{path} lacks {', '.join(sorted(missing))}; export or import the model again"
        )
    return facts


def check_vqvae(run: Path, facts: Mapping[str, Any], fingerprint: str) -> None:
    """Raise UserError unless the model in `run` was trained on the codes of the VQ-VAE
    `fingerprint`.

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
    """Read every byte of the weights.

    Raises UserError if they are not those that model.json describes.
    """
    expected = read_facts(folder)["fingerprint"]
    actual = sha256_of(Path(folder) / WEIGHTS)
    if expected != actual:
        raise UserError(
            f"{Path(folder) / WEIGHTS} has sha256 {actual}, {FACTS} says {expected}; make the model again"
        )


# ---- Into a module


def load_into(
    module: nn.Module,
    folder: Path | str,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> dict[str, Any]:
    """Fill `module` (it may lie on the meta device) from `folder`, one tensor at a time; returns
    the facts.

    Every tensor of the module and of the file is used exactly once. Parameters take `dtype` and
    everything takes `device` where given; else they stay what they are in the module (a module on
    meta goes to the CPU).
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
    """Fill `module` from `stored`, as `load_into` does.

    Raises UserError where names or shapes differ.
    """
    tensors = names_by_tensor(module)
    _check_names(tensors, stored)
    for names in tensors:
        name = next(n for n in names if n in stored)
        parent, _, leaf = name.rpartition(".")
        owner = getattr(module.get_submodule(parent), leaf)
        if tuple(owner.shape) != stored.shape(name):
            raise UserError(
                f"{stored.path}: {name} is {stored.shape(name)}, the model wants {tuple(owner.shape)}"
            )
        _assign(module, names, owner, stored[name], dtype, device)


def names_by_tensor(module: nn.Module) -> list[list[str]]:
    """Of every tensor of a module all its names: a tied one has several."""
    names: dict[int, list[str]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    return list(names.values())


def assign(module: nn.Module, names: list[str], value: Tensor, dtype: torch.dtype) -> None:
    """Give `value` in `dtype` to the tensor of `names`, which may lie on the meta device."""
    parent, _, leaf = names[0].rpartition(".")
    _assign(module, names, getattr(module.get_submodule(parent), leaf), value, dtype, None)


def _check_names(tensors: list[list[str]], stored: StoredTensors) -> None:
    missing = []
    twice = []
    unknown = set(stored)
    for names in tensors:
        count = sum(name in stored for name in names)
        unknown -= set(names)
        if count == 0:
            missing.append(names[0])
        if count > 1:
            twice.append(str(names))
    mistakes = (
        ("lacks", missing),
        ("has, unknown to the model,", sorted(unknown)),
        ("holds twice", twice),
    )
    for mistake, names in mistakes:
        if names:
            more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
            shown = ", ".join(names[:MAX_NAMES])
            raise UserError(f"{stored.path} {mistake} {shown}{more}; is it of this model?")


def _assign(
    module: nn.Module,
    names: list[str],
    owner: Tensor,
    value: Tensor,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> None:
    """Give `value` to the tensor `owner`, in place where dtype and device stay, else as a new
    one.
    """
    is_parameter = isinstance(owner, nn.Parameter)
    new_dtype = dtype if dtype and is_parameter else owner.dtype
    new_device = device or ("cpu" if owner.is_meta else owner.device)
    same_device = torch.device(new_device) == owner.device
    if not owner.is_meta and new_dtype == owner.dtype and same_device:
        with torch.no_grad():
            owner.copy_(value)
        return
    value = value.to(new_device, new_dtype)
    new = nn.Parameter(value, requires_grad=owner.requires_grad) if is_parameter else value
    for name in names:
        parent, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(parent), leaf, new)
