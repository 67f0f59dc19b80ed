"""The one place that knows every part's settings: a preset (YAML), overridden by `key.sub=value`.

It is checked before any GPU is touched.
"""

import logging
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator

from megajukebox.common.errors import UserError
from megajukebox.common.levels import RUN_FOLDERS, STUDENT_FOLDERS
from megajukebox.common.old_settings import describe_renamed, present_path, upgrade_settings
from megajukebox.common.validation_errors import mistakes, shortened
from megajukebox.data.shards.shard_set import COUNTED
from megajukebox.models.conditioners import (
    LabelConfig,
    LyricsConfig,
    TimingConfig,
    UpsamplerConditionerConfig,
)
from megajukebox.models.prior import PriorConfig
from megajukebox.models.transformer import TransformerConfig
from megajukebox.models.vqvae import VQVAEConfig
from megajukebox.training.settings import StrictSettings, TrainingSettings

log = logging.getLogger(__name__)

PRESETS = Path(__file__).parent.parent / "presets"
CONDITIONS = (*COUNTED, "year")  # the fields of a song that a prior can be told
STAGE_NAMES = tuple(RUN_FOLDERS.values())  # of `train`: the rows of stages.py
STUDENT_NAMES = tuple(STUDENT_FOLDERS.values())  # of `distill`


class ConditionSettings(StrictSettings):
    """One label of a song (artist, genres, moods, ...). Its vocabulary is made from the corpus."""

    max_values: int = Field(1, gt=0, description="how many names of it one song may carry")
    table_size: int = Field(
        gt=1, description="entries of the embedding table; names beyond it are unknown"
    )
    min_songs: int = Field(1, gt=0, description="names on fewer songs are unknown")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="share of training windows that are not told"
    )
    bin_years: int = Field(
        1, gt=0, le=1000, description="condition year only: years that share one entry"
    )


class TableSettings(StrictSettings):
    """Where one level's table of a label differs from what `conditions` says of it."""

    max_values: int | None = Field(default=None, gt=0)
    table_size: int | None = Field(default=None, gt=1)


class LyricsSettings(StrictSettings):
    """Lyrics of a prior. The tokenizer's size is that of the corpus's model."""

    mode: str = Field("encoder", pattern="^(encoder|prefix)$")
    tokens: int = Field(gt=0)
    loss_weight: float = Field(0.4, ge=0)
    dropout: float = Field(
        0.0, ge=0, lt=1, description="share of training windows that are told no lyrics"
    )
    encoder: TransformerConfig | None = None


class PriorSettings(StrictSettings):
    """A prior as its preset gives it; rate, hop, codes and vocabulary sizes come from the code shards."""

    window: int = Field(gt=0)
    transformer: TransformerConfig
    separate_head: bool = False
    conditions: tuple[str, ...] = ()
    condition_tables: dict[str, TableSettings] = Field(
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


class AudioSettings(StrictSettings):
    sample_rate: int = Field(default=44100, ge=1000, le=192000)


class Preset(StrictSettings):
    """Everything that fixes a family of runs."""

    name: str
    about: str = ""
    audio: AudioSettings = AudioSettings()
    vqvae: VQVAEConfig
    conditions: dict[str, ConditionSettings] = Field(default={})
    lyrics_vocabulary: int = Field(512, gt=0)
    top: PriorSettings
    middle: PriorSettings | None = None
    bottom: PriorSettings
    training: dict[str, TrainingSettings]

    @model_validator(mode="before")
    @classmethod
    def _one_home_for_the_rate(cls, data: dict) -> dict:
        audio, vqvae = data.get("audio", {}), data.get("vqvae", {})
        if not isinstance(audio, dict) or not isinstance(vqvae, dict):
            return data  # what is wrong with them is said where their own settings are read
        return {**data, "vqvae": {"sample_rate": audio.get("sample_rate", 44100), **vqvae}}

    @model_validator(mode="before")
    @classmethod
    def _stages_that_are_there(cls, data: dict) -> dict:
        training = data.get("training", {})
        unknown = (
            sorted(set(training) - {*STAGE_NAMES, *STUDENT_NAMES})
            if isinstance(training, dict)
            else []
        )
        if unknown:  # first: else it is their settings that are missing
            stages = ", ".join((*STAGE_NAMES, *STUDENT_NAMES))
            raise ValueError(f"training has unknown stages {unknown}; stages are {stages}")
        return data

    @model_validator(mode="after")
    def _check(self) -> "Preset":
        self._check_conditions()
        for level in self.levels:
            self._check_labels(level)
        upper = None
        for level in reversed(self.levels):
            self._check_level_above(level, upper)
            self._check_prior(level)
            upper = level
        if self.vqvae.sample_rate != self.audio.sample_rate:
            raise ValueError(
                f"vqvae.sample_rate {self.vqvae.sample_rate} is not audio.sample_rate {self.audio.sample_rate};"
                " give only the latter"
            )
        return self

    def _check_conditions(self) -> None:
        for name, condition in self.conditions.items():
            if name not in CONDITIONS:
                raise ValueError(
                    f"songs do not say their {name!r}; conditions are {', '.join(CONDITIONS)}"
                )
            if condition.bin_years > 1 and name != "year":
                raise ValueError(f"conditions.{name}.bin_years is for year alone; leave it out")

    def _check_labels(self, level: str) -> None:
        told = self.prior(level)
        for label in told.conditions:
            if label not in self.conditions:
                known = ", ".join(self.conditions)
                raise ValueError(
                    f"{level}.conditions names {label!r}, which is not among conditions ({known})"
                )
        for label in told.condition_tables:
            if label not in told.conditions:
                known = ", ".join(told.conditions)
                raise ValueError(
                    f"{level}.condition_tables names {label!r}, which is not among {level}.conditions ({known})"
                )

    def _check_level_above(self, level: str, upper: str | None) -> None:
        settings, hops = self.prior(level), self.vqvae.hops
        if (settings.upsampler_conditioner is None) != (upper is None):
            wanted = (
                f"describe how the {upper} codes are read"
                if upper
                else "be left out: nothing is above it"
            )
            raise ValueError(f"{level}.upsampler_conditioner must {wanted}")
        if (
            upper
            and settings.upsampler_conditioner
            and settings.upsampler_conditioner.ratio * hops[level] != hops[upper]
        ):
            raise ValueError(
                f"{level}.upsampler_conditioner lengthens by {settings.upsampler_conditioner.ratio}, but a {upper} code lasts"
                f" {hops[upper] // hops[level]} {level} codes; set down and stride to match"
            )

    def _check_prior(self, level: str) -> None:
        """A prior that cannot be built is refused now, not after the days that the stages before it train."""
        try:
            self.prior_config(level, self.lyrics_vocabulary)
        except ValidationError as error:
            raise ValueError(
                "; ".join(f"{level}: {mistake}" for mistake in mistakes(error, PriorConfig))
            ) from None

    @property
    def levels(self) -> tuple[str, ...]:
        """Levels of the VQ-VAE, finest first."""
        return self.vqvae.levels

    def prior(self, level: str) -> PriorSettings:
        settings = getattr(self, level)
        if settings is None:
            raise ValueError(f"the preset describes no {level} prior")
        return settings

    def condition(self, level: str, name: str) -> ConditionSettings:
        """What `level` is told of condition `name`: its own table, if the preset gives it one."""
        own = self.prior(level).condition_tables.get(name, TableSettings())
        return self.conditions[name].model_copy(update=own.model_dump(exclude_none=True))

    def dropout(self, level: str, name: str) -> float:
        """Share of training windows that `level` is not told condition `name`; 0 for one the preset does not know."""
        return self.condition(level, name).dropout if name in self.conditions else 0.0

    def dropouts(self, level: str, config: PriorConfig) -> dict[str, float]:
        """Dropout of every condition of a prior, by its name."""
        settings = self.prior(level)
        dropouts = {name: self.dropout(level, name) for name in config.conditions}
        dropouts["lyrics"] = settings.lyrics.dropout if settings.lyrics else 0.0
        for name, aligned in settings.aligned.items():
            dropouts[name] = float(aligned.get("dropout", 0.0))
        return dropouts

    def prior_config(self, level: str, lyrics_size: int) -> PriorConfig:
        """The prior of `level` as its model reads it; `lyrics_size` is the number of the tokenizer's tokens."""
        told = self.prior(level)
        tables = {
            name: self.condition(level, name) for name in self.conditions if name in told.conditions
        }
        labels = {
            name: LabelConfig(max_values=table.max_values, table_size=table.table_size)
            for name, table in tables.items()
        }
        lyrics = (
            LyricsConfig(**told.lyrics.model_dump(exclude={"dropout"}), size=lyrics_size)
            if told.lyrics
            else None
        )
        aligned: dict[str, Any] = {}
        for name, settings in told.aligned.items():
            aligned[name] = {key: value for key, value in settings.items() if key != "dropout"}
        return PriorConfig(
            level=level, sample_rate=self.audio.sample_rate, hop=self.vqvae.hops[level], codebook_size=self.vqvae.codebook_size,
            conditions=labels, lyrics=lyrics, aligned=aligned,
            **told.model_dump(exclude={"conditions", "condition_tables", "lyrics", "aligned"}),
        )  # fmt: skip

    def stage(self, name: str) -> TrainingSettings:
        if name not in self.training:
            raise ValueError(
                f"preset {self.name!r} does not train {name!r}; it trains {', '.join(self.training)}"
            )
        return self.training[name]


def level_of(stage: str) -> str:
    """top_prior -> top, middle_upsampler -> middle."""
    return stage.split("_")[0]


def load_preset(name: str, overrides: list[str] | None = None) -> Preset:
    """The preset called `name` (or the YAML file at that path) with `key.sub=value` settings applied.

    Raises:
        UserError: names the key, the value and what would be accepted.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else PRESETS / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PRESETS.glob("*.yaml")))
        raise UserError(f"preset {name!r} is neither a file nor one of {known}")
    settings = _read_yaml(path.read_text(), path.name)
    if not isinstance(settings, dict):
        raise UserError(
            f"{path.name} holds {shortened(settings)}, not the settings of a preset;"
            f" see {PRESETS.name}/tiny.yaml for one"
        )
    settings, renamed = upgrade_settings(settings)
    for setting in overrides or []:
        override(settings, setting)
        old = setting.partition("=")[0]
        if present_path(old) != old:
            renamed[old] = present_path(old)
    if renamed:
        log.warning("%s: renamed settings are still read: %s", path.name, describe_renamed(renamed))
    return validate(settings, path.name)


def validate(settings: dict, where: str) -> Preset:
    """The preset of `settings`, also of those that an older version wrote.

    Raises:
        UserError: names every wrong setting, with the nearest right one.
    """
    try:
        return Preset.model_validate(upgrade_settings(settings)[0])
    except ValidationError as error:
        lines = (f"\n  {mistake}" for mistake in mistakes(error, Preset))
        raise UserError(f"{where} is not a valid preset:{''.join(lines)}") from None


def override(settings: dict, setting: str) -> None:
    """`top.transformer.width=512` changes that one value of `settings`. The value is read as YAML.

    Raises:
        UserError: the setting has no `=`, or leads through a value that holds no further settings.
    """
    path, equals, value = setting.partition("=")
    if not equals or not path:
        raise UserError(f"setting {setting!r} is not of the form key.sub=value")
    *parents, last = present_path(path).split(".")
    group = settings
    for depth, name in enumerate(parents, 1):
        inner = group.setdefault(name, {})
        if not isinstance(inner, dict):
            raise UserError(
                f"setting {setting!r}: {'.'.join(parents[:depth])} holds no further settings"
            )
        group = inner
    group[last] = _read_yaml(value, f"the value of setting {setting!r}")


def dump(preset: Preset) -> dict:
    """The resolved preset as plain data, every default spelt out."""
    return preset.model_dump(mode="json")


def _read_yaml(text: str, where: str) -> object:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{where} is not YAML: {' '.join(str(error).split())}") from None
