"""Factored sparse attention: a reshape and one dense attention, with its masked-dense twin beside it as the truth.

A window of T positions is laid out as R rows of L. Each pattern says what position i (row r, column c) sees:

    dense         0 .. i                                 row           its own row up to i
    column        its own column up to i                 previous_row  the whole row r-1 (nothing for r = 0)
    prefix        0 .. min(i, prefix - 1)                lyrics        every lyric state (keys come from elsewhere)

Jukebox (Dhariwal et al. 2020, after Child et al. 2019) builds its priors of these; `schedule` names their orders.
"""

# B batch   T positions   R rows   L positions in a row (T = R*L)   S keys   H heads   D size of a head
import torch
import torch.nn.functional as F
from torch import Tensor

TRIPLE = ("row", "column", "previous_row")


def _every_16th(*guests: str) -> tuple[str, ...]:
    """48 layers of `TRIPLE`, in which the three `guests` take layers 16, 32 and 48."""
    return tuple(guests[d // 16] if d % 16 == 15 else TRIPLE[d % 3] for d in range(48))


# What the layers of a transformer are, one period each; a schedule is repeated to the depth of the model.
SCHEDULES: dict[str, tuple[str, ...]] = {
    "dense": ("dense",),
    "row_column": ("row", "column"),
    "factored": TRIPLE,
    "factored_lyrics": (*TRIPLE, "lyrics"),
    "factored_lyrics_16": (*TRIPLE * 5, "lyrics"),
    "factored_lyrics_10": (*TRIPLE * 3, "lyrics"),
    "factored_dense": (*TRIPLE, "dense"),
    "lyrics_after_18": TRIPLE * 3 + (*TRIPLE * 3, "lyrics") * 7,
    "lyrics_dense_16": _every_16th("lyrics", "lyrics", "dense"),
    "prefix_dense_16": _every_16th("prefix", "prefix", "dense"),
}


def schedule(name: str, depth: int) -> list[str]:
    """The pattern of each of `depth` layers. Raises ValueError for an unknown schedule."""
    if name not in SCHEDULES:
        raise ValueError(f"schedule {name!r} is unknown; choose one of {', '.join(SCHEDULES)}")
    period = SCHEDULES[name]
    return [period[d % len(period)] for d in range(depth)]


def attend(
    q_BTHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, pattern: str, rows: int = 1, prefix: int = 0
) -> Tensor:
    """What each query gathers under `pattern`, [B, T, H, D]. T must be a multiple of `rows` for the row patterns."""
    if pattern == "row":
        q = q_BTHD.unflatten(1, (rows, -1)).flatten(0, 1)
        k = k_BSHD.unflatten(1, (rows, -1)).flatten(0, 1)
        v = v_BSHD.unflatten(1, (rows, -1)).flatten(0, 1)
        return _softmax_attention(q, k, v, causal=True).unflatten(0, (-1, rows)).flatten(1, 2)
    if pattern == "column":
        columns = q_BTHD.shape[1] // rows
        q = q_BTHD.unflatten(1, (rows, columns)).transpose(1, 2).flatten(0, 1)
        k = k_BSHD.unflatten(1, (rows, columns)).transpose(1, 2).flatten(0, 1)
        v = v_BSHD.unflatten(1, (rows, columns)).transpose(1, 2).flatten(0, 1)
        out = _softmax_attention(q, k, v, causal=True).unflatten(0, (-1, columns))
        return out.transpose(1, 2).flatten(1, 2)
    if pattern == "previous_row":
        return _previous_row(q_BTHD, k_BSHD, v_BSHD, rows)
    if pattern == "dense":
        return _softmax_attention(q_BTHD, k_BSHD, v_BSHD, causal=True)
    if pattern == "prefix":
        k_BSHD = k_BSHD[:, :prefix]
        v_BSHD = v_BSHD[:, :prefix]
        mask_TS = torch.ones(
            q_BTHD.shape[1], k_BSHD.shape[1], dtype=torch.bool, device=q_BTHD.device
        ).tril()
        return _softmax_attention(q_BTHD, k_BSHD, v_BSHD, mask=mask_TS)
    assert pattern == "lyrics", pattern
    return _softmax_attention(q_BTHD, k_BSHD, v_BSHD)


def _softmax_attention(
    q: Tensor, k: Tensor, v: Tensor, causal: bool = False, mask: Tensor | None = None
) -> Tensor:
    """Attention over the second axis of [N, T, H, D]."""
    q = q.transpose(1, 2)
    k = k.transpose(1, 2)
    v = v.transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal).transpose(1, 2)


def _previous_row(q: Tensor, k: Tensor, v: Tensor, rows: int) -> Tensor:
    """Each row of queries over the row before it; the first row gathers zeros."""
    length = q.shape[1] // rows
    if rows == 1:
        return torch.zeros_like(q)
    later = q[:, length:].unflatten(1, (rows - 1, length)).flatten(0, 1)
    keys = k[:, :-length].unflatten(1, (rows - 1, length)).flatten(0, 1)
    values = v[:, :-length].unflatten(1, (rows - 1, length)).flatten(0, 1)
    out = _softmax_attention(later, keys, values).unflatten(0, (-1, rows - 1)).flatten(1, 2)
    return torch.cat([torch.zeros_like(q[:, :length]), out], dim=1)


def visible(
    pattern: str, length: int, rows: int = 1, prefix: int = 0, keys: int | None = None
) -> Tensor:
    """The truth about `pattern`: which keys [T, S] each query sees, as a boolean mask."""
    i = torch.arange(length)[:, None]
    j = torch.arange(keys or length)[None, :]
    size = length // rows
    return {
        "dense": j <= i,
        "row": (j <= i) & (j // size == i // size),
        "column": (j <= i) & (j % size == i % size),
        "previous_row": j // size == i // size - 1,
        "prefix": (j <= i) & (j < prefix),
        "lyrics": torch.ones_like(i * j, dtype=torch.bool),
    }[pattern]


def masked_dense_attention(
    q_BTHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, mask_TS: Tensor
) -> Tensor:
    """The slow obvious attention: every score, then the mask. A query that sees nothing gathers zeros."""
    scores = (
        torch.einsum("bthd,bshd->bhts", q_BTHD.float(), k_BSHD.float()) / q_BTHD.shape[-1] ** 0.5
    )
    weights = torch.softmax(scores.masked_fill(~mask_TS, -torch.inf), dim=-1).nan_to_num(0.0)
    return torch.einsum("bhts,bshd->bthd", weights, v_BSHD.float()).to(q_BTHD.dtype)
