"""The one place that knows every part's settings: a preset (YAML), overridden by `key.sub=value`.

It is checked before any GPU is touched.
"""

from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

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

PRESETS = Path(__file__).parent.parent / "presets"
CONDITIONS = (*COUNTED, "year")  # the fields of a song that a prior can be told
STAGES = ("vqvae", "top_prior", "middle_upsampler", "bottom_upsampler")
STUDENTS = ("top_student", "middle_student", "bottom_student")  # of `distill`


class StrictSettings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ConditionSettings(StrictSettings):
    """One label of a song (artist, genres, moods, ...). Its vocabulary is made from the corpus."""

    slots: int = Field(1, gt=0, description="how many names of it one song may carry")
    size: int = Field(
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

    slots: int | None = Field(default=None, gt=0)
    size: int | None = Field(default=None, gt=1)


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
    labels: tuple[str, ...] = ()
    label_tables: dict[str, TableSettings] = Field(
        {}, description="tables of this level that differ from `conditions`"
    )
    labels_everywhere: bool = False
    timing: TimingConfig | None = None
    upper: UpsamplerConditionerConfig | None = None
    lyrics: LyricsSettings | None = None


class TrainingSettings(StrictSettings):
    """How long a stage trains and what it keeps. Micro-batch, precision and optimizer are in its `ds_config`."""

    ds_config: str = Field(description="JSON in ds_configs/, or a path")
    steps: int = Field(gt=0)
    batch: int = Field(
        0,
        ge=0,
        description="clips a step of all processes together; 0: as the ds_config says for each",
    )
    seed: int = 0
    warmup: int = Field(0, ge=0, description="steps of linear warm-up")
    decay: str = Field("constant", pattern="^(constant|linear|cosine)$")
    decay_floor: float = Field(
        0.0, ge=0, le=1, description="share of the peak learning rate at the end of the decay"
    )
    decay_start: int = Field(0, ge=0, description="first step of the decay; 0: after the warm-up")
    decay_steps: int = Field(
        0, ge=0, description="how long the decay takes; 0: until the last step"
    )
    lr_scale: float = Field(
        1.0, gt=0, description="share of the ds_config's learning rate that is the peak"
    )
    freeze: tuple[str, ...] = Field(
        (), description="parts that stay as they are: lyrics, upper, input, blocks.0 ..."
    )
    ema_decay: float = Field(
        0.0, ge=0, lt=1, description="keep a moving average of the weights and export it; 0: none"
    )
    check_every: int = Field(
        100,
        ge=0,
        description="steps between comparisons of what ranks must hold alike, and of weights held twice; 0: none",
    )
    recompute_every: int = Field(
        1000,
        ge=0,
        description="steps after which all ranks compute the same micro-batch, and compare; 0: never",
    )
    sample_every: int = Field(
        0, ge=0, description="priors: a few seconds are sampled at the save after so many steps"
    )
    sample_seconds: float = Field(4.0, gt=0)
    sample_runs: str | None = Field(
        None, description="folder of the runs to hear it with; else the one it lies in"
    )
    spike_sigmas: float = Field(
        6.0, ge=0, description="skip steps this far above the usual loss or gradient; 0: none"
    )
    spike_window: int = Field(128, gt=1, description="steps that say what is usual")
    bad_steps: int = Field(
        10, ge=0, description="more skipped steps than this among bad_within end the run (93)"
    )
    bad_within: int = Field(100, gt=0)
    rewinds: int = Field(
        0,
        ge=0,
        description="so often it goes back instead, and reads on behind the data that spiked",
    )
    rewind_steps: int = Field(
        100, ge=0, description="to a checkpoint at least so long before the first skipped step"
    )
    rewind_jump: int = Field(200, ge=0, description="and leaves out so many further steps' clips")
    floor_rewinds: int = Field(
        1, ge=0, description="so often it goes back from the lowest fp16 loss scale (then 93)"
    )
    floor_lr: float = Field(
        0.5, gt=0, lt=1, description="and trains on at so much of the learning rate"
    )
    clip: int | None = Field(
        None, gt=0, description="audio samples in a training clip (vqvae only)"
    )
    bandwidth_seconds: float = Field(
        600, ge=0, description="audio measured to scale losses; 0 keeps vqvae.bandwidth"
    )
    held_out: float = Field(0.1, ge=0, lt=1, description="share of the songs kept for judging")
    held_out_batches: int = Field(8, ge=0)
    evaluate_every: int = Field(100, gt=0)
    log_every: int = Field(10, gt=0)
    save_every: int = Field(100, gt=0)
    save_in_background: bool = Field(
        True, description="train on while a checkpoint is written, from a copy in memory"
    )
    export_every: int = Field(
        1,
        gt=0,
        description="weights are exported at the first save, at one after every so many steps, and at the end",
    )
    keep: int = Field(3, gt=0, description="checkpoints kept: the last ones")
    keep_every: int = Field(
        0, ge=0, description="checkpoints of steps that are multiples of it stay for good; 0: none"
    )
    peak_tflops: float | None = Field(
        None, gt=0, description="of one device, for `mfu`; GPUs in gpus.py are known"
    )
    hang_seconds: float = Field(
        300,
        gt=0,
        description="a step that takes longer, and 10 times longer than usual, is a hang",
    )
    hang_slow_seconds: float = Field(
        1800,
        gt=0,
        description="the same for starting, loading, saving, evaluating, and for the first step; "
        "converting a checkpoint for another number of processes may take longer as long as it goes on",
    )
    workers: int = Field(0, ge=0, description="processes that read ahead, per rank")
    prefetch: int = Field(
        2, gt=0, description="steps that each of them holds ready; bounds the memory"
    )
    data_timeout: float = Field(
        600, gt=0, description="seconds over one clip after which such a process counts as hung"
    )
    worker_gb: float = Field(
        4, gt=0, description="memory that each of them may take beyond what it starts with"
    )
    mode: str = Field(
        "indexed", pattern="^(indexed|stream)$", description="stream: song tars without an index"
    )
    block: int = Field(64, gt=0, description="shards whose clips are shuffled together")
    clips_per_visit: int = Field(
        1,
        gt=0,
        description="neighbouring clips of a song read one after another: cheaper, less shuffled",
    )
    bad_share: float = Field(
        0.01, ge=0, le=1, description="the run stops when more clips than this cannot be read"
    )
    volume_db: float = Field(
        0, ge=0, le=24, description="vqvae only: random volume, up to this much up or down"
    )
    eq_db: float = Field(
        0, ge=0, le=24, description="vqvae only: random tone curve, up to this much up or down"
    )

    @model_validator(mode="after")
    def _check_samples(self) -> "TrainingSettings":
        if 0 < self.sample_every < self.export_every:
            raise ValueError(
                f"sample_every {self.sample_every} needs exported weights, but export_every is {self.export_every};"
                " lower the latter or raise the former"
            )
        return self


class AudioSettings(StrictSettings):
    sample_rate: int = Field(default=44100, ge=1000, le=192000)


class Preset(StrictSettings):
    """Everything that fixes a family of runs."""

    name: str
    about: str = ""
    audio: AudioSettings = AudioSettings()
    vqvae: VQVAEConfig
    conditions: dict[str, ConditionSettings] = {}
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
        unknown = sorted(set(training) - {*STAGES, *STUDENTS}) if isinstance(training, dict) else []
        if unknown:  # first: else it is their settings that are missing
            stages = ", ".join((*STAGES, *STUDENTS))
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
        for label in told.labels:
            if label not in self.conditions:
                known = ", ".join(self.conditions)
                raise ValueError(
                    f"{level}.labels names {label!r}, which is not among conditions ({known})"
                )
        for label in told.label_tables:
            if label not in told.labels:
                known = ", ".join(told.labels)
                raise ValueError(
                    f"{level}.label_tables names {label!r}, which is not among {level}.labels ({known})"
                )

    def _check_level_above(self, level: str, upper: str | None) -> None:
        settings, hops = self.prior(level), self.vqvae.hops
        if (settings.upper is None) != (upper is None):
            wanted = (
                f"describe how the {upper} codes are read"
                if upper
                else "be left out: nothing is above it"
            )
            raise ValueError(f"{level}.upper must {wanted}")
        if upper and settings.upper and settings.upper.ratio * hops[level] != hops[upper]:
            raise ValueError(
                f"{level}.upper lengthens by {settings.upper.ratio}, but a {upper} code lasts"
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
        own = self.prior(level).label_tables.get(name, TableSettings())
        return self.conditions[name].model_copy(update=own.model_dump(exclude_none=True))

    def dropout(self, level: str, name: str) -> float:
        """Share of training windows that `level` is not told condition `name`; 0 for one the preset does not know."""
        return self.condition(level, name).dropout if name in self.conditions else 0.0

    def prior_config(self, level: str, lyrics_size: int) -> PriorConfig:
        """The prior of `level` as its model reads it; `lyrics_size` is the number of the tokenizer's tokens."""
        told = self.prior(level)
        tables = {
            name: self.condition(level, name) for name in self.conditions if name in told.labels
        }
        labels = {
            name: LabelConfig(slots=table.slots, size=table.size) for name, table in tables.items()
        }
        lyrics = (
            LyricsConfig(**told.lyrics.model_dump(exclude={"dropout"}), size=lyrics_size)
            if told.lyrics
            else None
        )
        return PriorConfig(
            level=level, sample_rate=self.audio.sample_rate, hop=self.vqvae.hops[level], codes=self.vqvae.codes,
            labels=labels, lyrics=lyrics, **told.model_dump(exclude={"labels", "label_tables", "lyrics"}),
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

    Raises ValueError that names the key, the value and what would be accepted.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else PRESETS / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PRESETS.glob("*.yaml")))
        raise ValueError(f"preset {name!r} is neither a file nor one of {known}")
    settings = _read(path.read_text(), path.name)
    if not isinstance(settings, dict):
        found = f"{path.name} holds {shortened(settings)}"
        raise ValueError(
            f"{found}, not the settings of a preset; see {PRESETS.name}/tiny.yaml for one"
        )
    for setting in overrides or []:
        override(settings, setting)
    return validate(settings, path.name)


def _read(text: str, where: str) -> object:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not YAML: {' '.join(str(error).split())}") from None


def validate(settings: dict, where: str) -> Preset:
    try:
        return Preset.model_validate(settings)
    except ValidationError as error:
        lines = (f"\n  {mistake}" for mistake in mistakes(error, Preset))
        raise ValueError(f"{where} is not a valid preset:{''.join(lines)}") from None


def override(settings: dict, setting: str) -> None:
    """`top.transformer.width=512` changes that one value of `settings`. The value is read as YAML."""
    path, equals, value = setting.partition("=")
    if not equals or not path:
        raise ValueError(f"setting {setting!r} is not of the form key.sub=value")
    *parents, last = path.split(".")
    place = settings
    for i, name in enumerate(parents):
        place = place.setdefault(name, {}) if isinstance(place, dict) else None
        if not isinstance(place, dict):
            raise ValueError(
                f"setting {setting!r}: {'.'.join(parents[: i + 1])} holds no further settings"
            )
    place[last] = _read(value, f"the value of setting {setting!r}")


def dump(preset: Preset) -> dict:
    """The resolved preset as plain data, every default spelt out."""
    return preset.model_dump(mode="json")
