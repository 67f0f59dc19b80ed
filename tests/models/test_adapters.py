"""Adapters beside a prior: nothing at the start, the same numbers folded, and those of peft."""

import copy

import pytest
import torch
from fixtures.tiny_models import little_prior, prior_batch

from megajukebox.models.adapters import AdaptedDense, AdapterConfig, add_adapters, fold, is_adapted
from megajukebox.models.base_precision import FORMATS, PackedLinear, PackedWeight, nf4_values
from megajukebox.models.prior import Prior
from megajukebox.models.transformer import Dense
from megajukebox.sampling.decoding.packed_linear import pack_linear

KINDS = ("lora", "dora", "rslora")
LYRICS = "factored_lyrics"


def adapted(prior: Prior, kind: str, **settings) -> Prior:
    copied = copy.deepcopy(prior)
    add_adapters(copied, AdapterConfig(kind=kind, rank=3, **settings), {"artist": (5, 2)})
    return copied


def trained(prior: Prior, strength: float = 0.3) -> Prior:
    """`prior` with an adapter that moves its logits."""
    torch.manual_seed(7)
    with torch.no_grad():
        for name, parameter in prior.named_parameters():
            if is_adapted(name):
                parameter.add_(strength * torch.randn_like(parameter))
    return prior


@pytest.fixture(scope="module")
def prior() -> Prior:
    return little_prior(LYRICS)


@pytest.fixture(scope="module")
def batch(prior):
    return prior_batch(prior.config)


@pytest.mark.parametrize("kind", KINDS)
def test_an_untrained_adapter_is_the_base_bit_for_bit(prior, batch, kind):
    loss, _ = prior(batch)
    zero = adapted(prior, kind)
    assert torch.equal(zero(batch)[0], loss)
    learns = {name for name, p in zero.named_parameters() if p.requires_grad}
    assert learns and learns == {name for name in dict(zero.named_parameters()) if is_adapted(name)}


@pytest.mark.parametrize("kind", KINDS)
def test_folded_weights_give_the_logits_of_the_adapter_beside_them(prior, batch, kind):
    beside = trained(adapted(prior, kind))
    config = AdapterConfig(kind=kind, rank=3)
    tensors = dict(beside.named_parameters())
    folded = copy.deepcopy(prior)
    changed = 0
    for name, module in folded.named_modules():
        if f"{name}.lora_A" in tensors:
            module.weight.data = fold(module.weight, tensors, name, config).float()
            changed += 1
    base, with_adapter, merged = (one(batch)[0] for one in (prior, beside, folded))
    assert changed == sum(isinstance(m, AdaptedDense) for m in beside.modules())
    assert abs(with_adapter - base) > 0.01, "the adapter does something"
    torch.testing.assert_close(merged, with_adapter, atol=1e-5, rtol=1e-5)


def test_rows_of_new_names_alone_answer_for_their_ids(prior):
    table = trained(adapted(prior, "lora")).labels.tables["artist"]
    ids = torch.tensor([0, 4, 5, 6])
    base = prior.labels.tables["artist"].weight
    rows = table(ids)
    assert torch.equal(rows[:2], base[[0, 4]]) and torch.equal(rows[2:], table.new_rows)
    rows.sum().backward()
    assert table.weight.grad is None and table.new_rows.grad.abs().sum() > 0


def test_a_sampler_refuses_a_layer_with_an_adapter_instead_of_leaving_it_out(prior):
    layer = adapted(prior, "lora").blocks[0].mlp.widen
    with pytest.raises(AssertionError, match="adapter"):
        pack_linear(layer)


@pytest.mark.parametrize(("form", "error"), [("bfloat16", 0.005), ("int8", 0.02), ("nf4", 0.2)])
def test_a_packed_base_is_near_and_passes_gradients_as_its_plain_twin(form, error):
    torch.manual_seed(1)
    weight = torch.randn(24, 40)
    stored = PackedWeight(form, weight)
    plain = stored.unpacked(torch.float32)
    assert (plain - weight).norm() / weight.norm() < error
    assert stored.bytes < 4 * weight.numel() * (1.0 if form == "bfloat16" else 0.5)
    x = torch.randn(2, 5, 40, requires_grad=True)
    y = PackedLinear.apply(x, stored)
    y.square().sum().backward()
    own, x.grad = x.grad, None
    twin = x @ plain.T
    twin.square().sum().backward()
    torch.testing.assert_close(y, twin)
    torch.testing.assert_close(own, x.grad)


def test_nf4_has_the_values_of_its_paper_and_takes_the_nearest():
    paper = [-1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0]
    paper += [0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1.0]
    assert (nf4_values() - torch.tensor(paper)).abs().max() < 2e-4
    weight = torch.randn(3, 50, generator=torch.Generator().manual_seed(2))  # ends within a block
    blocks = torch.nn.functional.pad(weight.flatten(), (0, 42)).view(-1, 64)
    scales = blocks.abs().amax(1, keepdim=True)
    nearest = nf4_values()[(blocks / scales)[..., None].sub(nf4_values()).abs().argmin(-1)] * scales
    stored = PackedWeight("nf4", weight).unpacked(torch.float32)
    assert torch.equal(stored, nearest.flatten()[:150].view(3, 50))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_on_a_packed_base_starts_as_that_base_and_learns(prior, batch, kind, form):
    zero = adapted(prior, kind)
    for module in zero.modules():
        if isinstance(module, AdaptedDense):
            module.pack(form, module.weight)
    twin = copy.deepcopy(prior)
    for name, module in twin.blocks.named_modules():
        if isinstance(module, Dense):
            stored = PackedWeight(form, module.weight)
            module.weight.data = stored.unpacked(torch.float32)
            assert zero.blocks.get_submodule(name).weight is None
    before = zero(batch)[0]
    torch.testing.assert_close(before, twin(batch)[0], atol=1e-5, rtol=1e-5)
    optimizer = torch.optim.Adam([p for p in zero.parameters() if p.requires_grad], lr=0.02)
    for _ in range(8):
        optimizer.zero_grad()
        zero(batch)[0].backward()
        optimizer.step()
    assert zero(batch)[0] < before - 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_computes_what_peft_computes(kind):
    """Needs the library peft, which the package does without; skipped where it is not installed."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(3)
    dense = Dense(12, 20, 0.5)
    dense.bias.data.normal_()
    seeded = torch.Generator().manual_seed(0)
    config = AdapterConfig(kind=kind, rank=4, alpha=6)
    ours = AdaptedDense(copy.deepcopy(dense), config, 0.0, seeded)
    holder = torch.nn.Sequential(copy.deepcopy(dense))
    settings = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["0"],
        use_dora=kind == "dora",
        use_rslora=kind == "rslora",
    )
    theirs = peft.inject_adapter_in_model(settings, holder)[0]
    with torch.no_grad():
        ours.lora_B.normal_()
        theirs.lora_A["default"].weight.copy_(ours.lora_A)
        theirs.lora_B["default"].weight.copy_(ours.lora_B)
        if kind == "dora":
            gains = torch.rand(20) + 0.5
            ours.lora_magnitude.copy_(gains)
            lengths = theirs.lora_magnitude_vector["default"].weight
            lengths.copy_(gains * dense.weight.norm(dim=1))
    x = torch.randn(2, 3, 12)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)
