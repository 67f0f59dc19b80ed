"""The one place that knows every part's settings: a preset (YAML), overridden by `key.sub=value`.

It is checked before any GPU is touched.
"""

import logging
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from megajukebox.common.errors import UserError
from megajukebox.common.levels import COMPOSER_FOLDER, PRIOR_FOLDERS, STUDENT_FOLDERS
from megajukebox.common.old_settings import describe_renamed, present_path, upgrade_settings
from megajukebox.common.untrusted_files import parse_yaml, read_given
from megajukebox.common.validation_errors import mistakes, shortened
from megajukebox.data.shards.index import NOTES_TIME_RATE
from megajukebox.data.shards.shard_set import COUNTED
from megajukebox.models.conditioners import (
    AlignedConfig,
    ClockConfig,
    LabelConfig,
    LyricsConfig,
    ScoreConfig,
)
from megajukebox.models.prior import PriorConfig
from megajukebox.models.vqvae import VQVAEConfig
from megajukebox.training.prior_settings import (
    ComposerSettings,
    ConditionSettings,
    ConditionTableSettings,
    PriorSettings,
)
from megajukebox.training.refiner_settings import RefinerSettings
from megajukebox.training.settings import StrictSettings, TrainingSettings

log = logging.getLogger(__name__)

PRESETS = Path(__file__).parent.parent / "presets"
CONDITIONS = (*COUNTED, "year")  # the fields of a song that a prior can be told
STAGE_NAMES = (
    "vqvae",
    "refiner",
    *PRIOR_FOLDERS.values(),
    COMPOSER_FOLDER,
)  # of `train`: the rows of stages.py
STUDENT_NAMES = tuple(STUDENT_FOLDERS.values())  # of `distill`


class AudioSettings(StrictSettings):
    sample_rate: int = Field(default=44100, ge=1000, le=192000)
    channels: Literal[1, 2] = Field(default=1, description="mono, or left and right")


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
    bottom: PriorSettings | None = None
    refiner: RefinerSettings = RefinerSettings()
    composer: ComposerSettings | None = None
    training: dict[str, TrainingSettings]

    @model_validator(mode="before")
    @classmethod
    def _copy_audio_settings(cls, data: dict) -> dict:
        """audio.sample_rate and audio.channels are the VQ-VAE's too."""
        audio = data.get("audio", {})
        vqvae = data.get("vqvae", {})
        if not isinstance(audio, dict) or not isinstance(vqvae, dict):
            return data  # refused where their own settings are read
        rate = audio.get("sample_rate", AudioSettings().sample_rate)
        channels = audio.get("channels", AudioSettings().channels)
        return {**data, "vqvae": {"sample_rate": rate, "channels": channels, **vqvae}}

    @model_validator(mode="before")
    @classmethod
    def _check_stage_names(cls, data: dict) -> dict:
        """Before the settings of the stages are read: of an unknown one they would be said to be missing."""
        training = data.get("training", {})
        known = (*STAGE_NAMES, *STUDENT_NAMES)
        names = set(training) if isinstance(training, dict) else set()
        unknown = sorted(names - set(known))
        if unknown:
            raise UserError(f"training has unknown stages {unknown}; stages are {', '.join(known)}")
        return data

    @model_validator(mode="after")
    def _check(self) -> "Preset":
        for name, condition in self.conditions.items():
            if name not in CONDITIONS:
                raise UserError(
                    f"songs do not say their {name!r}; conditions are {', '.join(CONDITIONS)}"
                )
            if condition.bin_years > 1 and name != "year":
                raise UserError(f"conditions.{name}.bin_years is for year alone; leave it out")
        for level in self.levels:
            self._check_conditions_of(level)
        level_above = None
        for level in reversed(self.levels):
            self._check_level_above(level, level_above)
            level_above = level
            try:  # what cannot be built is refused now, not after days of the stages before it
                self.prior_config(level, self.lyrics_vocabulary)
            except ValidationError as error:
                reasons = "; ".join(f"{level}: {one}" for one in mistakes(error, PriorConfig))
                raise UserError(reasons) from None
        for name in ("sample_rate", "channels"):
            ours = getattr(self.audio, name)
            theirs = getattr(self.vqvae, name)
            if theirs != ours:
                raise UserError(
                    f"vqvae.{name} {theirs} is not audio.{name} {ours}; give only the latter"
                )
        return self

    def _check_conditions_of(self, level: str) -> None:
        settings = self.prior(level)
        for name in settings.conditions:
            if name not in self.conditions:
                known = ", ".join(self.conditions)
                raise UserError(
                    f"{level}.conditions names {name!r}, which is not among conditions ({known})"
                )
        for name in settings.condition_tables:
            if name not in settings.conditions:
                known = ", ".join(settings.conditions)
                raise UserError(
                    f"{level}.condition_tables names {name!r}, which is not among"
                    f" {level}.conditions ({known})"
                )

    def _check_level_above(self, level: str, above: str | None) -> None:
        conditioner = self.prior(level).upsampler_conditioner
        name = f"{level}.upsampler_conditioner"
        if above is None:
            if conditioner:
                raise UserError(f"{name} must be left out: nothing is above it")
            return
        if conditioner is None:
            raise UserError(f"{name} must describe how the {above} codes are read")
        ratio = self.vqvae.hops[above] // self.vqvae.hops[level]
        if conditioner.ratio != ratio:
            raise UserError(
                f"{name} lengthens by {conditioner.ratio}, but a {above} code lasts {ratio} {level} codes;"
                " set down and stride to match"
            )

    @property
    def levels(self) -> tuple[str, ...]:
        """Levels of the VQ-VAE, finest first."""
        return self.vqvae.levels

    def prior(self, level: str) -> PriorSettings:
        """Raises UserError for a level that the preset does not describe."""
        settings = getattr(self, level)
        if settings is None:
            raise UserError(f"the preset describes no {level} prior")
        return settings

    def condition(self, level: str, name: str) -> ConditionSettings:
        """Condition `name` as `level` has it: with its own table, if the preset gives it one."""
        own = self.prior(level).condition_tables.get(name, ConditionTableSettings())
        return self.conditions[name].model_copy(update=own.model_dump(exclude_none=True))

    def dropouts(self, level: str, config: PriorConfig) -> dict[str, float]:
        """By condition, the share of training windows without it; 0 for one that the preset does not know."""
        settings = self.prior(level)
        dropouts = dict.fromkeys(config.conditions, 0.0)
        for name in config.conditions:
            if name in self.conditions:
                dropouts[name] = self.condition(level, name).dropout
        dropouts["lyrics"] = settings.lyrics.dropout if settings.lyrics else 0.0
        for name, aligned in settings.aligned.items():
            dropouts[name] = float(aligned.get("dropout", 0.0))
        return dropouts

    def prior_config(self, level: str, lyrics_size: int) -> PriorConfig:
        """The prior of `level` as its model reads it; `lyrics_size` is the number of the tokenizer's tokens."""
        settings = self.prior(level)
        conditions = {}
        for name in self.conditions:
            if name in settings.conditions:
                table = self.condition(level, name)
                conditions[name] = LabelConfig(
                    max_values=table.max_values, table_size=table.table_size
                )
        lyrics = None
        if settings.lyrics:
            lyrics = LyricsConfig(
                **settings.lyrics.model_dump(exclude={"dropout"}), size=lyrics_size
            )
        aligned: dict[str, Any] = {}
        for name, own in settings.aligned.items():
            aligned[name] = {key: value for key, value in own.items() if key != "dropout"}
        shared = {"conditions", "condition_tables", "lyrics", "aligned"}
        sizes = self.vqvae.codebook_sizes
        own_size = sizes[level]
        if "memory" in aligned:
            aligned["memory"].setdefault("codebook_size", own_size)
        if settings.upsampler_conditioner:
            above = self.levels[self.levels.index(level) + 1]
            if sizes[above] != own_size:  # else left out, as in priors of older versions
                upper = settings.upsampler_conditioner.model_copy(
                    update={"codebook_size": sizes[above]}
                )
                settings = settings.model_copy(update={"upsampler_conditioner": upper})
        return PriorConfig(
            level=level,
            sample_rate=self.audio.sample_rate,
            hop=self.vqvae.hops[level],
            codebook_size=own_size,
            conditions=conditions,
            lyrics=lyrics,
            aligned=aligned,
            **settings.model_dump(exclude=shared),
        )

    def composer_config(self, events: int, score_entries: int) -> PriorConfig:
        """The composer as its model reads it.

        Args:
            events: size of its vocabulary.
            score_entries: ids by which known notes are told (notes/holes.py).
        Raises:
            UserError: the preset describes no composer.
        """
        if self.composer is None:
            raise UserError(f"preset {self.name!r} describes no composer")
        settings = self.composer
        conditions = {}
        for name, table in settings.conditions.items():
            conditions[name] = LabelConfig(max_values=table.max_values, table_size=table.table_size)
        aligned: dict[str, AlignedConfig] = {"clock": ClockConfig(notes=1 + 2 * events)}
        if settings.score:
            aligned["score"] = ScoreConfig(entries=score_entries, **settings.score.model_dump())
        return PriorConfig(
            level=COMPOSER_FOLDER,
            sample_rate=NOTES_TIME_RATE,
            hop=1,
            codebook_size=events,
            window=settings.window,
            transformer=settings.transformer,
            conditions=conditions,
            conditions_at_every_position=bool(conditions),
            separate_head=False,
            aligned=aligned,
        )

    def stage(self, name: str) -> TrainingSettings:
        """Raises UserError for a stage that the preset does not train."""
        if name not in self.training:
            raise UserError(
                f"preset {self.name!r} does not train {name!r}; it trains {', '.join(self.training)}"
            )
        return self.training[name]


def load_preset(name: str, overrides: list[str] | None = None, stage: str = "<stage>") -> Preset:
    """The preset called `name` (or the YAML file at that path) with `key.sub=value` settings applied.

    `stage` is the one that is about to be trained: an error suggests its settings.

    Raises:
        UserError: names the key, the value and what would be accepted.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else PRESETS / f"{name}.yaml"
    if not os.path.isfile(path):  # which says no to a name that is too long
        known = ", ".join(sorted(p.stem for p in PRESETS.glob("*.yaml")))
        raise UserError(f"preset {name!r} is neither a file nor one of {known}")
    settings = _read_yaml(read_given(path).decode(), path.name)
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
    return validate(settings, path.name, stage)


def validate(settings: dict, where: str, stage: str = "<stage>") -> Preset:
    """The preset of `settings`, also of those that an older version wrote.

    Raises:
        UserError: names every wrong setting, with the nearest right one.
    """
    try:
        return Preset.model_validate(upgrade_settings(settings)[0])
    except ValidationError as error:
        lines = (f"\n  {mistake}" for mistake in mistakes(error, Preset, stage))
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
        return parse_yaml(text, allow_aliases=True)
    except ValueError as error:
        raise UserError(f"{where} is not YAML that reads in one way: {error}") from None
