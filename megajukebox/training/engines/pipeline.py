"""A prior whose layers are spread over processes: DeepSpeed's pipeline behind the same contract as
every other engine.

Each process holds one stage of the list in models/pipeline_layers.py. First weights are drawn as
one process would draw them, so that they do not depend on where the list is cut; weights leave
under the names that the plain `Prior` gives them.
"""

# B batch   T tokens
import contextlib
import io
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
import torch.distributed as dist
from deepspeed.pipe import PipelineModule, TiedLayerSpec
from deepspeed.runtime.utils import partition_balanced
from torch import Tensor, nn

from megajukebox.common.errors import UserError
from megajukebox.common.model_files import PendingTensor
from megajukebox.common.world import World
from megajukebox.models.pipeline_layers import (
    TIED,
    BlockLayer,
    inputs,
    layers,
    loss_of,
    name_in_prior,
    read_out,
    targets_of,
)
from megajukebox.models.prior import PriorConfig
from megajukebox.training.engines import collectives
from megajukebox.training.engines.collectives import raising_at_min_loss_scale
from megajukebox.training.engines.model_init import fill, recompute_activations
from megajukebox.training.engines.zero import ZeroEngine
from megajukebox.training.spike_detection import SpikeSettings

TIED_KEY = "tokens"  # under which stem and head share the embedding of the tokens


def stages(ds_config: dict, size: int) -> int:
    """Stages that the pipeline of a ds_config has over `size` processes; 1 for a file without
    `pipeline`.

    Raises UserError where the processes do not make whole pipelines.
    """
    wanted = ds_config.get("pipeline", {}).get("stages", 1)
    count = size if wanted == "auto" else wanted
    if not isinstance(count, int) or count < 1:
        raise UserError(f'pipeline.stages {wanted!r} is neither a number of processes nor "auto"')
    if size % count:
        fits = [n for n in range(1, size + 1) if size % n == 0]
        raise UserError(
            f"pipeline.stages {count} does not divide {size} processes; set it to one of {fits}"
        )
    return count


def reader(world: World, ds_config: dict) -> World:
    """Who this process is among those that read different data: the stages of one pipeline read the
    same.
    """
    readers = world.size // stages(ds_config, world.size)
    return World(world.rank % readers, world.local_rank, readers)


def sees_data(world: World, ds_config: dict) -> bool:
    """Whether this process reads at all: of a pipeline the first stage does, and the last, which
    compares.
    """
    count = stages(ds_config, world.size)
    return world.rank // (world.size // count) in (0, count - 1)


class PipelineEngine(ZeroEngine):
    """The prior of `config` over `pipeline.stages` processes, times as many pipelines side by side
    as there are processes for.
    """

    is_pipeline = True

    def __init__(
        self,
        config: PriorConfig,
        ds_config: dict,
        seed: int,
        weights: Mapping[str, Tensor] | None = None,
        rules: SpikeSettings | None = None,
        ema_decay: float = 0.0,
    ):
        torch.manual_seed(seed)
        self.config = config
        self.stages = stages(ds_config, dist.get_world_size())
        if ds_config.get("zero_optimization", {}).get("stage") != 1:
            raise UserError(
                "a pipeline shares its optimizer by ZeRO-1: set zero_optimization.stage to 1"
            )
        if self.stages > config.transformer.depth + 2:
            raise UserError(
                f"pipeline.stages {self.stages} is more than the {config.transformer.depth + 2} layers of the prior"
            )
        self.reports: list[dict[str, Tensor]] = []
        module = _Layers(
            config, self.stages, self._loss, recompute="activation_checkpointing" in ds_config
        )
        self.layers = module
        fill(dict(module.named_in_prior()), weights or {})
        plain = dict(ds_config)
        plain.pop("pipeline", None)
        super().__init__(module, plain, rules, ema_decay)

    def _forward_backward_step(self, micro_batches: list[dict]) -> dict[str, float]:
        self.reports = []
        self.count = len(micro_batches)
        with raising_at_min_loss_scale(self.engine):
            # The stages between the ends take none.
            self.engine.train_batch(map(self._pair, micro_batches))
        return self._averages()

    @torch.no_grad()
    def evaluate(self, batch: dict) -> dict[str, float]:
        self.reports = []
        self.count = 1
        self._averaged = None
        self.engine.eval_batch(map(self._pair, [batch]), num_micro_batches=1, bcast_loss=False)
        return self._averages()

    @torch.no_grad()
    def loss_here(self, batch: dict) -> float | None:
        """As `ZeroEngine.loss_here`: the last stage of a pipeline sees its loss."""
        self.reports = []
        self.count = 1
        self.engine.eval_batch(map(self._pair, [batch]), num_micro_batches=1, bcast_loss=False)
        return float(self.reports[0]["loss"]) if self.reports else None

    def _pair(self, batch: dict) -> tuple[tuple[Tensor, ...], Tensor]:
        """What goes in at the first stage, and what the last one compares with."""
        return inputs(self.config, batch), targets_of(self.config, batch)

    def _loss(self, given: tuple[Tensor, ...], tokens_BT: Tensor) -> Tensor:
        loss, metrics = loss_of(self.config, given, tokens_BT)
        self.reports.append({"loss": loss.detach(), **metrics})
        self._own_losses.append(loss.detach())
        return loss

    def _averages(self) -> dict[str, float]:
        """Averaged over micro-batches and pipelines, once a step: only the last stages have
        anything to add.
        """
        if self._averaged is None:
            names = ["loss", "bits_per_code"]
            if self.config.lyrics:
                names.append("bits_per_lyric")
            values = torch.zeros(len(names), device=self.device)
            if self.reports:
                rows = []
                for report in self.reports:
                    rows.append(torch.stack([report[name].float().reshape(()) for name in names]))
                values = torch.stack(rows).sum(0)
            dist.all_reduce(values)
            pipelines = dist.get_world_size() // self.stages
            means = (values / (pipelines * self.count)).tolist()
            self._averaged = dict(zip(names, means))
        return self._averaged

    def weights(self) -> dict[str, PendingTensor]:
        """As `ZeroEngine.weights`; each tensor comes from the stage that holds it."""
        mine: dict[str, list[int]] = {}
        for name, tensor in self.layers.named_in_prior():
            mine[name] = list(tensor.shape)
        pending: dict[str, PendingTensor] = {}
        for rank, of_rank in enumerate(collectives.all_gather(mine)):
            for name, shape in of_rank.items():
                if name not in pending:  # else a rank before holds it
                    fetch = partial(self._from_owner, name, tuple(shape), rank)
                    pending[name] = PendingTensor(torch.float32, tuple(shape), fetch)
        return pending

    def _from_owner(self, name: str, shape: tuple[int, ...], rank: int) -> Tensor:
        """`name` of `shape`, broadcast by `rank`; ranks of the same stage gather an average
        together.
        """
        per_stage = dist.get_world_size() // self.stages
        if dist.get_rank() // per_stage == rank // per_stage:
            parameter = dict(self.layers.named_in_prior())[name]
            value = self.gathered(parameter).detach().float().contiguous()
        else:
            value = torch.empty(shape, device=self.device)
        dist.broadcast(value, rank)
        return value.to("cpu", copy=True)


class _Layers(PipelineModule):
    """The layers of one stage. DeepSpeed's own building draws other first weights for other
    partitions.
    """

    def __init__(self, config: PriorConfig, stages: int, loss: Callable, recompute: bool):
        with torch.device("meta"):
            sizes = []
            for make in layers(config):
                sizes.append(sum(parameter.numel() for parameter in make().parameters()))
        # Stages have about equally many parameters: [0, ..., number of layers].
        self.cuts = partition_balanced(weights=sizes, num_parts=stages)
        per_stage = dist.get_world_size() // stages
        stage = dist.get_rank() // per_stage
        first, stop = self.cuts[stage : stage + 2]
        built: list[nn.Module] = []
        for number, make in enumerate(layers(config)):
            # Each draws its weights after the one before, also those of the stages before this one.
            layer = make() if number < stop else nn.Module()
            built.append(layer if first <= number < stop else nn.Module())
        if recompute:
            blocks = [layer for layer in built if isinstance(layer, BlockLayer)]
            recompute_activations(nn.ModuleList(blocks))
        specs: list = built
        if not config.separate_head:
            specs = [_Tied(built[0]), *built[1:-1], _Tied(built[-1], read_out)]
        with contextlib.redirect_stdout(io.StringIO()):  # it prints every layer
            super().__init__(specs, num_stages=stages, loss_fn=loss)
        # Read by the conversion for another number of stages: the second copy of the tied matrix is
        # left out.
        self.universal_checkpoint_info = {
            "universal_checkpoint_version": 0.2,
            "pipeline_replicated_parameter_patterns": [rf"tied_modules\.{TIED_KEY}\.{TIED}"],
        }

    def _partition_layers(self, method: str = "") -> None:
        self.parts = self.cuts
        stage = self._topo.get_coord(self.global_rank).pipe
        self._set_bounds(start=self.parts[stage], stop=self.parts[stage + 1])

    def named_in_prior(self) -> Iterator[tuple[str, Tensor]]:
        """This stage's parameters, by the names of the plain prior."""
        for name, tensor in self.named_parameters():
            head, _, rest = name.partition(".")
            if head == "tied_modules":
                yield rest.partition(".")[2], tensor
            else:
                yield name_in_prior(int(head), rest), tensor


class _Tied(TiedLayerSpec):
    """A layer that is already built and shares one matrix with another of the list."""

    def __init__(self, layer: nn.Module, forward: Callable | None = None):
        super().__init__(TIED_KEY, type(layer), forward_fn=forward, tied_weight_attr=TIED)
        self.layer = layer

    def build(self, log: bool = False) -> nn.Module:
        return self.layer
