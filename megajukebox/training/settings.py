"""How a stage trains: `training.<stage>` of a preset, one group of settings for each part of training that reads them.

    training:
      top_prior:
        ds_config: prior_zero3_hopper.json
        steps: 310500
        schedule: {warmup: 1000, decay: linear}
        checkpointing: {every: 500, keep_last: 3}

`schedule`, `spikes` and `previews` are defined beside the code that reads them. Settings of older versions are read by
common/old_settings.py. Micro-batch, precision and optimizer are in the stage's ds_config.
"""

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from megajukebox.common.errors import UserError
from megajukebox.common.validation_errors import no_switch
from megajukebox.models.adapters import AdapterConfig
from megajukebox.training.batching import MAX_CLIPS
from megajukebox.training.lr_schedule import ScheduleSettings
from megajukebox.training.previews import PreviewSettings
from megajukebox.training.spike_detection import SpikeSettings

MAX_SEED = 2**63 - 1  # that torch takes
MAX_STEPS = 10**12


class StrictSettings(BaseModel):
    """Settings that refuse a key they do not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_numbers(cls, value: object, info: ValidationInfo) -> object:
        field = cls.model_fields[str(info.field_name)]
        return no_switch(value) if field.annotation in (int, float) else value


class CheckSettings(StrictSettings):
    """How often ranks are checked for silent data corruption (training/sdc.py)."""

    replica_check_every: int = Field(
        default=100,
        ge=0,
        description="steps between comparisons of replicas, and of master weights with their copies; 0: none",
    )
    recompute_check_every: int = Field(
        default=1000,
        ge=0,
        description="steps after which all ranks compute the same micro-batch and compare; 0: never",
    )


class EvaluationSettings(StrictSettings):
    """What is held out of training, and how often the model is evaluated on it."""

    every: int = Field(default=100, gt=0, description="steps between two evaluations")
    held_out: float = Field(
        default=0.1, ge=0, lt=1, description="share of the songs kept for evaluation"
    )
    batches: int = Field(default=8, ge=0, description="micro-batches a rank evaluates on")


class CheckpointSettings(StrictSettings):
    """How often a run is saved, and which checkpoints stay (training/checkpointing)."""

    every: int = Field(default=100, gt=0, description="steps between two checkpoints")
    in_background: bool = Field(
        default=True, description="train on while a checkpoint is written, from a copy in memory"
    )
    export_every: int = Field(
        default=1,
        gt=0,
        description="weights are exported at the first save, at one after every so many steps, and at the end",
    )
    keep_last: int = Field(default=3, gt=0, description="checkpoints kept: the last ones")
    keep_every: int = Field(
        default=0,
        ge=0,
        description="checkpoints of steps that are multiples of it are kept; 0: none",
    )


class WatchdogSettings(StrictSettings):
    """When a rank counts as hung (resilience/watchdog.py)."""

    step_timeout_seconds: float = Field(
        default=300,
        gt=0,
        description="a step that takes longer, and 10 times longer than usual, is a hang",
    )
    phase_timeout_seconds: float = Field(
        default=1800,
        gt=0,
        description="the same for starting, loading, saving, evaluating, and for the first step; converting"
        " a checkpoint for another number of processes may take longer as long as it makes progress",
    )


class LoaderSettings(StrictSettings):
    """How training data is read (data/stream)."""

    workers: int = Field(default=0, ge=0, description="processes that read ahead, per rank")
    prefetch: int = Field(
        default=2, gt=0, description="steps that each of them holds ready; bounds the memory"
    )
    timeout_seconds: float = Field(
        default=600, gt=0, description="seconds over one clip after which a worker counts as hung"
    )
    worker_memory_gb: float = Field(
        default=4, gt=0, description="memory that a worker may take beyond what it starts with"
    )
    data_mode: str = Field(
        default="indexed",
        pattern="^(indexed|unindexed)$",
        description="unindexed: song tars without an index",
    )
    shuffle_shards: int = Field(
        default=64, gt=0, description="shards whose clips are shuffled together"
    )
    clips_per_song_visit: int = Field(
        default=1,
        gt=0,
        description="neighbouring clips of a song read one after another: cheaper, less shuffled",
    )
    max_bad_sample_ratio: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="the run stops when more clips than this cannot be read",
    )
    volume_db: float = Field(
        default=0, ge=0, le=24, description="vqvae only: random volume, up to this much up or down"
    )
    eq_db: float = Field(
        default=0,
        ge=0,
        le=24,
        description="vqvae only: random tone curve, up to this much up or down",
    )


class AdapterSettings(AdapterConfig):
    """Train an adapter beside the frozen weights of `--from`, instead of these (training/adapter_task.py)."""

    dropout: float = Field(default=0.0, ge=0, lt=1, description="of what goes into the adapter")
    base: str = Field(
        default="as_trained",
        pattern="^(as_trained|bfloat16|int8|nf4)$",
        description="in what the frozen weights are kept; as_trained: as the ds_config says",
    )
    learning_rate: float = Field(default=2e-4, gt=0, description="instead of the ds_config's")
    patience: int = Field(
        default=5, ge=0, description="evaluations without a gain that end the run; 0: never"
    )
    names: dict[str, tuple[str, ...]] = Field(
        default={}, description="new names by condition, whose rows learn: {artist: [My Band]}"
    )
    labels: dict[str, str] = Field(
        default={}, description="by condition, the name that every song is given"
    )

    @property
    def config(self) -> AdapterConfig:
        """What fixes the adapter itself."""
        return AdapterConfig(**{name: getattr(self, name) for name in AdapterConfig.model_fields})


class TrainingSettings(StrictSettings):
    """How one stage is trained."""

    ds_config: str = Field(description="RECIPE_PROFILE.json, RECIPE@PROFILE.yaml or a JSON file")
    steps: int = Field(gt=0, le=MAX_STEPS)
    batch: int = Field(
        default=0,
        ge=0,
        le=MAX_CLIPS,
        description="clips a step of all processes together; 0: as the ds_config says",
    )
    seed: int = Field(default=0, ge=-(2**63), le=MAX_SEED)
    deterministic: bool = Field(
        default=False,
        description="GPUs repeat a step to the last bit, as CPUs do anyway; slower",
    )
    freeze: tuple[str, ...] = Field(
        default=(), description="parts that are not trained: lyrics, upper, input, blocks.0 ..."
    )
    adapter: AdapterSettings | None = Field(
        default=None,
        description="an adapter is trained, and nothing else",
        exclude_if=lambda adapter: adapter is None,  # records of before have no such field
    )
    ema_decay: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="keep a moving average of the weights and export it; 0: none",
    )
    clip: int | None = Field(
        default=None, gt=0, description="audio samples in a training clip (vqvae only)"
    )
    bandwidth_seconds: float = Field(
        default=600, ge=0, description="audio measured to scale losses; 0 keeps vqvae.bandwidth"
    )
    log_every: int = Field(default=10, gt=0)
    peak_tflops: float | None = Field(
        default=None, gt=0, description="of one device, for `mfu`; GPUs in gpus.py are known"
    )
    schedule: ScheduleSettings = ScheduleSettings()
    spikes: SpikeSettings = SpikeSettings()
    checks: CheckSettings = CheckSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    previews: PreviewSettings = PreviewSettings()
    checkpointing: CheckpointSettings = CheckpointSettings()
    watchdog: WatchdogSettings = WatchdogSettings()
    loader: LoaderSettings = LoaderSettings()

    @model_validator(mode="after")
    def _check_previews(self) -> "TrainingSettings":
        previews = self.previews.every
        exports = self.checkpointing.export_every
        if 0 < previews < exports:
            raise UserError(
                f"previews.every {previews} needs exported weights, but checkpointing.export_every"
                f" is {exports}; lower the latter or raise the former"
            )
        return self
