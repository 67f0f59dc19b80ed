"""transformers 4.x beside us: our folders load by its from_pretrained as they are, and give the same codes and logits.

Runs where transformers 4 is installed (it is no dependency): `pip install "transformers>=4.57,<5"`.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.reference_shapes import TINY, TINY_VQVAE, checkpoint

from megajukebox.common.model_files import load_into, read_facts
from megajukebox.interop.export import export_hugging_face
from megajukebox.interop.jukebox_weights import import_weights
from megajukebox.models.prior import Prior, PriorConfig
from megajukebox.models.vqvae import VQVAE, VQVAEConfig

transformers = pytest.importorskip("transformers", minversion="4.57", reason="needs transformers 4")
if not transformers.__version__.startswith("4."):
    pytest.skip("Jukebox left transformers with version 5", allow_module_level=True)

TOLERANCE = 1.5e-5  # of logits of 5 to 25
UPSAMPLERS = ("upsampler_level_0", "upsampler_level_1")
SETS: dict[str, dict[str, dict[str, Any]]] = {
    "5b_lyrics": {"prior_5b_lyrics": {"prior_depth": 31, "heads": 2, "prime_heads": 2}},
    "1b_lyrics": {"prior_1b_lyrics": {"prior_depth": 48, "heads": 4}},
    "no_lyrics": {"prior_5b": {"heads": 2, "res_scale": True, "m_mlp": 2.0}},
}
TWO_LEVELS = {"levels": 2, "downs_t": (2, 1), "strides_t": (2, 4), "hvqvae_multipliers": (1, 2)}


def saved_runs(folder: Path, parts: dict[str, dict[str, Any]]) -> Path:
    """Run folders of random models, louder than at the start of training."""
    files: list[Path] = []
    for seed, (name, changes) in enumerate(parts.items()):
        h = (TINY_VQVAE if name == "vqvae" else TINY[name]) | {"fp16_params": False} | changes
        content = checkpoint(h, seed=seed)
        for tensor in {id(tensor): tensor for tensor in content["model"].values()}.values():
            tensor.mul_(2)
        files.append(folder / ("vqvae.pth" if name == "vqvae" else f"level_{h['level']}.pth"))
        torch.save(content, files[-1])
    import_weights(files, folder / "runs")
    return folder / "runs"


def our_model(folder: Path) -> torch.nn.Module:
    facts = read_facts(folder)
    is_vqvae = facts["kind"] == "vqvae"
    model = (VQVAE if is_vqvae else Prior)(
        (VQVAEConfig if is_vqvae else PriorConfig)(**facts["config"])
    )
    load_into(model, folder)
    return model.eval()


def loaded(kind: str, folder: Path) -> Any:
    """transformers' model of a folder; every tensor of the file is one of it, and the other way round."""
    model, report = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


def compare_prior(ours: Prior, theirs: Any, max_genres: int) -> None:
    """Logits of two windows of random codes, with random labels, timing, lyrics and codes above."""
    config = ours.config
    generator = torch.Generator().manual_seed(1)

    def drawn(below: int, *shape: int) -> torch.Tensor:
        return torch.randint(below, shape, generator=generator)

    codes = drawn(config.codebook_size, 2, config.window)
    genres = torch.full((2, max_genres), -1)
    slots = config.conditions["genres"].max_values
    genres[:, :slots] = drawn(6, 2, slots) - 1
    artist = drawn(9, 2, 1)
    timing = torch.tensor([[9_000_000, 400_000, config.window * config.hop]] * 2)
    upper = config.upsampler_conditioner
    batch = {
        "codes": codes,
        "timing": timing,
        "conditions": {"artist": artist, "genres": genres[:, :slots]},
        "upper_codes": drawn(32, 2, config.window // upper.ratio) if upper else None,
        "lyrics": drawn(config.lyrics.size, 2, config.lyrics.tokens) if config.lyrics else None,
    }
    logits = ours.logits(ours.tokens(batch), ours.conditioning(batch))
    metadata = [timing, artist, genres]
    if config.lyrics:
        metadata.append(batch["lyrics"])
    audio, start, lyrics = theirs.get_cond([batch["upper_codes"]], torch.cat(metadata, dim=1))
    if theirs.is_encoder_decoder:
        tokens, audio = theirs.prior_preprocess([lyrics, codes.clone()], [None, audio])
        _, expected = theirs.prior(tokens, audio, start, get_sep_loss=True, get_preds=True)
    else:
        states = theirs.get_encoder_states(lyrics)
        _, expected = theirs.prior(codes, audio, start, states, get_preds=True)
    assert float(expected.abs().max()) > 1
    worst = float((logits - expected).abs().max())
    print(f"{config.level}: logits up to {float(expected.abs().max()):.2f}, apart by {worst:.2e}")
    assert worst < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("name", SETS)
def test_a_set_loads_as_it_is_and_gives_the_same_codes_audio_and_logits(name, tmp_path):
    runs = saved_runs(tmp_path, {"vqvae": {}, **{part: {} for part in UPSAMPLERS}, **SETS[name]})
    export_hugging_face(runs, tmp_path / "hf")
    theirs = loaded("JukeboxModel", tmp_path / "hf")
    ours = our_model(runs / "vqvae")
    audio = torch.randn(2, 4 * 128, 1, generator=torch.Generator().manual_seed(2))
    for level, codes in zip(ours.config.levels, theirs.encode(audio)):
        assert torch.equal(ours.encode(audio, level), codes)
        number = ours.config.levels.index(level)
        wave = theirs.vqvae.decode([codes], start_level=number, end_level=number + 1)
        torch.testing.assert_close(ours.decode(codes, level), wave, rtol=1e-5, atol=1e-5)
    for folder, prior in zip(("top_prior", "middle_upsampler", "bottom_upsampler"), theirs.priors):
        compare_prior(our_model(runs / folder), prior, theirs.config.max_nb_genres)


@torch.no_grad()
def test_a_jukebox_of_two_levels_loads_and_its_top_is_the_first_prior(tmp_path):
    upper = {"downs_t": (2, 1), "strides_t": (2, 4), "cond_downs_t": 1, "cond_strides_t": 4}
    parts = {"vqvae": TWO_LEVELS, "upsampler_level_0": upper, "prior_5b": {"level": 1}}
    runs = saved_runs(tmp_path, parts)
    export_hugging_face(runs, tmp_path / "hf")
    theirs = loaded("JukeboxModel", tmp_path / "hf")
    compare_prior(our_model(runs / "top_prior"), theirs.priors[0], 5)
    compare_prior(our_model(runs / "bottom_upsampler"), theirs.priors[1], 5)


@torch.no_grad()
@pytest.mark.parametrize("part", ["top_prior", "middle_upsampler", "bottom_upsampler"])
def test_a_prior_exported_alone_loads_as_one(part, tmp_path):
    runs = saved_runs(tmp_path, {"vqvae": {}, **{part: {} for part in UPSAMPLERS}, "prior_5b": {}})
    export_hugging_face(runs / part, tmp_path / "hf")
    theirs = loaded("JukeboxPrior", tmp_path / "hf")
    assert theirs.raw_to_tokens == our_model(runs / part).config.hop
    compare_prior(our_model(runs / part), theirs, 5)


def test_what_transformers_saves_is_imported_without_a_setting(tmp_path):
    runs = saved_runs(
        tmp_path, {"vqvae": {}, **{part: {} for part in UPSAMPLERS}, **SETS["5b_lyrics"]}
    )
    export_hugging_face(runs, tmp_path / "hf")
    theirs = loaded("JukeboxModel", tmp_path / "hf")
    # Its safetensors fail on tied matrices.
    theirs.save_pretrained(tmp_path / "saved", safe_serialization=False)
    whole = import_weights([tmp_path / "saved"], tmp_path / "whole")
    theirs.vqvae.save_pretrained(tmp_path / "alone" / "vqvae", safe_serialization=False)
    folders = [tmp_path / "alone" / "vqvae"]
    for number, prior in enumerate(theirs.priors):
        folders.append(tmp_path / "alone" / str(number))
        prior.save_pretrained(folders[-1], safe_serialization=False)
    apart = import_weights(folders, tmp_path / "apart", {"sr": 44100})
    for part, folder in whole.items():
        before = read_facts(runs / folder.name)
        for facts in (read_facts(folder), read_facts(apart[part])):
            assert facts["fingerprint"] == before["fingerprint"]
            if part != "vqvae":
                assert facts["config"] == before["config"]


def test_its_tokenizer_reads_our_names(tmp_path):
    (tmp_path / "v2_artist_ids.txt").write_text("unknown;0\nthe_band;1\nc_line_dion;3\n")
    (tmp_path / "v2_genre_ids.txt").write_text("unknown;0\npop;1\nrock;4\n")
    runs = saved_runs(tmp_path, {"vqvae": {}, "prior_5b_lyrics": {}})
    import_weights([tmp_path], tmp_path / "named")
    export_hugging_face(tmp_path / "named", tmp_path / "hf")
    tokenizer = transformers.JukeboxTokenizer.from_pretrained(tmp_path / "hf")
    ids = tokenizer("The Band", "rock_pop", "La")["input_ids"][0][0].tolist()
    assert runs.is_dir() and ids[3:9] == [1, 4, 1, -1, -1, -1]
