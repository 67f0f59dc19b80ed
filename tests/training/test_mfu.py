"""MFU: the model's FLOPs counted, the peak of a device known or told, and the share of it in a run's metrics."""

import pytest
import torch
from fixtures.interrupted_runs import alone, run
from torch import nn

from megajukebox.models.prior import Prior, PriorConfig
from megajukebox.models.student import StudentConfig
from megajukebox.models.vqvae import VQVAEConfig
from megajukebox.records.jsonl_tail import read_lines
from megajukebox.training.config import load_preset
from megajukebox.training.planner.activation_trace import forward_flops
from megajukebox.training.planner.gpus import known_gpus
from megajukebox.training.planner.mfu import peak, seconds_at_peak, step_flops
from megajukebox.training.planner.profiles import peak_of_device

WIDTH, DEPTH, WINDOW, CODES = 256, 3, 128, 64


def config(**changed) -> PriorConfig:
    shape = {
        "width": WIDTH,
        "depth": DEPTH,
        "heads": 2,
        "blocks": 8,
        "schedule": "factored",
    } | changed
    return PriorConfig(
        level="top", sample_rate=8000, hop=8, codebook_size=CODES, window=WINDOW, transformer=shape
    )


def test_products_of_a_forward_pass_are_counted_two_for_every_weight_and_row():
    assert forward_flops(
        lambda: nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 7)), lambda: torch.ones(4, 3)
    ) == (2 * 4 * (3 * 5 + 5 * 7))


def test_a_prior_costs_six_times_its_weights_and_tokens_and_attention():
    told = config()
    with torch.device("meta"):
        matrices = sum(p.numel() for b in Prior(told).blocks for p in b.parameters() if p.dim() > 1)
    products = 6 * (matrices + WIDTH * CODES) * WINDOW  # and the logits
    attention = step_flops(told, 0) - products
    whole = 3 * DEPTH * 4 * WINDOW**2 * told.transformer.attention_width
    assert (
        0 < attention < whole
    )  # factored: every token sees its row, its column, or the row before


def test_a_student_costs_what_its_teacher_costs():
    assert step_flops(StudentConfig(prior=config(), order=(0, 1)), 0) == step_flops(config(), 0)


def test_a_vqvae_costs_in_proportion_to_its_clips():
    told: VQVAEConfig = load_preset("tiny").vqvae
    clip = 64 * max(told.hops.values())
    assert step_flops(told, 2 * clip) == pytest.approx(2 * step_flops(told, clip), rel=0.02)


def test_mfu_is_flops_over_seconds_devices_and_peak():
    # 8 H100s at 989 TFLOP/s: a step of 7.912 PFLOP takes a second at their peak; in two it is half.
    assert seconds_at_peak(7.912e15, 8, 989e12) / 2 == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("name", "half"),
    [
        ("Tesla V100-SXM2-32GB", 125),
        ("Tesla V100-PCIE-16GB", 112),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA GeForce RTX 3060", 51.2),
        ("NVIDIA GeForce RTX 4060 Ti", 88.2),
        ("NVIDIA GeForce RTX 3090", 71.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 3060 Ti", None),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4080", None),
        ("NVIDIA RTX A1000", None),
        ("AMD Instinct MI250X", None),
    ],
)
def test_the_peak_is_that_of_the_card_s_name_and_none_of_a_card_that_is_not_known(name, half):
    assert peak_of_device(name).get("float16") == half


def test_plan_and_mfu_have_one_table():
    assert all(peak_of_device(name.upper()) == gpu.peak for name, gpu in known_gpus().items())


def test_a_told_peak_comes_first_and_a_cpu_has_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert peak("float32", None) is None and peak("float32", 2.5) == 2.5e12
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla V100-SXM2-32GB")
    assert (
        peak("float16", None) == 125e12
        and peak("bfloat16", None) is None
        and peak("float16", 1) == 1e12
    )


def test_a_run_logs_mfu_where_the_peak_is_told(data, tmp_path):
    assert run(alone(data, tmp_path / "run", "steps=3", "peak_tflops=0.5")) == 0
    lines = [m for m in read_lines(tmp_path / "run/metrics.jsonl") if m["split"] == "train"]
    at_peak = [m["mfu"] * m["step_seconds"] for m in lines]
    nano = load_preset("tests/fixtures/files/nano.yaml").prior_config("top", 0)
    per_sample = step_flops(nano, 0)
    samples = round(lines[0]["tokens_per_second"] * lines[0]["step_seconds"] / nano.window)
    assert len(lines) == 3 and at_peak == pytest.approx([samples * per_sample / 0.5e12] * 3)
