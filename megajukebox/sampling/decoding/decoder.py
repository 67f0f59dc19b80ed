"""The decoder of a window: its caches, and the logits of one or several next positions.

`PackedPrior` holds the layers of a prior, their weights packed for steps of few rows (packed_linear.py). Two of them may
step the same caches: an int8 one that drafts, and the prior itself that verifies and overwrites the draft.
"""

# B songs   U distinct prefixes   N positions of a step   T positions of the window   V vocabulary   W width
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from megajukebox.models.prior import Conditioning, Prior
from megajukebox.models.transformer import TransformerBlock
from megajukebox.sampling.decoding import step_ops
from megajukebox.sampling.decoding.kv_cache import (
    CACHES,
    LayerCache,
    LyricsCache,
    StepSpan,
    first_songs,
)
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
    """One block of a transformer for steps: the sums of `Block.update`, over [M, W] = all positions of all songs.

    `fused`: by the kernels of step_ops.py. A norm is then one kernel with the sum before it, which may be of the block
    before: `step_fused`.
    """

    def __init__(self, block: TransformerBlock, int8: bool, fused: bool = False):
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
        # CUDA's layer norm computes in float32 whatever its inputs are. A CPU's is done as it ever was: the same codes.
        norm_dtype = (
            torch.float32 if mlp.widen.weight.device.type == "cpu" else mlp.widen.weight.dtype
        )
        for norm in (block.norm_attention, block.norm_mlp):
            weight = norm.weight.detach().to(norm_dtype)
            bias = norm.bias.detach().to(norm_dtype)
            self.norms.append((norm.normalized_shape, weight, bias, norm.eps))
        self.scale = block.scale
        self.fused = fused

    def norm(self, which: int, x_MW: Tensor) -> Tensor:
        shape, weight, bias, eps = self.norms[which]
        if x_MW.dtype == weight.dtype:
            return torch.layer_norm(x_MW, shape, weight, bias, eps)
        return torch.layer_norm(x_MW.float(), shape, weight, bias, eps).to(x_MW.dtype)

    def mlp(self, normed_MW: Tensor) -> Tensor:
        wide = self.widen(normed_MW)
        if self.fused:
            step_ops.quick_gelu_(wide)
        else:
            wide = F.silu(wide.mul_(GELU), inplace=True).div_(GELU)
        return self.narrow(wide)

    def attention(self, normed_MW: Tensor, cache: DecoderLayer[AnyStep], step: AnyStep) -> Tensor:
        qkv_MX = self.project(normed_MW)
        qkv_BNX = qkv_MX.view(-1, step.size, qkv_MX.shape[1])
        return self.merge(cache.step(qkv_BNX, step).flatten(0, 1))

    def __call__(self, h_MW: Tensor, cache: DecoderLayer[AnyStep], step: AnyStep) -> Tensor:
        a_MW = self.attention(self.norm(0, h_MW), cache, step)
        x_MW = h_MW + a_MW
        m_MW = self.mlp(self.norm(1, x_MW))
        if self.scale == 1.0:
            return x_MW.add_(m_MW)
        return h_MW + a_MW.add_(m_MW).mul_(self.scale)

    def step_fused(
        self,
        h_MW: Tensor,
        normed_MW: Tensor,
        cache: DecoderLayer[AnyStep],
        step: AnyStep,
        following: "PackedBlock | None",
    ) -> tuple[Tensor, Tensor]:
        """The block's output, and its norm for the following block; `normed` is that of its input."""
        a_MW = self.attention(normed_MW, cache, step)
        _, weight, bias, eps = self.norms[1]
        x_MW, normed_MW = step_ops.add_norm(h_MW, a_MW, weight, bias, 1.0, eps)
        update_MW = self.mlp(normed_MW)
        if self.scale != 1.0:
            x_MW = h_MW
            update_MW = a_MW.add_(update_MW)
        if following is None:
            return torch.add(x_MW, update_MW, alpha=self.scale), normed_MW
        _, weight, bias, eps = following.norms[0]
        return step_ops.add_norm(x_MW, update_MW, weight, bias, self.scale, eps)


class PackedPrior:
    """The layers of `prior` for steps; `int8` rounds their weights (the head's too) to 8 bits."""

    def __init__(self, prior: Prior, int8: bool = False):
        self.prior = prior
        self.int8 = int8
        # With fewer bits logits differ by more than the margin of near ties.
        self.exact = not int8 and prior.head.weight.dtype == torch.float32
        self.fused = step_ops.fused_steps(prior.head.weight.device, prior.head.weight.dtype)
        self.blocks = [PackedBlock(block, int8, self.fused) for block in prior.blocks]
        self.head: Linear = pack_linear(prior.head, int8)

    def layers(
        self, h_MW: Tensor, caches: Sequence[DecoderLayer[AnyStep]], step: AnyStep
    ) -> Tensor:
        """What the last block gives."""
        if not self.fused:
            for block, cache in zip(self.blocks, caches):
                h_MW = block(h_MW, cache, step)
            return h_MW
        normed_MW = self.blocks[0].norm(0, h_MW)
        for block, following, cache in zip(self.blocks, [*self.blocks[1:], None], caches):
            h_MW, normed_MW = block.step_fused(h_MW, normed_MW, cache, step, following)
        return h_MW

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

    def restart(self, conditioning: Conditioning) -> None:
        """Begin another window of as many songs, in the same memory."""
        self.conditioning = conditioning
        self.start = self.prior.input.start_vector(len(self.start), conditioning.start)
        for layer in self.layers:
            layer.restart(conditioning)
        self.current = 0
        self.reach = 1

    def prefill(self, tokens_UN: Tensor, songs_B: Tensor | None = None) -> None:
        """Take in the N known tokens at the head of the window in one parallel pass.

        Args:
            songs_B: which of U prefixes each song has; songs of one prefix must have the same conditioning.
        """
        known = tokens_UN.shape[1]
        padded = F.pad(tokens_UN, (0, -known % self.row))
        start = self.start
        added = self.conditioning.added
        if songs_B is not None:
            first_U = first_songs(songs_B, len(tokens_UN))
            start = start[first_U]
            added = None if added is None else added[first_U]
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
        h_MW = packed.layers(h_BNW.flatten(0, 1), self.layers, span)
        return packed.logits(h_MW, added_MW).unflatten(0, (-1, span.size))


@contextmanager
def window_decoder(prior: Prior, conditioning: Conditioning, batch: int) -> Iterator[WindowDecoder]:
    """The decoder's memory exists only inside the block."""
    decoder = WindowDecoder(prior, conditioning, batch)
    try:
        yield decoder
    finally:
        decoder.layers.clear()
