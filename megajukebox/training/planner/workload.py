"""What a stage trains, without anything of how: enough to build it anywhere, and what one pass of
it needs.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NoReturn

import torch
from torch import nn

from megajukebox.common.errors import UserError
from megajukebox.models.pipeline_layers import layers
from megajukebox.models.prior import Prior, PriorConfig
from megajukebox.models.refiner import RefinerConfig
from megajukebox.models.vqvae import VQVAE, VQVAEConfig
from megajukebox.training.config import Preset
from megajukebox.training.planner.activation_trace import TracedPass, TraceSetting, training_pass
from megajukebox.training.planner.dummy_batches import clips, windows
from megajukebox.training.planner.gpus import CONVOLUTIONS_MIB
from megajukebox.training.planner.memory import Weights
from megajukebox.training.refiner_settings import RefinerSettings, refiner_config
from megajukebox.training.refiner_training import RefinerTraining

# Of a composer's vocabulary and of what it is told of known notes, for want of the corpus: ids of events, and of parts
# known and open.
PLANNED_EVENTS = 4096
PLANNED_SCORE_ENTRIES = 2 * PLANNED_EVENTS + 256


@dataclass(frozen=True)
class AudioWorkload:
    """A VQ-VAE on clips of audio."""

    config_json: str  # of a VQVAEConfig; as JSON it can be a key of a cache
    clip: int  # audio samples

    unit = "seconds of audio"
    bandwidth_bound = True  # by the memory's bandwidth, not by arithmetic
    head_size = 8  # it has no attention; any kernel serves heads of this size
    process_mib = CONVOLUTIONS_MIB

    @cached_property
    def model_config(self) -> VQVAEConfig:
        return VQVAEConfig.model_validate_json(self.config_json)

    @property
    def units(self) -> float:
        """Seconds of audio of one sample."""
        return self.clip / self.model_config.sample_rate

    def build(self) -> nn.Module:
        return VQVAE(self.model_config)

    def batch(self, size: int) -> dict:
        return clips(size, self.clip, self.model_config.channels)

    def pipeline_layers(self) -> NoReturn:
        raise UserError("only priors train as a pipeline; choose a ds_config without `pipeline`")


@dataclass(frozen=True)
class RefinerWorkload:
    """A refiner on clips of audio, which its frozen VQ-VAE encodes and decodes first."""

    vqvae_json: str  # of a VQVAEConfig
    settings_json: str  # of a RefinerSettings
    clip: int  # audio samples

    unit = "seconds of audio"
    bandwidth_bound = True
    head_size = 8  # it has no attention
    process_mib = CONVOLUTIONS_MIB

    @cached_property
    def settings(self) -> RefinerSettings:
        return RefinerSettings.model_validate_json(self.settings_json)

    @cached_property
    def vqvae_config(self) -> VQVAEConfig:
        return VQVAEConfig.model_validate_json(self.vqvae_json)

    @cached_property
    def model_config(self) -> RefinerConfig:
        return refiner_config(self.settings, self.vqvae_config)

    @property
    def units(self) -> float:
        """Seconds of audio of one sample."""
        return self.clip / self.model_config.sample_rate

    def build(self) -> nn.Module:
        vqvae = VQVAE(self.vqvae_config)
        settings = self.settings
        return RefinerTraining(self.model_config, settings.loss, vqvae, settings.adversarial)

    def batch(self, size: int) -> dict:
        return clips(size, self.clip, self.vqvae_config.channels)

    def pipeline_layers(self) -> NoReturn:
        raise UserError("only priors train as a pipeline; choose a ds_config without `pipeline`")


@dataclass(frozen=True)
class CodeWorkload:
    """A prior on windows of codes."""

    config_json: str  # of a PriorConfig

    unit = "codes"
    bandwidth_bound = False
    process_mib = 0

    @cached_property
    def model_config(self) -> PriorConfig:
        return PriorConfig.model_validate_json(self.config_json)

    @property
    def units(self) -> float:
        """Codes of one sample."""
        return self.model_config.window

    @property
    def head_size(self) -> int:
        shape = self.model_config.transformer
        return shape.attention_width // shape.heads

    def build(self) -> nn.Module:
        return Prior(self.model_config)

    def batch(self, size: int) -> dict:
        return windows(self.model_config, size)

    def pipeline_layers(self) -> Iterable[nn.Module]:
        """The layers that a pipeline deals out to its stages, in order."""
        return [make() for make in layers(self.model_config)]


Workload = AudioWorkload | RefinerWorkload | CodeWorkload


def audio_workload(preset: Preset, stage: str) -> AudioWorkload:
    """The VQ-VAE of `preset` on the clips of `stage`."""
    return AudioWorkload(preset.vqvae.model_dump_json(), preset.stage(stage).clip or 0)


def refiner_workload(preset: Preset, stage: str) -> RefinerWorkload:
    """The refiner of `preset`, of the level that it names, on the clips of `stage`."""
    clip = preset.stage(stage).clip or 0
    return RefinerWorkload(preset.vqvae.model_dump_json(), preset.refiner.model_dump_json(), clip)


def code_workload(level: str, preset: Preset, stage: str) -> CodeWorkload:
    """With every vocabulary as large as its table; the prior of `level` is that of any stage."""
    config = preset.prior_config(level, preset.lyrics_vocabulary)
    return CodeWorkload(config.model_dump_json())


@dataclass(frozen=True)
class PlannedStage:
    """What `plan` needs to know of a stage."""

    name: str
    workload: Workload
    default_gpus: int  # as many as Jukebox trained it on; one node for what it did not train


@lru_cache(64)
def _traced(workload: Workload, samples: int, how: TraceSetting) -> TracedPass:
    return training_pass(workload.build, workload.batch, samples, how)


def footprint(workload: Workload, samples: int, how: TraceSetting) -> TracedPass:
    """Of a micro-batch: traced at 1 and 2 samples and continued from there.

    All but the gradients grows with the samples.
    """
    one = _traced(workload, 1, how)
    two = _traced(workload, 2, how)
    return TracedPass(*(round(a + (b - a) * (samples - 1)) for a, b in zip(one, two)))


@lru_cache(16)
def weights_of(workload: Workload, stages: int, threshold: int) -> Weights:
    """Of the fullest of `stages` pipeline stages; `threshold` (elements) says which tensors are
    small.

    Raises:
        UserError: more stages than layers, or a pipeline of what cannot be cut.
    """
    with torch.device("meta"):
        parts = list(workload.pipeline_layers()) if stages > 1 else [workload.build()]
    if stages > len(parts):
        raise UserError(
            f"pipeline.stages {stages} is more than the {len(parts)} layers there are to deal out"
        )
    tensors: list[int] = []
    part_sizes: list[int] = []
    for part in parts:
        sizes = [parameter.numel() for parameter in part.parameters()]
        tensors += sizes
        part_sizes.append(sum(sizes))
    small = sum(size for size in tensors if size <= threshold)
    return Weights(fullest(part_sizes, stages), max(tensors), small // stages)


def fullest(sizes: list[int], parts: int) -> int:
    """The largest sum of a part if `sizes` are cut into `parts` runs as evenly as possible.

    Binary search for the smallest capacity with which a greedy cut needs no more than `parts` runs.
    """
    low = max(sizes)
    high = sum(sizes)
    while low < high:
        capacity = (low + high) // 2
        runs = 1
        free = capacity
        for size in sizes:
            if size > free:
                runs += 1
                free = capacity
            free -= size
        if runs <= parts:
            high = capacity
        else:
            low = capacity + 1
    return low


def composer_workload(preset: Preset, stage: str) -> CodeWorkload:
    """The composer of `preset`, with as large a vocabulary as a corpus of many instruments needs."""
    config = preset.composer_config(PLANNED_EVENTS, PLANNED_SCORE_ENTRIES)
    return CodeWorkload(config.model_dump_json())
