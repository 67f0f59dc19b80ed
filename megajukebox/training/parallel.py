"""The processes of a run: joining them, agreeing with them, and the ds_config that says how they share the work."""

<<<<<<< HEAD
import contextlib
=======
import json
>>>>>>> a7b996a (Bad steps leave no trace; training goes on from other weights; averages, annealing, samples on the way)
import logging
import os
from pathlib import Path
from typing import TypeVar

import deepspeed
import psutil
import torch
import torch.distributed as dist

<<<<<<< HEAD
from megajukebox.data.weights import Pending
from megajukebox.training import universal
from megajukebox.training.ds_configs import DS_CONFIGS as DS_CONFIGS
from megajukebox.training.ds_configs import read_ds_config as read_ds_config
=======
>>>>>>> a7b996a (Bad steps leave no trace; training goes on from other weights; averages, annealing, samples on the way)
from megajukebox.training.launch import World, world

<<<<<<< HEAD
# What the files of a checkpoint may name beside tensors and plain values: nothing in them is run when they are read.
ALLOWED = [ZeroStageEnum, LossScaler, DynamicLossScaler, fragment_address]
=======
DS_CONFIGS = Path(__file__).parent.parent.parent / "ds_configs"
>>>>>>> a7b996a (Bad steps leave no trace; training goes on from other weights; averages, annealing, samples on the way)
T = TypeVar("T")


class TrainingDiverged(RuntimeError):
    """The loss is no longer a number."""


def start() -> World:
    """Join the other processes (gloo on CPUs, NCCL on GPUs) and return this one's place."""
    here = world()
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # Its shared-memory all-reduce compiles for minutes and leaves 66 MB in /dev/shm for every process; gloo serves.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # The group's own time limit comes after the one of the pulse, which says more (minutes; pulse.py).
    os.environ.setdefault("DEEPSPEED_TIMEOUT", "60")
    if torch.cuda.is_available():
        torch.cuda.set_device(here.local_rank)
    if not dist.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    return here


def stop() -> None:
    """Leave the group, so that no process waits for one that has ended."""
    if dist.is_initialized():
        dist.destroy_process_group()


def from_rank_0(value: T | None) -> T:
    """`value` of rank 0, on every rank; the others may give None."""
    box = [value]
    dist.broadcast_object_list(box, 0)
    found = box[0]
    assert found is not None
    return found


def seed(number: int) -> None:
    """The same first weights on every rank and in every run."""
    torch.manual_seed(number)


def barrier() -> None:
    dist.barrier()


def gathered(value: T) -> list[T]:
    """`value` of every rank, by rank, on every rank."""
    box: list = [None] * dist.get_world_size()
    dist.all_gather_object(box, value)
    return box


def highest(number: int) -> int:
    """The highest `number` of all ranks."""
    asked = torch.tensor(number, device=_device())
    dist.all_reduce(asked, op=dist.ReduceOp.MAX)
    return int(asked.item())


def memory() -> dict[str, float]:
    """Bytes that this process holds: of the machine's memory now, of the GPU's at most so far."""
    held = {"memory_host_bytes": float(psutil.Process().memory_info().rss)}
    return held | ({"memory_gpu_bytes": float(torch.cuda.max_memory_allocated())} if torch.cuda.is_available() else {})


def total(numbers: list[int]) -> list[int]:
    """Each of `numbers` summed over all ranks."""
    summed = torch.tensor(numbers, device=_device())
    dist.all_reduce(summed)
    return summed.tolist()


def _device() -> torch.device:
    return torch.device("cuda", world().local_rank) if torch.cuda.is_available() else torch.device("cpu")


<<<<<<< HEAD
def building(ds_config: dict) -> contextlib.AbstractContextManager:
    """Build a model inside this: under ZeRO-3 no process ever holds the whole of it."""
    if _stage(ds_config) == 3:
        return deepspeed.zero.Init(config_dict_or_path=ds_config)
    return contextlib.nullcontext()


def _stage(ds_config: dict) -> int:
    return ds_config.get("zero_optimization", {}).get("stage", 0)


def recompute_activations(layers: nn.ModuleList) -> None:
    """Forget each layer's activations in the forward pass and compute them again in the backward pass."""
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def fill(parameters: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Give `parameters` (by name; shared out under ZeRO-3) the values in `weights`. Names and shapes must have been
    compared before; a tied name that `weights` lacks has its values under the other.
    """
    for name, parameter in parameters.items():
        if name in weights:
            shared = hasattr(parameter, "ds_id")
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0 if shared else None, enabled=shared):
                if not shared or dist.get_rank() == 0:
                    parameter.data.copy_(weights[name])


class Engine:
    """A model under ZeRO-0..3: the loop sees only steps and numbers."""

    stages = 1  # of a pipeline
    is_pipeline = False

    def __init__(self, model: nn.Module, ds_config: dict):
        layers = getattr(model, "blocks", None)
        if "activation_checkpointing" in ds_config and isinstance(layers, nn.ModuleList):
            recompute_activations(layers)
        trained = [p for p in model.parameters() if p.requires_grad]
        self.engine, *_ = deepspeed.initialize(model=model, model_parameters=trained, config=ds_config)
        self.peak_rates = [group["lr"] for group in self.engine.optimizer.param_groups]
        self.stage = _stage(ds_config)
        self.alone = Stopwatch(self.device)  # of the forward passes, up to where the ranks first meet
        quiet = getattr(model, "before_meeting", None)
        if quiet is not None:
            quiet.register_forward_hook(lambda *_: self.alone.stop())
        self.storage = Storage(ALLOWED)
        self.engine.checkpoint_engine = self.storage
        # Scripts that it would leave in every checkpoint: they read pickles, and on a full disk they hang the others.
        self.engine._copy_recovery_script = lambda folder: None
        self.spread = Spread(dist.get_world_size() // self.stages, self.stages) if self.stage else None

    @property
    def device(self) -> torch.device:
        return self.engine.device

    @property
    def module(self) -> nn.Module:
        return self.engine.module

    def step(self, micro_batches: list[dict], rate: float) -> dict[str, float]:
        """One optimizer step at `rate` times the peak learning rate. Returns metrics averaged over ranks.

        Raises TrainingDiverged before the weights are touched if the loss is not finite.
        """
        self._set_rate(rate)
        self.engine.train()
        self.alone.clear()
        seen = []
        for batch in micro_batches:
            if self.stage < 3:  # with ZeRO-3 the ranks meet in every layer
                self.alone.start()
            loss, metrics = self.engine(self._placed(batch))
            self.alone.stop()
            seen.append(self._average({"loss": loss, **metrics}))
            if not math.isfinite(seen[-1]["loss"]):
                raise TrainingDiverged(f"loss is {seen[-1]['loss']}")
            self.engine.backward(loss)
            norm = self._gradient_norm() if self.stage == 0 else None
            self.engine.step()
        averages = {name: sum(s[name] for s in seen) / len(seen) for name in seen[0]}
        return self._finished(averages, rate, norm)

    def _set_rate(self, rate: float) -> None:
        for group, peak in zip(self.engine.optimizer.param_groups, self.peak_rates):
            group["lr"] = peak * rate

    def _finished(self, averages: dict[str, float], rate: float, norm: float | None = None) -> dict[str, float]:
        norm = self.engine.get_global_grad_norm() if norm is None else norm
        facts = {"gradient_norm": float(norm or 0.0), "learning_rate": self.peak_rates[0] * rate}
        return averages | facts | self._scaling()

    def _scaling(self) -> dict[str, float]:
        """The fp16 loss scale, and the steps left out so far because a gradient overflowed."""
        if not self.engine.fp16_enabled():
            return {}
        scale = getattr(self.engine.optimizer, "loss_scale", getattr(self.engine.optimizer, "cur_scale", 0.0))
        return {"loss_scale": float(scale), "overflows": float(self.engine.skipped_steps)}

    def _gradient_norm(self) -> float:
        """Before clipping; DeepSpeed keeps it only with ZeRO."""
        return float(nn.utils.get_total_norm([p.grad for p in self.module.parameters() if p.grad is not None]))

    @torch.no_grad()
    def evaluate(self, batch: dict) -> dict[str, float]:
        """Metrics of one batch a rank, averaged over ranks, without learning anything."""
        self.engine.eval()
        loss, metrics = self.engine(self._placed(batch))
        return self._average({"loss": loss, **metrics})

    def _placed(self, batch: dict) -> dict:
        """`batch` with its tensors on this rank's device; the conditions are a dict within it."""
        return {name: self._placed(v) if isinstance(v, dict) else self._moved(v) for name, v in batch.items()}

    def _moved(self, value: object) -> object:
        return value.to(self.device) if isinstance(value, Tensor) else value

    def _average(self, metrics: dict[str, Tensor]) -> dict[str, float]:
        values = torch.stack([m.detach().float().reshape(()) for m in metrics.values()])
        dist.all_reduce(values)
        return dict(zip(metrics, (values / dist.get_world_size()).tolist()))

    @contextlib.contextmanager
    def whole(self) -> Iterator[nn.Module]:
        """The model with all its weights on every rank, to be looked at and not trained."""
        parameters = list(self.module.parameters())
        with deepspeed.zero.GatheredParameters(parameters, enabled=self.stage == 3):
            yield self.module

    def save(self, folder: Path) -> str | None:
        """Every rank writes its part of weights and optimizer state into `folder`. Returns why this rank could not."""
        self.storage.begin()
        self.engine.save_checkpoint(str(folder), tag="state", save_latest=False)
        return self.storage.failure

    def load(self, folder: Path) -> None:
        """The inverse of `save`, on any number of ranks. Raises ValueError for a checkpoint of another way of training.

        Raises RuntimeError if nothing was loaded.
        """
        saved = folder / "state"
        before = universal.spread_of(saved)
        if (before is None) != (self.spread is None) or universal.is_pipeline(saved) != self.is_pipeline:
            raise ValueError(
                f"{folder} was saved under another way of training (ZeRO stage or pipeline);"
                " go on with the ds_config it had, or start another run --from it"
            )
        if before == self.spread:
            self._load(folder)
            return
        with universal.converted(saved) as made:
            self.engine._config.load_universal_checkpoint = True
            self._load(made.parent)
            self.engine._config.load_universal_checkpoint = False
        self._load_buffers(saved)

    def _load(self, folder: Path) -> None:
        path, _ = self.engine.load_checkpoint(str(folder), tag="state")
        if path is None:
            raise RuntimeError(f"DeepSpeed loaded nothing from {folder}")

    def _load_buffers(self, saved: Path) -> None:
        """Codebooks, which DeepSpeed leaves out of universal checkpoints; they are the same on every rank."""
        buffers = dict(self.module.named_buffers())
        if buffers:
            file = min(saved.glob("*_model_states.pt"))
            fill(buffers, self.storage.load(str(file))["module"])

    def weights(self) -> dict[str, Pending]:
        """Every parameter (float32) and buffer by name, each gathered from all ranks only when it is made.

        Making one is a collective: every rank makes all of them, in this order.
        """
        parameters, shared = self.module.named_parameters(), self.stage == 3
        found = {name: self._pending(p, torch.float32, shared) for name, p in parameters}
        return found | {name: self._pending(b, b.dtype, shared=False) for name, b in self.module.named_buffers()}

    @staticmethod
    def _pending(tensor: Tensor, dtype: torch.dtype, shared: bool) -> Pending:
        def make() -> Tensor:
            with deepspeed.zero.GatheredParameters([tensor]) if shared else contextlib.nullcontext():
                return tensor.detach().to("cpu", dtype, copy=True)

        return Pending(dtype, tuple(getattr(tensor, "ds_shape", tensor.shape)), make)
=======
def read_ds_config(name: str) -> dict:
    """The JSON called `name` in ds_configs/, or at that path. Raises ValueError if it is missing or does not parse."""
    path = Path(name) if Path(name).is_file() else DS_CONFIGS / name
    if not path.is_file():
        known = ", ".join(sorted(p.name for p in DS_CONFIGS.glob("*.json")))
        raise ValueError(f"ds_config {name!r} is neither a file nor one of {known}")
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
>>>>>>> a7b996a (Bad steps leave no trace; training goes on from other weights; averages, annealing, samples on the way)
