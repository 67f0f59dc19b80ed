"""Keys and values that one layer still needs, by pattern: allocated once for a window, never grown, never copied.

    row           [2, B, H, L, D]      the current row, overwritten by the next
    previous_row  the same, twice      the current row and the one before; they change places at the end of a row
    column        [2, L, B, H, R, D]   column by column, so that a read is one contiguous run
    dense, prefix [2, B, H, S, D]      all positions, or those of the prefix
    lyrics        [2, B, H, S, D]      computed once                                      (2: keys, values)

`prefill` takes the keys of a known prefix in one go, `step` some neighbours, of one row or several; both leave the same
memory. A step may be taken again with other tokens, from its first or any later position: it overwrites what it wrote.
Rows of one step see each other as they are in it.

On a GPU heads are stored with zeros after them, up to a whole number of sectors of its memory (150 numbers as 160): its
attention then neither pads them at each step nor does without its fast kernels. Where `StepSpan.column_index` is given,
one kernel stores and attends (step_ops.py).
"""

# B songs   T positions   R rows   L positions in a row   N positions of a step   H heads   D size of a head   A = H D
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from megajukebox.models.attention import attend
from megajukebox.models.prior import Conditioning
from megajukebox.models.transformer import Attention
from megajukebox.sampling.decoding import step_ops

HEAD_MULTIPLE = 16  # numbers; 32 bytes in 16 bits, a sector of a GPU's memory


@dataclass(frozen=True)
class StepSpan:
    """N neighbouring positions: t, t + 1, ..., of one row or several. On a GPU the row is only known to the device.

    `rows` is how many rows of the column cache are read; a mask [rows] hides later ones (None: there are none).
    """

    t: int  # first position; its column, where only the device knows the row
    size: int
    column: int
    row_index: Tensor  # [1] int64, the first row
    rows: int
    row_mask: Tensor | None = None
    flat_index: Tensor | None = None  # [N] int64, positions, where only the device knows t
    flat_mask: Tensor | None = None  # [N, T]
    column_index: Tensor | None = None  # [1] int64, the column; one kernel is to store and attend


def head_memory(like: Tensor, *sizes: int) -> Tensor:
    """Zeros for keys or values of such heads: `sizes` end with that of a head, which is padded on a GPU."""
    multiple = HEAD_MULTIPLE if like.device.type == "cuda" else 1
    return like.new_zeros(*sizes[:-1], -(-sizes[-1] // multiple) * multiple)


class LayerCache:
    """What all caches share; `attention` gives the projections, the cache only stores."""

    padded: Tensor  # the memory with what pads the heads
    memory: Tensor  # a view of it without
    axes: str  # of keys and of values, by the letters of the table above

    def __init__(self, attention: Attention, batch: int, length: int):
        self.attention = attention
        self.rows = attention.rows
        self.row = length // attention.rows
        weight = attention.merge.weight
        self.heads = attention.heads
        self.size = weight.shape[1] // attention.heads
        # dense: every position; prefix: the first positions, which all later ones see.
        self.length = attention.prefix if attention.pattern == "prefix" else self.row * self.rows
        sizes = {
            "B": batch,
            "R": self.rows,
            "L": self.row,
            "S": self.length,
            "H": self.heads,
            "D": self.size,
        }
        self.padded = head_memory(weight, 2, *map(sizes.__getitem__, self.axes))
        self.memory = self.padded[..., : self.size]

    def store_prefix(self, kv_BRL2HD: Tensor, known: int) -> None:
        """Store a prefix of whole rows. What lies past `known` may be stored too: it is overwritten before any read."""
        raise NotImplementedError

    def attend(self, q_BNHD: Tensor, kv_BN2HD: Tensor, span: StepSpan) -> Tensor:
        """Store the keys and values of N positions; the attention output of their queries, [B, N, H, D]."""
        raise NotImplementedError

    def kernel_arguments(self, span: StepSpan) -> tuple[Tensor, Tensor, Tensor | None]:
        """Of `step_ops.decode_attention`: the memory of one position's step, its index there, what is read instead."""
        raise NotImplementedError

    def advance_rows(self, rows: int) -> None:
        """Move on: the next step begins so many rows after the row in which the last one began."""

    def restart(self, conditioning: Conditioning) -> None:
        """Be as when it was made, for another window, in the same memory."""
        self.memory.zero_()

    def prefill(self, x_UTW: Tensor, known: int, songs_B: Tensor | None) -> Tensor:
        """Attend over a prefix of whole rows at once, and store its first `known` positions.

        Args:
            songs_B: which of the U prefixes each of the B songs has; None: each its own.
        """
        q, k, v = self.attention.qkv(x_UTW)
        rows = x_UTW.shape[1] // self.row
        kv = torch.stack([k, v], dim=2)
        kv = kv if songs_B is None else kv.index_select(0, songs_B)
        self.store_prefix(kv.unflatten(1, (rows, -1)), known)
        return self.attention.out(
            attend(q, k, v, self.attention.pattern, rows, self.attention.prefix)
        )

    def step(self, qkv_BNX: Tensor, span: StepSpan) -> Tensor:
        """The attention output [B, N, A] of the positions of `span`, from their projections [B, N, 3 A]."""
        q_kv = qkv_BNX.view(*qkv_BNX.shape[:2], 3, self.heads, self.size)
        if span.column_index is not None:
            return step_ops.decode_attention(q_kv[:, 0], *self.kernel_arguments(span))[:, None]
        return self.attend(q_kv[:, :, 0], q_kv[:, :, 1:], span).flatten(2)


def first_songs(songs_B: Tensor, prefixes: int) -> Tensor:
    """Of each of so many prefixes the first song [U] that has it; `songs_B` has each song's prefix."""
    numbers = torch.arange(prefixes, device=songs_B.device)
    return (songs_B == numbers[:, None]).int().argmax(1)


def _sdpa(q_BHND: Tensor, padded: Tensor, mask: Tensor | None = None) -> Tensor:
    """The attention output [B, H, N, D] of queries over keys and values [2, B, H, S, D or more]."""
    keys, values = padded
    size = q_BHND.shape[-1]
    padding = keys.shape[-1] - size
    if not padding:
        return F.scaled_dot_product_attention(q_BHND, keys, values, mask)
    q = F.pad(q_BHND, (0, padding))
    return F.scaled_dot_product_attention(q, keys, values, mask, scale=size**-0.5)[..., :size]


def _attend(q_BNHD: Tensor, padded: Tensor, mask: Tensor | None = None) -> Tensor:
    """The attention output [B, N, H, D] of queries over keys and values [2, B, H, S, D or more]."""
    return _sdpa(q_BNHD.transpose(1, 2), padded, mask).transpose(1, 2)


def _causal_mask(size: int, first: int, keys: int, device: torch.device) -> Tensor | None:
    """Which of `keys` keys each of `size` positions from `first` on sees: itself and what is before. One sees all."""
    if size == 1:
        return None
    return torch.ones(size, keys, dtype=torch.bool, device=device).tril(first)


class FoldedCache(LayerCache):
    """What the caches of patterns in rows and columns share: a step over several rows becomes one over whole rows.

    rows of 4, positions 3 .. 9     stored      . . . 3     The keys before them are stored; what lies after them is
                                                4 5 6 7     overwritten before any read.
                                                8 9 - -
    """

    def attend_rows(self, q_BRLHD: Tensor, kv_BRL2HD: Tensor, rows: int) -> Tensor:
        """`attend` for R whole rows, the last of the first `rows`: [B, R L, H, D]."""
        raise NotImplementedError

    def row_prefix(self, span: StepSpan) -> Tensor:
        """Keys and values of the positions before `span` in its row, [2, B, H, columns, D]."""
        raise NotImplementedError

    def step(self, qkv_BNX: Tensor, span: StepSpan) -> Tensor:
        end = span.column + span.size
        if end <= self.row:
            return super().step(qkv_BNX, span)
        q_kv = qkv_BNX.view(*qkv_BNX.shape[:2], 3, self.heads, self.size)
        whole = F.pad(q_kv, (0, 0, 0, 0, 0, 0, span.column, -end % self.row))
        whole[:, : span.column, 1:] = self.row_prefix(span).permute(1, 3, 0, 2, 4)
        q_kv = whole.unflatten(1, (-1, self.row))
        return self.attend_rows(q_kv[:, :, :, 0], q_kv[:, :, :, 1:], span.rows)[
            :, span.column : end
        ].flatten(2)


class RowCache(FoldedCache):
    axes = "BHLD"
    step_rows: Tensor | None = (
        None  # [R, 2, B, H, L, D], the rows of the last step if they were several
    )

    def attend(self, q_BNHD: Tensor, kv_BN2HD: Tensor, span: StepSpan) -> Tensor:
        first = span.column
        end = span.column + span.size
        self.memory[:, :, :, first:end] = kv_BN2HD.permute(2, 0, 3, 1, 4)
        return _attend(
            q_BNHD, self.padded[:, :, :, :end], _causal_mask(span.size, first, end, q_BNHD.device)
        )

    def kernel_arguments(self, span: StepSpan) -> tuple[Tensor, Tensor, Tensor | None]:
        assert span.column_index is not None
        return self.padded, span.column_index, None

    def attend_rows(self, q_BRLHD: Tensor, kv_BRL2HD: Tensor, rows: int) -> Tensor:
        self.step_rows = kv_BRL2HD.permute(1, 3, 0, 4, 2, 5)
        k, v = kv_BRL2HD.flatten(1, 2).unbind(2)
        return attend(q_BRLHD.flatten(1, 2), k, v, "row", len(self.step_rows))

    def row_prefix(self, span: StepSpan) -> Tensor:
        return self.memory[:, :, :, : span.column]

    def advance_rows(self, rows: int) -> None:
        if self.step_rows is not None and rows < len(self.step_rows):
            self.memory.copy_(self.step_rows[rows])
        self.step_rows = None

    def restart(self, conditioning: Conditioning) -> None:
        super().restart(conditioning)
        self.step_rows = None

    def store_prefix(self, kv_BRL2HD: Tensor, known: int) -> None:
        self.memory[:] = kv_BRL2HD[:, (known - 1) // self.row].permute(2, 0, 3, 1, 4)


class PreviousRowCache(RowCache):
    def __init__(self, attention: Attention, batch: int, length: int):
        super().__init__(attention, batch, length)
        # Zeros before the first row: their values add up to nothing.
        self.padded_previous = torch.zeros_like(self.padded)
        self.previous = self.padded_previous[..., : self.size]

    def attend(self, q_BNHD: Tensor, kv_BN2HD: Tensor, span: StepSpan) -> Tensor:
        self.memory[:, :, :, span.column : span.column + span.size] = kv_BN2HD.permute(
            2, 0, 3, 1, 4
        )
        return _attend(q_BNHD, self.padded_previous)

    def kernel_arguments(self, span: StepSpan) -> tuple[Tensor, Tensor, Tensor | None]:
        assert span.column_index is not None
        return self.padded, span.column_index, self.padded_previous

    def attend_rows(self, q_BRLHD: Tensor, kv_BRL2HD: Tensor, rows: int) -> Tensor:
        self.step_rows = kv_BRL2HD.permute(1, 3, 0, 4, 2, 5)
        k_RBHLD, v_RBHLD = torch.cat([self.previous[None], self.step_rows[:-1]]).unbind(1)
        q_RBHLD = q_BRLHD.permute(1, 0, 3, 2, 4)
        q = q_RBHLD.flatten(0, 1)
        out = F.scaled_dot_product_attention(q, k_RBHLD.flatten(0, 1), v_RBHLD.flatten(0, 1))
        return out.view_as(q_RBHLD).permute(1, 0, 3, 2, 4).flatten(1, 2)

    def advance_rows(self, rows: int) -> None:
        if rows:
            self.previous.copy_(self.memory if self.step_rows is None else self.step_rows[rows - 1])
        super().advance_rows(rows)

    def restart(self, conditioning: Conditioning) -> None:
        super().restart(conditioning)
        self.previous.zero_()

    def store_prefix(self, kv_BRL2HD: Tensor, known: int) -> None:
        super().store_prefix(kv_BRL2HD, known)
        current = (known - 1) // self.row
        if current:
            self.previous[:] = kv_BRL2HD[:, current - 1].permute(2, 0, 3, 1, 4)
        else:
            self.previous.zero_()


class ColumnCache(FoldedCache):
    axes = "LBHRD"

    def attend(self, q_BNHD: Tensor, kv_BN2HD: Tensor, span: StepSpan) -> Tensor:
        columns = slice(span.column, span.column + span.size)
        own = self.memory[:, columns]  # [2, N, B, H, R, D]
        own.index_copy_(4, span.row_index, kv_BN2HD.permute(2, 1, 0, 3, 4).unsqueeze(4))
        q_MH1D = q_BNHD.transpose(0, 1).flatten(0, 1).unsqueeze(2)  # M = N B
        seen = self.padded[:, columns, :, :, : span.rows].flatten(1, 2)
        out = _sdpa(q_MH1D, seen, span.row_mask)
        return out.unflatten(0, (span.size, -1)).transpose(0, 1).squeeze(3)

    def kernel_arguments(self, span: StepSpan) -> tuple[Tensor, Tensor, Tensor | None]:
        return self.padded[:, span.column], span.row_index, None

    def attend_rows(self, q_BRLHD: Tensor, kv_BRL2HD: Tensor, rows: int) -> Tensor:
        first = rows - kv_BRL2HD.shape[1]
        self.memory[..., first:rows, :] = kv_BRL2HD.permute(3, 2, 0, 4, 1, 5)
        q_LBHRD = q_BRLHD.permute(2, 0, 3, 1, 4)
        keys, values = self.memory[..., :rows, :].flatten(1, 2)
        mask = _causal_mask(rows - first, first, rows, keys.device)
        out = F.scaled_dot_product_attention(q_LBHRD.flatten(0, 1), keys, values, mask)
        return out.view_as(q_LBHRD).permute(1, 3, 0, 2, 4).flatten(1, 2)

    def row_prefix(self, span: StepSpan) -> Tensor:
        return self.memory[:, : span.column, :, :, span.t // self.row].permute(0, 2, 3, 1, 4)

    def store_prefix(self, kv_BRL2HD: Tensor, known: int) -> None:
        self.memory[..., : kv_BRL2HD.shape[1], :] = kv_BRL2HD.permute(3, 2, 0, 4, 1, 5)


class FlatCache(LayerCache):
    """Keys of all positions, or of those of the prefix."""

    axes = "BHSD"

    def attend(self, q_BNHD: Tensor, kv_BN2HD: Tensor, span: StepSpan) -> Tensor:
        if span.flat_index is not None:
            # Only the device knows the position: past the end, the last position is kept as it is.
            assert span.flat_mask is not None and span.size == 1
            inside = (span.flat_index < self.length).to(kv_BN2HD.dtype)
            index = span.flat_index.clamp(max=self.length - 1)
            kept = self.memory.index_select(3, index)
            written = torch.where(inside.bool(), kv_BN2HD.permute(2, 0, 3, 1, 4), kept)
            self.memory.index_copy_(3, index, written)
            return _attend(q_BNHD, self.padded, span.flat_mask[:, : self.length])
        new = min(span.size, max(0, self.length - span.t))
        end = min(span.t + span.size, self.length)
        if new:
            self.memory[:, :, :, span.t : end] = kv_BN2HD[:, :new].permute(2, 0, 3, 1, 4)
        mask = _causal_mask(span.size, span.t, end, q_BNHD.device) if new else None
        return _attend(q_BNHD, self.padded[:, :, :, :end], mask)

    def kernel_arguments(self, span: StepSpan) -> tuple[Tensor, Tensor, Tensor | None]:
        assert span.flat_index is not None
        return self.padded, span.flat_index, None

    def store_prefix(self, kv_BRL2HD: Tensor, known: int) -> None:
        kept = min(known, self.length)
        self.memory[:, :, :, :kept] = kv_BRL2HD.flatten(1, 2)[:, :kept].permute(2, 0, 3, 1, 4)


class LyricsCache(LayerCache):
    """Keys of the lyric states: the same for every position of the window."""

    def __init__(self, attention: Attention, batch: int, lyrics_BSW: Tensor):
        self.attention = attention
        self.heads = attention.heads
        keys_BSHD, values_BSHD = attention.lyric_keys(lyrics_BSW)
        songs, tokens, heads, size = keys_BSHD.shape
        self.padded = head_memory(keys_BSHD, 2, songs, heads, tokens, size)
        self.memory = self.padded[..., :size]
        self._store(keys_BSHD, values_BSHD)
        if songs != batch:
            self.padded = self.padded.expand(-1, batch, -1, -1, -1)
            self.memory = self.memory.expand(-1, batch, -1, -1, -1)

    def _store(self, keys_BSHD: Tensor, values_BSHD: Tensor) -> None:
        self.memory[0] = keys_BSHD.transpose(1, 2)
        self.memory[1] = values_BSHD.transpose(1, 2)

    def restart(self, conditioning: Conditioning) -> None:
        assert conditioning.lyrics is not None
        self._store(*self.attention.lyric_keys(conditioning.lyrics))

    def prefill(self, x_UTW: Tensor, known: int, songs_B: Tensor | None) -> Tensor:
        memory = self.padded
        if songs_B is not None:
            memory = memory.index_select(1, first_songs(songs_B, len(x_UTW)))
        return self.attention.out(
            _attend(self.attention.split(self.attention.query(x_UTW)), memory)
        )

    def step(self, qkv_BNX: Tensor, span: StepSpan) -> Tensor:
        q_BNHD = qkv_BNX.unflatten(-1, (self.heads, -1))
        if span.column_index is not None:  # a query alone: the index is not read
            return step_ops.decode_attention(q_BNHD, self.padded, span.column_index, None)[:, None]
        return _attend(q_BNHD, self.padded).flatten(2)


CACHES: dict[str, Callable[[Attention, int, int], LayerCache]] = {
    "row": RowCache,
    "previous_row": PreviousRowCache,
    "column": ColumnCache,
    "dense": FlatCache,
    "prefix": FlatCache,
}
