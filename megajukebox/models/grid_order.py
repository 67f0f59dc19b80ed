"""The order in which a student emits a window, and what each slot may see: one rule for every order.

A window of T slots is a grid of R rows of L, slot t = r L + c. Slot (r, c) is emitted at the time

    tau(r, c) = a r + b c        a known slot (a prompt, the surroundings of a gap) at tau = t - T, before all others

and it sees those keys of its layer's pattern whose time is at most its own, and which its teacher would see too:
nothing that comes later in the music, unless it is known. Slots of equal time are emitted together:

    (L, 1)  the teacher, R L steps          0  1  2  3       (1, 2)  a wavefront      0  2  4  6
                                            4  5  6  7                                1  3  5  7
                                            8  9 10 11                                2  4  6  8
    (0, 1)  column by column, L steps       0  1  2  3      (1, 1, 2)            0  1  2  3  4  5  6  7
                                            0  1  2  3      lines of two rows    1  2  3  4  5  6  7  8

A line of an order may be several rows of the grid: what a line's first slots do not know, the end of the line before,
they then miss more seldom, and fewer slots are emitted at once. Patterns stay those of the grid.

Known slots see each other as the teacher would, whatever the order. Idea and sources: docs/distillation.md.
"""

# B windows   T slots   R rows   L slots in a row   H heads   D size of a head
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from megajukebox.models.attention import attend

NEVER = 2**62  # a float holds it exactly, and padding goes by way of one


class GridOrder(NamedTuple):
    """tau(r, c) = down * r + right * c, of the slot in place c of line r; a line is `fold` rows of the grid."""

    down: int
    right: int
    fold: int = 1

    def __str__(self) -> str:
        return ",".join(map(str, self[:2] if self.fold == 1 else self))

    @classmethod
    def parse(cls, text: str) -> "GridOrder":
        """Of "1,2" or "1,2,8". Raises ValueError for what is no order: time runs to the right, and not upwards."""
        parts = text.split(",")
        numbers = [int(part) for part in parts if part.strip().isdecimal()]
        if len(numbers) != len(parts) or len(numbers) not in (2, 3) or min(numbers[1:]) < 1:
            raise ValueError(
                f"order {text!r} is not of the form a,b or a,b,k with a >= 0, b >= 1 and lines of k >= 1 rows,"
                " for example 0,1 or 1,1,8"
            )
        return cls(*numbers)

    @classmethod
    def of_teacher(cls, length: int, rows: int) -> "GridOrder":
        return cls(length // rows, 1)

    def steps(self, length: int, rows: int) -> int:
        """Steps that emit a window of `length` slots in `rows` rows. ValueError if no whole number of lines fits."""
        if rows % self.fold:
            raise ValueError(
                f"order {self}: lines of {self.fold} rows do not fill a window of {rows} rows"
            )
        lines = rows // self.fold
        return self.down * (lines - 1) + self.right * (length // lines - 1) + 1


def times(
    order: GridOrder,
    length: int,
    rows: int,
    known_BT: Tensor | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """tau [1, T] int64, or [B, T] where `known` [B, T] bool says which slots of each window are given."""
    slot = torch.arange(length, device=device if known_BT is None else known_BT.device)
    line = length // rows * order.fold
    emitted = (order.down * (slot // line) + order.right * (slot % line))[None]
    return emitted if known_BT is None else torch.where(known_BT, slot[None] - length, emitted)


class GridVisibility:
    """Which keys each slot sees under every pattern, from the slots' times [B, T] (B may be 1, for all windows)."""

    def __init__(self, tau_BT: Tensor, rows: int, prefix: int = 0):
        """`prefix`: as in models/attention.py."""
        self.tau_BT = tau_BT
        self.rows = rows
        self.prefix = prefix
        self.tau_BRL = tau_BT.unflatten(1, (rows, -1))
        self.slot_1RL = torch.arange(tau_BT.shape[1], device=tau_BT.device).unflatten(
            0, (rows, -1)
        )[None]

    def is_visible(self, tau: Tensor, key: Tensor, now: Tensor, slot: Tensor) -> Tensor:
        """The rule: whether `slot`, emitted at `now`, sees `key` of time `tau`; all of shapes that broadcast."""
        return (tau <= now) & ((key <= slot) | (tau < 0))

    @cached_property
    def is_raster(self) -> bool:
        """Whether time runs as in the teacher: slot by slot, known ones only at the head."""
        return bool((self.tau_BT[:, 1:] > self.tau_BT[:, :-1]).all())

    @cached_property
    def row(self) -> Tensor:
        """[B, R, L, L]: its own row."""
        tau = self.tau_BRL
        slot = self.slot_1RL
        return self.is_visible(
            tau[:, :, None, :], slot[:, :, None, :], tau[..., None], slot[..., None]
        )

    @cached_property
    def column(self) -> Tensor:
        """[B, L, R, R]: its own column."""
        tau = self.tau_BRL.transpose(1, 2)
        slot = self.slot_1RL.transpose(1, 2)
        return self.is_visible(
            tau[:, :, None, :], slot[:, :, None, :], tau[..., None], slot[..., None]
        )

    @cached_property
    def neighbours(self) -> Tensor:
        """[B, R, L, 2L]: the row before and the row after; of the latter only what is known."""
        tau = beside(self.tau_BRL, NEVER)
        slot = beside(self.slot_1RL, NEVER)
        return self.is_visible(
            tau[:, :, None, :],
            slot[:, :, None, :],
            self.tau_BRL[..., None],
            self.slot_1RL[..., None],
        )

    @cached_property
    def everything(self) -> Tensor:
        """[B, T, T]"""
        tau = self.tau_BT
        slot = self.slot_1RL.flatten(1)
        return self.is_visible(tau[:, None, :], slot[:, None, :], tau[..., None], slot[..., None])

    @cached_property
    def left(self) -> Tensor:
        """[B, T]: whether the token before a slot is there when the slot is emitted; not for the first."""
        return F.pad(self.tau_BT[:, :-1] < self.tau_BT[:, 1:], (1, 0))

    @cached_property
    def above(self) -> Tensor:
        """[B, T]: whether the token one row up is there; not for the first row."""
        columns = self.tau_BRL.shape[2]
        return F.pad(self.tau_BT[:, :-columns] < self.tau_BT[:, columns:], (columns, 0))

    @cached_property
    def knows_no_later(self) -> Tensor:
        """[B, T]: slots after which nothing in the music is known.

        Only there is the teacher's distribution given the past a target for the student's (docs/distillation.md).
        """
        known_after = F.pad(self.tau_BT[:, 1:] < 0, (0, 1))
        return known_after.flip(1).cumsum(1).flip(1) == 0


def before(x_BRL: Tensor, outside: float) -> Tensor:
    """Row r - 1 of each row r, [B, R, L, ...]; `outside` where there is none."""
    return F.pad(x_BRL[:, :-1], (*((0, 0) * (x_BRL.ndim - 2)), 1, 0), value=outside)


def beside(x_BRL: Tensor, outside: float) -> Tensor:
    """Row r - 1 and row r + 1 of each row r, [B, R, 2L, ...]; `outside` where there is none."""
    after = F.pad(x_BRL[:, 1:], (*((0, 0) * (x_BRL.ndim - 2)), 0, 1), value=outside)
    return torch.cat([before(x_BRL, outside), after], dim=2)


def grid_attention(
    q_BTHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, pattern: str, sight: GridVisibility
) -> Tensor:
    """What each query gathers under `pattern` by the rule, [B, T, H, D]. With the teacher's order: `attend`."""
    if pattern == "lyrics":
        return attend(q_BTHD, k_BSHD, v_BSHD, pattern)
    if pattern in ("dense", "prefix"):
        seen = sight.prefix if pattern == "prefix" else q_BTHD.shape[1]
        open_mask = unmask_empty_rows(sight.everything[:, :, :seen])
        return _sdpa(q_BTHD, k_BSHD[:, :seen], v_BSHD[:, :seen], *open_mask)
    q = q_BTHD.unflatten(1, (sight.rows, -1))
    k = k_BSHD.unflatten(1, (sight.rows, -1))
    v = v_BSHD.unflatten(1, (sight.rows, -1))
    if pattern == "column":
        out = _in_groups(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), sight.column)
        return out.transpose(1, 2).flatten(1, 2)
    if pattern == "previous_row":
        k = beside(k, 0.0)
        v = beside(v, 0.0)
    mask = sight.neighbours if pattern == "previous_row" else sight.row
    return _in_groups(q, k, v, mask).flatten(1, 2)


def _in_groups(q_BGLHD: Tensor, k_BGSHD: Tensor, v_BGSHD: Tensor, mask_BGLS: Tensor) -> Tensor:
    """Attention within each of G rows (or columns)."""
    batch, groups = q_BGLHD.shape[:2]
    mask = mask_BGLS.expand(batch, -1, -1, -1).flatten(0, 1)
    q = q_BGLHD.flatten(0, 1)
    k = k_BGSHD.flatten(0, 1)
    out = _sdpa(q, k, v_BGSHD.flatten(0, 1), *unmask_empty_rows(mask))
    return out.unflatten(0, (batch, groups))


def unmask_empty_rows(mask_NTS: Tensor) -> tuple[Tensor, Tensor]:
    """A mask in which every query sees something, and which ones see nothing in truth [N, T].

    Softmax over nothing is not a number, in the gradient too: such a query is let see everything and then blanked.
    """
    nothing_NT = ~mask_NTS.any(-1)
    return mask_NTS | nothing_NT[..., None], nothing_NT


def _sdpa(
    q_NTHD: Tensor, k_NSHD: Tensor, v_NSHD: Tensor, mask_NTS: Tensor, nothing_NT: Tensor | None
) -> Tensor:
    """Attention over the second axis with both of `unmask_empty_rows`; a query that sees nothing gathers zeros.

    `nothing_NT` may be None where every query sees something.
    """
    q = q_NTHD.transpose(1, 2)
    k = k_NSHD.transpose(1, 2)
    v = v_NSHD.transpose(1, 2)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_NTS[:, None]).transpose(1, 2)
    return out if nothing_NT is None else out.masked_fill(nothing_NT[..., None, None], 0.0)


def visible_in_order(pattern: str, tau_T: Tensor, rows: int, prefix: int = 0) -> Tensor:
    """The truth about the rule: which keys [T, T] each query sees, as a boolean mask."""
    length = len(tau_T)
    i = torch.arange(length)[:, None]
    j = torch.arange(length)[None, :]
    columns = length // rows
    wide = {
        "dense": torch.ones(length, length, dtype=torch.bool),
        "row": j // columns == i // columns,
        "column": j % columns == i % columns,
        "previous_row": (j // columns - i // columns).abs() == 1,
        "prefix": (j < prefix).expand(length, -1),
    }[pattern]
    later = (j > i) & (tau_T[None, :] >= 0)
    return wide & (tau_T[None, :] <= tau_T[:, None]) & ~later
