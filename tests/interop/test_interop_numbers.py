"""Imported models of many shapes compute what a plain forward pass over the checkpoint's own tensors computes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.reference_forward import decode, encode, prior_logits
from fixtures.reference_shapes import TINY, TINY_VQVAE, checkpoint

from megajukebox.common.model_files import load_into, read_facts
from megajukebox.interop.jukebox_weights import import_weights
from megajukebox.models.prior import Prior, PriorConfig
from megajukebox.models.vqvae import VQVAE, VQVAEConfig

VQVAES: dict[str, dict[str, Any]] = {
    "as_released": {},
    "strides_4": {"downs_t": (1, 2, 1), "strides_t": (4, 2, 4)},
    "two_levels": {
        "levels": 2,
        "downs_t": (2, 1),
        "strides_t": (2, 2),
        "hvqvae_multipliers": (1, 2),
        "depth": 3,
    },
    "one_level": {"levels": 1, "downs_t": (2,), "strides_t": (2,), "hvqvae_multipliers": None},
    "cycle_and_narrow": {"dilation_cycle": 2, "depth": 3, "m_conv": 0.5, "dilation_growth_rate": 2},
    "not_reversed": {"vqvae_reverse_decoder_dilation": False, "depth": 3},
}
SIX = {"prior_depth": 33, "n_tokens": 16, "heads": 2, "prime_heads": 2}
STRIDE_4 = {"cond_downs_t": 1, "cond_strides_t": 4, "downs_t": (1, 1, 1), "strides_t": (2, 2, 4)}
PRIORS: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"order_{order}": ("prior_5b", {"attn_order": order}) for order in (0, 1, 2, 9)},
    **{
        f"order_{order}": ("prior_5b_lyrics", {"attn_order": order, **SIX})
        for order in (6, 7, 8, 10, 11)
    },
    "order_12": ("prior_1b_lyrics", {"prior_depth": 48, "heads": 2}),
    "dense_without_blocks": ("no_labels", {}),
    "one_sequence_plain_order": (
        "prior_1b_lyrics",
        {"attn_order": 2, "n_tokens": 24, "blocks": 11},
    ),
    "scaled_residuals": ("prior_5b_lyrics", {"res_scale": True, "prime_res_scale": True}),
    "wider_layers": (
        "prior_5b_lyrics",
        {"m_attn": 0.5, "m_mlp": 2.5, "prime_m_attn": 1.0, "prime_m_mlp": 3.0},
    ),
    "tied_without_half": ("prior_5b", {"merged_decoder": False, "fp16_params": False}),
    "upsampler": ("upsampler_level_0", {}),
    "upsampler_scaled": ("upsampler_level_1", {"cond_dilation_cycle": None, "cond_depth": 4}),
    "upsampler_stride_4": ("upsampler_level_1", STRIDE_4),
    "upsampler_narrow": (
        "upsampler_level_0",
        {"cond_m_conv": 0.5, "merged_decoder": True, "labels": False},
    ),
    "dense_lyrics_encoder": ("prior_5b_lyrics", {"prime_attn_order": 0, "prime_blocks": None}),
}


def imported(
    folder: Path, h: dict[str, Any], settings: dict[str, Any]
) -> tuple[dict, torch.nn.Module]:
    """The checkpoint's tensors, louder than at the start of training, and our model of them."""
    content = checkpoint(h)
    for tensor in content["model"].values():
        tensor.mul_(2)
    torch.save(content, folder / "x.pth.tar")
    run = next(iter(import_weights([folder / "x.pth.tar"], folder / "run", settings).values()))
    facts = read_facts(run)
    vqvae = facts["kind"] == "vqvae"
    model = (
        VQVAE(VQVAEConfig(**facts["config"])) if vqvae else Prior(PriorConfig(**facts["config"]))
    )
    load_into(model, run)
    return content["model"], model.eval()


@torch.no_grad()
@pytest.mark.parametrize("name", VQVAES)
def test_an_imported_vqvae_encodes_and_decodes_like_the_plain_one(name, tmp_path):
    h = TINY_VQVAE | VQVAES[name]
    state, model = imported(tmp_path, h, {})
    hops = model.config.hops
    audio = torch.randn(2, 4 * max(hops.values()))
    for i, level in enumerate(model.config.levels):
        theirs = encode(state, h, i, audio)
        assert torch.equal(model.encode(audio[..., None], level), theirs)
        wave = decode(state, h, i, theirs)
        torch.testing.assert_close(
            model.decode(theirs, level)[..., 0],
            wave,
            rtol=1e-5,
            atol=1e-5 * float(wave.abs().max()),
        )


@torch.no_grad()
@pytest.mark.parametrize("name", PRIORS)
def test_an_imported_prior_gives_the_logits_and_the_loss_of_the_plain_one(name, tmp_path):
    base, change = PRIORS[name]
    h = TINY[base] | change
    state, prior = imported(tmp_path, h, {"downs_t": (3, 2, 2), "strides_t": (2, 2, 2)} | change)
    config, codes = prior.config, torch.randint(32, (2, h["n_ctx"]))
    slots = h.get("max_bow_genre_size", 1)
    labels = torch.cat([torch.randint(9, (2, 1)), torch.randint(-1, 5, (2, slots))], dim=1)
    y = torch.cat(
        [torch.tensor([[9_000_000, 400_000, config.window * config.hop]] * 2), labels], dim=1
    )
    upper = (
        torch.randint(32, (2, config.window // config.upsampler_conditioner.ratio))
        if config.upsampler_conditioner
        else None
    )
    lyrics = torch.randint(h["n_vocab"], (2, h["n_tokens"])) if h["use_tokens"] else None
    logits, loss = prior_logits(state, h, codes, y, upper, lyrics)
    batch = {
        "codes": codes,
        "timing": y[:, :3],
        "conditions": {"artist": y[:, 3:4], "genres": y[:, 4:]},
    }
    batch |= {"upper_codes": upper, "lyrics": lyrics}
    ours = prior.logits(prior.tokens(batch), prior.conditioning(batch))
    torch.testing.assert_close(ours, logits, rtol=1e-4, atol=1e-4 * float(logits.abs().max()))
    torch.testing.assert_close(prior(batch)[0], loss, rtol=1e-4, atol=1e-5)
