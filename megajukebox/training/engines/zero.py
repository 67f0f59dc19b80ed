"""A model under DeepSpeed's ZeRO-0..3: `step`, `evaluate`, `save`, `load`, `weights` are all that the loop sees."""

import contextlib
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import (
    safe_get_full_optimizer_state,
    safe_set_full_optimizer_state,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from megajukebox.common.errors import UserError
from megajukebox.common.model_files import PendingTensor
from megajukebox.training.engines import ema, universal_checkpoint
from megajukebox.training.engines.checkpoint_engine import CheckpointStorage
from megajukebox.training.engines.collectives import told_of_lowest_scale
from megajukebox.training.engines.comm_timing import Communication
from megajukebox.training.engines.master_weights import MasterWeights
from megajukebox.training.engines.model_init import fill, recompute_activations, zero_stage
from megajukebox.training.engines.tensor_hash import hashed
from megajukebox.training.engines.universal_checkpoint import ALLOWED, SavedLayout
from megajukebox.training.spike_detection import SkipReason, SpikeDetector, SpikeSettings


def _fill(parameters: list[nn.Parameter], values: list[Tensor]) -> None:
    for parameter, value in zip(parameters, values):
        parameter.copy_(value)


def _on_host(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


class ZeroEngine:
    """A model under ZeRO-0..3: the loop sees only steps and numbers."""

    stages = 1  # of a pipeline
    reason: SkipReason | None = None  # why the last step was skipped
    is_pipeline = False

    def __init__(
        self,
        model: nn.Module,
        ds_config: dict,
        rules: SpikeSettings | None = None,
        ema_decay: float = 0.0,
    ):
        layers = getattr(model, "blocks", None)
        if "activation_checkpointing" in ds_config and isinstance(layers, nn.ModuleList):
            recompute_activations(layers)
        trained = [p for p in model.parameters() if p.requires_grad]
        self.engine, *_ = deepspeed.initialize(
            model=model, model_parameters=trained, config=ds_config
        )
        self.peak_rates = [group["lr"] for group in self.engine.optimizer.param_groups]
        self.stage = zero_stage(ds_config)
        self.stability = SpikeDetector(rules or SpikeSettings())
        self.ema_decay = ema_decay
        self.masters = MasterWeights(self.engine.optimizer, self.engine.basic_optimizer)
        self._watch_optimizer()
        self.communication = Communication(self.device)
        self.storage = CheckpointStorage(ALLOWED)
        self.engine.checkpoint_engine = self.storage
        # Scripts that it would leave in every checkpoint: they read pickles, and on a full disk they hang the others.
        self.engine._copy_recovery_script = lambda folder: None
        self.spread = (
            SavedLayout(dist.get_world_size() // self.stages, self.stages) if self.stage else None
        )

    @property
    def device(self) -> torch.device:
        return self.engine.device

    @property
    def module(self) -> nn.Module:
        return self.engine.module

    def _watch_optimizer(self) -> None:
        """The optimizer asks `_may_move` first, when the gradient is known, in every way of training.

        Under all that DeepSpeed does, what moves the weights is the step of one plain optimizer.
        """
        optimizer = self.engine.basic_optimizer
        move = optimizer.step

        def step(*given: object, **named: object) -> object:
            if not self._may_move():
                return None
            with (
                ema.following(optimizer, self.ema_decay)
                if self.ema_decay
                else contextlib.nullcontext()
            ):
                return move(*given, **named)

        optimizer.step = step

    def _start_average(self) -> None:
        ema.start(self.engine.basic_optimizer, self.masters.held())
        outer = self.engine.optimizer
        if hasattr(
            outer, "_lazy_init_hp_params_optimizer_state"
        ):  # ZeRO-1 and 2 learn once which states there are
            outer._hp_optimizer_states_linked = False
            outer._lazy_init_hp_params_optimizer_state()

    def step(self, micro_batches: list[dict], rate: float) -> dict[str, float]:
        """One optimizer step at `rate` times the peak learning rate. Returns metrics averaged over ranks.

        `skipped` is 1 where `stability` found the step bad: the weights are then as before on every rank, and
        `self.reason` says why. Raises LowestScale when the fp16 loss scale can fall no further.
        """
        self._set_rate(rate)
        self._begin()
        before = [
            buffer.clone() for buffer in self.module.buffers()
        ]  # codebooks learn in the forward pass
        with self.communication.timed():
            averages = self._learn(micro_batches)
        overflow = bool(getattr(self.engine.optimizer, "overflow", False))
        # With fp16 gradients overflow now and then; DeepSpeed leaves the step out and lowers its scale.
        self.overflowed = (
            overflow and self.engine.fp16_enabled() and math.isfinite(averages["loss"])
        )
        if overflow and not self.overflowed and self.reason is None:
            self.reason = self.stability.check(averages["loss"], math.inf)
        if self.reason or self.overflowed:
            for buffer, value in zip(self.module.buffers(), before):
                buffer.copy_(value)
        return self._finished(averages, rate)

    def _begin(self) -> None:
        self.reason = None
        self._judged = self.overflowed = False
        self._norm = math.nan
        self.seen: list[dict[str, float]] = []
        self._own: list[Tensor] = []

    def _learn(self, micro_batches: list[dict]) -> dict[str, float]:
        """Forward, backward and optimizer; returns the metrics of the step."""
        self.engine.train()
        for batch in micro_batches:
            loss, metrics = self.engine(self._placed(batch))
            self._own.append(loss.detach())
            self.seen.append(self._average({"loss": loss, **metrics}))
            self.engine.backward(loss)
            if self.stage == 0:
                self._norm = self._gradient_norm()
            with told_of_lowest_scale(self.engine):
                self.engine.step()
        return self._averages()

    def own_loss(self) -> float | None:
        """The last step's loss on this rank's own clips; None on a stage that sees no loss."""
        return float(torch.stack(self._own).mean()) if self._own else None

    def _averages(self) -> dict[str, float]:
        return {name: sum(s[name] for s in self.seen) / len(self.seen) for name in self.seen[0]}

    def _may_move(self) -> bool:
        """Asked for every group of parameters; all ranks judge the same numbers and so say the same."""
        if not self._judged:
            self._judged = True
            if self.masters.watched:
                self.masters.compare()
            self.reason = self.stability.check(self._averages()["loss"], self._global_norm())
        return self.reason is None

    def _global_norm(self) -> float:
        """Of the whole gradient, before clipping; DeepSpeed keeps it only with ZeRO or half precision."""
        norm = getattr(self.engine.optimizer, "_global_grad_norm", None)
        return self._norm if norm is None else float(norm)

    def _set_rate(self, rate: float) -> None:
        for group, peak in zip(self.engine.optimizer.param_groups, self.peak_rates):
            group["lr"] = peak * rate

    def _finished(self, averages: dict[str, float], rate: float) -> dict[str, float]:
        facts = {"grad_norm": self._global_norm(), "learning_rate": self.peak_rates[0] * rate}
        return averages | facts | {"step_skipped": float(self.reason is not None)} | self._scaling()

    def _scaling(self) -> dict[str, float]:
        """The fp16 loss scale, and the steps left out so far because a gradient overflowed."""
        if not self.engine.fp16_enabled():
            return {}
        scale = getattr(
            self.engine.optimizer, "loss_scale", getattr(self.engine.optimizer, "cur_scale", 0.0)
        )
        return {"loss_scale": float(scale), "overflows": float(self.engine.skipped_steps)}

    def _gradient_norm(self) -> float:
        return float(
            nn.utils.get_total_norm(
                [p.grad for p in self.module.parameters() if p.grad is not None]
            )
        )

    @torch.no_grad()
    def evaluate(self, batch: dict) -> dict[str, float]:
        """Metrics of one batch a rank, averaged over ranks, without learning anything."""
        self.engine.eval()
        loss, metrics = self.engine(self._placed(batch))
        return self._average({"loss": loss, **metrics})

    @torch.no_grad()
    def loss_here(self, batch: dict) -> float | None:
        """What this rank alone gets as the loss of `batch`, without learning; None on a stage that sees no loss."""
        self.engine.eval()
        loss, _ = self.engine(self._placed(batch))
        return float(loss)

    def exactness(self) -> tuple[str, float]:
        """Whose results should be this rank's (devices of the same name), and how near, relatively.

        GPUs of one kind compute alike to the last bit; CPUs may differ in kind, and add up in another order then.
        """
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device), 0.0
        short = (
            self.engine.fp16_enabled()
            or self.engine.bfloat16_enabled()
            or self.engine.torch_autocast_enabled()
        )
        return self.device.type, 1e-2 if short else 1e-5

    def _placed(self, batch: dict) -> dict:
        """`batch` with its tensors on this rank's device; the conditions are a dict within it."""
        return {
            name: self._placed(v) if isinstance(v, dict) else self._moved(v)
            for name, v in batch.items()
        }

    def _moved(self, value: object) -> object:
        return value.to(self.device) if isinstance(value, Tensor) else value

    def _average(self, metrics: dict[str, Tensor]) -> dict[str, float]:
        values = torch.stack([m.detach().float().reshape(()) for m in metrics.values()])
        dist.all_reduce(values)
        return dict(zip(metrics, (values / dist.get_world_size()).tolist()))

    @contextlib.contextmanager
    @torch.no_grad()
    def whole(self) -> Iterator[nn.Module]:
        """The model with the weights that are exported, all of them on every rank, to be looked at and not trained."""
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        averages = [self.gathered(p) for p in parameters] if self.ema_decay else []
        with deepspeed.zero.GatheredParameters(
            list(self.module.parameters()), enabled=self.stage == 3
        ):
            trained = [p.clone() for p in parameters] if averages else []
            _fill(parameters, averages)
            try:
                yield self.module
            finally:
                _fill(parameters, trained)

    def save(self, folder: Path, background: bool = False) -> None:
        """Every rank writes its part of weights and optimizer state, as they are now, into `folder`; or begins to.

        `storage.finish` tells whether it could.
        """
        self.storage.begin(background)
        self.engine.save_checkpoint(str(folder), tag="state", save_latest=False)

    def load(self, folder: Path, progressed: Callable[[], None] = lambda: None) -> None:
        """The inverse of `save`, on any number of ranks; `progressed` is called while a long conversion goes on.

        Raises ValueError for a checkpoint of another way of training, RuntimeError if nothing was loaded.
        """
        saved = folder / "state"
        before = universal_checkpoint.spread_of(saved)
        if (before is None) != (self.spread is None) or universal_checkpoint.is_pipeline(
            saved
        ) != self.is_pipeline:
            raise UserError(
                f"{folder} was saved under another way of training (ZeRO stage or pipeline);"
                " go on with the ds_config it had, or start another run --from it"
            )
        if before == self.spread:
            self._load(folder)
            return
        with universal_checkpoint.converted(saved, progressed) as made:
            self.engine._config.load_universal_checkpoint = True
            self._load(made.parent)
            self.engine._config.load_universal_checkpoint = False
            if self.ema_decay:
                self._load_average(made)
        self._load_buffers(saved)

    def _load(self, folder: Path) -> None:
        ema.forget(self.engine.basic_optimizer)
        path, _ = self.engine.load_checkpoint(str(folder), tag="state")
        if path is None:
            raise RuntimeError(f"DeepSpeed loaded nothing from {folder}")
        if self.ema_decay:
            self._start_average()

    def _load_average(self, made: Path) -> None:
        """Of a converted checkpoint; where it has none, the average starts from the weights that were loaded."""
        for name, parameter in self.module.named_parameters():
            path = universal_checkpoint.average_of(made, name)
            if parameter.requires_grad and path.exists():
                stored = torch.load(path, map_location=self.device, weights_only=True)
                self._set_average(
                    parameter, stored["param"] if isinstance(stored, dict) else stored
                )

    def _set_average(self, parameter: Tensor, value: Tensor) -> None:
        if self.stage < 3:
            safe_set_full_optimizer_state(parameter, value, ema.KEY)
            return
        # The call for a whole one does not pad it, as ZeRO-3 does where its size is no multiple of the ranks.
        size, rank, ranks = parameter.ds_tensor.ds_numel, dist.get_rank(), dist.get_world_size()  # type: ignore[attr-defined]
        padded = nn.functional.pad(value.flatten(), (0, size * ranks - value.numel()))
        safe_set_local_optimizer_state(parameter, padded.narrow(0, rank * size, size), ema.KEY)

    def _load_buffers(self, saved: Path) -> None:
        """Codebooks, which DeepSpeed leaves out of universal checkpoints; they are the same on every rank."""
        buffers = dict(self.module.named_buffers())
        if buffers:
            file = min(saved.glob("*_model_states.pt"))
            fill(buffers, self.storage.load(str(file))["module"])

    def replicated_hash(self) -> int:
        """A sum of all that ranks of one stage must hold alike.

        Under ZeRO-3 that is only what DeepSpeed keeps whole everywhere (small weights), and buffers.
        """
        alike = [
            p for p in self.module.parameters() if p.numel() == getattr(p, "ds_numel", p.numel())
        ]
        return hashed([*alike, *self.module.buffers()])

    def weights(self) -> dict[str, PendingTensor]:
        """Every parameter (float32; its moving average where one is kept) and buffer by name, each gathered only when
        it is made.

        Making one is a collective: every rank makes all of them, in this order.
        """
        found = {name: self._pending(p) for name, p in self.module.named_parameters()}
        buffers = dict(self.module.named_buffers())
        return found | {
            n: PendingTensor(b.dtype, tuple(b.shape), partial(_on_host, b))
            for n, b in buffers.items()
        }

    def _pending(self, parameter: Tensor) -> PendingTensor:
        shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
        return PendingTensor(
            torch.float32, shape, lambda: _on_host(self.gathered(parameter).float())
        )

    def gathered(self, parameter: Tensor) -> Tensor:
        """A parameter, or its moving average, gathered from the ranks that share it: a collective of those."""
        if self.ema_decay and parameter.requires_grad:
            if not self.stage:
                return self.masters.state(parameter, ema.KEY)
            return safe_get_full_optimizer_state(parameter, ema.KEY)
        shared = self.stage == 3
        with deepspeed.zero.GatheredParameters([parameter], enabled=shared):
            return parameter.detach().clone() if shared else parameter.detach()
