"""What a ds_config may say: every key that goes with our training, and the values it may have.

DeepSpeed looks at few of them: it computes with a rate that is infinite, clips nothing at -1, and takes a text for a
number until it divides by it. So a ds_config is checked here, before a process starts.

    number(1, MAX_CLIPS, whole=True)    the micro-batch
    {"stage": ..., "overlap_comm": ...} a section
"""

import difflib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Union

from megajukebox.common.errors import UserError
from megajukebox.common.validation_errors import shortened
from megajukebox.training.batching import MAX_CLIPS

# What is wrong with a value and what to write instead; "" if nothing is.
Check = Callable[[object], str]
Schema = Mapping[str, Union[Check, "Schema"]]

MAX_COUNT = 2**53  # counts of elements and steps: JSON's numbers are exact up to here
MAX_RATE = 1000.0  # a learning rate above it is a slip of the keyboard
MAX_SCALE_POWER = 100  # 2^127 is the highest float32


# ---- Kinds of values ------------------------------------------------------------------------------------------------


def number(
    least: float, most: float = MAX_COUNT, whole: bool = False, above: bool = False, zero: str = ""
) -> Check:
    """A number from `least` (or above it) to `most`; `zero` says what 0 stands for.

    `whole` takes 5e8 as well: JSON knows one kind of number, and so does DeepSpeed.
    """
    kind = "whole number" if whole else "number"
    low = f"{least:g}" + (f" ({zero})" if zero else "")
    if most == MAX_COUNT:
        wanted = f"above {low}" if above else f"{low} or more"
    else:
        wanted = f"above {low}, at most {most:,g}" if above else f"{low} to {most:,.15g}"

    def check(value: object) -> str:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return _no_number(value, kind, wanted)
        if not least <= value <= most or (above and value == least):  # nan is in no range
            return wanted
        return f"a whole number, {wanted}" if whole and value != int(value) else ""

    return check


def _no_number(value: object, kind: str, wanted: str) -> str:
    if value == "auto":
        return f"'auto' is the Hugging Face trainer's, write a {kind} ({wanted})"
    if isinstance(value, str) and _reads_as_number(value):
        return f"write the {kind} without quotes ({wanted})"
    return f"write a {kind} ({wanted})"


def _reads_as_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def switch(value: object) -> str:
    """true or false."""
    if isinstance(value, bool):
        return ""
    if value == "auto":
        return "'auto' is the Hugging Face trainer's, write true or false"
    quotes = isinstance(value, str) and value.lower() in ("true", "false")
    return f"write true or false{' without quotes' if quotes else ''}"


def one_of(*choices: str) -> Check:
    def check(value: object) -> str:
        if isinstance(value, str) and value in choices:
            return ""
        near = difflib.get_close_matches(value, choices, 1) if isinstance(value, str) else []
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"{hint}one of {', '.join(choices)}"

    return check


# DeepSpeed's own, in whatever letters, and those of torch.optim that step without a closure.
OPTIMIZERS = ("adam", "adamw", "adagrad", "lamb", "lion", "muon", "muadam", "muadamw", "musgd")
OPTIMIZERS_OF_TORCH = (
    *("Adadelta", "Adafactor", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD"),
)


def optimizer_name(value: object) -> str:
    if isinstance(value, str) and value.lower() in OPTIMIZERS:
        return ""
    return one_of("AdamW", "Adam", "Adagrad", "Lamb", "Lion", "Muon", *OPTIMIZERS_OF_TORCH)(value)


def text(value: object) -> str:
    return "" if isinstance(value, str) and value else "write a text"


def texts(value: object) -> str:
    is_list = isinstance(value, list) and all(isinstance(one, str) for one in value)
    return "" if is_list else "write a list of names"


def pair(least: float, below: float) -> Check:
    """A list of two numbers, as Adam's betas."""

    def check(value: object) -> str:
        wanted = f"write a list of two numbers, each from {least:g} to below {below:g}"
        if not isinstance(value, list | tuple) or len(value) != 2:
            return wanted
        each = number(least, below)
        return wanted if any(each(one) or one == below for one in value) else ""

    return check


def either(word: object, check: Check) -> Check:
    """`word` (None is JSON's null), or what `check` takes."""
    name = "null" if word is None else repr(word)

    def check_both(value: object) -> str:
        if value == word and type(value) is type(word):
            return ""
        wrong = check(value)
        return f"{wrong}, or {name}" if wrong else ""

    return check_both


def each(check: Check, names: str) -> dict[str, Check]:
    """Several keys, separated by spaces, that take the same."""
    return dict.fromkeys(names.split(), check)


# ---- DeepSpeed's keys -----------------------------------------------------------------------------------------------

COUNT = number(0, whole=True)
AT_LEAST_1 = number(1, whole=True)
CLIPS = number(1, MAX_CLIPS, whole=True)
SHARE = number(0, 1)
RATE = number(0, MAX_RATE, above=True)
POSITIVE = number(0, above=True)
SHORT_DTYPE = one_of("fp32", "fp16", "bf16")
DTYPE = one_of("fp32", "fp16", "bf16", "float32", "float16", "bfloat16")

OFFLOAD = {
    "device": one_of("none", "cpu", "nvme"),
    "nvme_path": either(None, text),
    "buffer_count": COUNT,
    "pin_memory": switch,
}
OPTIMIZER: Schema = {
    "type": optimizer_name,
    "legacy_fusion": switch,
    "params": {
        "lr": RATE,
        "betas": pair(0, 1),
        "eps": number(0, 1),
        "weight_decay": number(0, MAX_RATE),
        **each(SHARE, "momentum dampening alpha rho"),
        **each(RATE, "muon_lr adam_lr"),
        **each(number(0), "lr_decay initial_accumulator_value lambd"),
        **each(POSITIVE, "max_coeff min_coeff"),
        "ns_method": text,
        "momentum_decay": number(0, 1),
        **each(switch, "torch_adam adam_w_mode amsgrad bias_correction"),
        **each(switch, "fp32_optimizer_states set_grad_none eps_inside_sqrt"),
        **each(switch, "nesterov centered maximize capturable"),
        **each(switch, "differentiable decoupled_weight_decay"),
        **each(either(None, switch), "foreach fused"),
    },
}
ZERO: Schema = {
    "stage": number(0, 3, whole=True),
    **each(switch, "contiguous_gradients reduce_scatter allgather_partitions"),
    **each(switch, "use_multi_rank_bucket_allreduce compute_grad_norm"),
    **each(switch, "load_from_fp32_weights elastic_checkpoint legacy_stage1"),
    **each(switch, "ignore_unused_parameters round_robin_gradients"),
    **each(switch, "parameter_alignment memory_efficient_linear"),
    **each(switch, "zero_quantized_weights zero_quantized_gradients"),
    **each(switch, "zero_quantized_nontrainable_weights override_module_apply"),
    **each(switch, "pipeline_loading_checkpoint log_trace_cache_warnings"),
    **each(switch, "enable_sanity_checks save_muon_momentum_buffer_in_memory"),
    "overlap_comm": either(None, switch),
    "reduce_bucket_size": AT_LEAST_1,
    **each(COUNT, "allgather_bucket_size sub_group_size zero_hpz_partition_size"),
    "offload_param": {**OFFLOAD, "buffer_size": COUNT, "max_in_cpu": COUNT},
    "offload_optimizer": {
        **OFFLOAD,
        **each(switch, "pipeline_read pipeline_write"),
        **each(switch, "fast_init super_offload"),
        **each(SHARE, "ratio cpuadam_cores_perc"),
    },
    "leaf_module": each(texts, "classes names name_suffixes"),
    **each(COUNT, "stage3_prefetch_bucket_size stage3_max_live_parameters"),
    **each(COUNT, "stage3_param_persistence_threshold stage3_max_reuse_distance"),
    "stage3_model_persistence_threshold": number(0, 2**63, whole=True),  # sys.maxsize by default
    "stage3_module_granularity_threshold": COUNT,
    **each(switch, "stage3_use_all_reduce_for_fetch_params stage3_allgather_sequential"),
    "stage3_gather_16bit_weights_on_model_save": switch,
}
SCHEMA: Schema = {
    "train_batch_size": CLIPS,
    "train_micro_batch_size_per_gpu": CLIPS,
    "gradient_accumulation_steps": CLIPS,
    "gradient_clipping": number(0, zero="off"),
    "optimizer": OPTIMIZER,
    "zero_optimization": ZERO,
    "fp16": {
        **each(switch, "enabled auto_cast consecutive_hysteresis"),
        "fp16_master_weights_and_grads": switch,
        "loss_scale": number(0, zero="dynamic"),
        "initial_scale_power": number(0, MAX_SCALE_POWER, whole=True),
        **each(AT_LEAST_1, "loss_scale_window hysteresis min_loss_scale"),
    },
    "bf16": {
        **each(switch, "enabled immediate_grad_update check_grad_overflow"),
        **each(switch, "bf16_master_weights_and_grads bf16_optimizer_states"),
    },
    "torch_autocast": {
        "enabled": switch,
        "dtype": one_of("bfloat16", "float16", "bf16", "fp16"),
        "lower_precision_safe_modules": texts,
    },
    "data_types": {
        "grad_accum_dtype": DTYPE,
        "param_dtype": DTYPE,
        "buffer_dtype": DTYPE,
        "keep_in_fp32_modules": either("auto", texts),
    },
    "activation_checkpointing": {
        **each(switch, "partition_activations contiguous_memory_optimization"),
        **each(switch, "cpu_checkpointing synchronize_checkpoint_boundary"),
        "profile": switch,
        "number_checkpoints": either(None, AT_LEAST_1),
    },
    "pipeline": {
        "stages": either("auto", number(1, MAX_CLIPS, whole=True)),
        "partition": text,
        "activation_checkpoint_interval": COUNT,
        **each(switch, "seed_layers pipe_partitioned grad_partitioned"),
    },
    "checkpoint": {
        "tag_validation": one_of("Ignore", "Warn", "Fail", "IGNORE", "WARN", "FAIL"),
        **each(switch, "load_universal use_node_local_storage"),
        "checkpoint_serialization": switch,
        "parallel_write": {"pipeline_stage": switch},
    },
    "steps_per_print": AT_LEAST_1,
    "wall_clock_breakdown": switch,
    "zero_allow_untested_optimizer": switch,
    "zero_force_ds_cpu_optimizer": switch,
    "communication_data_type": SHORT_DTYPE,
    # What these change is how DeepSpeed sums and what it prints.
    **each(switch, "prescale_gradients memory_breakdown dump_state"),
    "gradient_predivide_factor": POSITIVE,
    "flops_profiler": {
        **each(switch, "enabled detailed"),
        **each(AT_LEAST_1, "profile_step top_modules"),
        "recompute_fwd_factor": number(0),
        "module_depth": number(-1, whole=True),
        "output_file": either(None, text),
    },
    "comms_logger": {
        **each(switch, "enabled prof_all verbose debug"),
        "prof_ops": texts,
    },
    "aio": {
        **each(AT_LEAST_1, "block_size queue_depth intra_op_parallelism"),
        **each(switch, "single_submit overlap_events use_gds"),
    },
}
# Keys that DeepSpeed knows and that do not go with our training: what to do instead.
ELSEWHERE = {
    "scheduler": "the learning rate follows training.<stage>.schedule of the preset; leave it out",
    "bfloat16": "write it bf16, which plans read",
    "amp": "DeepSpeed has removed it; use fp16, bf16 or torch_autocast",
    "elasticity": "runs resume on another number of processes without it; leave it out",
    "autotuning": "`megajukebox plan` chooses what fits; leave it out",
    "gradient_allreduce_op": "a step averages its clips; leave it out",
    "managed_gradient_accumulation": "the engine counts micro-batches itself; leave it out",
    "tensorboard": "`megajukebox publish-metrics` writes it from the run folder; leave it out",
    "wandb": "metrics leave a run by its folder (docs/monitoring.md); leave it out",
    "csv_monitor": "metrics are in the run's metrics.jsonl; leave it out",
    "comet": "metrics leave a run by its folder (docs/monitoring.md); leave it out",
    "optimizer.params.max_grad_norm": "write it as gradient_clipping, at the top",
    "zero_optimization.cpu_offload": "write offload_optimizer: {device: cpu}",
    "zero_optimization.cpu_offload_param": "write offload_param: {device: cpu}",
    "zero_optimization.cpu_offload_use_pin_memory": "write pin_memory in offload_optimizer",
    "zero_optimization.stage3_gather_fp16_weights_on_model_save": (
        "write stage3_gather_16bit_weights_on_model_save"
    ),
    "zero_optimization.zenflow": "our checkpoints do not hold its state; leave it out",
}
# The rest of what it reads, or read once, at the top.
NOT_OURS = frozenset(
    (
        *("compile", "data_efficiency", "dataloader_drop_last", "datastates_ckpt"),
        *("disable_allgather", "disable_python_gc", "expert_parallel", "hybrid_engine"),
        *("log_level", "seq_parallel_communication_data_type", "tensor_parallel", "timers"),
        *("use_data_before_expert_parallelism", "vocabulary_size", "weight_quantization"),
        *("compression_training", "curriculum_learning", "eigenvalue", "graph_harvesting"),
        *("nebula", "progressive_layer_drop", "quantize_training", "sparse_attention"),
        "sparse_gradients",
    )
)
KEYS = tuple(SCHEMA)


def check_values(ds_config: Mapping[str, Any], source: str) -> None:
    """Check every key and value; `source` is the file, or the name of recipe and profile.

    Raises:
        UserError: one line for each mistake: source, path of the key, value, what to write instead.
    """
    found = [f"{source}: {mistake}" for mistake in _mistakes(ds_config, SCHEMA, "")]
    if found:
        raise UserError("\n".join(found))


def _mistakes(section: Mapping[str, Any], schema: Schema, inside: str) -> Iterator[str]:
    for key, value in section.items():
        path = f"{inside}{key}"
        known = schema.get(key)
        if known is None:
            yield _unknown(path, key, schema)
        elif isinstance(known, Mapping):
            if isinstance(value, Mapping):
                yield from _mistakes(value, known, f"{path}.")
            elif value is not None or not key.startswith("offload_"):  # whose null is DeepSpeed's
                yield f"{path} is {shortened(value)}; write {{...}} with its keys in it"
        else:
            wrong = known(value)
            if wrong:
                yield f"{path} is {shortened(value)}; {wrong}"


def _unknown(path: str, key: str, schema: Schema) -> str:
    if path in ELSEWHERE:
        return f"{path} does not belong here: {ELSEWHERE[path]}"
    if path in NOT_OURS:
        return f"{path} is a key of DeepSpeed that our training makes no use of; leave it out"
    near = difflib.get_close_matches(key, schema, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(schema)}"
    return f"has an unknown key {shortened(path)}, which DeepSpeed would ignore; {hint}"
