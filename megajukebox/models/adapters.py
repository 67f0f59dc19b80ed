"""Adapters: small matrices beside the dense layers of a trained prior, which itself does not move.

    y = W x + s B A x      LoRA (Hu et al. 2021): A [rank, inputs] random, B [outputs, rank] zeros; s = alpha / rank
    s = alpha / sqrt(rank) rsLoRA (Kalajdzievski 2023)
    rows of W + s B A keep a learned length             DoRA (Liu et al. 2024)

B starts at zero, so an untrained adapter changes nothing, to the bit. A trained one is folded into W (`fold`): samplers
see plain weights and never an adapter.
"""

# R outputs   I inputs   K rank   W width   V rows of a table
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from megajukebox.models.base_precision import PackedLinear, PackedWeight
from megajukebox.models.prior import Prior
from megajukebox.models.transformer import Dense, Table

TARGETS = {
    "all": ("project", "query", "key_value", "merge", "widen", "narrow"),
    "attention": ("project", "query", "key_value", "merge"),
}
DOWN = "lora_A"
UP = "lora_B"
LENGTHS = "lora_magnitude"
ROWS = "new_rows"
ADAPTED = (DOWN, UP, LENGTHS, ROWS)  # last words of the names of what learns


class AdapterConfig(BaseModel):
    """What fixes the shape and the arithmetic of an adapter."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: str = Field(default="lora", pattern="^(lora|dora|rslora)$")
    rank: int = Field(default=16, ge=1, le=1024)
    alpha: float = Field(
        default=16.0, gt=0, le=4096, description="scale x rank (rslora: x its root)"
    )
    targets: str = Field(
        default="all",
        pattern="^(all|attention)$",
        description="dense layers of the blocks that are adapted",
    )

    @property
    def scale(self) -> float:
        """s in the formulas above."""
        return self.alpha / (self.rank**0.5 if self.kind == "rslora" else self.rank)


class AdaptedDense(nn.Module):
    """A dense layer whose weight is frozen, with an adapter beside it. Its names in a prior stay what they were.

    Not an nn.Linear: a sampler that packs weights refuses it rather than to leave the adapter out.
    """

    def __init__(
        self, dense: nn.Linear, config: AdapterConfig, dropout: float, seeded: torch.Generator
    ):
        super().__init__()
        self.config = config
        self.dropout = dropout
        dense.requires_grad_(False)
        self.weight: Tensor | None = dense.weight
        self.bias = dense.bias
        self.packed: PackedWeight | None = None  # instead of `weight`
        bound = dense.in_features**-0.5
        # On the CPU and from its own generator: the same numbers whatever the engine and the device.
        size = (config.rank, dense.in_features)
        drawn_KI = torch.rand(size, generator=seeded, device="cpu")
        self.lora_A = nn.Parameter((2 * drawn_KI - 1) * bound)
        self.lora_B = nn.Parameter(torch.zeros(dense.out_features, config.rank, device="cpu"))
        self.lora_magnitude: nn.Parameter | None = None
        if config.kind == "dora":
            # In lengths of the base's rows, so that it starts without reading them (ZeRO-3 shares them out).
            self.lora_magnitude = nn.Parameter(torch.ones(dense.out_features, device="cpu"))

    def pack(self, form: str, weight_RI: Tensor) -> None:
        """Keep the frozen weight in `form` from now on."""
        self.packed = PackedWeight(form, weight_RI)
        self.weight = None

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        """As of every module, for `.to(device)`; a packed weight moves along, and is not cast."""
        if self.packed is not None:
            self.packed.to(fn(torch.empty(0, device=self.packed.codes.device)).device)
        return super()._apply(fn, recurse)

    def frozen_product(self, x_BTI: Tensor) -> Tensor:
        """W x + bias."""
        if self.packed is None:
            assert self.weight is not None
            return F.linear(x_BTI, self.weight, self.bias)
        y_BTR = PackedLinear.apply(x_BTI, self.packed)
        return y_BTR if self.bias is None else y_BTR + self.bias

    def forward(self, x_BTI: Tensor) -> Tensor:
        y_BTR = self.frozen_product(x_BTI)
        dropped_BTI = F.dropout(x_BTI, self.dropout, self.training)
        change_BTR = F.linear(F.linear(dropped_BTI, self.lora_A), self.lora_B) * self.config.scale
        if self.lora_magnitude is None:
            return y_BTR + change_BTR
        frozen_RI = self.packed.unpacked(torch.float32) if self.packed else self.weight
        assert frozen_RI is not None
        ratio_R = self.lora_magnitude * length_ratios(
            frozen_RI.detach(), self.config.scale * (self.lora_B @ self.lora_A).detach()
        )
        ratio_R = ratio_R.to(y_BTR.dtype)
        without_bias = y_BTR if self.bias is None else y_BTR - self.bias
        # As a change of y: an untrained ratio is 1, and leaves every bit of it.
        return y_BTR + (ratio_R - 1) * without_bias + ratio_R * change_BTR


def length_ratios(weight_RI: Tensor, change_RI: Tensor) -> Tensor:
    """|W| / |W + change| of every row [R]; a row of zeros stays one (0 / 0 is 0 here)."""
    weight_RI = weight_RI.to(change_RI.dtype)
    lengths_R = weight_RI.norm(dim=1)
    changed_R = (weight_RI + change_RI).norm(dim=1)
    return lengths_R / changed_R.clamp(min=torch.finfo(changed_R.dtype).tiny)


class AdaptedTable(nn.Module):
    """A frozen table of names, whose ids from `first` on are rows that learn."""

    def __init__(self, table: nn.Embedding, first: int, rows: int):
        super().__init__()
        self.first = first
        self.weight = table.weight.requires_grad_(False)
        self.new_rows = nn.Parameter(torch.zeros(rows, table.embedding_dim, device="cpu"))

    def forward(self, ids: Tensor) -> Tensor:
        is_new = ids >= self.first
        known = F.embedding(ids.masked_fill(is_new, 0), self.weight)
        new = F.embedding((ids - self.first).clamp(min=0), self.new_rows)
        return torch.where(is_new[..., None], new, known)


def add_adapters(
    prior: Prior,
    config: AdapterConfig,
    new_names: Mapping[str, tuple[int, int]],
    dropout: float = 0.0,
    seed: int = 0,
) -> None:
    """Freeze `prior`, and put adapters beside the targets in its blocks. Under ZeRO-3: within the engine's `building`.

    Args:
        new_names: by condition, how many names the prior knows and how many new ones follow them.
    """
    prior.requires_grad_(False)
    seeded = torch.Generator().manual_seed(seed)
    for block in prior.blocks:
        for part in (block.attention, block.mlp):
            for name in TARGETS[config.targets]:
                dense = getattr(part, name, None)
                if isinstance(dense, Dense):
                    setattr(part, name, AdaptedDense(dense, config, dropout, seeded))
    for condition, (known, new) in new_names.items():
        assert prior.labels is not None, "names are rows of the tables of labels"
        table = prior.labels.tables[condition]
        assert isinstance(table, Table)
        prior.labels.tables[condition] = AdaptedTable(table, known, new)


def is_adapted(name: str) -> bool:
    """Whether the parameter called `name` is an adapter's."""
    return name.rpartition(".")[2] in ADAPTED


def fold(
    weight_RI: Tensor, tensors: Mapping[str, Tensor], layer: str, config: AdapterConfig
) -> Tensor:
    """The plain weight [R, I] float64 that stands for `layer` of a trained adapter at full strength.

    Args:
        tensors: the adapter's, by name.
    """
    change_RI = config.scale * (
        tensors[f"{layer}.{UP}"].double() @ tensors[f"{layer}.{DOWN}"].double()
    )
    folded_RI = weight_RI.double() + change_RI
    if config.kind != "dora":
        return folded_RI
    ratio_R = tensors[f"{layer}.{LENGTHS}"].double() * length_ratios(weight_RI.double(), change_RI)
    return ratio_R[:, None] * folded_RI


def shapes_of(
    config: AdapterConfig, prior: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an adapter's matrices for a prior of these names and shapes (rows of names are not among them)."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in prior.items():
        layer, _, leaf = name.rpartition(".")
        if leaf != "weight" or not layer.startswith("blocks."):
            continue
        if layer.rpartition(".")[2] not in TARGETS[config.targets]:
            continue
        outputs, inputs = shape
        shapes[f"{layer}.{DOWN}"] = (config.rank, inputs)
        shapes[f"{layer}.{UP}"] = (outputs, config.rank)
        if config.kind == "dora":
            shapes[f"{layer}.{LENGTHS}"] = (outputs,)
    return shapes
