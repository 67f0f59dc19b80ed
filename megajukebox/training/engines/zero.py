"""A model under DeepSpeed's ZeRO-0..3: `step`, `evaluate`, `save`, `load`, `weights` are all that
the loop sees.

What it uses of DeepSpeed beyond its documented interface stands in deepspeed_private.py.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

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
from megajukebox.training.engines.collectives import (
    OVERFLOW_AT_MIN_SCALE,
    LossScaleAtMinimum,
    raising_at_min_loss_scale,
)
from megajukebox.training.engines.comm_timing import Communication
from megajukebox.training.engines.loss_scaler import AutocastLossScaler
from megajukebox.training.engines.master_weights import MasterWeights
from megajukebox.training.engines.model_init import (
    fill,
    parameter_groups,
    recompute_activations,
    zero_stage,
)
from megajukebox.training.engines.restricted_loading import restricted_loading
from megajukebox.training.engines.tensor_hash import hashed
from megajukebox.training.engines.universal_checkpoint import ALLOWED, SavedLayout
from megajukebox.training.spike_detection import SkipReason, SpikeDetector, SpikeSettings

TAG = "state"  # DeepSpeed's name of a checkpoint: a folder within ours

# How near two CPUs' results are, relatively: they may differ in kind, and add up in another order
# then.
CPU_TOLERANCE = 1e-5
CPU_TOLERANCE_IN_16_BITS = 1e-2


class ZeroEngine:
    """A model under ZeRO-0..3: the loop sees only steps and numbers."""

    stages = 1  # of a pipeline
    is_pipeline = False
    reason: SkipReason | None = None  # why the last step was skipped
    overflowed = False  # whether it was left out, to lower the loss scale

    def __init__(
        self,
        model: nn.Module,
        ds_config: dict,
        rules: SpikeSettings | None = None,
        ema_decay: float = 0.0,
        saves_frozen: bool = True,
    ):
        layers = getattr(model, "blocks", None)
        if "activation_checkpointing" in ds_config and isinstance(layers, nn.ModuleList):
            recompute_activations(layers)
        trained = parameter_groups(model, ds_config)
        self.engine, *_ = deepspeed.initialize(
            model=model, model_parameters=trained, config=ds_config
        )
        self.peak_rates = [group["lr"] for group in self.engine.optimizer.param_groups]
        self.stage = zero_stage(ds_config)
        self.stability = SpikeDetector(rules or SpikeSettings())
        self.ema_decay = ema_decay
        self.saves_frozen = saves_frozen  # whether weights that do not learn are in checkpoints
        self.masters = MasterWeights(self.engine.optimizer, self.engine.basic_optimizer)
        self._guard_optimizer()
        if not saves_frozen:
            self._leave_out_frozen()
        self.loss_scaler: AutocastLossScaler | None = (
            None  # only where DeepSpeed has none of its own
        )
        if self.engine.torch_autocast_z0_gradscaler is not None:
            self.loss_scaler = AutocastLossScaler(self.device.type)
            self.engine.torch_autocast_z0_gradscaler = self.loss_scaler
        self.communication = Communication(self.device)
        self.storage = CheckpointStorage(ALLOWED)
        self.engine.checkpoint_engine = self.storage
        # Scripts that it would leave in every checkpoint: they read pickles, and on a full disk
        # they hang the others.
        self.engine._copy_recovery_script = lambda folder: None
        self.layout: SavedLayout | None = None  # None: every rank has the whole optimizer
        if self.stage:
            self.layout = SavedLayout(dist.get_world_size() // self.stages, self.stages)

    def _leave_out_frozen(self) -> None:
        """Let checkpoints hold no weight that does not learn: DeepSpeed keeps the second name of a tied one."""
        plain = self.engine.module_state_dict
        frozen: set[str] = set()
        for name, parameter in self.module.named_parameters(remove_duplicate=False):
            if not parameter.requires_grad:
                frozen.add(name)

        def module_state_dict(*args: object, **kwargs: object) -> dict[str, Tensor]:
            state = plain(*args, **kwargs)
            return {name: tensor for name, tensor in state.items() if name not in frozen}

        self.engine.module_state_dict = module_state_dict

    def _guard_optimizer(self) -> None:
        """Let the optimizer step only where `_may_step` allows it, and the moving average follow.

        Under all that DeepSpeed does, what moves the weights is the step of one plain optimizer.
        There the gradient is known, in every way of training.
        """
        optimizer = self.engine.basic_optimizer
        plain_step = optimizer.step

        def step(*args: object, **kwargs: object) -> object:
            if not self._may_step():
                return None
            if not self.ema_decay:
                return plain_step(*args, **kwargs)
            with ema.following(optimizer, self.ema_decay):
                return plain_step(*args, **kwargs)

        optimizer.step = step

    @property
    def device(self) -> torch.device:
        return self.engine.device

    @property
    def module(self) -> nn.Module:
        return self.engine.module

    # ---- A step ---------------------------------------------------------------------------------

    def step(self, micro_batches: list[dict], rate: float) -> dict[str, float]:
        """One optimizer step at `rate` times the peak learning rate. Returns metrics averaged over
        ranks.

        `step_skipped` is 1 where the spike detector found the step bad: the weights are then as before
        on every rank, and `self.reason` says why.

        Raises:
            LossScaleAtMinimum: gradients overflow and the fp16 loss scale can fall no further.
        """
        for group, peak in zip(self.engine.optimizer.param_groups, self.peak_rates):
            group["lr"] = peak * rate
        self.reason = None
        self.overflowed = False
        self._begin_step()
        # Codebooks learn in the forward pass: kept, to undo that.
        before = [buffer.clone() for buffer in self.module.buffers()]
        with self.communication.timed():
            averages = self._forward_backward_step(micro_batches)
        self._judge_overflow(averages["loss"])
        if self.reason or self.overflowed:
            for buffer, value in zip(self.module.buffers(), before):
                buffer.copy_(value)
        return self._step_metrics(averages, rate)

    def _begin_step(self) -> None:
        self._checked = False  # whether the detector has seen this step
        self._norm: float | None = None  # of its gradient, once read from the device
        self._plain_norm: Tensor | None = None
        self._own_losses: list[Tensor] = []
        self._metrics: list[dict[str, Tensor]] = []  # of each micro-batch, on this rank
        self._averaged: dict[str, float] | None = None

    def _forward_backward_step(self, micro_batches: list[dict]) -> dict[str, float]:
        """Forward, backward and optimizer; returns the metrics of the step.

        Nothing is read from the device before the last backward pass is queued.
        """
        self.engine.train()
        for batch in micro_batches:
            loss, metrics = self.engine(on_device(batch, self.device))
            self._own_losses.append(loss.detach())
            report = {"loss": loss, **metrics}
            self._metrics.append({name: value.detach() for name, value in report.items()})
            self.engine.backward(loss)
            if self.stage == 0 and self.engine.is_gradient_accumulation_boundary():
                gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
                norm = nn.utils.get_total_norm(gradients)
                self._plain_norm = self.loss_scaler.unscaled(norm) if self.loss_scaler else norm
            with raising_at_min_loss_scale(self.engine):
                self.engine.step()
        return self._averages()

    def _may_step(self) -> bool:
        """Asked for every group of parameters; all ranks judge the same numbers and so decide
        alike.
        """
        if not self._checked:
            self._checked = True
            if self.masters.watched:
                self.masters.compare()
            self.reason = self.stability.check(self._averages()["loss"], self._gradient_norm())
        return self.reason is None

    def _judge_overflow(self, loss: float) -> None:
        """Whether the step was left out because of its gradients, and whose fault that is.

        With fp16 gradients overflow now and then; the loss scale falls. A loss that is no number is
        a bad step, whatever DeepSpeed makes of it.

        Raises:
            LossScaleAtMinimum: the scale of `loss_scaler` can fall no further.
        """
        left_out = bool(getattr(self.engine.optimizer, "overflow", False))
        if self.loss_scaler:
            left_out = not self._checked  # the scaler did not call the optimizer
        is_scaled = self.loss_scaler is not None or self.engine.fp16_enabled()
        is_finite = math.isfinite(loss)
        self.overflowed = left_out and is_scaled and is_finite
        if self.reason is None and not self.overflowed and (left_out or not is_finite):
            self.reason = self.stability.check(loss, math.inf)
        if self.loss_scaler and left_out:
            if not is_finite:
                self.loss_scaler.undo_backoff()
            elif self.loss_scaler.note_overflow():
                raise LossScaleAtMinimum(OVERFLOW_AT_MIN_SCALE)

    def _averages(self) -> dict[str, float]:
        """Metrics averaged over micro-batches and ranks: a collective when first asked in a step."""
        if self._averaged is None:
            self._averaged = self._mean_over_ranks(self._metrics)
        return self._averaged

    def _mean_over_ranks(self, reports: list[dict[str, Tensor]]) -> dict[str, float]:
        """The mean of what every rank reports of its micro-batches, of what all of them have.

        A codebook whose warm-up ends within a step has facts in the later ones alone.
        """
        names = [name for name in reports[0] if all(name in report for report in reports)]
        rows = []
        for report in reports:
            rows.append(torch.stack([report[name].float().reshape(()) for name in names]))
        summed = torch.stack(rows)  # [micro-batches, metrics]
        dist.all_reduce(summed)
        columns = (summed / dist.get_world_size()).t().tolist()
        return {name: sum(column) / len(column) for name, column in zip(names, columns)}

    def _gradient_norm(self) -> float:
        """Of the whole gradient, before clipping, without loss scale; DeepSpeed keeps it only with
        ZeRO or half precision.
        """
        if self._norm is None:
            norm = getattr(self.engine.optimizer, "_global_grad_norm", None)
            if norm is None:
                norm = self._plain_norm
            self._norm = math.nan if norm is None else float(norm)
        return self._norm

    def _step_metrics(self, averages: dict[str, float], rate: float) -> dict[str, float]:
        """`averages` with the facts of the step; under fp16 the loss scale, and how many steps it
        cost so far.
        """
        metrics = {
            **averages,
            "grad_norm": self._gradient_norm(),
            "learning_rate": self.peak_rates[0] * rate,
            "step_skipped": float(self.reason is not None),
        }
        if self.loss_scaler:
            metrics["loss_scale"] = self.loss_scaler.get_scale()
            metrics["overflows"] = float(self.loss_scaler.overflows)
        elif self.engine.fp16_enabled():
            optimizer = self.engine.optimizer
            scale = getattr(optimizer, "loss_scale", getattr(optimizer, "cur_scale", 0.0))
            metrics["loss_scale"] = float(scale)
            metrics["overflows"] = float(self.engine.skipped_steps)
        return metrics

    def own_loss(self) -> float | None:
        """The last step's loss on this rank's own clips; None on a stage that sees no loss."""
        return float(torch.stack(self._own_losses).mean()) if self._own_losses else None

    # ---- Without learning -----------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, batch: dict) -> dict[str, float]:
        """Metrics of one batch a rank, averaged over ranks, without learning anything."""
        self.engine.eval()
        loss, metrics = self.engine(on_device(batch, self.device))
        return self._mean_over_ranks([{"loss": loss, **metrics}])

    @torch.no_grad()
    def loss_here(self, batch: dict) -> float | None:
        """What this rank alone gets as the loss of `batch`, without learning; None on a stage that
        sees no loss.
        """
        self.engine.eval()
        loss, _ = self.engine(on_device(batch, self.device))
        return float(loss)

    def exactness(self) -> tuple[str, float]:
        """Whose results should be this rank's (devices of the same name), and how near, relatively.

        GPUs of one kind compute alike to the last bit.
        """
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device), 0.0
        in_16_bits = (
            self.engine.fp16_enabled()
            or self.engine.bfloat16_enabled()
            or self.engine.torch_autocast_enabled()
        )
        return self.device.type, CPU_TOLERANCE_IN_16_BITS if in_16_bits else CPU_TOLERANCE

    def replicated_hash(self) -> int:
        """A sum of all that ranks of one stage must hold alike.

        Under ZeRO-3 that is only what DeepSpeed keeps whole everywhere (small weights), and
        buffers.
        """
        parameters = self.module.parameters()
        alike = [p for p in parameters if p.numel() == getattr(p, "ds_numel", p.numel())]
        return hashed([*alike, *self.module.buffers()])

    # ---- The weights, whole ---------------------------------------------------------------------

    def gathered(self, parameter: Tensor) -> Tensor:
        """A parameter, or its moving average, gathered from the ranks that share it: a collective
        of those.
        """
        if self.ema_decay and parameter.requires_grad:
            if not self.stage:
                return self.masters.state(parameter, ema.KEY)
            return safe_get_full_optimizer_state(parameter, ema.KEY)
        shared = self.stage == 3
        with deepspeed.zero.GatheredParameters([parameter], enabled=shared):
            return parameter.detach().clone() if shared else parameter.detach()

    def weights(self) -> dict[str, PendingTensor]:
        """Every parameter (float32; its moving average where one is kept) and buffer by name, each
        gathered only when it is made.

        Making one is a collective: every rank makes all of them, in this order.
        """
        pending = {}
        for name, parameter in self.module.named_parameters():
            shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
            gather = partial(self._gathered_on_host, parameter)
            pending[name] = PendingTensor(torch.float32, shape, gather)
        for name, buffer in self.module.named_buffers():
            copy = partial(buffer.detach().to, "cpu", copy=True)
            pending[name] = PendingTensor(buffer.dtype, tuple(buffer.shape), copy)
        return pending

    def _gathered_on_host(self, parameter: Tensor) -> Tensor:
        return self.gathered(parameter).float().detach().to("cpu", copy=True)

    @contextlib.contextmanager
    @torch.no_grad()
    def whole(self) -> Iterator[nn.Module]:
        """The model with the weights that are exported, all of them on every rank, to be looked at
        and not trained.
        """
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        averages = [self.gathered(p) for p in parameters] if self.ema_decay else []
        shared = self.stage == 3
        with deepspeed.zero.GatheredParameters(list(self.module.parameters()), enabled=shared):
            trained = [p.clone() for p in parameters] if averages else []
            for parameter, average in zip(parameters, averages):
                parameter.copy_(average)
            try:
                yield self.module
            finally:
                for parameter, value in zip(parameters, trained):
                    parameter.copy_(value)

    # ---- Checkpoints ----------------------------------------------------------------------------

    def step_state(self) -> dict[str, Any]:
        """What the next step depends on beside weights and optimizer, as plain values: the same on
        every rank.
        """
        state: dict[str, Any] = {"stability": self.stability.state()}
        if self.loss_scaler:
            state["loss_scaler"] = self.loss_scaler.state()
        return state

    def restore_step_state(self, state: dict[str, Any]) -> None:
        """Continue from a `step_state`, also from one of version 0.1.0."""
        self.stability.restore(state.get("stability", {}))
        if self.loss_scaler is None:
            return
        if "loss_scaler" in state:
            self.loss_scaler.restore(state["loss_scaler"])
        else:
            # Norms of 0.1.0 were multiplied by the loss scale: no spike would ever reach them.
            self.stability.norms.clear()

    def save(self, folder: Path, background: bool = False) -> None:
        """Every rank writes its part of weights and optimizer state, as they are now, into
        `folder`; or begins to.

        `storage.finish` tells whether it could.
        """
        self.storage.begin(background)
        self.engine.save_checkpoint(
            str(folder),
            tag=TAG,
            save_latest=False,
            exclude_frozen_parameters=not self.saves_frozen,
        )

    def load(self, folder: Path, progressed: Callable[[], None] = lambda: None) -> None:
        """The inverse of `save`, on any number of ranks; `progressed` is called while a long
        conversion goes on.

        Raises:
            UserError: the checkpoint is of another way of training.
            RuntimeError: nothing was loaded.
        """
        saved = folder / TAG
        layout = universal_checkpoint.layout_of(saved)
        same_kind = (layout is None) == (self.layout is None)
        if not same_kind or universal_checkpoint.is_pipeline(saved) != self.is_pipeline:
            raise UserError(
                f"{folder} was saved under another way of training (ZeRO stage or pipeline);"
                " go on with the ds_config it had, or start another run --from it"
            )
        if layout == self.layout:
            self._load(folder)
            return
        with universal_checkpoint.converted(saved, progressed) as universal:
            self.engine._config.load_universal_checkpoint = True
            self._load(universal.parent)
            self.engine._config.load_universal_checkpoint = False
            if self.ema_decay:
                self._load_average(universal)
        # Codebooks, which DeepSpeed leaves out of universal checkpoints; they are the same on every
        # rank.
        buffers = dict(self.module.named_buffers())
        if buffers:
            file = min(saved.glob("*_model_states.pt"))
            fill(buffers, self.storage.load(str(file))["module"])

    def _load(self, folder: Path) -> None:
        """DeepSpeed's own loading; where a checkpoint holds no average, it is what the weights are
        then.
        """
        ema.forget(self.engine.basic_optimizer)
        with restricted_loading(ALLOWED):
            path, _ = self.engine.load_checkpoint(
                str(folder), tag=TAG, load_module_strict=self.saves_frozen
            )
        if path is None:
            raise RuntimeError(f"DeepSpeed loaded nothing from {folder}")
        if not self.ema_decay:
            return
        ema.start(self.engine.basic_optimizer, self.masters.held())
        optimizer = self.engine.optimizer
        # ZeRO-1 and 2 learn once which states there are: let them learn of the average.
        if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state"):
            optimizer._hp_optimizer_states_linked = False
            optimizer._lazy_init_hp_params_optimizer_state()

    def _load_average(self, universal: Path) -> None:
        """Of a converted checkpoint; where it has none, the average starts from the weights that
        were loaded.
        """
        for name, parameter in self.module.named_parameters():
            path = universal_checkpoint.average_of(universal, name)
            if not parameter.requires_grad or not path.exists():
                continue
            stored = self.storage.load(str(path), map_location=self.device)
            average = stored["param"] if isinstance(stored, dict) else stored
            if self.stage < 3:
                safe_set_full_optimizer_state(parameter, average, ema.KEY)
                continue
            # The call for a whole one does not pad it, as ZeRO-3 does where its size is no multiple
            # of the ranks.
            size = parameter.ds_tensor.ds_numel  # type: ignore[attr-defined]
            padding = size * dist.get_world_size() - average.numel()
            padded = nn.functional.pad(average.flatten(), (0, padding))
            own = padded.narrow(0, dist.get_rank() * size, size)
            safe_set_local_optimizer_state(parameter, own, ema.KEY)


def on_device(batch: dict, device: torch.device) -> dict:
    """`batch` with its tensors on `device`; the conditions are a dict within it.

    To a GPU they go from pinned memory, so that nobody waits for the copy.
    """
    to_gpu = device.type == "cuda"
    moved: dict[str, Any] = {}
    for name, value in batch.items():
        if isinstance(value, dict):
            moved[name] = on_device(value, device)
        elif isinstance(value, Tensor):
            source = value.pin_memory() if to_gpu and value.device.type == "cpu" else value
            moved[name] = source.to(device, non_blocking=to_gpu)
        else:
            moved[name] = value
    return moved
