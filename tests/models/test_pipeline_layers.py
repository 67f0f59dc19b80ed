"""The list of layers that a pipeline is cut from gives what the plain prior gives, to the last bit."""

import pytest
import torch
from fixtures.tiny_models import little_prior, prior_batch

from megajukebox.common.world import World
from megajukebox.models.conditioners import ClockConfig, ScoreConfig
from megajukebox.models.pipeline_layers import (
    carried,
    inputs,
    layers,
    loss_of,
    name_in_prior,
    targets_of,
)
from megajukebox.models.prior import Prior, PriorConfig
from megajukebox.models.transformer import TransformerConfig
from megajukebox.training.engines.pipeline import reader, sees_data, stages
from megajukebox.training.planner.dummy_batches import windows

UNTOLD = {"conditions": {}, "timing": None, "upsampler_conditioner": None}


@pytest.mark.parametrize(
    ("schedule", "changed"),
    [
        ("factored_lyrics", {}),
        ("factored_lyrics", {"separate_head": True}),
        ("prefix_dense_16", {}),
        ("factored", {}),
        ("row_column", UNTOLD),
        (
            "dense",
            {"upsampler_conditioner": None, "timing": None, "conditions_at_every_position": True},
        ),
    ],
)
def test_walking_the_list_equals_the_plain_forward(schedule, changed):
    prior = little_prior(schedule, **changed)
    config, batch = prior.config, prior_batch(prior.config)
    listed, weights = [make() for make in layers(config)], prior.state_dict()
    for number, layer in enumerate(listed):
        own = {name: weights[name_in_prior(number, name)] for name, _ in layer.named_parameters()}
        layer.load_state_dict(own)
    state = inputs(config, batch)
    for number, layer in enumerate(listed):
        state = layer(state)
        if number < len(listed) - 1:
            assert len(state) == len(carried(config, number)), (
                "nothing is sent that the rest does not read"
            )
    expected, metrics = prior(batch)
    loss, heard = loss_of(config, state, prior.tokens(batch))
    assert torch.equal(loss, expected)
    assert {name: m.item() for name, m in heard.items()} == {
        name: m.item() for name, m in metrics.items()
    }


def test_the_list_draws_the_first_weights_of_the_plain_prior():
    config = little_prior("factored_lyrics").config
    torch.manual_seed(5)
    plain = dict(Prior(config).named_parameters())
    torch.manual_seed(5)
    for number, make in enumerate(layers(config)[:-1]):
        for name, p in make().named_parameters():
            assert torch.equal(p, plain[name_in_prior(number, name)]), name


@pytest.mark.parametrize(
    ("wanted", "size", "count"), [("auto", 4, 4), (2, 4, 2), (1, 3, 1), (4, 4, 4)]
)
def test_processes_are_shared_between_stages_and_pipelines(wanted, size, count):
    config = {"pipeline": {"stages": wanted}}
    assert stages(config, size) == count
    places = [reader(World(rank, 0, size), config) for rank in range(size)]
    assert [place.rank for place in places] == list(range(size // count)) * count, (
        "stages of a pipeline read the same"
    )


@pytest.mark.parametrize(
    ("wanted", "size", "reads"),
    [(4, 4, [0, 3]), (3, 6, [0, 1, 4, 5]), (2, 4, [0, 1, 2, 3]), (1, 3, [0, 1, 2])],
)
def test_only_the_ends_of_a_pipeline_see_data(wanted, size, reads):
    config = {"pipeline": {"stages": wanted}}
    assert [rank for rank in range(size) if sees_data(World(rank, 0, size), config)] == reads


@pytest.mark.parametrize(
    ("wanted", "message"), [(3, r"3 does not divide 4 .*\[1, 2, 4\]"), ("two", "neither")]
)
def test_processes_that_make_no_whole_pipelines_are_refused(wanted, message):
    with pytest.raises(ValueError, match=message):
        stages({"pipeline": {"stages": wanted}}, 4)


def test_a_composer_in_layers_counts_what_the_plain_one_counts():
    config = PriorConfig(
        level="composer",
        sample_rate=100,
        hop=1,
        codebook_size=40,
        window=16,
        transformer=TransformerConfig(width=16, depth=2, heads=2, blocks=4, schedule="dense"),
        aligned={"clock": ClockConfig(notes=81), "score": ScoreConfig(entries=90, slots=4)},
    )
    torch.manual_seed(0)
    prior = Prior(config)
    for module in prior.aligned.values():
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    batch = windows(config, 3)
    batch["predicted"] = torch.rand(3, 16) < 0.5
    state = inputs(config, batch)
    weights = prior.state_dict()
    for number, make in enumerate(layers(config)):
        layer = make()
        own = {name: weights[name_in_prior(number, name)] for name, _ in layer.named_parameters()}
        layer.load_state_dict(own)
        state = layer(state)
    loss, metrics = loss_of(config, state, targets_of(config, batch))
    expected, told = prior(batch)
    assert torch.equal(loss, expected) and metrics["bits_per_code"] == told["bits_per_code"]
    batch["predicted"][:] = True
    assert not torch.equal(expected, prior(batch)[0])
