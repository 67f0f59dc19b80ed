"""Keys and values that one layer still needs, by pattern: allocated once for a window, never grown, never copied.

    row           [2, B, H, L, D]      the current row, overwritten by the next
    previous_row  the same, twice      the current row and the one before; they change places at the end of a row
    column        [2, L, B, H, R, D]   column by column, so that a read is one contiguous run
    dense, prefix [2, B, H, S, D]      all positions, or those of the prefix
    lyrics        [2, B, H, S, D]      computed once                                      (2: keys, values)

`fill` takes the keys of a known beginning in one go, `step` some neighbours, of one row or several; both leave the
same memory. A step may be taken again with other tokens, from its beginning or any later position: it writes over what
it wrote. Rows of one step see each other as they are in it.
"""

# B songs   T positions   R rows   L positions in a row   N positions of a step   H heads   D size of a head   A = H D
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from megajukebox.models.attention import attend
from megajukebox.models.transformer import Attention


@dataclass(frozen=True)
class StepSpan:
    """N neighbouring positions: t, t + 1, ..., of one row or several. On a GPU the row is only known to the device.

    `rows` is how many rows of the column cache are read; a mask [rows] hides those to come (None: there are none).
    """

    t: int  # first position; where the row is the device's business: its column
    size: int
    column: int
    row_index: Tensor  # [1] int64, the first row
    rows: int
    row_mask: Tensor | None = None
    flat_index: Tensor | None = None  # [N] int64, positions, where t is the device's business
    flat_mask: Tensor | None = None  # [N, T]


def attention_cache(
    attention: Attention, batch: int, length: int, lyrics_BSW: Tensor | None
) -> "LayerCache":
    """The cache of `attention` for `batch` songs and windows of `length` positions."""
    if attention.pattern == "lyrics":
        assert lyrics_BSW is not None
        return LyricsCache(attention, batch, lyrics_BSW)
    kind = {"row": RowCache, "previous_row": PreviousRowCache, "column": ColumnCache}.get(
        attention.pattern, FlatCache
    )
    return kind(attention, batch, length)


class LayerCache:
    """What every cache can do; `attention` gives the projections, the cache only remembers."""

    memory: Tensor

    def __init__(self, attention: Attention, batch: int, length: int):
        self.attention, self.rows = attention, attention.rows
        self.row = length // attention.rows
        weight = attention.merge.weight
        self.heads, self.size = attention.heads, weight.shape[1] // attention.heads
        self.memory = weight.new_zeros(2, *self.shape(batch, self.heads, self.size))

    def shape(self, batch: int, heads: int, size: int) -> tuple[int, ...]:
        raise NotImplementedError

    def store_prefix(self, kv_BRL2HD: Tensor, known: int) -> None:
        """Remember a beginning of whole rows. What lies past `known` may be kept too: it is written before any read."""
        raise NotImplementedError

    def attend(self, q_BNHD: Tensor, kv_BN2HD: Tensor, place: StepSpan) -> Tensor:
        """Remember the keys and values of N positions, and what their queries gather, [B, N, H, D]."""
        raise NotImplementedError

    def advance_rows(self, rows: int) -> None:
        """What follows is so many rows after the row in which the last step began."""

    def prefill(self, x_UTW: Tensor, known: int, songs_B: Tensor | None) -> Tensor:
        """Attend over a beginning of whole rows at once, remembering its first `known` positions.

        `songs` says which of the U beginnings each of the B songs has; None: each its own.
        """
        q, k, v = self.attention.qkv(x_UTW)
        rows = x_UTW.shape[1] // self.row
        kv = torch.stack([k, v], dim=2)
        kv = kv if songs_B is None else kv.index_select(0, songs_B)
        self.store_prefix(kv.unflatten(1, (rows, -1)), known)
        return self.attention.out(
            attend(q, k, v, self.attention.pattern, rows, self.attention.prefix)
        )

    def step(self, qkv_BNX: Tensor, place: StepSpan) -> Tensor:
        """What the positions of `place` gather, [B, N, A], from their projections [B, N, 3 A]."""
        q_kv = qkv_BNX.view(*qkv_BNX.shape[:2], 3, self.heads, self.size)
        return self.attend(q_kv[:, :, 0], q_kv[:, :, 1:], place).flatten(2)


def _among(q_BNHD: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
    """What queries gather from keys and values [2, B, H, S, D]."""
    return F.scaled_dot_product_attention(
        q_BNHD.transpose(1, 2), memory[0], memory[1], mask
    ).transpose(1, 2)


def _seen(size: int, first: int, keys: int, device: torch.device) -> Tensor | None:
    """Which of `keys` keys each of `size` positions from `first` on sees: itself and what is before. One sees all."""
    if size == 1:
        return None
    return torch.ones(size, keys, dtype=torch.bool, device=device).tril(first)


class FoldedCache(LayerCache):
    """What the caches of patterns in rows and columns share: a step over several rows is made one over whole rows.

    rows of 4, positions 3 .. 9     remembered  . . . 3     The keys before them are remembered; what lies after them
                                                4 5 6 7     is written before any read.
                                                8 9 - -
    """

    def attend_rows(self, q_BRLHD: Tensor, kv_BRL2HD: Tensor, rows: int) -> Tensor:
        """`attend` for R whole rows, the last of the first `rows`: [B, R L, H, D]."""
        raise NotImplementedError

    def row_prefix(self, place: StepSpan) -> Tensor:
        """Keys and values of the positions before `place` in its row, [2, B, H, columns, D]."""
        raise NotImplementedError

    def step(self, qkv_BNX: Tensor, place: StepSpan) -> Tensor:
        end = place.column + place.size
        if end <= self.row:
            return super().step(qkv_BNX, place)
        q_kv = qkv_BNX.view(*qkv_BNX.shape[:2], 3, self.heads, self.size)
        whole = F.pad(q_kv, (0, 0, 0, 0, 0, 0, place.column, -end % self.row))
        whole[:, : place.column, 1:] = self.row_prefix(place).permute(1, 3, 0, 2, 4)
        q_kv = whole.unflatten(1, (-1, self.row))
        return self.attend_rows(q_kv[:, :, :, 0], q_kv[:, :, :, 1:], place.rows)[
            :, place.column : end
        ].flatten(2)


class RowCache(FoldedCache):
    made: Tensor | None = None  # [R, 2, B, H, L, D], the rows of the last step if they were several

    def shape(self, batch: int, heads: int, size: int) -> tuple[int, ...]:
        return batch, heads, self.row, size

    def attend(self, q_BNHD: Tensor, kv_BN2HD: Tensor, place: StepSpan) -> Tensor:
        first, end = place.column, place.column + place.size
        self.memory[:, :, :, first:end] = kv_BN2HD.permute(2, 0, 3, 1, 4)
        return _among(
            q_BNHD, self.memory[:, :, :, :end], _seen(place.size, first, end, q_BNHD.device)
        )

    def attend_rows(self, q_BRLHD: Tensor, kv_BRL2HD: Tensor, rows: int) -> Tensor:
        self.made = kv_BRL2HD.permute(1, 3, 0, 4, 2, 5)
        k, v = kv_BRL2HD.flatten(1, 2).unbind(2)
        return attend(q_BRLHD.flatten(1, 2), k, v, "row", len(self.made))

    def row_prefix(self, place: StepSpan) -> Tensor:
        return self.memory[:, :, :, : place.column]

    def advance_rows(self, rows: int) -> None:
        if self.made is not None and rows < len(self.made):
            self.memory.copy_(self.made[rows])
        self.made = None

    def store_prefix(self, kv_BRL2HD: Tensor, known: int) -> None:
        self.memory[:] = kv_BRL2HD[:, (known - 1) // self.row].permute(2, 0, 3, 1, 4)


class PreviousRowCache(RowCache):
    def __init__(self, attention: Attention, batch: int, length: int):
        super().__init__(attention, batch, length)
        self.before = torch.zeros_like(
            self.memory
        )  # zeros before the first row: their values add up to nothing

    def attend(self, q_BNHD: Tensor, kv_BN2HD: Tensor, place: StepSpan) -> Tensor:
        self.memory[:, :, :, place.column : place.column + place.size] = kv_BN2HD.permute(
            2, 0, 3, 1, 4
        )
        return _among(q_BNHD, self.before)

    def attend_rows(self, q_BRLHD: Tensor, kv_BRL2HD: Tensor, rows: int) -> Tensor:
        self.made = kv_BRL2HD.permute(1, 3, 0, 4, 2, 5)
        k_RBHLD, v_RBHLD = torch.cat([self.before[None], self.made[:-1]]).unbind(1)
        q_RBHLD = q_BRLHD.permute(1, 0, 3, 2, 4)
        q, k, v = (x.flatten(0, 1) for x in (q_RBHLD, k_RBHLD, v_RBHLD))
        out = F.scaled_dot_product_attention(q, k, v)
        return out.view_as(q_RBHLD).permute(1, 0, 3, 2, 4).flatten(1, 2)

    def advance_rows(self, rows: int) -> None:
        if rows:
            self.before.copy_(self.memory if self.made is None else self.made[rows - 1])
        super().advance_rows(rows)

    def store_prefix(self, kv_BRL2HD: Tensor, known: int) -> None:
        super().store_prefix(kv_BRL2HD, known)
        current = (known - 1) // self.row
        if current:
            self.before[:] = kv_BRL2HD[:, current - 1].permute(2, 0, 3, 1, 4)
        else:
            self.before.zero_()


class ColumnCache(FoldedCache):
    def shape(self, batch: int, heads: int, size: int) -> tuple[int, ...]:
        return self.row, batch, heads, self.rows, size

    def attend(self, q_BNHD: Tensor, kv_BN2HD: Tensor, place: StepSpan) -> Tensor:
        columns = slice(place.column, place.column + place.size)
        own = self.memory[:, columns]  # [2, N, B, H, R, D]
        own.index_copy_(4, place.row_index, kv_BN2HD.permute(2, 1, 0, 3, 4).unsqueeze(4))
        q_MH1D = q_BNHD.transpose(0, 1).flatten(0, 1).unsqueeze(2)  # M = N B
        keys, values = own[:, :, :, :, : place.rows].flatten(1, 2)
        out = F.scaled_dot_product_attention(q_MH1D, keys, values, place.row_mask)
        return out.unflatten(0, (place.size, -1)).transpose(0, 1).squeeze(3)

    def attend_rows(self, q_BRLHD: Tensor, kv_BRL2HD: Tensor, rows: int) -> Tensor:
        first = rows - kv_BRL2HD.shape[1]
        self.memory[..., first:rows, :] = kv_BRL2HD.permute(3, 2, 0, 4, 1, 5)
        q_LBHRD = q_BRLHD.permute(2, 0, 3, 1, 4)
        keys, values = self.memory[..., :rows, :].flatten(1, 2)
        mask = _seen(rows - first, first, rows, keys.device)
        out = F.scaled_dot_product_attention(q_LBHRD.flatten(0, 1), keys, values, mask)
        return out.view_as(q_LBHRD).permute(1, 3, 0, 2, 4).flatten(1, 2)

    def row_prefix(self, place: StepSpan) -> Tensor:
        return self.memory[:, : place.column, :, :, place.t // self.row].permute(0, 2, 3, 1, 4)

    def store_prefix(self, kv_BRL2HD: Tensor, known: int) -> None:
        self.memory[..., : kv_BRL2HD.shape[1], :] = kv_BRL2HD.permute(3, 2, 0, 4, 1, 5)


class FlatCache(LayerCache):
    """dense: every position; prefix: the first positions, which all later ones see."""

    def shape(self, batch: int, heads: int, size: int) -> tuple[int, ...]:
        self.length = (
            self.attention.prefix if self.attention.pattern == "prefix" else self.row * self.rows
        )
        return batch, heads, self.length, size

    def attend(self, q_BNHD: Tensor, kv_BN2HD: Tensor, place: StepSpan) -> Tensor:
        if place.flat_index is not None:
            return self._attend_anywhere(q_BNHD, kv_BN2HD, place)
        new, end = (
            min(place.size, max(0, self.length - place.t)),
            min(place.t + place.size, self.length),
        )
        if new:
            self.memory[:, :, :, place.t : end] = kv_BN2HD[:, :new].permute(2, 0, 3, 1, 4)
        mask = _seen(place.size, place.t, end, q_BNHD.device) if new else None
        return _among(q_BNHD, self.memory[:, :, :, :end], mask)

    def _attend_anywhere(self, q_BNHD: Tensor, kv_BN2HD: Tensor, place: StepSpan) -> Tensor:
        """The same where only the device knows the place: what lies past the end is written over the last position."""
        assert place.flat_index is not None and place.flat_mask is not None and place.size == 1
        inside = (place.flat_index < self.length).to(kv_BN2HD.dtype)
        index = place.flat_index.clamp(max=self.length - 1)
        kept = self.memory.index_select(3, index)
        new = kv_BN2HD.permute(2, 0, 3, 1, 4)
        self.memory.index_copy_(3, index, torch.where(inside.bool(), new, kept))
        return _among(q_BNHD, self.memory, place.flat_mask[:, : self.length])

    def store_prefix(self, kv_BRL2HD: Tensor, known: int) -> None:
        kept = min(known, self.length)
        self.memory[:, :, :, :kept] = kv_BRL2HD.flatten(1, 2)[:, :kept].permute(2, 0, 3, 1, 4)


class LyricsCache(LayerCache):
    """Keys of the lyric states: the same for every position of the window."""

    def __init__(self, attention: Attention, batch: int, lyrics_BSW: Tensor):
        self.attention, self.heads = attention, attention.heads
        self.memory = torch.stack([x.transpose(1, 2) for x in attention.lyric_keys(lyrics_BSW)])
        if len(lyrics_BSW) != batch:
            self.memory = self.memory.expand(-1, batch, -1, -1, -1)

    def prefill(self, x_UTW: Tensor, known: int, songs_B: Tensor | None) -> Tensor:
        memory = self.memory
        if songs_B is not None:  # of each beginning, a song that has it
            first = torch.stack([(songs_B == u).nonzero()[0, 0] for u in range(len(x_UTW))])
            memory = memory.index_select(1, first)
        return self.attention.out(_among(self.attention.split(self.attention.query(x_UTW)), memory))

    def step(self, qkv_BNX: Tensor, place: StepSpan) -> Tensor:
        return _among(qkv_BNX.unflatten(-1, (self.heads, -1)), self.memory).flatten(2)
