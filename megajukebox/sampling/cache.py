"""Keys and values that one layer still needs, by pattern: allocated once for a window, never grown, never copied.

    row           [B, H, L, D]      the current row, overwritten by the next
    previous_row  [2, B, H, L, D]   the row before and the current one, taking turns
    column        [L, B, H, R, D]   column by column, so that a read is one contiguous run
    dense, prefix [B, H, S, D]      all positions, or those of the prefix
    lyrics        [B, H, S, D]      computed once

`fill` takes the keys of a known beginning in one go, `step` one position; both must leave the same memory behind.
"""

# B songs   T positions   R rows   L positions in a row   H heads   D size of a head
import torch
import torch.nn.functional as F
from torch import Tensor

from megajukebox.models.attention import attend
from megajukebox.models.transformer import Attention


def attention_cache(attention: Attention, batch: int, length: int, lyrics_BSW: Tensor | None) -> "LayerCache":
    """The cache of `attention` for `batch` songs and windows of `length` positions."""
    if attention.pattern == "lyrics":
        assert lyrics_BSW is not None
        return LyricsCache(attention, lyrics_BSW)
    kind = {"row": RowCache, "previous_row": PreviousRowCache, "column": ColumnCache}.get(attention.pattern, FlatCache)
    return kind(attention, batch, length)


class LayerCache:
    """What every cache can do; `attention` gives the projections, the cache only remembers."""

    def __init__(self, attention: Attention, batch: int, length: int):
        self.attention, self.rows = attention, attention.rows
        self.row = length // attention.rows
        weight = attention.merge.weight
        size = weight.shape[1] // attention.heads
        self.keys, self.values = (weight.new_zeros(self.shape(batch, attention.heads, size)) for _ in range(2))

    def shape(self, batch: int, heads: int, size: int) -> tuple[int, ...]:
        raise NotImplementedError

    def write(self, k_BHD: Tensor, v_BHD: Tensor, t: int) -> None:
        raise NotImplementedError

    def read(self, t: int) -> tuple[Tensor, Tensor] | None:
        """Keys and values [B, H, S, D] that position t sees; None if it sees nothing."""
        raise NotImplementedError

    def keep(self, k_BRLHD: Tensor, v_BRLHD: Tensor, known: int) -> None:
        """Remember a beginning of whole rows. What lies past `known` may be kept too: it is written before any read."""
        raise NotImplementedError

    def fill(self, x_BTW: Tensor, known: int) -> Tensor:
        """Attend over a beginning of whole rows at once, remembering its first `known` positions."""
        q, k, v = self.attention.qkv(x_BTW)
        rows = x_BTW.shape[1] // self.row
        self.keep(k.unflatten(1, (rows, -1)), v.unflatten(1, (rows, -1)), known)
        return self.attention.out(attend(q, k, v, self.attention.pattern, rows, self.attention.prefix))

    def step(self, x_B1W: Tensor, t: int) -> Tensor:
        """The attention output [B, 1, W] of position t."""
        q, k, v = self.attention.qkv(x_B1W)
        self.write(k[:, 0], v[:, 0], t)
        seen = self.read(t)
        if seen is None:
            return self.attention.out(torch.zeros_like(q))
        return self.attention.out(F.scaled_dot_product_attention(q.transpose(1, 2), *seen).transpose(1, 2))


class RowCache(LayerCache):
    def shape(self, batch: int, heads: int, size: int) -> tuple[int, ...]:
        return batch, heads, self.row, size

    def write(self, k_BHD: Tensor, v_BHD: Tensor, t: int) -> None:
        self.keys[:, :, t % self.row], self.values[:, :, t % self.row] = k_BHD, v_BHD

    def read(self, t: int) -> tuple[Tensor, Tensor]:
        seen = t % self.row + 1
        return self.keys[:, :, :seen], self.values[:, :, :seen]

    def keep(self, k_BRLHD: Tensor, v_BRLHD: Tensor, known: int) -> None:
        if known % self.row:
            current = known // self.row
            self.keys[:], self.values[:] = k_BRLHD[:, current].transpose(1, 2), v_BRLHD[:, current].transpose(1, 2)


class PreviousRowCache(LayerCache):
    def shape(self, batch: int, heads: int, size: int) -> tuple[int, ...]:
        return 2, batch, heads, self.row, size

    def write(self, k_BHD: Tensor, v_BHD: Tensor, t: int) -> None:
        row, column = divmod(t, self.row)
        self.keys[row % 2, :, :, column], self.values[row % 2, :, :, column] = k_BHD, v_BHD

    def read(self, t: int) -> tuple[Tensor, Tensor] | None:
        row = t // self.row
        return (self.keys[(row - 1) % 2], self.values[(row - 1) % 2]) if row else None

    def keep(self, k_BRLHD: Tensor, v_BRLHD: Tensor, known: int) -> None:
        for row in range(max(0, known // self.row - 1), k_BRLHD.shape[1]):
            self.keys[row % 2], self.values[row % 2] = k_BRLHD[:, row].transpose(1, 2), v_BRLHD[:, row].transpose(1, 2)


class ColumnCache(LayerCache):
    def shape(self, batch: int, heads: int, size: int) -> tuple[int, ...]:
        return self.row, batch, heads, self.rows, size

    def write(self, k_BHD: Tensor, v_BHD: Tensor, t: int) -> None:
        row, column = divmod(t, self.row)
        self.keys[column, :, :, row], self.values[column, :, :, row] = k_BHD, v_BHD

    def read(self, t: int) -> tuple[Tensor, Tensor]:
        row, column = divmod(t, self.row)
        return self.keys[column, :, :, : row + 1], self.values[column, :, :, : row + 1]

    def keep(self, k_BRLHD: Tensor, v_BRLHD: Tensor, known: int) -> None:
        rows = k_BRLHD.shape[1]
        self.keys[:, :, :, :rows], self.values[:, :, :, :rows] = (x.permute(2, 0, 3, 1, 4) for x in (k_BRLHD, v_BRLHD))


class FlatCache(LayerCache):
    """dense: every position; prefix: the first positions, which all later ones see."""

    def shape(self, batch: int, heads: int, size: int) -> tuple[int, ...]:
        self.length = self.attention.prefix if self.attention.pattern == "prefix" else self.row * self.rows
        return batch, heads, self.length, size

    def write(self, k_BHD: Tensor, v_BHD: Tensor, t: int) -> None:
        if t < self.length:
            self.keys[:, :, t], self.values[:, :, t] = k_BHD, v_BHD

    def read(self, t: int) -> tuple[Tensor, Tensor]:
        seen = min(t + 1, self.length)
        return self.keys[:, :, :seen], self.values[:, :, :seen]

    def keep(self, k_BRLHD: Tensor, v_BRLHD: Tensor, known: int) -> None:
        kept = min(known, self.length)
        for memory, x_BRLHD in ((self.keys, k_BRLHD), (self.values, v_BRLHD)):
            memory[:, :, :kept] = x_BRLHD.flatten(1, 2)[:, :kept].transpose(1, 2)


class LyricsCache(LayerCache):
    """Keys of the lyric states: the same for every position of the window."""

    def __init__(self, attention: Attention, lyrics_BSW: Tensor):
        self.attention = attention
        self.keys, self.values = (x.transpose(1, 2).contiguous() for x in attention.lyric_keys(lyrics_BSW))

    def fill(self, x_BTW: Tensor, known: int) -> Tensor:
        q = self.attention.split(self.attention.query(x_BTW)).transpose(1, 2)
        return self.attention.out(F.scaled_dot_product_attention(q, self.keys, self.values).transpose(1, 2))

    def step(self, x_B1W: Tensor, t: int) -> Tensor:
        return self.fill(x_B1W, 1)
