"""The sparse transformer: pre-norm blocks over [B, T, W], as a list anyone may walk (forward, decoder, pipeline)."""

# B batch   T positions   W width of the model   A width of the attention state (all heads)   H heads   D size of a head
from collections.abc import Iterator
from typing import cast

import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from megajukebox.common.renamed_keys import accept_old_keys
from megajukebox.models.attention import attend, schedule
from megajukebox.models.grid_order import GridVisibility, grid_attention


class TransformerConfig(BaseModel):
    """Shape of a transformer. Jukebox's `m_attn` and `m_mlp` are `attention_ratio` and `mlp_ratio`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    _old_keys = accept_old_keys(rows="blocks")

    width: int = Field(gt=0)
    depth: int = Field(gt=0)
    heads: int = Field(gt=0)
    blocks: int = Field(gt=0, description="rows that a window is folded into")
    schedule: str = "factored"
    attention_ratio: float = Field(0.25, gt=0)
    mlp_ratio: float = Field(1.0, gt=0)
    init_scale: float = Field(1.0, gt=0)
    residual_scale: bool = Field(False, description="scale each block's update by 1/depth")
    zero_out: bool = Field(False, description="start every block as the identity")

    @model_validator(mode="after")
    def _check(self) -> "TransformerConfig":
        schedule(self.schedule, self.depth)
        if self.attention_width % self.heads:
            raise ValueError(
                f"heads {self.heads} does not divide the attention width {self.attention_width}"
                " (= width x attention_ratio)"
            )
        return self

    @property
    def attention_width(self) -> int:
        return int(self.attention_ratio * self.width)

    @property
    def patterns(self) -> list[str]:
        return schedule(self.schedule, self.depth)


# Parameters are initialised inside the constructor of their own module: ZeRO-3 takes them away right after it.
class Dense(nn.Linear):
    """A dense layer with Jukebox's initialisation: weight ~ N(0, std^2), bias 0."""

    def __init__(self, inputs: int, outputs: int, std: float, bias: bool = True):
        super().__init__(inputs, outputs, bias=bias)
        nn.init.normal_(self.weight, std=std)
        if bias:
            nn.init.zeros_(self.bias)


class Table(nn.Embedding):
    """`entries` learned vectors ~ N(0, std^2)."""

    def __init__(self, entries: int, width: int, std: float):
        super().__init__(entries, width)
        nn.init.normal_(self.weight, std=std)


class Norm(nn.LayerNorm):
    """LayerNorm computed in float32 whatever the precision of the model."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.float()
        bias = self.bias.float()
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class Attention(nn.Module):
    """One attention layer of a given pattern. `qkv` and `out` are open to the cached decoder."""

    def __init__(self, config: TransformerConfig, pattern: str, prefix: int = 0):
        super().__init__()
        self.pattern = pattern
        self.rows = config.blocks
        self.heads = config.heads
        self.prefix = prefix
        width = config.width
        state = config.attention_width
        std = 0.02 * config.init_scale
        if pattern == "lyrics":
            self.query = Dense(width, state, std)
            self.key_value = Dense(width, 2 * state, std)
        else:
            self.project = Dense(width, 3 * state, std)
        # A layer that reads lyrics starts as the identity, so that adding lyrics does not disturb the music.
        self.merge = Dense(state, width, 0.0 if config.zero_out or pattern == "lyrics" else std)

    def qkv(self, x_BTW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the music itself, each [B, T, H, D]."""
        q, k, v = self.project(x_BTW).chunk(3, dim=-1)
        return self.split(q), self.split(k), self.split(v)

    def lyric_keys(self, lyrics_BSW: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the lyric states, each [B, S, H, D]."""
        k, v = self.key_value(lyrics_BSW.to(self.key_value.bias.dtype)).chunk(2, dim=-1)
        return self.split(k), self.split(v)

    def split(self, x_BTA: Tensor) -> Tensor:
        return x_BTA.unflatten(-1, (self.heads, -1))

    def out(self, attended_BTHD: Tensor) -> Tensor:
        return self.merge(attended_BTHD.flatten(2))

    def forward(
        self, x_BTW: Tensor, lyrics_BSW: Tensor | None = None, sight: GridVisibility | None = None
    ) -> Tensor:
        """What the pattern gathers; with `sight` (of a student) in its order."""
        if self.pattern == "lyrics":
            assert lyrics_BSW is not None, "a lyrics layer was given no lyric states"
            q = self.split(self.query(x_BTW))
            (k, v) = self.lyric_keys(lyrics_BSW)
        else:
            q, k, v = self.qkv(x_BTW)
        if sight is not None:
            return self.out(grid_attention(q, k, v, self.pattern, sight))
        return self.out(attend(q, k, v, self.pattern, self.rows, self.prefix))


class MLP(nn.Module):
    def __init__(self, config: TransformerConfig, zero: bool):
        super().__init__()
        hidden = int(config.mlp_ratio * config.width)
        std = 0.02 * config.init_scale
        self.widen = Dense(config.width, hidden, std)
        self.narrow = Dense(hidden, config.width, 0.0 if zero else std)

    def forward(self, x_BTW: Tensor) -> Tensor:
        # Quick-GELU, x sigmoid(1.702 x), as one known function of 1.702 x: half the passes over memory.
        return self.narrow(F.silu(self.widen(x_BTW).mul_(1.702)).div_(1.702))


class TransformerBlock(nn.Module):
    """h <- h + r (a + m), a = attention(norm(h)), m = mlp(norm(h + a)), r = 1 or 1/depth."""

    def __init__(self, config: TransformerConfig, pattern: str, prefix: int = 0):
        super().__init__()
        zero = config.zero_out or pattern == "lyrics"
        self.norm_attention = Norm(config.width)
        self.norm_mlp = Norm(config.width)
        self.attention = Attention(config, pattern, prefix)
        self.mlp = MLP(config, zero)
        self.scale = 1 / config.depth if config.residual_scale else 1.0

    def update(self, h_BTW: Tensor, a_BTW: Tensor) -> Tensor:
        """The block's output from its input and its attention's output; shared with the cached decoder."""
        change = a_BTW + self.mlp(self.norm_mlp(h_BTW + a_BTW))
        return h_BTW + (change if self.scale == 1.0 else self.scale * change)

    def forward(
        self, h_BTW: Tensor, lyrics_BSW: Tensor | None = None, sight: GridVisibility | None = None
    ) -> Tensor:
        return self.update(h_BTW, self.attention(self.norm_attention(h_BTW), lyrics_BSW, sight))


class TransformerBlocks(nn.ModuleList):
    """Blocks in order: a ModuleList whose members a type checker knows."""

    def __iter__(self) -> Iterator[TransformerBlock]:
        return cast(Iterator[TransformerBlock], super().__iter__())


def blocks(config: TransformerConfig, prefix: int = 0) -> TransformerBlocks:
    """The layers of a transformer in order. There is no norm after the last one (as in Jukebox)."""
    return TransformerBlocks(
        TransformerBlock(config, pattern, prefix) for pattern in config.patterns
    )
