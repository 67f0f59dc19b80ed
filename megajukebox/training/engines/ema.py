"""The moving average of the weights, as one more state of the optimizer: shared out, saved and
loaded as ZeRO does.

average <- decay x average + (1 - decay) x weight, after every step that was taken; at first it is
the first weights.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim import Optimizer

KEY = "ema"


@contextmanager
def following(optimizer: Optimizer, decay: float) -> Iterator[None]:
    """The averages follow the step that `optimizer` takes inside."""
    weights = []
    for group in optimizer.param_groups:
        weights += group["params"]
    # Kept aside until Adam has made its own states, which it does only where there is none at all.
    first = {w: w.detach().clone() for w in weights if KEY not in optimizer.state.get(w, {})}
    yield
    with torch.no_grad():
        for weight in weights:
            average = optimizer.state[weight].setdefault(KEY, first.get(weight))
            average.lerp_(weight.to(average.dtype), 1 - decay)


def start(optimizer: Optimizer, masters: Iterable[Tensor]) -> None:
    """After a checkpoint was loaded: where it held no average, it is what the weights are now.

    `masters`: the float32 weights (or this rank's part of them) that the optimizer moves.
    """
    for weight in masters:
        state = optimizer.state.get(weight, {})
        if state and KEY not in state:
            state[KEY] = weight.detach().clone()
        elif state and state[KEY].isnan().any():
            state[KEY].copy_(weight.detach())


def forget(optimizer: Optimizer) -> None:
    """Before a checkpoint is loaded, which may hold no average. In place: DeepSpeed keeps views of
    these tensors.
    """
    for state in optimizer.state.values():
        if KEY in state:
            state[KEY].fill_(torch.nan)
