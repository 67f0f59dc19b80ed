"""The settings of one level's prior in a preset, and of the conditions that its songs carry."""

from typing import Any

from pydantic import Field

from megajukebox.models.conditioners import TimingConfig, UpsamplerConditionerConfig
from megajukebox.models.transformer import TransformerConfig
from megajukebox.training.settings import StrictSettings


class ConditionSettings(StrictSettings):
    """Names that songs carry (artist, genres, moods, ...). Their vocabulary is built from the corpus."""

    max_values: int = Field(1, gt=0, description="how many names of it one song may carry")
    table_size: int = Field(
        gt=1, description="entries of the embedding table; names beyond it are unknown"
    )
    min_songs: int = Field(1, gt=0, description="names on fewer songs are unknown")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of training windows without it")
    bin_years: int = Field(
        1, gt=0, le=1000, description="condition year only: years that share one entry"
    )


class ConditionTableSettings(StrictSettings):
    """Where one level's table of a condition differs from that in `conditions`."""

    max_values: int | None = Field(default=None, gt=0)
    table_size: int | None = Field(default=None, gt=1)


class LyricsSettings(StrictSettings):
    """Lyrics of a prior. The tokenizer's size is that of the corpus's model."""

    mode: str = Field("encoder", pattern="^(encoder|prefix)$")
    tokens: int = Field(gt=0)
    loss_weight: float = Field(0.4, ge=0)
    dropout: float = Field(0.0, ge=0, lt=1, description="share of training windows without lyrics")
    encoder: TransformerConfig | None = None


class PriorSettings(StrictSettings):
    """A prior as its preset gives it; sample rate, hop and codebook size are those of the VQ-VAE."""

    window: int = Field(gt=0)
    transformer: TransformerConfig
    separate_head: bool = False
    conditions: tuple[str, ...] = ()
    condition_tables: dict[str, ConditionTableSettings] = Field(
        {}, description="tables of this level that differ from `conditions`"
    )
    conditions_at_every_position: bool = False
    timing: TimingConfig | None = None
    upsampler_conditioner: UpsamplerConditionerConfig | None = None
    lyrics: LyricsSettings | None = None
    aligned: dict[str, dict[str, Any]] = Field(
        default={},
        description="conditions that follow the song in time: {name: its settings, and `dropout`}",
    )


class ScoreSettings(StrictSettings):
    """What reads the known notes of a piece that is to be completed (models/conditioners.py, ScoreConditioner)."""

    slots: int = Field(16, gt=0, description="notes and parts told of a sixteenth, at most")
    width: int = Field(96, gt=0)
    depth: int = Field(4, gt=0)
    dilation_growth: int = Field(3, gt=0)


class ComposerSettings(StrictSettings):
    """The composer: a prior over events of notes (notes/events.py), on note shards."""

    window: int = Field(gt=0, description="events in a context window")
    transformer: TransformerConfig
    conditions: dict[str, ConditionSettings] = Field(
        {}, description="names that pieces carry: artist, genres, instruments"
    )
    score: ScoreSettings | None = Field(
        None, description="reads known notes, behind and ahead; without it a piece can only go on"
    )
    transpose: tuple[int, int] = Field(
        (-5, 6), description="semitones by which training pieces are moved, lowest and highest"
    )
