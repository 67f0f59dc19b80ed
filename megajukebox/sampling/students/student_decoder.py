"""One window after another is for the teacher: a student emits many slots of many windows at each step, with caches.

Its slow twin `emit_slowly` makes a full forward pass for every step.
"""

# B windows   N slots of a step   S keys of a slot   T slots of a window   R rows   L slots in a row   H heads   D size
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from megajukebox.models.grid_order import (
    NEVER,
    GridVisibility,
    _sdpa,
    before,
    beside,
    grid_attention,
    unmask_empty_rows,
)
from megajukebox.models.prior import Conditioning
from megajukebox.models.student import Student
from megajukebox.models.transformer import Attention, TransformerBlock
from megajukebox.sampling.decoding.decoder import PackedBlock, PackedPrior
from megajukebox.sampling.decoding.token_sampling import TokenSampler
from megajukebox.sampling.levels.level_sampler import Progress


@dataclass(frozen=True)
class StudentTokenSampler:
    """How codes are sampled for B windows: each song's sampler, and where in its song each window starts (in codes)."""

    token_sampler: TokenSampler
    start_B: Tensor  # int64

    def __call__(self, logits_BNV: Tensor, slots_N: Tensor) -> Tensor:
        """Codes [B, N] of the slots: each with the noise of its own position in the song, as the teacher's."""
        return self.token_sampler(logits_BNV, self.start_B[:, None] + slots_N).codes


@dataclass(frozen=True)
class StudentStep:
    """Slots of equal time, and by pattern which keys are seen: all made before the first step, so none waits.

    Any order may gather its keys, slot by slot. Where the slots are a whole `column` of the grid, they lie together.
    """

    slots_N: Tensor
    masks: dict[str, tuple[Tensor, Tensor | None]]  # pattern -> of `_mask`
    keys: dict[str, Tensor]  # pattern -> [N, S] slots; of no use to a whole column
    known_BN: Tensor | None  # whose keys are there already, and stay
    column: int | None = None
    width: int = 0  # columns that anyone of a whole column looks at

    @property
    def size(self) -> int:
        return len(self.slots_N)


def plan_steps(student: Student, sight: GridVisibility, known_BT: Tensor) -> list[StudentStep]:
    """The steps that emit every slot which is not known in all windows."""
    patterns = {block.attention.pattern for block in student.blocks} - {"lyrics"}
    known = known_BT if known_BT.any() else None
    steps: list[StudentStep] = []
    if student.how.order[::2] == (0, 1):
        open_L = (~known_BT).unflatten(1, (student.how.rows, -1)).flatten(0, 1).any(0)
        width = 0 if known is None else student.how.columns
        for column in open_L.nonzero()[:, 0].tolist():
            steps.append(_column_step(column, width or column + 1, patterns, sight, known))
        return steps
    times_T = student.sight().tau_BT[0]
    unknown_T = ~known_BT.all(0)
    for time in times_T[unknown_T].unique():
        slots_N = (unknown_T & (times_T == time)).nonzero()[:, 0]
        now_BN1 = sight.tau_BT[:, slots_N, None]
        keys = {}
        masks = {}
        for pattern in patterns:
            wide_NS, real_NS = pattern_keys(pattern, slots_N, sight)
            tau_BNS = sight.tau_BT[:, wide_NS].masked_fill(~real_NS, NEVER)
            seen_BNS = sight.is_visible(tau_BNS, wide_NS, now_BN1, slots_N[:, None])
            some_S = seen_BNS.flatten(0, 1).any(0)
            keys[pattern] = wide_NS[:, some_S]
            masks[pattern] = _mask(seen_BNS[..., some_S])
        known_BN = None if known is None else known[:, slots_N]
        steps.append(StudentStep(slots_N, masks, keys, known_BN))
    return steps


def _column_step(
    column: int, width: int, patterns: set[str], sight: GridVisibility, known_BT: Tensor | None
) -> StudentStep:
    near = before if known_BT is None else beside

    def keys_of(x_BRL: Tensor) -> dict[str, Tensor]:
        return {
            "row": x_BRL[:, :, :width],
            "previous_row": near(x_BRL[:, :, :width], NEVER),
            "column": x_BRL[:, None, :, column],
            "dense": x_BRL.flatten(1)[:, None],
            "prefix": x_BRL.flatten(1)[:, None, : sight.prefix],
        }

    tau = keys_of(sight.tau_BRL)
    keys = keys_of(sight.slot_1RL)
    now_BR1 = sight.tau_BRL[:, :, column, None]
    slot_1R1 = sight.slot_1RL[:, :, column, None]
    masks = {p: _mask(sight.is_visible(tau[p], keys[p], now_BR1, slot_1R1)) for p in patterns}
    slots = slot_1R1[0, :, 0]
    return StudentStep(
        slots, masks, {}, None if known_BT is None else known_BT[:, slots], column, width
    )


def _mask(seen_BNS: Tensor) -> tuple[Tensor, Tensor | None]:
    """The mask [B or 1, N, S] `opened`, and who sees nothing, if anyone."""
    mask_BNS, nothing_BN = unmask_empty_rows(seen_BNS)
    return mask_BNS, nothing_BN if nothing_BN.any() else None


def pattern_keys(pattern: str, slots_N: Tensor, sight: GridVisibility) -> tuple[Tensor, Tensor]:
    """The slots [N, S] of a pattern before time is asked, and which of them are in the window at all."""
    rows, columns = sight.tau_BRL.shape[1:]
    along = torch.arange(columns, device=slots_N.device)
    down = torch.arange(rows, device=slots_N.device)
    row = slots_N // columns
    column = slots_N % columns
    if pattern == "row":
        keys = row[:, None] * columns + along
    elif pattern == "column":
        keys = down * columns + column[:, None]
    elif pattern == "previous_row":
        above = (row[:, None] - 1) * columns + along
        below = (row[:, None] + 1) * columns + along
        keys = torch.cat([above, below], dim=1)
    else:
        size = sight.prefix if pattern == "prefix" else rows * columns
        keys = torch.arange(size, device=slots_N.device).expand(len(slots_N), -1)
    inside = (keys >= 0) & (keys < rows * columns)
    return keys.clamp(0, rows * columns - 1), inside


class StudentCache:
    """Keys and values of one layer for every slot, [B, T, H, D]: made once, never grown."""

    def __init__(self, attention: Attention, batch: int, length: int, given: Conditioning):
        self.attention = attention
        if attention.pattern == "lyrics":
            assert given.lyrics is not None
            keys, values = attention.lyric_keys(given.lyrics)
            self.keys = keys.transpose(1, 2)
            self.values = values.transpose(1, 2)
            return
        weight = attention.merge.weight
        shape = batch, length, attention.heads, weight.shape[1] // attention.heads
        self.keys = weight.new_zeros(shape)
        self.values = weight.new_zeros(shape)

    def prefill(self, x_BTW: Tensor, sight: GridVisibility) -> Tensor:
        """The attention output of a whole window, remembering all of it: what is not known is written again."""
        if self.attention.pattern == "lyrics":
            q = self.attention.split(self.attention.query(x_BTW)).transpose(1, 2)
            read = F.scaled_dot_product_attention(q, self.keys, self.values)
            return self.attention.out(read.transpose(1, 2))
        q, self.keys[:], self.values[:] = self.attention.qkv(x_BTW)
        return self.attention.out(
            grid_attention(q, self.keys, self.values, self.attention.pattern, sight)
        )

    def step(self, qkv_BNX: Tensor, step: StudentStep) -> Tensor:
        """What the queries of a step's slots gather, [B, N, A], from the projections of their inputs."""
        if self.attention.pattern == "lyrics":
            q = self.attention.split(qkv_BNX).transpose(1, 2)
            read = F.scaled_dot_product_attention(q, self.keys, self.values)
            return read.transpose(1, 2).flatten(2)
        q, k, v = (self.attention.split(x) for x in qkv_BNX.chunk(3, dim=-1))
        for memory, new in ((self.keys, k), (self.values, v)):
            if step.known_BN is not None:
                new = torch.where(step.known_BN[..., None, None], memory[:, step.slots_N], new)
            memory[:, step.slots_N] = new
        return self._attend(q, step).flatten(2)

    def _attend(self, q_BNHD: Tensor, step: StudentStep) -> Tensor:
        pattern = self.attention.pattern
        mask_BNS, nothing_BN = step.masks[pattern]
        if step.column is None:  # [B, N, S, H, D]
            keys = self.keys[:, step.keys[pattern]]
            values = self.values[:, step.keys[pattern]]
        else:
            keys = self._beside_column(self.keys, step)
            values = self._beside_column(self.values, step)
        if keys.ndim == 4:  # [B, S, H, D]: all slots look at the same keys
            return _sdpa(q_BNHD, keys, values, mask_BNS, nothing_BN)
        mask = mask_BNS.expand(len(q_BNHD), -1, -1).flatten(0, 1)[:, None]
        q = q_BNHD.flatten(0, 1)[:, None]
        out = _sdpa(q, keys.flatten(0, 1), values.flatten(0, 1), mask, None)
        out = out[:, 0].unflatten(0, q_BNHD.shape[:2])
        return out if nothing_BN is None else out.masked_fill(nothing_BN[..., None, None], 0.0)

    def _beside_column(self, memory_BTHD: Tensor, step: StudentStep) -> Tensor:
        """What the slots of a whole column may look at: the same [B, S, H, D], or [B, R, S, H, D] for each row."""
        pattern = self.attention.pattern
        memory = memory_BTHD.unflatten(1, (self.attention.rows, -1))
        if pattern == "row":
            return memory[:, :, : step.width]
        if pattern == "previous_row":
            return (before if step.known_BN is None else beside)(memory[:, :, : step.width], 0.0)
        if pattern == "column":
            return memory[:, :, step.column]
        return memory_BTHD[:, : self.attention.prefix or None]


class PlainBlock:
    """A block for steps as it is, weights where training keeps them: the twin of `PackedBlock`."""

    def __init__(self, block: TransformerBlock):
        self.block = block

    def __call__(self, h_MW: Tensor, memory: StudentCache, step: StudentStep) -> Tensor:
        attention = self.block.attention
        project = attention.query if attention.pattern == "lyrics" else attention.project
        qkv_BNX = project(self.block.norm_attention(h_MW)).unflatten(0, (-1, step.size))
        return self.block.update(h_MW, attention.merge(memory.step(qkv_BNX, step).flatten(0, 1)))


class StudentDecoder:
    """The layers of a student with their memories, for B windows of which `known` [B, T] slots are given.

    `packed`: the student's layers laid out for steps; a student in training must not be packed, its weights would move.
    """

    def __init__(
        self,
        student: Student,
        conditioning: Conditioning,
        known_BT: Tensor,
        packed: PackedPrior | None = None,
    ):
        self.student = student
        self.conditioning = conditioning
        self.sight = student.sight(known_BT if known_BT.any() else None)
        self.steps = plan_steps(student, self.sight, known_BT)
        self.packed = packed
        self.blocks: Sequence[PackedBlock | PlainBlock]
        self.blocks = packed.blocks if packed else list(map(PlainBlock, student.blocks))
        batch, length = known_BT.shape
        self.layers = [
            StudentCache(block.attention, batch, length, conditioning) for block in student.blocks
        ]

    def prefill(self, codes_BT: Tensor) -> None:
        """Take in the known codes in one parallel pass."""
        h = self._inputs(codes_BT, torch.arange(codes_BT.shape[1], device=codes_BT.device))
        for block, layer in zip(self.student.blocks, self.layers):
            h = block.update(h, layer.prefill(block.norm_attention(h), self.sight))

    def step(self, codes_BT: Tensor, step: StudentStep) -> Tensor:
        """Logits [B, N, V] of a step's slots from the codes emitted before."""
        h = self._inputs(codes_BT, step.slots_N).flatten(0, 1)
        if self.packed is not None:
            h = self.packed.layers(h, self.layers, step)
        else:
            for block, layer in zip(self.blocks, self.layers):
                h = block(h, layer, step)
        added = (
            None
            if self.conditioning.added is None
            else self.conditioning.added[:, step.slots_N].flatten(0, 1)
        )
        logits = self.packed.logits(h, added) if self.packed else self.student.predict(h, added)
        return logits.unflatten(0, (-1, step.size))

    def _inputs(self, codes_BT: Tensor, slots_N: Tensor) -> Tensor:
        sight = self.sight
        length = codes_BT.shape[1]
        left = (slots_N - 1) % length
        above = (slots_N - self.student.how.columns) % length
        return self.student.embed(
            codes_BT[:, left],
            sight.left[:, slots_N],
            codes_BT[:, above],
            sight.above[:, slots_N],
            slots_N,
            self.conditioning,
        )


@contextmanager
def student_decoding(
    student: Student,
    conditioning: Conditioning,
    known_BT: Tensor,
    packed: PackedPrior | None = None,
) -> Iterator[StudentDecoder]:
    """The decoder's memory exists only inside the block."""
    decoder = StudentDecoder(student, conditioning, known_BT, packed)
    try:
        yield decoder
    finally:
        decoder.layers.clear()


@torch.inference_mode()
def emit(
    student: Student,
    conditioning: Conditioning,
    codes_BT: Tensor,
    known_BT: Tensor,
    token_sampler: StudentTokenSampler,
    progress: Progress = lambda count: None,
    packed: PackedPrior | None = None,
) -> Tensor:
    """`codes` [B, T] of B windows with every slot sampled that is not `known` [B, T]; known ones stay as they are."""
    codes = codes_BT.clone()
    with student_decoding(student, conditioning, known_BT, packed) as decoder:
        if known_BT.any():
            decoder.prefill(codes)
        for step in decoder.steps:
            drawn = token_sampler(decoder.step(codes, step), step.slots_N)
            codes[:, step.slots_N] = torch.where(
                known_BT[:, step.slots_N], codes[:, step.slots_N], drawn
            )
            progress(len(step.slots_N))
    return codes


@torch.inference_mode()
def emit_slowly(
    student: Student,
    conditioning: Conditioning,
    codes_BT: Tensor,
    known_BT: Tensor,
    token_sampler: StudentTokenSampler,
) -> Tensor:
    """The twin of `emit` without caches: one full forward pass for every step."""
    codes = codes_BT.clone()
    times_T = student.sight().tau_BT[0]
    for time in times_T.unique():
        slots = torch.nonzero(times_T == time)[:, 0]
        drawn = token_sampler(student.logits(codes, conditioning, known_BT)[:, slots], slots)
        codes[:, slots] = torch.where(known_BT[:, slots], codes[:, slots], drawn)
    return codes
