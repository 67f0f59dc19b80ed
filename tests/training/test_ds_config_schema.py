"""Every value of a ds_config is looked at before a process starts; one line names file, key, value and way out."""

import json
from typing import Any

import pytest
import torch
from deepspeed.runtime.config import DEEPSPEED_OPTIMIZERS, DeepSpeedConfig
from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.runtime.zero.offload_config import (
    DeepSpeedZeroOffloadOptimizerConfig,
    DeepSpeedZeroOffloadParamConfig,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from megajukebox.common.errors import UserError
from megajukebox.training.engines.ds_config import read_ds_config, require_optimizer
from megajukebox.training.planner import ds_config_schema
from megajukebox.training.planner.ds_config_schema import ELSEWHERE, NOT_OURS, SCHEMA
from megajukebox.training.planner.recipe import recipe

GOOD = {
    "train_micro_batch_size_per_gpu": 2,
    "gradient_accumulation_steps": 1,
    "gradient_clipping": 1.0,
    "optimizer": {
        "type": "AdamW",
        "params": {"lr": 0.01, "betas": [0.9, 0.98], "eps": 1e-08, "torch_adam": True},
    },
    "zero_optimization": {"stage": 0},
    "steps_per_print": 1_000_000_000,
}


def changed(path: str, value: object) -> str:
    """GOOD as JSON, with another value at `path`."""
    config = json.loads(json.dumps(GOOD))
    *parents, last = path.split(".")
    section = config
    for name in parents:
        section = section.setdefault(name, {})
    section[last] = value
    return json.dumps(config)


def refusal(tmp_path, text: str) -> str:
    file = tmp_path / "mine.json"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        read_ds_config(str(file))
    return str(error.value).replace(str(file), "mine.json")


# Path, value, what the one line says after the file: case 29, and its kin in every section.
WRONG = [
    ("train_micro_batch_size_per_gpu", "auto", "is 'auto'; 'auto' is the Hugging Face trainer's"),
    ("optimizer.params.lr", "auto", "is 'auto'; 'auto' is the Hugging Face trainer's, write a num"),
    ("optimizer.params.lr", "1e-3", "is '1e-3'; write the number without quotes (above 0, at"),
    ("optimizer.params.lr", float("inf"), "is inf; above 0, at most 1,000"),
    ("optimizer.params.lr", float("nan"), "is nan; above 0, at most 1,000"),
    ("optimizer.params.lr", -0.01, "is -0.01; above 0"),
    ("optimizer.params.lr", 0, "is 0; above 0"),
    ("optimizer.params.lr", 10**400, "above 0, at most 1,000"),
    ("optimizer.params.lr", True, "is True; write a number (above 0, at most 1,000)"),
    ("optimizer.params.lr", None, "is None; write a number"),
    ("optimizer.params.betas", [0.9, 1.0], "is [0.9, 1.0]; write a list of two numbers"),
    ("optimizer.params.betas", 0.9, "is 0.9; write a list of two numbers, each from 0 to below 1"),
    ("optimizer.params.torch_adam", "true", "is 'true'; write true or false without quotes"),
    ("optimizer.params.max_grad_norm", 1.0, "write it as gradient_clipping, at the top"),
    ("optimizer.type", "AdmW", "is 'AdmW'; did you mean 'AdamW'?"),
    ("train_micro_batch_size_per_gpu", 0, "is 0; 1 to 10,000,000"),
    ("train_micro_batch_size_per_gpu", 1.5, "is 1.5; a whole number, 1 to 10,000,000"),
    ("train_batch_size", 10**18, "is 1000000000000000000; 1 to 10,000,000"),
    ("gradient_accumulation_steps", "auto", "'auto' is the Hugging Face trainer's, write a whole"),
    ("gradient_clipping", -1, "is -1; 0 (off) or more"),
    ("gradient_clipping", float("inf"), "is inf; 0 (off) or more"),
    ("gradient_clipping", "auto", "write a number (0 (off) or more)"),
    ("zero_optimization.stage", 5, "is 5; 0 to 3"),
    ("zero_optimization.stage", "3", "is '3'; write the whole number without quotes (0 to 3)"),
    ("zero_optimization.stage", True, "is True; write a whole number (0 to 3)"),
    ("zero_optimization", True, "is True; write {...} with its keys in it"),
    ("zero_optimization.reduce_bucket_size", "auto", "'auto' is the Hugging Face trainer's"),
    ("zero_optimization.overlap_comm", "auto", "'auto' is the Hugging Face trainer's, write true"),
    ("zero_optimization.offload_optimizer.device", "gpu", "is 'gpu'; did you mean 'cpu'? one of"),
    ("zero_optimization.offload_optimizer.ratio", 2, "is 2; 0 to 1"),
    ("zero_optimization.reduce_buket_size", 5, "did you mean 'reduce_bucket_size'?"),
    ("fp16.enabled", "auto", "write true or false"),
    ("fp16.loss_scale_window", 0, "is 0; 1 or more"),
    ("fp16.initial_scale_power", 1000, "is 1000; 0 to 100"),
    ("torch_autocast.dtype", "float8", "is 'float8'; did you mean 'float16'? one of bfloat16"),
    ("communication_data_type", "FP32", "is 'FP32'; one of fp32, fp16, bf16"),
    ("pipeline.stages", 0, "is 0; 1 to 10,000,000, or 'auto'"),
    ("scheduler", {}, "does not belong here: the learning rate follows training.<stage>.schedule"),
    ("vocabulary_size", 5, "is a key of DeepSpeed that our training makes no use of"),
    ("steps_per_print", 0, "is 0; 1 or more"),
]


@pytest.mark.parametrize(("path", "value", "expected"), WRONG, ids=lambda value: str(value)[:24])
def test_a_wrong_value_is_one_line_with_file_key_value_and_way_out(tmp_path, path, value, expected):
    line = refusal(tmp_path, changed(path, value))
    assert line.startswith("mine.json: ") and "\n" not in line
    assert path in line and expected in line


def test_every_mistake_has_its_line(tmp_path):
    text = json.dumps({**GOOD, "gradient_clipping": -1, "zero_optimization": {"stage": 7}})
    assert refusal(tmp_path, text).splitlines() == [
        "mine.json: gradient_clipping is -1; 0 (off) or more",
        "mine.json: zero_optimization.stage is 7; 0 to 3",
    ]


def test_a_key_that_is_given_twice_is_named_with_its_path(tmp_path):
    outer = '{"gradient_clipping": 1.0, "gradient_clipping": 0.0}'
    assert "'gradient_clipping' is given twice" in refusal(tmp_path, outer)
    inner = '{"optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "lr": 1e-4}}}'
    assert "'optimizer.params.lr' is given twice" in refusal(tmp_path, inner)


def test_two_precisions_are_refused_with_the_file(tmp_path):
    text = json.dumps({**GOOD, "fp16": {"enabled": True}, "bf16": {"enabled": True}})
    assert refusal(tmp_path, text) == "mine.json: the ds_config enables fp16 and bf16; keep one"


@pytest.mark.parametrize("given", [{}, {"optimizer": {}}, {"optimizer": {"params": {"lr": 1}}}])
def test_a_ds_config_without_an_optimizer_trains_nothing(given):
    with pytest.raises(UserError, match=r"mine.json: optimizer.type is missing; write"):
        require_optimizer(given, "mine.json")
    require_optimizer(GOOD, "mine.json")


def test_what_is_no_object_is_refused(tmp_path):
    assert "holds list" in refusal(tmp_path, "[]")
    assert "goes deeper than 64" in refusal(tmp_path, '{"a":' + "[" * 100_000)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_no_mistake(tmp_path, encoding):
    (tmp_path / "mine.json").write_text(json.dumps(GOOD), encoding=encoding)
    assert read_ds_config(str(tmp_path / "mine.json")) == GOOD


def test_whole_numbers_may_be_written_as_floats_and_a_switch_may_be_null(tmp_path):
    zero = {"stage": 1, "reduce_bucket_size": 5e8, "overlap_comm": None, "offload_optimizer": None}
    config = {**GOOD, "zero_optimization": zero, "torch_autocast": {"enabled": True}}
    (tmp_path / "mine.json").write_text(json.dumps(config))
    assert read_ds_config(str(tmp_path / "mine.json")) == config
    way = recipe(config, 1)
    assert way.bucket == 500_000_000 and not way.overlap and not way.offload_optimizer


def test_a_path_longer_than_a_name_may_be_is_no_traceback():
    with pytest.raises(UserError, match="neither a file nor one of"):
        read_ds_config("x" * 5000)


# ---- DeepSpeed's side -----------------------------------------------------------------------------------------------


class NamesRead(dict):
    """A configuration that notes which names are looked up in it."""

    names: set[str] = set()  # noqa: RUF012 - shared by the copies that DeepSpeed makes

    def get(self, key: str, default: object = None) -> object:
        self.names.add(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self.names.add(str(key))
        return super().__contains__(key)

    def keys(self) -> Any:
        return self


def test_the_schema_has_every_key_that_deepspeed_reads():
    DeepSpeedConfig(NamesRead(train_batch_size=1, train_micro_batch_size_per_gpu=1))
    known = set(SCHEMA) | NOT_OURS | {name for name in ELSEWHERE if "." not in name}
    assert NamesRead.names == known


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("zero_optimization", DeepSpeedZeroConfig),
        ("zero_optimization.offload_param", DeepSpeedZeroOffloadParamConfig),
        ("zero_optimization.offload_optimizer", DeepSpeedZeroOffloadOptimizerConfig),
        ("fp16", DeepSpeedFP16Config),
        ("bf16", DeepSpeedBF16Config),
    ],
)
def test_a_section_has_the_keys_of_deepspeed_s_model(path, model):
    section: Any = SCHEMA
    for name in path.split("."):
        section = section[name]
    elsewhere = {name.removeprefix(f"{path}.") for name in ELSEWHERE if name.startswith(f"{path}.")}
    theirs = {field.alias or name for name, field in model.model_fields.items()}
    assert set(section) | elsewhere == theirs


def test_the_optimizers_are_deepspeed_s_and_torch_s():
    assert set(ds_config_schema.OPTIMIZERS) == set(DEEPSPEED_OPTIMIZERS)
    for name in ds_config_schema.OPTIMIZERS_OF_TORCH:
        assert issubclass(getattr(torch.optim, name), torch.optim.Optimizer)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from(["auto", "", "1e-3", "true", "cpu", 10**300]),
    st.lists(st.floats(), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
)
PATHS = st.sampled_from([path for path, *_ in WRONG])


@given(path=PATHS, value=VALUES)
@settings(max_examples=150, deadline=None)
def test_whatever_passes_computes_a_plan_and_whatever_does_not_is_named(path, value):
    config = json.loads(changed(path, value))
    try:
        way = recipe(config, 1)
    except UserError as error:
        assert path.split(".")[0] in str(error) or "the ds_config enables" in str(error)
    else:
        assert way.micro >= 1 and 0 <= way.stage <= 3
