"""OpenAI's and Hugging Face's weights: covered to the last tensor, unchanged both ways, refused with a reason."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fixtures.reference_shapes import TINY, checkpoint, shapes_of, tensors, written
from safetensors.torch import load_file
from typer.testing import CliRunner

from megajukebox.commands.import_weights import main
from megajukebox.common.command_line import command_app
from megajukebox.common.errors import EXIT_FATAL, UserError
from megajukebox.common.levels import RUN_FOLDERS
from megajukebox.common.model_files import load_into, read_facts
from megajukebox.interop.checkpoints import ForeignCheckpoint
from megajukebox.interop.export import export_hugging_face, export_openai
from megajukebox.interop.hugging_face import from_hugging_face, last_convolutions, to_hugging_face
from megajukebox.interop.import_plan import plan
from megajukebox.interop.jukebox_weights import import_weights
from megajukebox.interop.own_layout import export_models
from megajukebox.interop.reference_config import reference_hps
from megajukebox.interop.released_configs import PRIORS, VQVAE
from megajukebox.interop.tensor_names import ORDER_OF_SCHEDULE, SCHEDULE_OF_ORDER
from megajukebox.models.attention import SCHEDULES
from megajukebox.models.prior import Prior, PriorConfig
from megajukebox.models.vqvae import VQVAE as VQVAEModel
from megajukebox.models.vqvae import VQVAEConfig
from megajukebox.training.config import load_preset

RELEASED = {"vqvae": VQVAE, **PRIORS}
COUNTS = {
    "vqvae": 669,
    "upsampler_level_0": 1006,
    "upsampler_level_1": 1006,
    "prior_5b": 872,
    "prior_5b_lyrics": 1194,
    "prior_1b_lyrics": 872,
}
PARAMETERS = {
    "vqvae": 1_485_763,
    "upsampler_level_0": 981_298_176,
    "upsampler_level_1": 981_298_176,
    "prior_5b": 5_060_452_800,
    "prior_5b_lyrics": 5_640_506_800,
    "prior_1b_lyrics": 942_643_200,
}
SET = ("vqvae", "upsampler_level_0", "upsampler_level_1", "prior_5b_lyrics")


def on_meta(name: str, hps: bool = True) -> ForeignCheckpoint:
    """A released checkpoint as names and shapes; without `hps`, as Hugging Face's copies come."""
    h = RELEASED[name]
    state = tensors(shapes_of(h), h, "meta")
    kind = "vqvae" if name == "vqvae" else "prior"
    tied = kind == "prior" and not h["merged_decoder"]
    return ForeignCheckpoint(
        (Path(name),), kind, state, h.get("level"), h if hps else {}, tied=tied
    )


def models_in(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {
        path.name: torch.load(path, weights_only=True)["model"]
        for path in sorted(folder.glob("*.pth.tar"))
    }


def loaded(folder: Path) -> dict:
    """Our model filled from a run folder; gives back its facts."""
    facts = read_facts(folder)
    config = (VQVAEConfig if facts["kind"] == "vqvae" else PriorConfig)(**facts["config"])
    return load_into(
        VQVAEModel(config) if isinstance(config, VQVAEConfig) else Prior(config), folder
    )


def is_tied(model: dict[str, torch.Tensor]) -> bool:
    one, other = model.get("prior.x_emb.weight"), model.get("prior.x_out.weight")
    return one is not None and other is not None and one.data_ptr() == other.data_ptr()


def assert_same(ours, theirs):
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), name


# ---- Coverage -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hps", [True, False], ids=["with_hps", "by_shapes_alone"])
@pytest.mark.parametrize("name", RELEASED)
def test_every_tensor_of_the_released_models_is_taken_once_and_none_of_ours_is_left(name, hps):
    part = plan([on_meta(name, hps)], {})[0]
    assert len(part.table) == COUNTS[name] == len({e.theirs for e in part.table})
    with torch.device("meta"):
        model = (
            VQVAEModel(part.config) if isinstance(part.config, VQVAEConfig) else Prior(part.config)
        )
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", RELEASED)
def test_hyper_parameters_and_shapes_lead_to_the_same_config(name):
    with_hps, without = plan([on_meta(name)], {})[0], plan([on_meta(name, hps=False)], {})[0]
    assert with_hps.config == without.config
    h = reference_hps(with_hps.config, RELEASED[name].get("level"))
    assert plan([replace(on_meta(name), hps=h)], {})[0].config == with_hps.config


TOPS = {
    "jukebox_5b": "prior_5b",
    "jukebox_5b_lyrics": "prior_5b_lyrics",
    "jukebox_1b_lyrics": "prior_1b_lyrics",
}


@pytest.mark.parametrize("name", TOPS)
@pytest.mark.parametrize("level", ["top", "middle", "bottom"])
def test_a_preset_describes_the_released_model_setting_for_setting(name, level):
    released = {"top": TOPS[name], "middle": "upsampler_level_1", "bottom": "upsampler_level_0"}[
        level
    ]
    theirs = plan([on_meta(released)], {})[0].config
    ours = load_preset(name).prior_config(level, theirs.lyrics.size if theirs.lyrics else 1)
    assert ours == theirs


@pytest.mark.parametrize("name", TOPS)
def test_a_preset_describes_the_released_vqvae_but_for_the_mended_restarts(name):
    theirs = plan([on_meta("vqvae")], {})[0].config
    assert load_preset(name).vqvae == theirs.model_copy(update={"fresh_restarts": True}) != theirs


@pytest.mark.parametrize("name", RELEASED)
def test_hugging_faces_names_are_all_different_and_lead_back(name):
    names = list(shapes_of(RELEASED[name]))
    theirs = [to_hugging_face(n) for n in names]
    assert len(set(theirs)) == len(names)
    lasts = last_convolutions(theirs)
    assert [from_hugging_face(n, lasts) for n in theirs] == names


def test_every_schedule_of_ours_has_a_number_of_theirs():
    assert set(ORDER_OF_SCHEDULE) == set(SCHEDULES) and len(SCHEDULE_OF_ORDER) == len(SCHEDULES)


@pytest.mark.parametrize("order", [0, 1, 2, 9])
def test_orders_without_lyrics_are_imported(order, tmp_path):
    files = written(tmp_path, ("prior_5b",), attn_order=order)
    import_weights(files, tmp_path / "run", {"downs_t": (3, 2, 2), "strides_t": (2, 2, 2)})
    config = loaded(tmp_path / "run" / RUN_FOLDERS["top"])["config"]
    assert config["transformer"]["schedule"] == SCHEDULE_OF_ORDER[order]


@pytest.mark.parametrize("order", [6, 7, 8, 10, 11])
def test_orders_with_a_lyrics_encoder_are_imported(order, tmp_path):
    files = written(
        tmp_path, ("vqvae", "prior_5b_lyrics"), **({"attn_order": order} if order != 10 else {})
    )
    import_weights(files, tmp_path / "run")
    config = loaded(tmp_path / "run" / RUN_FOLDERS["top"])["config"]
    assert config["transformer"]["schedule"] == SCHEDULE_OF_ORDER[order]


@pytest.mark.parametrize(
    "change",
    [
        {"downs_t": (2, 1, 1), "strides_t": (4, 2, 2)},
        {"levels": 1, "downs_t": (3,), "strides_t": (2,), "hvqvae_multipliers": None},
        {"levels": 2, "downs_t": (1, 2), "strides_t": (2, 4), "hvqvae_multipliers": (1, 3)},
        {"m_conv": 0.75, "dilation_cycle": 2},
        {"loss_fn": "l1", "vqvae_reverse_decoder_dilation": False},
    ],
)
def test_vqvaes_of_other_shapes_are_imported(change, tmp_path):
    files = written(tmp_path, ("vqvae",), **change)
    import_weights(files, tmp_path / "run")
    loaded(tmp_path / "run" / "vqvae")
    export_openai(tmp_path / "run", tmp_path / "back")
    assert_same(models_in(tmp_path / "back")["vqvae.pth.tar"], models_in(tmp_path)["vqvae.pth.tar"])


# ---- There and back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names", [SET, ("vqvae", "prior_1b_lyrics"), ("vqvae", "no_labels")], ids=lambda n: n[-1]
)
def test_import_and_export_give_back_every_byte(names, tmp_path):
    made = import_weights(written(tmp_path, names), tmp_path / "run")
    for folder in made.values():
        facts = loaded(folder)
        assert "non-commercial" in facts["licence"] and facts["step"] == 7
    export_openai(tmp_path / "run", tmp_path / "back")
    before, after = models_in(tmp_path), models_in(tmp_path / "back")
    assert set(before) == set(after)
    for file, model in before.items():
        assert_same(after[file], model)
        assert is_tied(after[file]) == is_tied(model)


def test_hugging_faces_layout_and_back_gives_the_same_safetensors(tmp_path):
    made = import_weights(written(tmp_path, SET), tmp_path / "run")
    file = export_hugging_face(tmp_path / "run", tmp_path / "hf")[0]
    state = load_file(file)
    assert (
        state["priors.0.prior.transformer._attn_mods.0.attn.c_attn.weight"].dtype == torch.float16
    )
    whole = import_weights([file.parent], tmp_path / "whole")
    for part, folder in made.items():
        assert read_facts(whole[part])["fingerprint"] == read_facts(folder)["fingerprint"]
    # These shapes are not released ones, and without config.json no hyper-parameters come along.
    alone = file.rename(tmp_path / file.name)
    with pytest.raises(UserError, match="does not say"):
        import_weights([alone], tmp_path / "again")
    prefixes = {"vqvae": "vqvae.", "top": "priors.0.", "middle": "priors.1.", "bottom": "priors.2."}
    for part, name in zip(("vqvae", "bottom", "middle", "top"), SET):
        piece = tmp_path / "pytorch_model.bin"
        torch.save({n: t for n, t in state.items() if n.startswith(prefixes[part])}, piece)
        again = import_weights([piece], tmp_path / "again", TINY[name])
        assert_same(
            load_file(again[part] / "model.safetensors"),
            load_file(made[part] / "model.safetensors"),
        )


def test_the_prefix_of_data_parallelism_and_the_old_file_format_change_nothing(tmp_path):
    h = TINY["prior_5b"]
    given = {"downs_t": (3, 2, 2), "strides_t": (2, 2, 2)}
    torch.save(checkpoint(h), tmp_path / "a.pth.tar")
    torch.save(
        checkpoint(h, prefix="module."),
        tmp_path / "b.pth.tar",
        _use_new_zipfile_serialization=False,
    )
    runs = [import_weights([tmp_path / f"{n}.pth.tar"], tmp_path / n, given)["top"] for n in "ab"]
    assert read_facts(runs[0])["fingerprint"] == read_facts(runs[1])["fingerprint"]


def test_plain_export_is_a_folder_that_loads(tmp_path):
    import_weights(written(tmp_path, ("vqvae",)), tmp_path / "run")
    export_models(tmp_path / "run", tmp_path / "plain")
    assert loaded(tmp_path / "plain" / "vqvae") == read_facts(tmp_path / "run" / "vqvae")


def test_names_of_artists_and_genres_come_with_the_weights(tmp_path):
    files = written(tmp_path, ("vqvae", "prior_5b"))
    (tmp_path / "v2_artist_ids.txt").write_text(
        "unknown;0\nthe_band;1\nthe_group;1\nc_line_dion;3\n"
    )
    (tmp_path / "v2_genre_ids.txt").write_text("unknown;0\npop;1\n")
    folder = import_weights(files, tmp_path / "run", labels=tmp_path)["top"]
    lists = json.loads((folder / "vocabularies.json").read_text())
    assert (
        lists["artist"][:4] == ["<unknown>", "the_band", "<row 2>", "c_line_dion"]
        and len(lists["artist"]) == 9
    )
    facts = read_facts(folder)
    assert (
        facts["names"] == "jukebox_v2"
        and facts["vqvae"] == read_facts(tmp_path / "run" / "vqvae")["fingerprint"]
    )


def test_the_verb_prints_the_licence_and_the_error(tmp_path):
    app = command_app(main, "import")
    file = written(tmp_path, ("vqvae",))[0]
    good = CliRunner().invoke(
        app, [str(file), "--to", str(tmp_path / "run"), "--set", "commit=0.1"]
    )
    assert good.exit_code == 0 and "non-commercial" in good.output
    assert read_facts(tmp_path / "run" / "vqvae")["config"]["commit"] == 0.1
    bad = CliRunner().invoke(app, [str(file), "--to", str(tmp_path / "run")])
    assert bad.exit_code == EXIT_FATAL and "exists" in bad.stderr
