"""The autoregressive prior of one level: layers over a window of codes, conditioned on all that conditioners give."""

# B batch   T codes of a window   N lyric tokens   W width   V vocabulary
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, field_validator, model_validator
from torch import Tensor, nn

from megajukebox.common.device import accelerator
from megajukebox.common.renamed_keys import accept_old_keys
from megajukebox.models.conditioners import (
    ALIGNED,
    AlignedConfig,
    LabelConditioner,
    LabelConfig,
    LyricsConfig,
    LyricsEncoder,
    MemoryConfig,
    ShiftedEmbedding,
    TimingConditioner,
    TimingConfig,
    UpsamplerConditioner,
    UpsamplerConditionerConfig,
    bits,
)
from megajukebox.models.transformer import TransformerConfig, blocks


class PriorConfig(BaseModel):
    """Everything that fixes a prior's parameters and numbers. Names of the reference are in `interop`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    _old_keys = accept_old_keys(
        codes="codebook_size",
        labels="conditions",
        labels_everywhere="conditions_at_every_position",
        upper="upsampler_conditioner",
    )

    level: str = Field(pattern="^(top|middle|bottom|composer)$")
    sample_rate: int = Field(gt=0)
    hop: int = Field(gt=0, description="audio samples per code; 1 where codes are events of notes")
    codebook_size: int = Field(gt=1, description="size of the codebook")
    window: int = Field(gt=0, description="codes in a context window")
    transformer: TransformerConfig
    separate_head: bool = Field(
        False, description="own output matrix, conditioning not added again before it"
    )
    conditions: dict[str, LabelConfig] = {}
    conditions_at_every_position: bool = Field(
        default=False, description="given at every position, not only before the first (Jukebox)"
    )
    timing: TimingConfig | None = None
    upsampler_conditioner: UpsamplerConditionerConfig | None = None
    lyrics: LyricsConfig | None = None
    aligned: dict[str, SerializeAsAny[AlignedConfig]] = Field(
        default={}, description="conditions that follow the song in time, by their name in ALIGNED"
    )

    @field_validator("aligned", mode="before")
    @classmethod
    def _parse_aligned(cls, given: Any) -> Any:
        """The configs of `given` by name, each of the class that `ALIGNED` has for it."""
        if not isinstance(given, dict):
            return given
        configs: dict[str, AlignedConfig] = {}
        for name, settings in given.items():
            if name not in ALIGNED:
                known = ", ".join(ALIGNED) or "none"
                raise ValueError(f"aligned condition {name!r} is unknown; known are {known}")
            kind = ALIGNED[name].config
            configs[name] = settings if isinstance(settings, kind) else kind(**settings)
        return configs

    @model_validator(mode="after")
    def _check(self) -> "PriorConfig":
        if self.length % self.transformer.blocks:
            raise ValueError(
                f"blocks {self.transformer.blocks} does not divide the {self.length} positions"
                " of the window"
            )
        if self.upsampler_conditioner and self.window % self.upsampler_conditioner.ratio:
            raise ValueError(
                f"window {self.window} is not a multiple of {self.upsampler_conditioner.ratio},"
                " the codes per code of the level above"
            )
        memory = self.aligned.get("memory")
        if isinstance(memory, MemoryConfig):
            if self.upsampler_conditioner:
                raise ValueError("memory is for the top; levels below follow its codes anyway")
            if memory.codebook_size != self.codebook_size:
                raise ValueError(
                    f"memory.codebook_size is {memory.codebook_size}, the level has"
                    f" {self.codebook_size} codes; leave it out"
                )
        reads = "lyrics" in self.transformer.patterns
        encoded = self.lyrics if self.lyrics and self.lyrics.mode == "encoder" else None
        # The other way round is allowed, as in Jukebox: the encoder then learns its own task, unread.
        if reads and not encoded:
            raise ValueError(f"schedule {self.transformer.schedule!r} needs a lyrics encoder")
        if encoded and (encoded.encoder is None or encoded.tokens % encoded.encoder.blocks):
            raise ValueError("lyrics.encoder is missing, or its blocks do not divide lyrics.tokens")
        if "prefix" in self.transformer.patterns and not self.prefix_tokens:
            raise ValueError(
                f"schedule {self.transformer.schedule!r} needs lyrics with mode prefix"
            )
        if self.prefix_tokens and not self.conditions:
            raise ValueError(
                "lyrics with mode prefix need conditions: they are the vector before the first lyric token"
            )
        return self

    @property
    def condition_names(self) -> list[str]:
        """Everything that dropout may leave out: labels, lyrics, aligned conditions."""
        return [*self.conditions, *(["lyrics"] if self.lyrics else []), *self.aligned]

    @property
    def adds_to_codes(self) -> bool:
        """Whether anything is added to every position: `Conditioning.added` is there."""
        return bool(
            self.timing
            or self.upsampler_conditioner
            or self.aligned
            or (self.conditions and self.conditions_at_every_position)
        )

    @property
    def upper_codebook_size(self) -> int:
        """Codes of the level above."""
        upper = self.upsampler_conditioner
        return (upper and upper.codebook_size) or self.codebook_size

    @property
    def prefix_tokens(self) -> int:
        """Lyric tokens at the head of the sequence itself (0 with a separate encoder)."""
        return self.lyrics.tokens if self.lyrics and self.lyrics.mode == "prefix" else 0

    @property
    def vocabulary(self) -> int:
        """Tokens that the transformer tells apart: codes, after the lyric tokens in prefix mode."""
        return self.shift + self.codebook_size

    @property
    def length(self) -> int:
        """Positions of the transformer: the window, after its lyric prefix if there is one."""
        return self.prefix_tokens + self.window

    @property
    def shift(self) -> int:
        """What is added to a code to make it a token of the joint vocabulary."""
        return self.lyrics.size if self.lyrics and self.prefix_tokens else 0

    @property
    def attended_prefix(self) -> int:
        """Positions that a `prefix` layer sees: lyrics rounded up past the next whole row, as in Jukebox (spec 5.3)."""
        rows = self.transformer.blocks
        return (self.prefix_tokens // rows + 1) * rows


class Conditioning(NamedTuple):
    """What the layers are given beside the tokens; computed once per window."""

    start: Tensor | None  # [B, 1, W] the vector before the first token, from the labels
    added: Tensor | None  # [B, T, W] added to every position: timing, or the codes above
    lyrics: Tensor | None  # [B, N, W] states of the lyric encoder


class PriorStem(nn.Module):
    """All of a prior before its first layer: its conditioners, and the embedding of its tokens."""

    def __init__(self, config: PriorConfig):
        super().__init__()
        self.config = config
        shape = config.transformer
        scale = config.transformer.init_scale
        self.vocabulary = config.vocabulary
        self.labels = (
            LabelConditioner(config.conditions, shape.width, scale) if config.conditions else None
        )
        self.timing = (
            TimingConditioner(config.timing, config.sample_rate, shape.width, scale)
            if config.timing
            else None
        )
        self.upper = (
            UpsamplerConditioner(
                config.upsampler_conditioner, config.upper_codebook_size, shape.width, scale
            )
            if config.upsampler_conditioner
            else None
        )
        separate = config.lyrics is not None and config.lyrics.mode == "encoder"
        self.lyrics = (
            LyricsEncoder(config.lyrics, shape.width, scale) if config.lyrics and separate else None
        )
        self.input = ShiftedEmbedding(
            self.vocabulary, config.length, shape.width, scale, own_start=not config.conditions
        )
        self.aligned = nn.ModuleDict()
        # What one seed draws for the rest of a prior does not depend on the aligned conditions.
        device = [torch.cuda.current_device()] if accelerator() == "cuda" else []
        with torch.random.fork_rng(device):
            for name, settings in config.aligned.items():
                self.aligned[name] = ALIGNED[name].module(settings, shape.width, config.window)

    def conditioning(self, batch: dict) -> Conditioning:
        """From a batch: `conditions` {name: [B, max_values]}, `timing` [B, 3] in samples, `upper_codes` [B, T/ratio],
        `lyrics` [B, N], and the arrays of the aligned conditions by their names.
        """
        start = self.labels(batch["conditions"]) if self.labels else None
        added = self.upper(batch["upper_codes"]) if self.upper else None
        if self.timing:
            timing = self.timing(batch["timing"], self.config.window)
            added = timing if added is None else added + timing
        if start is not None and self.config.conditions_at_every_position:
            everywhere = start.expand(-1, self.config.window, -1)
            added = everywhere if added is None else added + everywhere
        for name, module in self.aligned.items():
            aligned = module(batch[name])
            added = aligned if added is None else added + aligned
        if added is not None and self.config.prefix_tokens:
            silence = added.new_zeros(len(added), self.config.prefix_tokens, added.shape[-1])
            added = torch.cat([silence, added], dim=1)
        return Conditioning(start, added, self.lyrics(batch["lyrics"]) if self.lyrics else None)

    def encoder_bits(self, batch: dict, given: Conditioning) -> Tensor | None:
        """What the lyric encoder's own task costs, [] bits per lyric token; None without one."""
        if self.lyrics is None:
            return None
        assert given.lyrics is not None
        return self.lyrics.loss(given.lyrics, batch["lyrics"])

    def tokens(self, batch: dict) -> Tensor:
        """The sequence [B, N + T] that the transformer models: the codes, after the lyrics in prefix mode."""
        return tokens_of(self.config, batch)


def tokens_of(config: PriorConfig, batch: dict) -> Tensor:
    """`PriorStem.tokens` by the config alone: [B, N + T]."""
    codes = batch["codes"]
    return (
        torch.cat([batch["lyrics"], codes + config.shift], dim=1) if config.prefix_tokens else codes
    )


class Prior(PriorStem):
    """p(codes of a window | labels, timing, lyrics, codes above): an entrance, a list of layers, and a head."""

    def __init__(self, config: PriorConfig):
        super().__init__(config)
        self.blocks = blocks(config.transformer, config.attended_prefix)
        self.head = nn.Linear(config.transformer.width, self.vocabulary, bias=False)
        if not config.separate_head:
            self.head.weight = self.input.tokens.weight

    def predict(self, h_BTW: Tensor, added_BTW: Tensor | None) -> Tensor:
        """Logits [B, T, V] in float32 from the last hidden states."""
        if added_BTW is not None and not self.config.separate_head:
            h_BTW = h_BTW + added_BTW
        return self.head(h_BTW).float()

    def logits(self, tokens_BT: Tensor, given: Conditioning) -> Tensor:
        """Logits [B, T, V]; those at t predict token t from the tokens before it."""
        h = self.input(tokens_BT, given.start, given.added)
        for block in self.blocks:
            h = block(h, given.lyrics) if block.attention.pattern == "lyrics" else block(h)
        return self.predict(h, given.added)

    def forward(self, batch: dict) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss [] and metrics: `bits_per_code`, and `bits_per_lyric` where there are lyrics (spec section 8)."""
        given = self.conditioning(batch)
        tokens = self.tokens(batch)
        words = self.encoder_bits(batch, given)
        logits = self.logits(tokens, given)
        return loss_and_metrics(self.config, logits, tokens, words, batch.get("predicted"))


def loss_and_metrics(
    config: PriorConfig,
    logits_BTV: Tensor,
    tokens_BT: Tensor,
    words: Tensor | None,
    predicted_BT: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss [] of a window from its logits.

    Args:
        words: [] bits per lyric token of a separate encoder.
        predicted_BT: which codes of the window count; all of them without it.
    """
    prefix = config.prefix_tokens
    music = bits(logits_BTV[:, prefix:], tokens_BT[:, prefix:], predicted_BT)
    metrics = {"bits_per_code": music.detach()}
    if config.lyrics is None:
        return music, metrics
    if words is None:
        words = bits(logits_BTV[:, :prefix], tokens_BT[:, :prefix])
    metrics["bits_per_lyric"] = words.detach()
    count = config.lyrics.tokens
    window = config.window
    weight = config.lyrics.loss_weight
    return (weight * words * count + music * window) / (count + window), metrics
