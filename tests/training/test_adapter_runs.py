"""Runs that train an adapter: under every ZeRO stage the base at first, resumed alike, and never saving the base."""

import json
from dataclasses import dataclass

import pytest
import torch
from fixtures.tiny_runs import as_of, codes_and_preset, losses, train, write_ds_config

from megajukebox.common.model_files import StoredTensors
from megajukebox.data.adapters import read_adapter
from megajukebox.records.jsonl_tail import read_lines
from megajukebox.training.best_adapter import BestAdapter

pytestmark = [pytest.mark.timeout(900), pytest.mark.xdist_group("adapters")]

ADAPTER = "training.top_prior.adapter={rank: 2, learning_rate: 0.02, labels: {artist: My Band}%s}"
ZERO = {
    0: {"stage": 0},
    1: {"stage": 1},
    3: {"stage": 3, "stage3_param_persistence_threshold": 0},
}


@pytest.fixture(scope="module")
def little(tmp_path_factory):
    return codes_and_preset(tmp_path_factory.mktemp("little"), steps=4, save_every=2)


@pytest.fixture(scope="module")
def base(little, tmp_path_factory):
    run = tmp_path_factory.mktemp("base") / "run"
    train(*little, run)
    return run


def adapt(little, base, out, stage=1, ranks=1, more="", expect=0):
    config = write_ds_config(out.parent, "adapter_cpu.json", zero_optimization=ZERO[stage])
    told = ["--from", str(base), "--ds-config", str(config), ADAPTER % more]
    return train(*little, out, *told, ranks=ranks, expect=expect)


def held_out(run):
    rows = read_lines(run / "metrics.jsonl")
    return {row["step"]: row["loss"] for row in rows if row["split"] == "held_out"}


def test_an_adapter_run_leaves_two_small_files_and_checkpoints_without_the_base(
    little, base, tmp_path
):
    run = tmp_path / "run"
    adapt(little, base, run)
    adapter = read_adapter(run, "mine")
    assert adapter.names == {"artist": ("my band",)} and adapter.record.bits_before is not None
    assert not (run / "model.safetensors").exists()
    learned = sum(torch.Size(adapter.tensors.shape(n)).numel() for n in adapter.tensors)
    in_base = sum(p.numel() for p in StoredTensors(base / "model.safetensors").values())
    newest = max((run / "checkpoints").glob("step-*"))
    stored = torch.load(next(newest.glob("state/*model_states.pt")), weights_only=False)["module"]
    assert stored and all(name.rpartition(".")[2].startswith(("lora", "new")) for name in stored)
    assert sum(tensor.numel() for tensor in stored.values()) == learned < in_base / 3
    told = adapt(little, base, tmp_path / "z3", stage=3, more=", base: nf4", expect=93)
    assert "not shared out by ZeRO-3" in told


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "dora", "rslora"])
def test_every_zero_stage_starts_as_the_base_and_trains_alike(little, base, tmp_path, kind):
    runs = {}
    for stage, ranks in ((0, 1), (1, 2), (3, 1), (3, 2)):
        run = tmp_path / f"{stage}-{ranks}"
        adapt(little, base, run, stage, ranks, f", kind: {kind}")
        runs[stage, ranks] = run
    first = {key: held_out(run)[0] for key, run in runs.items()}
    # Of more ranks more windows are held out: those of equal ranks are compared.
    assert first[3, 1] == pytest.approx(first[0, 1], abs=1e-6)
    assert first[3, 2] == pytest.approx(first[1, 2], abs=1e-6)
    one = losses(runs[0, 1])
    assert losses(runs[3, 1]) == pytest.approx(one, abs=1e-4)
    assert losses(runs[3, 2]) == pytest.approx(losses(runs[1, 2]), abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 3])
def test_a_resumed_adapter_has_the_losses_of_one_that_never_stopped(little, base, tmp_path, stage):
    whole = tmp_path / "whole"
    adapt(little, base, whole, stage, 2)
    resumed = as_of(whole, 2, tmp_path / "resumed")
    adapt(little, base, resumed, stage, 2)
    assert losses(resumed) == losses(whole)
    same = read_adapter(resumed, "a").record
    assert same.fingerprint == read_adapter(whole, "a").record.fingerprint


@pytest.mark.slow
@pytest.mark.parametrize("form", ["bfloat16", "int8", "nf4"])
def test_a_packed_base_trains(little, base, tmp_path, form):
    run = tmp_path / "run"
    adapt(little, base, run, 1, 1, f", base: {form}")
    assert read_adapter(run, "a").record.base_precision == form
    record = json.loads((run / "adapter.json").read_text())
    assert record["bits_after"] <= record["bits_before"]


def test_a_run_ends_when_the_held_out_songs_have_gained_nothing_for_long_enough():
    best = BestAdapter.__new__(BestAdapter)

    @dataclass
    class Settings:
        patience: int

    class Adapter:
        settings = Settings(2)

    best.adapter = Adapter()
    best.bits = {}
    assert best.best_step is None and not best.is_final
    best.bits = {0: 5.0, 10: 4.0, 20: 4.5}
    assert best.best_step == 10 and not best.is_final
    best.bits[30] = 4.0
    assert best.best_step == 10 and best.is_final
    best.bits[40] = 3.0
    assert best.best_step == 40 and not best.is_final
