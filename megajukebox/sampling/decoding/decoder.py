"""The decoder of a window: its caches, and the logits of one or several next positions.

`PackedPrior` holds the layers of a prior, their weights packed for steps of few rows (packed_linear.py). Two of them may
step the same caches: an int8 one that drafts, and the prior itself that verifies and overwrites the draft.
"""

# B songs   U distinct prefixes   N positions of a step   T positions of the window   V vocabulary   W width
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from megajukebox.models.prior import Conditioning, Prior
from megajukebox.models.transformer import TransformerBlock
from megajukebox.sampling.decoding.kv_cache import CACHES, LayerCache, LyricsCache, StepSpan
from megajukebox.sampling.decoding.packed_linear import Linear, pack_linear

# A Python number would be made a tensor at each step, for three times the price.
GELU = torch.tensor(1.702)


class DecodeStep(Protocol):
    """One step of a decoder: at least, how many positions it has."""

    @property
    def size(self) -> int: ...


AnyStep = TypeVar("AnyStep", bound=DecodeStep, contravariant=True)


class DecoderLayer(Protocol[AnyStep]):
    """A cache of keys and values: of this decoder (kv_cache.py), or of a student's (student_decoder.py)."""

    def step(self, qkv_BNX: Tensor, step: AnyStep, /) -> Tensor: ...


class PackedBlock:
    """One block of a transformer for steps: the sums of `Block.update`, over [M, W] = all positions of all songs."""

    def __init__(self, block: TransformerBlock, int8: bool):
        attention = block.attention
        mlp = block.mlp
        reads_lyrics = attention.pattern == "lyrics"
        self.project: Linear = pack_linear(
            attention.query if reads_lyrics else attention.project, int8
        )
        self.merge: Linear = pack_linear(attention.merge, int8)
        self.widen: Linear = pack_linear(mlp.widen, int8)
        self.narrow: Linear = pack_linear(mlp.narrow, int8)
        self.norms = []
        for norm in (block.norm_attention, block.norm_mlp):
            weight = norm.weight.detach().float()
            bias = norm.bias.detach().float()
            self.norms.append((norm.normalized_shape, weight, bias, norm.eps))
        self.scale = block.scale

    def norm(self, which: int, x_MW: Tensor) -> Tensor:
        shape, weight, bias, eps = self.norms[which]
        if (
            x_MW.dtype == torch.float32
        ):  # a conversion costs as much as the norm, even where it does nothing
            return torch.layer_norm(x_MW, shape, weight, bias, eps)
        return torch.layer_norm(x_MW.float(), shape, weight, bias, eps).to(x_MW.dtype)

    def __call__(self, h_MW: Tensor, cache: DecoderLayer[AnyStep], step: AnyStep) -> Tensor:
        qkv_MX = self.project(self.norm(0, h_MW))
        qkv_BNX = qkv_MX.view(-1, step.size, qkv_MX.shape[1])
        a_MW = self.merge(cache.step(qkv_BNX, step).flatten(0, 1))
        x_MW = h_MW + a_MW
        wide = F.silu(self.widen(self.norm(1, x_MW)).mul_(GELU), inplace=True).div_(GELU)
        if self.scale == 1.0:
            return x_MW.add_(self.narrow(wide))
        return h_MW + a_MW.add_(self.narrow(wide)).mul_(self.scale)


class PackedPrior:
    """The layers of `prior` for steps; `int8` rounds their weights (the head's too) to 8 bits."""

    def __init__(self, prior: Prior, int8: bool = False):
        self.prior = prior
        self.int8 = int8
        # With fewer bits logits differ by more than the margin of near ties.
        self.exact = not int8 and prior.head.weight.dtype == torch.float32
        self.blocks = [PackedBlock(block, int8) for block in prior.blocks]
        self.head: Linear = pack_linear(prior.head, int8)

    def logits(self, h_MW: Tensor, added_MW: Tensor | None) -> Tensor:
        """Logits [M, V] in float32 of what the last block gives.

        Args:
            added_MW: conditioning that is added to every position, which a shared head reads too.
        """
        if added_MW is not None and not self.prior.config.separate_head:
            h_MW = h_MW + added_MW
        return self.head(h_MW).float()


class WindowDecoder:
    """The caches of one window of B songs. Make it with `window_decoder`."""

    def __init__(self, prior: Prior, conditioning: Conditioning, batch: int):
        self.prior = prior
        self.conditioning = conditioning
        self.length = prior.config.length
        self.rows = prior.config.transformer.blocks
        self.row = self.length // self.rows
        self.start = prior.input.start_vector(batch, conditioning.start)
        self.layers: list[LayerCache] = []
        for block in prior.blocks:
            attention = block.attention
            if attention.pattern == "lyrics":
                assert conditioning.lyrics is not None
                self.layers.append(LyricsCache(attention, batch, conditioning.lyrics))
            else:
                self.layers.append(CACHES[attention.pattern](attention, batch, self.length))
        self.row_indices = torch.arange(self.rows, device=self.start.device).split(1)
        self.current = 0  # the row in which the last step began
        self.reach = 1  # rows that it touched

    def prefill(self, tokens_UN: Tensor, songs_B: Tensor | None = None) -> None:
        """Take in the N known tokens at the head of the window in one parallel pass.

        Args:
            songs_B: which of U prefixes each song has; songs of one prefix must have the same conditioning.
        """
        known = tokens_UN.shape[1]
        padded = F.pad(tokens_UN, (0, -known % self.row))
        start = self.start
        added = self.conditioning.added
        if songs_B is not None:  # of each prefix, the first song that has it
            first = [int((songs_B == u).nonzero()[0]) for u in range(len(tokens_UN))]
            start = start[first]
            added = None if added is None else added[first]
        h = self.prior.input(padded, start, None if added is None else added[:, : padded.shape[1]])
        for block, layer in zip(self.prior.blocks, self.layers):
            h = block.update(h, layer.prefill(block.norm_attention(h), known, songs_B))
        self.current = (known - 1) // self.row

    def step(self, packed: PackedPrior, tokens_BT: Tensor, t: int, size: int = 1) -> Tensor:
        """Logits [B, N, V] of positions t .. t + N - 1, given the tokens before them in `tokens`.

        A step begins in a row of the last step, or in the one after.
        """
        row, column = divmod(t, self.row)
        self.enter_row(row)
        self.reach = -(-(column + size) // self.row)
        span = StepSpan(t, size, column, self.row_indices[row], row + self.reach)
        end = t + size
        content = self.prior.input.tokens(tokens_BT[:, max(0, t - 1) : end - 1])
        content = content if t else torch.cat([self.start, content], dim=1)
        h = content + self.prior.input.positions.weight[t:end]
        added = None if self.conditioning.added is None else self.conditioning.added[:, t:end]
        return self.forward(packed, h, added, span)

    def enter_row(self, row: int) -> None:
        """Go to the row in which the next step begins; the caches move on with it."""
        assert self.current <= row <= self.current + self.reach, f"row {row} after {self.current}"
        if row != self.current or self.reach > 1:
            for layer in self.layers:
                layer.advance_rows(row - self.current)
        self.current = row
        self.reach = 1

    def forward(
        self, packed: PackedPrior, h_BNW: Tensor, added_BNW: Tensor | None, span: StepSpan
    ) -> Tensor:
        """Logits [B, N, V] of embedded positions."""
        added_MW = None
        if added_BNW is not None:
            h_BNW = h_BNW + added_BNW
            added_MW = added_BNW.flatten(0, 1)
        h_MW = h_BNW.flatten(0, 1)
        for block, layer in zip(packed.blocks, self.layers):
            h_MW = block(h_MW, layer, span)
        return packed.logits(h_MW, added_MW).unflatten(0, (-1, span.size))


@contextmanager
def window_decoder(prior: Prior, conditioning: Conditioning, batch: int) -> Iterator[WindowDecoder]:
    """The decoder's memory exists only inside the block."""
    decoder = WindowDecoder(prior, conditioning, batch)
    try:
        yield decoder
    finally:
        decoder.layers.clear()
