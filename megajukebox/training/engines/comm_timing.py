"""How long a rank spends in collectives: a slow rank spends less than the ranks that wait there for
it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import deepspeed.comm.comm
import torch
import torch.distributed as dist

from megajukebox.common.stopwatch import Stopwatch

CALLS = (
    "all_reduce",
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_object",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "broadcast",
    "broadcast_object_list",
    "barrier",
    "send",
    "recv",
)
# Two of them, as DeepSpeed's backend keeps them.
BACKEND_CALLS = ("all_gather_function", "reduce_scatter_function")


class Communication:
    """Seconds in every collective that is called inside `timed`, by us and by DeepSpeed, its waits
    for others included.

    DeepSpeed's own CommsLogger synchronises the GPU at each call; this one only records events. On
    a GPU a collective that runs beside the backward pass counts as well.
    """

    def __init__(self, device: torch.device) -> None:
        self.watch = Stopwatch(device)
        self._within = False
        # Kept, because to wrap them anew costs 20 microseconds a step.
        self._wrapped: dict[Callable[..., Any], Callable[..., Any]] = {}

    @contextmanager
    def timed(self) -> Iterator[None]:
        """The calls are exchanged inside only: outside, nothing of torch or DeepSpeed is changed."""
        backend = deepspeed.comm.comm.cdb
        before = [(dist, name, getattr(dist, name)) for name in CALLS]
        for name in BACKEND_CALLS:
            if hasattr(backend, name):
                before.append((backend, name, getattr(backend, name)))
        for owner, name, call in before:
            if call not in self._wrapped:
                self._wrapped[call] = self._wrap(call)
            setattr(owner, name, self._wrapped[call])
        try:
            yield
        finally:
            for owner, name, call in before:
                setattr(owner, name, call)

    def seconds(self) -> float:
        """Since the last call. On a GPU, what it has not reached yet counts the next time."""
        return self.watch.take()

    def _wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def lap(*args: Any, **kwargs: Any) -> Any:
            if self._within:  # one collective made of others counts once
                return call(*args, **kwargs)
            self._within = True
            begun = self.watch.now()
            try:
                work = call(*args, **kwargs)
            finally:
                self.watch.lap(begun)
                self._within = False
            return _Awaited(work, self.watch) if hasattr(work, "wait") else work

        return lap


@dataclass(eq=False)
class _Awaited:
    """A collective under way, whose `wait` is timed too."""

    _work: Any
    _watch: Stopwatch

    def wait(self, *args: Any, **kwargs: Any) -> Any:
        begun = self._watch.now()
        try:
            return self._work.wait(*args, **kwargs)
        finally:
            self._watch.lap(begun)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)
