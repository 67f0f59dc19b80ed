"""What this folder uses of DeepSpeed beyond its documented interface: one row each, with the
version it was read in.

A new version of DeepSpeed may rename any of it without notice.
tests/training/test_deepspeed_private.py looks for every row in the installed version's source and
fails by its name; then read `where` in that version and mend what uses it.
"""

from typing import NamedTuple

DEEPSPEED_VERSION = "0.19.8"  # whose sources the rows were read in

# Part of the only sign that its loss scaler gives of an overflow at the lowest scale.
MIN_LOSS_SCALE_MESSAGE = "loss scale already at minimum"


class PrivateName(NamedTuple):
    """A name, or text, that stands in a module of DeepSpeed."""

    name: str
    where: str  # module below `deepspeed`
    why: str


ENGINE = "runtime.engine"
ZERO_1_2 = "runtime.zero.stage_1_and_2"
ZERO_3 = "runtime.zero.stage3"
BF16 = "runtime.bf16_optimizer"
FP16_FUSED = "runtime.fp16.fused_optimizer"
FP16_UNFUSED = "runtime.fp16.unfused_optimizer"
PARTITIONED = "runtime.zero.partition_parameters"
PIPE = "runtime.pipe.module"

DEEPSPEED_PRIVATE = (
    # The engine
    PrivateName(
        "basic_optimizer", ENGINE, "the plain optimizer, whose step spike detection guards"
    ),
    PrivateName("checkpoint_engine", ENGINE, "replaced by ours: checksums, no pickle, full disks"),
    PrivateName("_copy_recovery_script", ENGINE, "left out: its scripts read pickles"),
    PrivateName("skipped_steps", ENGINE, "the metric `overflows`"),
    PrivateName("torch_autocast_z0_gradscaler", ENGINE, "replaced by ours (loss_scaler.py)"),
    PrivateName("_config", ENGINE, "holds load_universal_checkpoint"),
    PrivateName("load_universal_checkpoint", "runtime.config", "set while a converted one is read"),
    # Optimizers: overflow, norm, loss scale
    PrivateName("overflow", ZERO_1_2, "whether the step was left out"),
    PrivateName("overflow", ZERO_3, "whether the step was left out"),
    PrivateName("overflow", FP16_FUSED, "whether the step was left out"),
    PrivateName("overflow", FP16_UNFUSED, "whether the step was left out"),
    PrivateName("_global_grad_norm", ZERO_1_2, "the norm before clipping"),
    PrivateName("_global_grad_norm", ZERO_3, "the norm before clipping"),
    PrivateName("_global_grad_norm", BF16, "the norm before clipping"),
    PrivateName("loss_scale_config", FP16_FUSED, "current and lowest loss scale without ZeRO"),
    PrivateName("loss_scale_config", FP16_UNFUSED, "current and lowest loss scale without ZeRO"),
    PrivateName(MIN_LOSS_SCALE_MESSAGE, "runtime.fp16.loss_scaler", "how ZeRO reports that"),
    # Optimizers: the moving average is one more state, which ZeRO-1 and 2 must link again
    PrivateName("_lazy_init_hp_params_optimizer_state", ZERO_1_2, "links states to parameters"),
    PrivateName("_hp_optimizer_states_linked", ZERO_1_2, "that they were linked before"),
    PrivateName("_lazy_init_hp_params_optimizer_state", BF16, "links states to parameters"),
    PrivateName("_hp_optimizer_states_linked", BF16, "that they were linked before"),
    # Master weights (master_weights.py)
    PrivateName("single_partition_of_fp32_groups", ZERO_1_2, "master weights"),
    PrivateName("parallel_partitioned_bit16_groups", ZERO_1_2, "their 16-bit weights"),
    PrivateName("real_dp_process_group", ZERO_1_2, "who shares a group's partitions"),
    PrivateName("fp32_groups_flat_partition", BF16, "master weights"),
    PrivateName("bf16_partitioned_groups", BF16, "their 16-bit weights"),
    PrivateName("real_dp_process_group", BF16, "who shares a group's partitions"),
    PrivateName("fp32_partitioned_groups_flat", ZERO_3, "master weights"),
    PrivateName("fp16_partitioned_groups_flat", ZERO_3, "their 16-bit weights"),
    PrivateName("fp32_groups_flat", FP16_FUSED, "master weights"),
    PrivateName("fp16_groups_flat", FP16_FUSED, "their 16-bit weights"),
    PrivateName("fp16_groups", FP16_FUSED, "which parameter lies where in them"),
    PrivateName("fp32_groups", FP16_UNFUSED, "master weights"),
    PrivateName("fp16_groups", FP16_UNFUSED, "their 16-bit weights"),
    # Parameters under ZeRO-3
    PrivateName("ds_id", PARTITIONED, "whether a parameter is shared out"),
    PrivateName("ds_shape", PARTITIONED, "its shape when gathered"),
    PrivateName("ds_numel", PARTITIONED, "its elements when gathered; of a part, with padding"),
    PrivateName("ds_tensor", PARTITIONED, "this rank's part"),
    # Pipelines
    PrivateName("_partition_layers", PIPE, "overridden: the list is cut where we say"),
    PrivateName("_set_bounds", PIPE, "tells it the first and last layer of this stage"),
    PrivateName("_topo", PIPE, "which stage this rank is"),
    PrivateName("global_rank", PIPE, "this rank"),
    # Checkpoints
    PrivateName("universal_checkpoint_info", "checkpoint.constants", "attribute of a module"),
    PrivateName("universal_checkpoint_version", "checkpoint.constants", "a key of it"),
    PrivateName("pipeline_replicated_parameter_patterns", "checkpoint.constants", "a key of it"),
    PrivateName("base_optimizer_state", "checkpoint.constants", "where ZeRO-1 keeps Adam's states"),
    PrivateName("inject_missing_state", "checkpoint.ds_to_universal", "an option of its main"),
    # Communication
    PrivateName("__compatible_ops__", "ops", "switches its shared-memory all-reduce off"),
    PrivateName("cdb", "comm.comm", "its backend, whose functions are timed"),
    PrivateName("all_gather_function", "comm.torch", "timed"),
    PrivateName("reduce_scatter_function", "comm.torch", "timed"),
)
