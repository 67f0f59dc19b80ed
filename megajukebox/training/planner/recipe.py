"""What one of ds_configs/ asks for, in the words of `plan`, and what cannot be asked for."""

from typing import Any, NamedTuple

from megajukebox.common.errors import UserError
from megajukebox.training.planner.ds_config_schema import check_values

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
LONG_NAMES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
SHORT_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}  # as DeepSpeed's keys name them
MIXED_PRECISION_KEYS = ("fp16", "bf16", "torch_autocast")


class Recipe(NamedTuple):
    """A way of training. Sizes of buffers are in elements."""

    stage: int  # of ZeRO
    weights: str  # precision that the model's weights are kept in: float32, float16 or bfloat16
    precision: str  # that it computes in; another than `weights` under torch_autocast
    micro: int  # samples of a micro-batch
    accumulation: int  # micro-batches of a step
    pipeline: int  # stages; 1 is none
    recompute: bool  # activation checkpointing
    offload_optimizer: bool
    offload_weights: bool
    bucket: int
    overlap: bool
    contiguous: bool
    prefetch: int
    live: int
    reuse: int
    persistent: int
    group: int  # elements that ZeRO-3 steps at once
    gradient_bytes: int | None  # a gradient's, where data_types says it
    reduced_bytes: int  # a gradient's while ranks sum it

    @property
    def weight_bytes(self) -> int:
        return BYTES[self.weights]

    def data_ranks(self, gpus: int) -> int:
        """Ranks that read different data: the stages of one pipeline read the same."""
        return gpus // self.pipeline

    def samples(self, gpus: int) -> int:
        """Of one step, over all GPUs."""
        return self.micro * self.accumulation * self.data_ranks(gpus)


def recipe(ds_config: dict, gpus: int) -> Recipe:
    """Read a ds_config for `gpus` processes. UserError for what DeepSpeed ignores, or refuses only
    when it starts.
    """
    check_ds_config(ds_config, "the ds_config")
    zero = ds_config.get("zero_optimization", {})
    data_types = ds_config.get("data_types", {})
    weights = weight_precision(ds_config)
    stage = int(zero.get("stage", 0))
    way = Recipe(
        stage=stage,
        weights=weights,
        precision=precision(ds_config),
        micro=int(ds_config.get("train_micro_batch_size_per_gpu", 1)),
        accumulation=int(ds_config.get("gradient_accumulation_steps", 1)),
        pipeline=pipeline_stages(ds_config, gpus),
        recompute="activation_checkpointing" in ds_config,
        offload_optimizer=(zero.get("offload_optimizer") or {}).get("device", "none") != "none",
        offload_weights=(zero.get("offload_param") or {}).get("device", "none") != "none",
        bucket=int(zero.get("reduce_bucket_size", 5e8)),
        overlap=zero["overlap_comm"] if zero.get("overlap_comm") is not None else stage == 3,
        contiguous=zero.get("contiguous_gradients", True),
        prefetch=int(zero.get("stage3_prefetch_bucket_size", 5e7)),
        live=int(zero.get("stage3_max_live_parameters", 1e9)),
        reuse=int(zero.get("stage3_max_reuse_distance", 1e9)),
        persistent=int(zero.get("stage3_param_persistence_threshold", 1e5)),
        group=int(zero.get("sub_group_size", 1e9)),
        gradient_bytes=(BYTES | SHORT_BYTES).get(data_types.get("grad_accum_dtype", "")),
        reduced_bytes=SHORT_BYTES.get(ds_config.get("communication_data_type", ""), BYTES[weights]),
    )
    if "pipeline" in ds_config and way.stage != 1:
        raise UserError(
            f"zero_optimization.stage {way.stage} cannot go with a pipeline, which shares its optimizer by ZeRO-1:"
            " set it to 1"
        )
    if way.offload_weights and way.stage != 3:
        raise UserError(f"zero_optimization.offload_param needs stage 3, not {way.stage}")
    return way


def check_ds_config(ds_config: dict[str, Any], source: str) -> None:
    """Check a ds_config before a process starts: its keys, their values, and what does not go together.

    Raises:
        UserError: names `source` (the file, or the recipe with its profile), key, value and way out.
    """
    check_values(ds_config, source)
    try:
        weight_precision(ds_config)
        check_autocast(ds_config)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def check_autocast(ds_config: dict[str, Any]) -> None:
    """Raises UserError for float16 by torch_autocast under ZeRO.

    DeepSpeed then clips gradients that are still multiplied by the loss scale, and its scaler never
    hears of an overflow.
    """
    autocast = ds_config.get("torch_autocast", {})
    stage = ds_config.get("zero_optimization", {}).get("stage", 0)
    if autocast.get("enabled") and autocast.get("dtype") in ("float16", "fp16") and stage:
        raise UserError(
            f"torch_autocast in float16 does not go with zero_optimization.stage {stage}: use fp16"
            " instead, or dtype bfloat16"
        )


def weight_precision(ds_config: dict) -> str:
    """float16, bfloat16 or float32. UserError if two ways of computing in less than float32 are
    asked for.
    """
    enabled = [key for key in MIXED_PRECISION_KEYS if ds_config.get(key, {}).get("enabled")]
    if len(enabled) > 1:
        raise UserError(f"the ds_config enables {' and '.join(enabled)}; keep one")
    if enabled == ["fp16"]:
        return "float16"
    return "bfloat16" if enabled == ["bf16"] else "float32"


def precision(ds_config: dict) -> str:
    """What products and convolutions are computed in."""
    autocast = ds_config.get("torch_autocast", {})
    if autocast.get("enabled"):
        dtype = autocast.get("dtype", "bfloat16")
        return LONG_NAMES.get(dtype, dtype)
    return weight_precision(ds_config)


def pipeline_stages(ds_config: dict, gpus: int) -> int:
    """1 without a pipeline; "auto" is one stage a process."""
    stages = ds_config.get("pipeline", {}).get("stages", 1)
    stages = gpus if stages == "auto" else stages
    if not isinstance(stages, int) or stages < 1:
        raise UserError(f'pipeline.stages {stages!r} is neither a number of processes nor "auto"')
    return stages
