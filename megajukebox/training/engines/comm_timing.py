"""How long a rank spends in collectives: a slow rank spends less than the ranks that wait there for it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import deepspeed.comm.comm
import torch
import torch.distributed as dist

from megajukebox.common.stopwatch import Stopwatch

CALLS = (
    "all_reduce", "all_gather", "all_gather_into_tensor", "all_gather_object", "reduce", "reduce_scatter",
    "reduce_scatter_tensor", "broadcast", "broadcast_object_list", "barrier", "send", "recv",
)  # fmt: skip
KEPT = (
    "all_gather_function",
    "reduce_scatter_function",
)  # two of them, as DeepSpeed's backend keeps them


class Communication:
    """Seconds in every collective that is called inside `timed`, by us and by DeepSpeed, its waits for others included.

    DeepSpeed's own CommsLogger synchronises the GPU at each call; this one only records events. On a GPU a collective
    that runs beside the backward pass counts as well.
    """

    def __init__(self, device: torch.device) -> None:
        self.watch = Stopwatch(device)
        self._within = False
        self._made: dict[
            Callable[..., Any], Callable[..., Any]
        ] = {}  # making them anew cost 20 microseconds a step

    @contextmanager
    def timed(self) -> Iterator[None]:
        """The calls are exchanged inside only: outside, nothing of torch or DeepSpeed is changed."""
        backend = deepspeed.comm.comm.cdb
        names = [
            *((dist, name) for name in CALLS),
            *((backend, name) for name in KEPT if hasattr(backend, name)),
        ]
        before = [(place, name, getattr(place, name)) for place, name in names]
        for place, name, call in before:
            if call not in self._made:
                self._made[call] = self._timed(call)
            setattr(place, name, self._made[call])
        try:
            yield
        finally:
            for place, name, call in before:
                setattr(place, name, call)

    def seconds(self) -> float:
        """Since the last call. On a GPU, what it has not reached yet is told the next time."""
        return self.watch.take()

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def lap(*given: Any, **named: Any) -> Any:
            if self._within:  # one collective made of others counts once
                return call(*given, **named)
            self._within, begun = True, self.watch.now()
            try:
                work = call(*given, **named)
            finally:
                self.watch.lap(begun)
                self._within = False
            return _Awaited(work, self.watch) if hasattr(work, "wait") else work

        return lap


class _Awaited:
    """A collective under way, whose `wait` is timed too."""

    def __init__(self, work: Any, watch: Stopwatch) -> None:
        self._work, self._watch = work, watch

    def wait(self, *given: Any, **named: Any) -> Any:
        begun = self._watch.now()
        try:
            return self._work.wait(*given, **named)
        finally:
            self._watch.lap(begun)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)
