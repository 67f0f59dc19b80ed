"""The conditioners of a prior: labels, timing, the level above, lyrics, and whatever follows the song in time.

How each is read from a song or a request is in conditioning/schema.py.
"""

# B batch   T positions of a window   W width of the prior   N lyric tokens
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from megajukebox.common.renamed_keys import accept_old_keys
from megajukebox.models.convnet import Conv1d, Stack, doubling, residual_stack
from megajukebox.models.transformer import Dense, Norm, Table, TransformerConfig, blocks


class LabelConfig(BaseModel):
    """One condition given as ids: a single name (`max_values` 1) or a bag of at most `max_values` names. Id 0 is "unknown"."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    _old_keys = accept_old_keys(slots="max_values", size="table_size")

    max_values: int = Field(1, gt=0)
    table_size: int = Field(gt=0, description="entries of the vocabulary, the unknown one included")


class TimingConfig(BaseModel):
    """Tables for how long the song is, where the window lies, and at what share of the song, in `bins` each."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bins: int = Field(gt=0)
    min_seconds: float = Field(ge=0)
    max_seconds: float = Field(gt=0)


class UpsamplerConditionerConfig(BaseModel):
    """The dilated convolutions that bring the codes of the level above to this level's rate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = Field(gt=0)
    depth: int = Field(gt=0)
    down: int = Field(2, gt=0, description="number of lengthening convolutions")
    stride: int = Field(2, gt=0)
    dilation_growth: int = 3
    dilation_cycle: int | None = None
    hidden_ratio: float = 1.0
    residual_scale: bool = False
    zero_out: bool = False
    codebook_size: int | None = Field(
        default=None,
        gt=1,
        description="codes of the level above, where they are not as many as here",
    )

    @property
    def ratio(self) -> int:
        """Codes of this level per code of the level above."""
        return self.stride**self.down


class LyricsConfig(BaseModel):
    """How lyrics enter: a separate `encoder` read by lyrics layers, or a `prefix` of the one sequence."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: str = Field("encoder", pattern="^(encoder|prefix)$")
    tokens: int = Field(gt=0, description="lyric tokens that a window sees")
    size: int = Field(gt=0, description="entries of the tokenizer's vocabulary, padding included")
    loss_weight: float = Field(0.4, ge=0)
    encoder: TransformerConfig | None = None


class AlignedConfig(BaseModel):
    """Base of the configs of conditions that follow the song in time; each adds its own shape."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class AlignedKind:
    """A row of `ALIGNED`: one condition that follows the song in time.

    Arrays of zeros stand for a window of which nothing is known (dropout, guidance).
    `module(config, width, window)` maps the condition's array [B, ...] of a window to what is added to each of its
    codes [B, window, width]; it ends in a layer of zeros, so that a trained prior starts undisturbed.
    `example(config, size, window)` is a random array of `size` windows.
    """

    config: type[AlignedConfig]
    module: Callable[[Any, int, int], nn.Module]
    example: Callable[[Any, int, int], Tensor]


class ClockConfig(AlignedConfig):
    """Tables for where in the music each event stands: place in the bar, number of the bar, note of the chord, share of
    the piece that is over, ticks until a note ends; and for what each part sings. Entry 0 of each is "unknown"."""

    sizes: tuple[int, ...] = (97, 9, 9, 33, 98)
    notes: int = Field(gt=1, description="ids of what parts sing, 0 (nothing) included")
    voices: int = Field(default=8, gt=0, description="parts of which it is told, at most")


class ClockConditioner(nn.Module):
    """[B, T, W] from the clock [B, T, X] of notes/clock.py; zeros at its start, and where nothing is known."""

    def __init__(self, config: ClockConfig, width: int, window: int):
        super().__init__()
        self.tables = nn.ModuleList(Table(size, width, 0.0) for size in config.sizes)
        self.notes = Table(config.notes, width, 0.0)

    def forward(self, clock_BTX: Tensor) -> Tensor:
        places = len(self.tables)
        voices_BTV = clock_BTX[..., places:]
        total = (self.notes(voices_BTV) * (voices_BTV > 0)[..., None]).sum(2)
        for table, ids_BT in zip(self.tables, clock_BTX[..., :places].unbind(-1)):
            total = total + table(ids_BT) * (ids_BT > 0)[..., None]
        return total


def example_clock(config: ClockConfig, size: int, window: int) -> Tensor:
    """Random ids [size, window, X]."""
    entries = [*config.sizes, *[config.notes] * config.voices]
    return torch.stack([torch.randint(count, (size, window)) for count in entries], dim=-1)


class ScoreConfig(AlignedConfig):
    """Convolutions over what is known of a score; its frames and ids are those of notes/holes.py."""

    entries: int = Field(gt=1, description="ids of what can be known, 0 (nothing) included")
    slots: int = Field(default=16, gt=0, description="ids of a frame at most")
    width: int = Field(default=96, gt=0)
    depth: int = Field(default=4, gt=0)
    dilation_growth: int = 3


class ScoreConditioner(nn.Module):
    """[B, T, W] from a score [B, T, 1 + slots]: before and behind each event, which notes and parts are known.

    Column 0 of row t is the frame in which event t stands, from 1 on; 0: add nothing. The other columns are the ids of
    frame t. It starts at zero.
    """

    def __init__(self, config: ScoreConfig, width: int, window: int):
        super().__init__()
        self.table = Table(config.entries, config.width, 1.0)
        stacked = residual_stack(config.width, config.depth, config.dilation_growth, None, 1.0)
        self.layers = Stack(Conv1d(config.width, config.width, 3, padding=1), stacked)
        self.norm = Norm(config.width)
        self.project = Dense(config.width, width, 0.0)

    def frames(self, ids_BFS: Tensor) -> Tensor:
        """What is added to the events of each frame, [B, F, W]."""
        filled_BFS1 = (ids_BFS > 0)[..., None]
        x_BFW = (self.table(ids_BFS) * filled_BFS1).sum(2)
        count_BF1 = filled_BFS1.sum(2).clamp(min=1)
        x_BFW = x_BFW * count_BF1.rsqrt().to(x_BFW.dtype)
        h_BFW = self.layers(x_BFW.transpose(1, 2)).transpose(1, 2)
        return self.project(self.norm(h_BFW))

    def forward(self, score_BTX: Tensor) -> Tensor:
        frame_BT1 = score_BTX[..., :1]
        frames_BFW = self.frames(score_BTX[..., 1:])
        index_BTW = (frame_BT1 - 1).clamp(min=0).expand(-1, -1, frames_BFW.shape[-1])
        return frames_BFW.gather(1, index_BTW) * (frame_BT1 > 0)


def example_score(config: ScoreConfig, size: int, window: int) -> Tensor:
    """A random score [size, window, 1 + slots]."""
    frames = torch.randint(window + 1, (size, window, 1))
    return torch.cat([frames, torch.randint(config.entries, (size, window, config.slots))], dim=-1)


class SectionsConfig(AlignedConfig):
    """Tables for the kind and occurrence of the section that a code stands in, and for where in it."""

    kinds: int = Field(8, gt=0, description="rows; the first 8 are those of section_kinds.py")
    occurrences: int = Field(9, gt=0)
    bins: int = Field(64, gt=0, description="of the time since its start, and of its share")
    max_seconds: float = Field(60.0, gt=0)


class SectionConditioner(nn.Module):
    """[B, T, W] from the places [B, T, 4] of conditioning/section_conditions.py; it starts at zero."""

    def __init__(self, config: SectionsConfig, width: int, window: int):
        super().__init__()
        sizes = (config.kinds, config.occurrences, config.bins + 1, config.bins + 1)
        self.tables = nn.ModuleList(Table(size, width, 0.0) for size in sizes)

    def forward(self, places_BT4: Tensor) -> Tensor:
        total: Tensor | None = None
        for table, ids_BT in zip(self.tables, places_BT4.unbind(-1)):
            vectors = table(ids_BT) * (ids_BT > 0)[..., None]  # id 0: nothing is known
            total = vectors if total is None else total + vectors
        assert total is not None
        return total


def example_places(config: SectionsConfig, size: int, window: int) -> Tensor:
    """Random places [size, window, 4]."""
    sizes = (config.kinds, config.occurrences, config.bins + 1, config.bins + 1)
    return torch.stack([torch.randint(entries, (size, window)) for entries in sizes], dim=-1)


class MemoryConfig(AlignedConfig):
    """Dilated convolutions over the codes that a section repeats, aligned with its own."""

    codebook_size: int = Field(gt=1, description="codes of the level; a preset leaves it out")
    margin: int = Field(256, ge=0, description="codes that are told on both sides of the window")
    width: int = Field(512, gt=0)
    depth: int = Field(8, gt=0)
    dilation_growth: int = Field(3, gt=0)
    dilation_cycle: int | None = Field(4, gt=0)
    jitter_seconds: float = Field(
        0.1, ge=0, description="by which training moves the alignment, at most"
    )
    noise: float = Field(0.1, ge=0, lt=1, description="share of codes that training leaves out")


class MemoryConditioner(nn.Module):
    """[B, T, W] from the memory [B, M + T + M]: code + 1, 0 is nothing. It starts at zero, and is zero where nothing is."""

    def __init__(self, config: MemoryConfig, width: int, window: int):
        super().__init__()
        self.own = slice(config.margin, config.margin + window)
        self.table = Table(config.codebook_size + 1, config.width, 1.0)
        stacked = residual_stack(
            config.width,
            config.depth,
            config.dilation_growth,
            config.dilation_cycle,
            scale=config.depth**-0.5,
        )
        self.layers = Stack(Conv1d(config.width, config.width, 3, padding=1), stacked)
        self.norm = Norm(config.width)
        self.project = Dense(config.width, width, 0.0)

    def forward(self, memory_BS: Tensor) -> Tensor:
        h_BCS = self.layers(self.table(memory_BS).transpose(1, 2))
        h_BTC = h_BCS[..., self.own].transpose(1, 2)
        return self.project(self.norm(h_BTC)) * (memory_BS[:, self.own] > 0)[..., None]


def example_memory(config: MemoryConfig, size: int, window: int) -> Tensor:
    """Random codes [size, margin + window + margin]."""
    return torch.randint(config.codebook_size + 1, (size, window + 2 * config.margin))


# Conditions that follow the song in time, by the name under which batches and configs hold them: written notes, stems,
# sections ... To add one: a row here, a row in conditioning/schema.py (docs/architecture.md).
ALIGNED: dict[str, AlignedKind] = {
    "clock": AlignedKind(ClockConfig, ClockConditioner, example_clock),
    "score": AlignedKind(ScoreConfig, ScoreConditioner, example_score),
    "sections": AlignedKind(SectionsConfig, SectionConditioner, example_places),
    "memory": AlignedKind(MemoryConfig, MemoryConditioner, example_memory),
}


class LabelConditioner(nn.Module):
    """The start vector [B, 1, W]: the sum of the embeddings of every filled slot of every condition."""

    def __init__(self, labels: dict[str, LabelConfig], width: int, init_scale: float):
        super().__init__()
        self.tables = nn.ModuleDict()
        for name, label in labels.items():
            self.tables[name] = Table(label.table_size, width, 0.01 * init_scale)

    def forward(self, conditions: dict[str, Tensor]) -> Tensor:
        """`conditions[name]` [B, slots] holds ids; -1 is an empty slot."""
        total = None
        for name, embedding in self.tables.items():
            ids = conditions[name]
            vectors = (embedding(ids.clamp(min=0)) * (ids >= 0)[..., None]).sum(1)
            total = vectors if total is None else total + vectors
        assert total is not None, "a prior with labels has at least one condition"
        return total[:, None]


class TimingConditioner(nn.Module):
    """[B, T, W] from the length of the song and the place of the window in it."""

    def __init__(self, config: TimingConfig, sample_rate: int, width: int, init_scale: float):
        super().__init__()
        self.config = config
        self.sample_rate = sample_rate
        self.tables = nn.ModuleDict()
        for name in ("total", "position", "fraction"):
            self.tables[name] = Table(config.bins, width, 0.01 * init_scale)

    def bins(self, timing_B3: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
        """Bin numbers: total [B, 1], position [B, T], fraction [B, T].

        float32 and this order of operations are part of the model: bins at the edges depend on them (spec 7.2).
        Values outside the range the model was built for take the first or the last bin; Jukebox refuses them.
        """
        total, offset, window = timing_B3.float().split(1, dim=1)
        lowest = self.config.min_seconds * self.sample_rate
        highest = self.config.max_seconds * self.sample_rate
        end = offset + window
        begins = offset / total
        ends = (end / total).clamp(0.0, 1.0)
        steps_1T = torch.arange(length, dtype=torch.float32, device=total.device)[None] / length
        return (
            self._bin(total, lowest, highest),
            self._bin(offset + (end - offset) * steps_1T, 0.0, highest),
            self._bin(begins + (ends - begins) * steps_1T, 0.0, 1.0),
        )

    def _bin(self, value: Tensor, lowest: float, highest: float) -> Tensor:
        """The number of the bin, of equal ones from `lowest` to `highest`, that holds each value."""
        count = self.config.bins
        return (count * ((value - lowest) / (highest - lowest))).floor().long().clamp(0, count - 1)

    def forward(self, timing_B3: Tensor, length: int) -> Tensor:
        total, position, fraction = self.bins(timing_B3, length)
        t = self.tables
        return t["total"](total) + t["position"](position) + t["fraction"](fraction)


class UpsamplerConditioner(nn.Module):
    """Codes of the level above [B, T/ratio] to conditioning [B, T, W]."""

    def __init__(
        self, config: UpsamplerConditionerConfig, codes: int, width: int, init_scale: float
    ):
        super().__init__()
        self.embedding = Table(codes, width, 0.02 * init_scale)
        scale = config.depth**-0.5 if config.residual_scale else 1.0
        stack = (config.depth, config.dilation_growth, config.dilation_cycle, config.hidden_ratio)
        layers: list[nn.Module] = [Conv1d(width, config.width, 3, padding=1)]
        for step in range(config.down):
            outputs = width if step == config.down - 1 else config.width
            stacked = residual_stack(config.width, *stack, scale=scale, zero_out=config.zero_out)
            layers += [stacked, doubling(config.width, outputs, config.stride)]
        self.layers = Stack(*layers)
        self.norm = Norm(width)

    def forward(self, codes_BT: Tensor) -> Tensor:
        x_BWT = self.layers(self.embedding(codes_BT).transpose(1, 2))
        return self.norm(x_BWT.transpose(1, 2))


class LyricsEncoder(nn.Module):
    """The separate lyric encoder: causal, with a next-token loss of its own. Gives states [B, N, W] that music reads.

    Because its inputs are shifted by one, state j knows the tokens before j.
    """

    def __init__(self, config: LyricsConfig, width: int, init_scale: float):
        super().__init__()
        assert config.encoder is not None
        shape = config.encoder
        self.input = ShiftedEmbedding(
            config.size, config.tokens, shape.width, shape.init_scale, own_start=True
        )
        self.blocks = blocks(shape)
        self.project = Dense(shape.width, width, 0.02 * shape.init_scale)
        self.norm = Norm(width)
        self.head = Dense(width, config.size, 0.02 * init_scale, bias=False)

    def forward(self, tokens_BN: Tensor) -> Tensor:
        h = self.input(tokens_BN)
        for block in self.blocks:
            h = block(h)
        return self.norm(self.project(h))

    def loss(self, states_BNW: Tensor, tokens_BN: Tensor) -> Tensor:
        """Bits per lyric token."""
        return bits(self.head(states_BNW), tokens_BN)


class ShiftedEmbedding(nn.Module):
    """Embeds position t as token t-1 (position 0 as a start vector) plus a learned position."""

    def __init__(self, tokens: int, length: int, width: int, init_scale: float, own_start: bool):
        super().__init__()
        self.tokens = Table(tokens, width, 0.02 * init_scale)
        self.positions = Table(length, width, 0.01 * init_scale)
        self.start = Table(1, width, 0.01 * init_scale) if own_start else None

    def start_vector(self, batch: int, given_B1W: Tensor | None) -> Tensor:
        if self.start is None:
            assert given_B1W is not None, "a prior with labels needs its start vector"
            return given_B1W
        device = self.start.weight.device
        return self.start(torch.zeros(batch, 1, dtype=torch.long, device=device))

    def one(self, previous_B: Tensor | None, t: int, start_B1W: Tensor) -> Tensor:
        """Position t alone [B, 1, W], from the token before it (None at t = 0)."""
        content = start_B1W if previous_B is None else self.tokens(previous_B)[:, None]
        return content + self.positions.weight[t]

    def forward(
        self, tokens_BT: Tensor, start_B1W: Tensor | None = None, added_BTW: Tensor | None = None
    ) -> Tensor:
        """[B, T, W]; `added_BTW` is the conditioning of each position."""
        length = tokens_BT.shape[1]
        first = self.start_vector(len(tokens_BT), start_B1W)
        shifted = torch.cat([first, self.tokens(tokens_BT[:, :-1])], dim=1)
        h = shifted + self.positions(torch.arange(length, device=tokens_BT.device))
        return h if added_BTW is None else h + added_BTW


def bits(logits_BTV: Tensor, targets_BT: Tensor, predicted_BT: Tensor | None = None) -> Tensor:
    """Mean cross-entropy in bits; of the positions in `predicted` alone, where it is given."""
    losses = F.cross_entropy(
        logits_BTV.float().flatten(0, 1),
        targets_BT.flatten(),
        reduction="mean" if predicted_BT is None else "none",
    )
    if predicted_BT is not None:
        weights = predicted_BT.flatten().to(losses.dtype)
        losses = (losses * weights).sum() / weights.sum().clamp(min=1.0)
    return losses / math.log(2.0)
