"""The float32 weights that an optimizer moves, and whether the 16-bit ones are still they, rounded.

Under ZeRO a rank holds its part alone, so no other can tell whether a bit of it has flipped. But it
holds it twice. A step rounds the masters into the 16-bit weights anew, and so hides what became of
either since the step before: they are compared just before it.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

# Numbers compared at once: on a CPU they stay in its cache; a GPU would mostly launch kernels, and
# needs 5 bytes a number (0.3 GB) while it compares.
COMPARED_ON_CPU = 1 << 20
COMPARED_ON_GPU = 1 << 26


class MasterNames(NamedTuple):
    """What an optimizer of DeepSpeed calls its masters, and how its 16-bit weights are found: one
    tensor for each.
    """

    masters: str
    weights: Callable[[Any], list]


def _own_partitions(outer: Any, groups: str) -> list[Tensor]:
    """Of every group the partition that this rank moves."""
    own = []
    for partitions, ranks in zip(getattr(outer, groups), outer.real_dp_process_group):
        own.append(partitions[dist.get_rank(group=ranks)])
    return own


def _flattened(outer: Any, groups: str) -> list[Tensor]:
    """The tensors of all groups, in order."""
    return list(itertools.chain.from_iterable(getattr(outer, groups)))


KNOWN = (
    # ZeRO-3
    MasterNames("fp32_partitioned_groups_flat", lambda outer: outer.fp16_partitioned_groups_flat),
    # ZeRO-1 and 2
    MasterNames(
        "single_partition_of_fp32_groups",
        lambda outer: _own_partitions(outer, "parallel_partitioned_bit16_groups"),
    ),
    # ZeRO-1 with float32 gradients
    MasterNames(
        "fp32_groups_flat_partition",
        lambda outer: _own_partitions(outer, "bf16_partitioned_groups"),
    ),
    # ZeRO-0, fused Adam
    MasterNames("fp32_groups_flat", lambda outer: outer.fp16_groups_flat),
    # ZeRO-0
    MasterNames("fp32_groups", lambda outer: _flattened(outer, "fp16_groups")),
)


class MasterWeights:
    """Those of `outer`, the optimizer that DeepSpeed made; `basic` is the plain one that moves
    them.
    """

    def __init__(self, outer: Any, basic: torch.optim.Optimizer) -> None:
        self.outer = outer
        self.basic = basic
        self.names = next((names for names in KNOWN if hasattr(outer, names.masters)), None)
        self.watched = False  # whether every step compares
        self._mismatches: Tensor | None = (
            None  # stays on the device: to read it would make a step wait
        )

    def held(self) -> list[Tensor]:
        """This rank's masters (where all is float32, the weights themselves)."""
        if self.names is None:
            weights: list[Tensor] = []
            for group in self.basic.param_groups:
                weights += group["params"]
            return weights
        groups = getattr(self.outer, self.names.masters)
        return _flattened(self.outer, self.names.masters) if isinstance(groups[0], list) else groups

    def pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(master, 16-bit weights) of this rank's part; none where all is float32, or where they
        lie on a disk.
        """
        if self.names is None:
            return
        for master, weights in zip(self.held(), self.names.weights(self.outer), strict=True):
            if (
                weights is not None
                and weights.dtype != master.dtype
                and weights.numel() == master.numel()
            ):
                yield master.detach(), weights.detach()

    def state(self, parameter: Tensor, key: str) -> Tensor:
        """What the optimizer keeps of `parameter` under `key`, of its shape. Where nothing is
        shared out (ZeRO-0).
        """
        if self.names is None:
            return self.basic.state[parameter][key]
        masters_of_groups = getattr(self.outer, self.names.masters)
        for group, masters in zip(self.outer.fp16_groups, masters_of_groups, strict=True):
            first = 0
            for index, weight in enumerate(group):
                if weight is not parameter:
                    first += weight.numel()
                elif isinstance(masters, list):  # a master for each
                    return self.basic.state[masters[index]][key]
                else:  # one for the group, flat
                    flat = self.basic.state[masters][key].view(-1)
                    return flat[first : first + weight.numel()].view_as(weight)
        raise KeyError(f"the optimizer moves no such weight of {tuple(parameter.shape)}")

    def compare(self) -> None:
        """Count weights that are not their masters, rounded. No collective, and the device is not
        waited for (offloaded masters are: the weights come to them).
        """
        for master, weights in self.pairs():
            size = COMPARED_ON_CPU if master.device.type == "cpu" else COMPARED_ON_GPU
            master_parts = master.view(-1).split(size)
            weight_parts = weights.view(-1).split(size)
            for part, rounded in zip(master_parts, weight_parts):
                count = differing(part, rounded.to(part.device)).to(weights.device)
                self._mismatches = count if self._mismatches is None else self._mismatches + count

    def found(self) -> int:
        """How many did differ at a comparison, since the engine was made."""
        return 0 if self._mismatches is None else int(self._mismatches)


def differing(master: Tensor, weights: Tensor) -> Tensor:
    """How many of `weights` [N] are not `master` [N] rounded to their type, to the bit; as a number
    on the device.

    Where a master is no number nothing is asked: that stands only in what fills a partition up, and
    conversions change its bits.
    """
    expected = master.to(weights.dtype).view(torch.int16)
    return ((expected != weights.view(torch.int16)) & (master == master)).count_nonzero()
