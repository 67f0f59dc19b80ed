"""What ranks tell each other beside tensors: JSON in a tensor of bytes. Nothing that arrives is ever unpickled.

torch's own object collectives (`broadcast_object_list`, `all_gather_object`) unpickle what the others send: whoever joins
a run's port first as one of its ranks could then run code in all of them. The number of collectives is the same as theirs:
two, one for the sizes and one for the bytes.
"""

import json
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megajukebox.common.untrusted_files import PlainUnpickler, parse_json

MAX_MESSAGE_BYTES = 1 << 30  # of one rank; what we send has some kB, a micro-batch some MB


def refuse_pickled_code() -> None:
    """From now on torch's object collectives take plain values alone: DeepSpeed, or a library, may use them."""
    dist.distributed_c10d._unpickler = PlainUnpickler  # type: ignore[attr-defined]


def to_message(value: Any) -> bytes:
    """A value as JSON that comes back as it was, to the bit of every float (inf and NaN too).

    Raises:
        TypeError: it would come back as something else, as a tuple, a key that is no text, or a class would.
    """
    _check_plain(value)
    return json.dumps(value, separators=(",", ":")).encode()


def _check_plain(value: Any) -> None:
    if isinstance(value, list):
        for one in value:
            _check_plain(one)
    elif isinstance(value, dict):
        for name, one in value.items():
            if type(name) is not str:
                raise TypeError(f"{name!r} is no name: JSON would make a text of it")
            _check_plain(one)
    elif value is not None and type(value) not in (bool, int, float, str):
        raise TypeError(f"{type(value).__name__} {value!r} would not come back from JSON as it was")


def broadcast_json(rank: int, value: Any) -> Any:
    """`value` of `rank`, on every rank; what the others give is not looked at."""
    own = to_message(value) if dist.get_rank() == rank else b""
    return parse_json(broadcast_bytes(rank, own))


def all_gather_json(value: Any) -> list[Any]:
    """`value` of every rank, by rank, on every rank."""
    own = _as_tensor(to_message(value))
    sizes = [torch.zeros(1, dtype=torch.int64, device=own.device) for _ in range(_ranks())]
    dist.all_gather(sizes, torch.tensor([len(own)], device=own.device))
    lengths = [_checked_size(size) for size in sizes]
    longest = max(lengths)
    padded = torch.zeros(longest, dtype=torch.uint8, device=own.device)
    padded[: len(own)] = own
    received = torch.empty(_ranks(), longest, dtype=torch.uint8, device=own.device)
    dist.all_gather(list(received.unbind()), padded)
    values = []
    for length, row in zip(lengths, received.cpu()):
        values.append(parse_json(row[:length].numpy().tobytes()))
    return values


def broadcast_bytes(rank: int, data: bytes) -> bytes:
    """`data` of `rank`, on every rank; the others may give none."""
    is_sender = dist.get_rank() == rank
    size = torch.tensor([len(data)], device=_device())
    dist.broadcast(size, rank)
    count = _checked_size(size)
    if not count:
        return b""
    message = _as_tensor(data if is_sender else bytes(count))
    dist.broadcast(message, rank)
    return data if is_sender else message.cpu().numpy().tobytes()


def _checked_size(size: Tensor) -> int:
    count = int(size)
    if not 0 <= count <= MAX_MESSAGE_BYTES:
        raise ValueError(f"a rank says that its message has {count:,} bytes")
    return count


def _as_tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).to(_device())


def _ranks() -> int:
    return dist.get_world_size()


def _device() -> torch.device:
    """Where the group's collectives take tensors from."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
