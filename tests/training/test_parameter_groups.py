"""Learning rates of a model's own: which parameters become a group, and at what rate."""

import pytest
import torch
from fixtures.tiny_models import little_vqvae

from megajukebox.common.errors import UserError
from megajukebox.training.config import load_preset
from megajukebox.training.engines.model_init import parameter_groups

SPECTRUM = {"window": 256, "output_window": 256, "width": 8, "code_width": 4, "codebook_size": 16}
DS_CONFIG = {"optimizer": {"type": "AdamW", "params": {"lr": 0.01}}}


def test_a_spectrum_level_trains_at_its_own_rate() -> None:
    model = little_vqvae(targets={"top": "spectrum"}, spectrum={**SPECTRUM, "lr_scale": 0.2})
    groups = parameter_groups(model, DS_CONFIG)
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    top = {id(p) for p in model.levels["top"].parameters()}
    rates: dict[bool, set[float]] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            rates.setdefault(id(parameter) in top, set()).add(round(group["lr"], 9))
    assert rates == {True: {0.002}, False: {0.01}}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_models_without_rates_of_their_own_train_as_one_group() -> None:
    model = little_vqvae()
    assert parameter_groups(model, {}) == list(model.parameters())
    same = little_vqvae(targets={"top": "spectrum"}, spectrum=SPECTRUM)
    assert parameter_groups(same, {}) == list(same.parameters())


def test_a_rate_that_scales_nothing_is_refused() -> None:
    model = little_vqvae(targets={"top": "spectrum"}, spectrum={**SPECTRUM, "lr_scale": 0.2})
    with pytest.raises(UserError, match=r"set optimizer\.params\.lr in the ds_config"):
        parameter_groups(model, {})


def test_the_spectrum_preset_sees_four_times_as_long() -> None:
    """86 codes a second: a window of 8192 is 95 s, and each top code lasts 16 middle codes."""
    preset = load_preset("jukebox_5b_spectrum")
    top = preset.prior_config("top", 80)
    middle = preset.prior_config("middle", 80)
    assert top.window * top.hop / top.sample_rate == pytest.approx(95.1, abs=0.1)
    assert middle.upsampler_conditioner is not None
    assert middle.upsampler_conditioner.ratio * middle.hop == top.hop


def test_an_upsampler_reads_a_codebook_of_another_size_than_its_own() -> None:
    preset = load_preset("tiny")
    middle = preset.prior_config("middle", 80)
    assert (middle.codebook_size, middle.upper_codebook_size) == (256, 512)
    assert preset.prior_config("top", 80).codebook_size == 512
    assert preset.prior_config("bottom", 80).upper_codebook_size == 256
    plain = load_preset("jukebox_5b").prior_config("middle", 80)
    assert plain.upsampler_conditioner is not None
    assert plain.upsampler_conditioner.codebook_size is None
