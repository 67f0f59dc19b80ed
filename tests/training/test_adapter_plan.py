"""What an adapter takes on one card: counted from shapes, and refused with what would fit."""

import pytest

from megajukebox.commands.plan import adapter_settings
from megajukebox.common.errors import UserError
from megajukebox.training.config import load_preset
from megajukebox.training.planner.adapter_plan import adapter_plan
from megajukebox.training.planner.gpus import GIB, gpu_named
from megajukebox.training.stages import planned_stage


def planned(base: str, memory: float = 12.0, stage: str = "top_prior"):
    card = gpu_named("rtx3060-12gb")._replace(memory=memory)
    row = planned_stage(load_preset("tiny"), stage)
    return adapter_plan("tiny", row, card, adapter_settings("rank=8", base), 100, None)


def test_fewer_bits_take_less_memory_and_adapters_are_counted_from_shapes():
    plans = {base: planned(base) for base in ("bfloat16", "int8", "nf4")}
    frozen = [found.memory_gib["frozen weights"] * GIB for found in plans.values()]
    assert frozen[0] == 2 * plans["bfloat16"].parameters
    assert frozen[0] > frozen[1] > frozen[2]
    assert {found.adapter_parameters for found in plans.values()} == {61_440}  # 6 layers of 160


def test_what_does_not_fit_is_refused_with_what_does():
    need = {base: planned(base).needed_gib for base in ("bfloat16", "int8")}
    assert need["int8"] < need["bfloat16"]
    between = (need["int8"] + need["bfloat16"]) / 2
    with pytest.raises(UserError, match=r"take --base int8 \("):
        planned("bfloat16", between)
    with pytest.raises(UserError, match="a larger card"):
        planned("nf4", 0.5)
    with pytest.raises(UserError, match="takes no adapter"):
        planned("nf4", stage="vqvae")


def test_settings_of_an_adapter_are_read_from_one_option():
    settings = adapter_settings("rank=4,kind=dora targets=attention", "nf4")
    assert (settings.rank, settings.alpha, settings.kind) == (4, 4, "dora")
    for text, message in (("rank", "form rank=16"), ("rang=4", "rang"), ("rank=0", "rank")):
        with pytest.raises(UserError, match=message):
            adapter_settings(text, "nf4")
