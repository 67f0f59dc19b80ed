"""Kernels of a decoding step in Triton; import it only where Triton is. Their plain twins are in step_ops.py.

Each launch reads what it needs once: a step launches a thousand kernels of a few microseconds, so what counts is how
many there are. None uses tensor cores, which Volta's Triton lacks: they are compiled for sm_70 too.
"""

# B songs   H heads   D size of a head   P what a projection gives: query, key, value   S positions of a cache   W width
import torch
import triton
import triton.language as tl
from torch import Tensor

# Elements of keys that a program holds at a time, in registers beside as many values: 64 of each a thread.
ATTENTION_TILE = 16384
ATTENTION_WARPS = 8
MAX_NORM_WARPS = 16
GELU_BLOCK = 1024  # elements a program


@triton.jit
def _attend(
    qkv,
    memory,
    previous,
    index,
    out,
    batch_stride,
    part_stride,
    head_stride,
    store_kv_stride,
    store_batch_stride,
    store_head_stride,
    store_stride,
    kv_stride,
    memory_batch_stride,
    memory_head_stride,
    stride,
    num_heads,
    num_keys,
    scale,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    KEYS: tl.constexpr,
    STORES: tl.constexpr,
    CAUSAL: tl.constexpr,
):
    """One query of one head: over the keys before `index` and its own (CAUSAL), or over all `num_keys`.

    STORES: its key and value go to `memory` at `index`, if that is within. Keys are read from `previous`, which is
    `memory` where CAUSAL. The own key is not read back: other threads of the program may not have written it yet.
    """
    program = tl.program_id(0)
    song = (program // num_heads).to(tl.int64)  # caches may hold more than 2^31 elements
    head = program % num_heads
    d = tl.arange(0, BLOCK)
    inside = d < SIZE
    stored = d < PADDED
    source = qkv + song * batch_stride + head * head_stride + d
    q = tl.load(source, inside, 0.0).to(tl.float32) * scale
    position = num_keys
    highest = -float("inf")
    total = 0.0
    mixed = tl.zeros([BLOCK], tl.float32)
    if STORES:
        position = tl.load(index).to(tl.int32)
        k = tl.load(source + part_stride, inside, 0.0)
        v = tl.load(source + 2 * part_stride, inside, 0.0)
        target = memory + song * store_batch_stride + head * store_head_stride
        target += position.to(tl.int64) * store_stride + d
        within = stored & (position < num_keys)
        tl.store(target, k, within)
        tl.store(target + store_kv_stride, v, within)
        if CAUSAL:
            own = tl.sum(q * k.to(tl.float32))
            seen = position < num_keys
            highest = tl.where(seen, own, highest)
            total = tl.where(seen, 1.0, 0.0)
            mixed = tl.where(seen, v.to(tl.float32), mixed)
    end = num_keys
    if CAUSAL:
        end = tl.minimum(position, num_keys)
    base = previous + song * memory_batch_stride + head * memory_head_stride
    for first in range(0, end, KEYS):
        s = first + tl.arange(0, KEYS)
        place = base + s[:, None] * stride + d[None, :]
        mask = (s < end)[:, None] & stored[None, :]
        k_SD = tl.load(place, mask, 0.0).to(tl.float32)
        v_SD = tl.load(place + kv_stride, mask, 0.0).to(tl.float32)
        scores = tl.where(s < end, tl.sum(q[None, :] * k_SD, 1), -float("inf"))
        new_highest = tl.maximum(highest, tl.max(scores, 0))
        kept = tl.exp(highest - new_highest)
        weights = tl.exp(scores - new_highest)
        total = total * kept + tl.sum(weights, 0)
        mixed = mixed * kept + tl.sum(weights[:, None] * v_SD, 0)
        highest = new_highest
    result = mixed / total
    tl.store(out + program * SIZE + d, result.to(out.dtype.element_ty), inside)


@triton.jit
def _add_norm(
    base, update, weight, bias, total, normed, scale, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    """A row of base + scale * update, rounded as it is stored, and its layer norm."""
    row = tl.program_id(0).to(tl.int64) * WIDTH
    w = tl.arange(0, BLOCK)
    inside = w < WIDTH
    x = tl.load(base + row + w, inside, 0.0).to(tl.float32)
    x += tl.load(update + row + w, inside, 0.0).to(tl.float32) * scale
    rounded = x.to(total.dtype.element_ty)
    tl.store(total + row + w, rounded, inside)
    x = rounded.to(tl.float32)
    away = tl.where(inside, x - tl.sum(x, 0) / WIDTH, 0.0)
    deviation = tl.sqrt(tl.sum(away * away, 0) / WIDTH + eps)
    factor = tl.load(weight + w, inside, 0.0).to(tl.float32)
    shift = tl.load(bias + w, inside, 0.0).to(tl.float32)
    result = away / deviation * factor + shift
    tl.store(normed + row + w, result.to(normed.dtype.element_ty), inside)


@triton.jit
def _quick_gelu(x, count, BLOCK: tl.constexpr):
    """x sigmoid(1.702 x), in place."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    value = tl.load(x + i, inside, 0.0)
    wide = value.to(tl.float32)
    tl.store(x + i, (wide / (1.0 + tl.exp(-1.702 * wide))).to(value.dtype), inside)


def decode_attention(
    qkv_BPHD: Tensor, memory: Tensor, index: Tensor, previous: Tensor | None
) -> Tensor:
    """See step_ops.py."""
    songs, parts, heads, size = qkv_BPHD.shape
    read = memory if previous is None else previous
    padded = read.shape[-1]
    block = triton.next_power_of_2(padded)
    out = qkv_BPHD.new_empty(songs, heads * size)
    _attend[(songs * heads,)](
        qkv_BPHD,
        memory,
        read,
        index,
        out,
        *qkv_BPHD.stride()[:3],
        *memory.stride()[:4],
        *read.stride()[:4],
        heads,
        read.shape[3],
        size**-0.5,
        SIZE=size,
        PADDED=padded,
        BLOCK=block,
        KEYS=max(1, ATTENTION_TILE // block),
        STORES=parts == 3,
        CAUSAL=parts == 3 and previous is None,
        num_warps=ATTENTION_WARPS,
    )
    return out


def add_norm(
    base_MW: Tensor, update_MW: Tensor, weight: Tensor, bias: Tensor, scale: float, eps: float
) -> tuple[Tensor, Tensor]:
    """See step_ops.py."""
    rows, width = base_MW.shape
    assert base_MW.is_contiguous() and update_MW.is_contiguous()
    total = torch.empty_like(base_MW)
    normed = torch.empty_like(base_MW)
    block = triton.next_power_of_2(width)
    _add_norm[(rows,)](
        base_MW,
        update_MW,
        weight,
        bias,
        total,
        normed,
        scale,
        eps,
        WIDTH=width,
        BLOCK=block,
        num_warps=norm_warps(block),
    )
    return total, normed


def norm_warps(block: int) -> int:
    """Warps of a program that norms a row of so many elements: 8 elements a thread."""
    return min(MAX_NORM_WARPS, max(1, block // 256))


def quick_gelu_(x_MW: Tensor) -> None:
    """See step_ops.py."""
    count = x_MW.numel()
    _quick_gelu[(triton.cdiv(count, GELU_BLOCK),)](x_MW, count, BLOCK=GELU_BLOCK)
