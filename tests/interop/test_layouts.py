"""Layouts of other programs: what they cannot say is refused before a file is written, and what they hold is read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.reference_shapes import TINY, written
from safetensors.torch import load_file
from typer.testing import CliRunner

from megajukebox.commands.export_weights import main as export_main
from megajukebox.commands.import_weights import main as import_main
from megajukebox.common.command_line import command_app
from megajukebox.common.errors import EXIT_FATAL, UserError
from megajukebox.common.levels import RUN_FOLDERS
from megajukebox.common.model_files import read_facts
from megajukebox.conditioning.vocabulary import read_vocabularies
from megajukebox.interop.export import export_hugging_face, export_openai
from megajukebox.interop.jukebox_weights import NOTICE, import_weights
from megajukebox.interop.own_layout import export_models
from megajukebox.sampling.prior_run import PriorRun
from megajukebox.sampling.songs.requests import SongRequest

SET = ("vqvae", "upsampler_level_0", "upsampler_level_1", "prior_5b_lyrics")
EXPORTS = {"openai": export_openai, "hugging_face": export_hugging_face}
TOP = RUN_FOLDERS["top"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folders of a tiny 5b with lyrics, that nobody may change."""
    folder = tmp_path_factory.mktemp("set")
    import_weights(written(folder, SET), folder / "runs")
    return folder / "runs"


def changed(runs: Path, to: Path, part: str, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of the runs in which the facts of one part are others; its tensors stay."""
    export_models(runs, to)
    made = to / RUN_FOLDERS[part] / "model.json"
    facts = json.loads(made.read_text())
    change(facts)
    made.write_text(json.dumps(facts))
    return to


def label(slots: int = 1) -> dict[str, int]:
    return {"max_values": slots, "table_size": 7}


def update(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Set an entry of model.json by its dotted path."""

    def change(facts: dict[str, Any]) -> None:
        *folders, name = path.split(".")
        for folder in folders:
            facts = facts[folder]
        facts[name] = value

    return change


TIMING = {"bins": 8, "min_seconds": 1.0, "max_seconds": 60.0}
BOTH = ("openai", "hugging_face")
# What public reports and a search of both programs found that they compute otherwise, by layout.
INEXPRESSIBLE: dict[str, tuple[str, Callable[[dict[str, Any]], None], tuple[str, ...], str]] = {
    "labels everywhere": (
        "top",
        update("config.conditions_at_every_position", True),
        BOTH,
        "conditions_at_every_position",
    ),
    "moods": (
        "middle",
        update("config.conditions.moods", label(3)),
        BOTH,
        "conditions moods",
    ),
    "artist alone": (
        "bottom",
        update("config.conditions", {"artist": label()}),
        BOTH,
        "conditions without genres",
    ),
    "two artists": (
        "top",
        update("config.conditions.artist.max_values", 2),
        BOTH,
        "artist.max_values 2",
    ),
    "own tokenizer": (
        "top",
        update("tokenizer", "lyrics.model"),
        BOTH,
        "tokenizer of 80 pieces of its own",
    ),
    "another tokenizer": ("top", update("tokenizer", "jukebox_v3"), BOTH, "tokenizer"),
    "labels of another version": ("top", update("names", "jukebox_v3"), BOTH, "v3 labels"),
    "timing beside upper codes": (
        "middle",
        update("config.timing", TIMING),
        BOTH,
        "timing beside the codes",
    ),
    "labels without timing": ("top", update("config.timing", None), BOTH, "labels without timing"),
    "timing without labels": (
        "top",
        update("config.conditions", {}),
        BOTH,
        "timing without labels",
    ),
    "an upsampler without codes": (
        "bottom",
        update("config.upsampler_conditioner", None),
        BOTH,
        "reads no codes of a level above",
    ),
    "another conditioner than the VQ-VAE": (
        "middle",
        update("config.upsampler_conditioner.stride", 4),
        ("openai",),
        "upsampler_conditioner of 2 convolutions of stride 4",
    ),
    "schedule row_column": (
        "middle",
        update("config.transformer.schedule", "row_column"),
        ("hugging_face",),
        "schedule row_column",
    ),
    "schedule dense": (
        "bottom",
        update("config.transformer.schedule", "dense"),
        ("hugging_face",),
        "schedule dense",
    ),
    "schedule of the lyrics": (
        "top",
        update("config.transformer.schedule", "factored_lyrics"),
        ("hugging_face",),
        "schedule factored_lyrics",
    ),
    "schedule of the encoder": (
        "top",
        update("config.lyrics.encoder.schedule", "dense"),
        ("hugging_face",),
        "lyrics.encoder.schedule dense",
    ),
    "a decoder that is not reversed": (
        "vqvae",
        update("config.reverse_decoder_dilation", False),
        ("hugging_face",),
        "reverse_decoder_dilation",
    ),
    "a narrow residual unit": (
        "vqvae",
        update("config.hidden_ratio", 0.5),
        ("hugging_face",),
        "hidden_ratio 0.5",
    ),
}


@pytest.mark.parametrize("case", INEXPRESSIBLE)
def test_what_a_layout_cannot_say_is_refused_before_a_file_is_written(case, runs, tmp_path):
    part, change, layouts, reason = INEXPRESSIBLE[case]
    other = changed(runs, tmp_path / "runs", part, change)
    for layout in layouts:
        with pytest.raises(UserError, match="--layout megajukebox") as refused:
            EXPORTS[layout](other, tmp_path / layout)
        assert reason in str(refused.value) and RUN_FOLDERS[part] in str(refused.value)
        assert "\n" not in str(refused.value) and not (tmp_path / layout).exists()


def test_a_set_with_a_gap_or_labels_at_one_level_is_no_set_of_transformers(runs, tmp_path):
    gap = tmp_path / "gap"
    export_models(runs / "vqvae", gap)
    export_models(runs / TOP, gap)
    export_models(runs / RUN_FOLDERS["bottom"], gap)
    with pytest.raises(UserError, match="add the middle prior"):
        export_hugging_face(gap, tmp_path / "x")
    mixed = changed(runs, tmp_path / "mixed", "bottom", update("config.conditions", {}))
    with pytest.raises(UserError, match="labels at top, middle only"):
        export_hugging_face(mixed, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_our_own_layout_holds_everything_to_the_bit(runs, tmp_path):
    """Whatever the others refuse; `import` and `sample` read it, and the old name of the layout still works."""
    whole = changed(
        runs, tmp_path / "own", "top", update("config.conditions_at_every_position", True)
    )
    (whole / TOP / "alignment.json").write_text('{"layer": 18, "head": 0}')
    student = whole / "top_student" / "order_1_1"
    student.mkdir(parents=True)
    (whole / "top_student" / "student.json").write_text("{}")
    for name in ("model.json", "model.safetensors"):
        (student / name).write_bytes((whole / "vqvae" / name).read_bytes())
    export = command_app(export_main, "export")
    for layout in ("megajukebox", "plain"):
        to = ["--to", str(tmp_path / layout), "--layout", layout]
        assert CliRunner().invoke(export, [str(whole), *to]).exit_code == 0
    made = import_weights([tmp_path / "megajukebox"], tmp_path / "again")
    assert set(made) == {*RUN_FOLDERS.values(), "top_student", "top_student/order_1_1"}
    for folder in (tmp_path / "megajukebox", tmp_path / "plain", tmp_path / "again"):
        files = [file for file in whole.rglob("*") if file.is_file()]
        for file in files:
            assert (folder / file.relative_to(whole)).read_bytes() == file.read_bytes()
        assert len([file for file in folder.rglob("*") if file.is_file()]) == len(files)
    alone = import_weights([tmp_path / "megajukebox" / TOP], tmp_path / "alone")
    assert list(alone.values()) == [tmp_path / "alone" / TOP]


def test_a_damaged_folder_of_our_own_layout_is_not_imported(runs, tmp_path):
    own = changed(runs, tmp_path / "own", "top", lambda facts: None)
    file = own / TOP / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    (tmp_path / "more").mkdir()
    for paths, options, message in (
        ([own], {}, "sha256"),
        ([own], {"settings": {"heads": 2}}, "leave --set out"),
        ([own], {"labels": tmp_path}, "leave --labels out"),
        ([own, tmp_path / "more"], {}, "apart"),
        ([runs, own / "vqvae"], {}, "both hold the vqvae"),
    ):
        with pytest.raises(UserError, match=message):
            import_weights(paths, tmp_path / "to", **options)
        assert not (tmp_path / "to").exists() and not (tmp_path / "to.partial").exists()


# ---- config.json ----------------------------------------------------------------------------------------------------


def test_a_hugging_face_folder_says_what_transformers_needs(runs, tmp_path):
    export_hugging_face(runs, tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["model_type"] == "jukebox" and config["architectures"] == ["JukeboxModel"]
    assert config["nb_priors"] == 3 and config["sampling_rate"] == 44100
    assert (config["min_duration"], config["max_duration"], config["timing_dims"]) == (
        *(23.8, 600.0),
        128,
    )
    vqvae = config["vqvae_config"]
    assert vqvae["res_downs_t"] == [3, 2, 2] and vqvae["multipliers"] == [2, 1, 1]
    assert (vqvae["nb_discrete_codes"], vqvae["embed_dim"], vqvae["sample_length"]) == (
        *(32, 8),
        24 * 44100 // 128 * 128,
    )
    top, middle, bottom = config["prior_config_list"]
    assert [prior["level"] for prior in (top, middle, bottom)] == [0, 1, 2]
    # By its default, transformers computes the training pass without a causal mask.
    assert top["mask"] and top["encoder_config"]["mask"] and middle["mask"]
    assert top["attention_pattern"] == "large_separated_enc_dec_w_lyrics"
    assert middle["attention_pattern"] == "raw_column_previous_row_attention"
    assert not top["is_encoder_decoder"] and top["encoder_config"]["hidden_size"] == 8
    assert top["metadata_dims"] == [5, 9] and top["nb_relevant_lyric_tokens"] == 16
    assert middle["conv_res_scale"] is True and bottom["conv_res_scale"] is False
    assert bottom["res_dilation_cycle"] == 2 and bottom["nb_relevant_lyric_tokens"] == 0


def test_levels_are_numbered_from_the_top_and_old_exports_still_come_in(tmp_path):
    two = {"levels": 2, "downs_t": (1, 2), "strides_t": (2, 4), "hvqvae_multipliers": (1, 1)}
    files = written(tmp_path, ("vqvae",), **two)
    made = TINY["prior_5b"] | {"level": 1}
    files += written(tmp_path, ("prior_5b",), level=1)
    runs = import_weights(files, tmp_path / "runs")
    file = export_hugging_face(tmp_path / "runs", tmp_path / "hf")[0]
    assert {name.split(".")[1] for name in load_file(file) if name.startswith("priors")} == {"0"}
    again = import_weights([tmp_path / "hf"], tmp_path / "again")
    old = {name.replace("priors.0", "priors.1"): t for name, t in load_file(file).items()}
    one = {name: t for name, t in old.items() if name.startswith("priors.1")}
    torch.save(one, tmp_path / "pytorch_model.bin")  # as 0.1.0 numbered the top of two levels
    import_weights([files[0]], tmp_path / "before")
    before = import_weights([tmp_path / "pytorch_model.bin"], tmp_path / "before", made)
    fingerprint = read_facts(runs["top"])["fingerprint"]
    assert read_facts(again["top"])["fingerprint"] == fingerprint
    assert read_facts(before["top"])["fingerprint"] == fingerprint


def edited(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change config.json, and take our own record away: as another program would have written the folder."""
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "megajukebox.json").unlink(missing_ok=True)


def test_config_json_tells_heads_and_orders_of_every_part(runs, tmp_path):
    """Shapes do not tell heads: one for all was taken for a top of two without complaint."""

    def heads(config: dict[str, Any]) -> None:
        config["prior_config_list"][0]["n_heads"] = 2
        config["prior_config_list"][1]["blocks"] = 4

    export_hugging_face(runs, tmp_path / "hf")
    edited(tmp_path / "hf", heads)
    made = import_weights([tmp_path / "hf"], tmp_path / "again")
    shapes = {
        level: read_facts(made[level])["config"]["transformer"]
        for level in made
        if level != "vqvae"
    }
    assert {level: shape["heads"] for level, shape in shapes.items()} == {
        **{"top": 2, "middle": 1, "bottom": 1}
    }
    assert shapes["middle"]["blocks"] == 4 and shapes["bottom"]["blocks"] == 8
    # A setting for one part goes before the file, and leaves the others alone.
    made = import_weights([tmp_path / "hf"], tmp_path / "set", {"top.heads": 1, "bottom.blocks": 2})
    assert read_facts(made["top"])["config"]["transformer"]["heads"] == 1
    assert read_facts(made["middle"])["config"]["transformer"]["blocks"] == 4
    assert read_facts(made["bottom"])["config"]["transformer"]["blocks"] == 2


def test_older_files_list_the_priors_one_by_one(runs, tmp_path):
    def listed(config: dict[str, Any]) -> None:
        for number, prior in enumerate(config.pop("prior_config_list")):
            config[f"prior_{number}"] = prior

    export_hugging_face(runs, tmp_path / "hf")
    edited(tmp_path / "hf", listed)
    made = import_weights([tmp_path / "hf"], tmp_path / "again")
    for part in ("top", "middle", "bottom"):
        assert read_facts(made[part])["config"] == read_facts(runs / RUN_FOLDERS[part])["config"]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.update(model_type="llama"), "model_type 'llama'"),
        (lambda c: c["vqvae_config"].update(act_fn="gelu"), "vqvae_config.act_fn 'gelu'"),
        (lambda c: c["prior_config_list"][1].update(n_heads="two"), "prior_config_list.1.n_heads"),
        (lambda c: c["prior_config_list"][1].update(n_heads=3), "heads 3 does not divide"),
        (lambda c: c["prior_config_list"][0].update(attention_pattern="x"), "attn_order x"),
        (
            lambda c: c["prior_config_list"][0].update(init_scale=float("inf")),
            "Infinity|init_scale",
        ),
        (lambda c: c.update(nb_priors=10**9), "nb_priors 1000000000"),
    ],
)
def test_a_config_that_is_wrong_is_named(change, message, runs, tmp_path):
    export_hugging_face(runs, tmp_path / "hf")
    edited(tmp_path / "hf", change)
    with pytest.raises(UserError, match=message) as refused:
        import_weights([tmp_path / "hf"], tmp_path / "again")
    assert "\n" not in str(refused.value) and not (tmp_path / "again").exists()


def test_parts_saved_alone_come_in_from_their_own_folders(runs, tmp_path):
    folders: list[Path] = []
    for part, run in RUN_FOLDERS.items():
        folders.append(tmp_path / part)
        file = export_hugging_face(runs / run, folders[-1])[0]
        assert not [name for name in load_file(file) if name.startswith(("priors.", "vqvae."))]
        edited(folders[-1], lambda config: None)
    # In pieces only config.json tells what the second is of.
    state = load_file(tmp_path / "middle" / "model.safetensors")
    (tmp_path / "middle" / "model.safetensors").unlink()
    names = sorted(state)
    for number, piece in enumerate((names[:20], names[20:]), start=1):
        held = {name: state[name] for name in piece}
        torch.save(held, tmp_path / "middle" / f"pytorch_model-0000{number}-of-00002.bin")
    made = import_weights(folders, tmp_path / "again", {"vqvae.sr": 44100})
    for part, run in RUN_FOLDERS.items():
        assert read_facts(made[part])["fingerprint"] == read_facts(runs / run)["fingerprint"]
    # A prior without its VQ-VAE: config.json says how many samples a code stands for.
    alone = import_weights([tmp_path / "bottom"], tmp_path / "alone")
    assert (
        read_facts(alone["bottom"])["config"] == read_facts(runs / RUN_FOLDERS["bottom"])["config"]
    )


# ---- Settings, names, licences --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "setting, message",
    [
        ("haeds=2", "did you mean heads"),
        ("topp.heads=2", "'topp' is no part"),
        ("middle.heads=1", "the files hold no middle"),
        ("prior_width=99", "the tensors have 16"),
        ("level=two", "level=two"),
        ("heads=nine", "transformer.heads|heads"),
    ],
)
def test_a_setting_that_would_have_no_effect_is_refused(setting, message, tmp_path):
    files = written(tmp_path, ("vqvae", "prior_5b"))
    arguments = [*map(str, files), "--to", str(tmp_path / "run"), "--set", setting]
    refused = CliRunner().invoke(command_app(import_main, "import"), arguments)
    assert refused.exit_code == EXIT_FATAL, refused.output
    assert any(part in refused.stderr for part in message.split("|"))
    assert not (tmp_path / "run").exists()


def ids(run: Path, vqvae: Path, **request: Any) -> dict[str, list[int]]:
    """What a run understands of a request's artist and genres."""
    prior = PriorRun(run, read_facts(vqvae))
    labels = prior.conditioning(SongRequest(id="a", seconds=1, **request)).labels
    return {name: values.tolist() for name, values in labels.items()}


def test_the_tokenizers_names_are_asked_for_in_either_version(runs, tmp_path):
    """In artists.json names of v2 end in ".v2", and those of v3 stand beside them under other ids."""
    export_hugging_face(runs, tmp_path / "hf")
    (tmp_path / "hf" / "megajukebox.json").unlink()
    for name in ("artists", "genres"):
        (tmp_path / "hf" / f"{name}.json").unlink(missing_ok=True)
    artists = {"unknown": 0, "the band": 2, "unknown.v2": 0, "the_band.v2": 3, "sigur_r_s.v2": 8}
    (tmp_path / "hf" / "artists.json").write_text(json.dumps(artists))
    genres = {"unknown.v2": 0, "rock.v2": 1, "post.v2": 4, "post-rock": 3}
    (tmp_path / "hf" / "genres.json").write_text(json.dumps(genres))
    made = import_weights([tmp_path / "hf"], tmp_path / "again")
    found = ids(made["top"], made["vqvae"], artist="The Band", genres=["Post Rock"])
    assert found == {"artist": [3], "genres": [4, 1, -1, -1, -1]}
    assert ids(made["bottom"], made["vqvae"], artist="Sigur Rós")["artist"] == [8]


def test_rows_that_nobody_named_are_asked_for_by_number(runs):
    vqvae = runs / "vqvae"
    assert ids(runs / TOP, vqvae, artist="3", genres=["2", "4"]) == {
        **{"artist": [3], "genres": [2, 4, -1, -1, -1]}
    }
    assert ids(runs / TOP, vqvae, artist="9")["artist"] == [0]  # the table has rows 0 to 8


@pytest.mark.parametrize("content", ["[1]", '{"a.v2": 99}', '{"a": "1"}', '{"a": true}', "{"])
def test_damaged_names_are_refused(content, runs, tmp_path):
    export_hugging_face(runs, tmp_path / "hf")
    (tmp_path / "hf" / "artists.json").write_text(content)
    with pytest.raises(UserError, match=r"artists\.json"):
        import_weights([tmp_path / "hf"], tmp_path / "again")


@pytest.mark.parametrize("layout", BOTH)
def test_an_own_model_comes_back_as_it_was(layout, runs, tmp_path):
    """Its licence, its names, its spelling and its settings of training too; it is not called OpenAI's."""

    def own(facts: dict[str, Any]) -> None:
        facts.pop("imported")
        facts |= {"licence": None, "names": None, "step": 77}
        facts["config"]["transformer"]["init_scale"] = 0.7

    other = changed(runs, tmp_path / "own", "top", own)
    names = {
        "artist": ["<unknown>", *(f"Orrin Vask {n}" for n in range(8))],
        "genres": ["<unknown>", "lantern folk", "post-rock", "пост-рок", "c"],
    }
    (other / TOP / "vocabularies.json").write_text(json.dumps(names))
    EXPORTS[layout](other, tmp_path / "there")
    made = import_weights([tmp_path / "there"], tmp_path / "back")
    facts = read_facts(made["top"])
    before = read_facts(other / TOP)
    for name in ("config", "fingerprint", "step", "licence", "names", "tokenizer"):
        assert facts[name] == before[name], name
    found = ids(made["top"], made["vqvae"], artist="orrin vask 6", genres=["Lantern Folk", "c"])
    assert found == {"artist": [7], "genres": [1, 4, -1, -1, -1]}
    read = read_vocabularies(made["top"])
    assert {name: list(words.names) for name, words in read.items()} == names
    again = read_facts(made["bottom"])
    assert again["licence"] == read_facts(runs / RUN_FOLDERS["bottom"])["licence"]


def test_only_released_shapes_are_called_openais(runs, tmp_path):
    licence = read_facts(runs / TOP)["licence"]
    assert licence != NOTICE and "name no licence" in licence
    export_hugging_face(runs, tmp_path / "hf")
    answer = CliRunner().invoke(
        command_app(import_main, "import"), [str(tmp_path / "hf"), "--to", str(tmp_path / "to")]
    )
    assert answer.exit_code == 0 and licence in answer.output and NOTICE not in answer.output


def test_a_record_of_other_weights_is_not_believed(runs, tmp_path, caplog):
    """megajukebox.json that stayed beside weights which somebody replaced."""
    files = written(tmp_path, ("vqvae", "prior_5b"))
    import_weights(files, tmp_path / "other")
    export_openai(tmp_path / "other", tmp_path / "weights")
    record = tmp_path / "weights" / "megajukebox.json"
    content = json.loads(record.read_text())
    content["parts"]["top"]["config"]["transformer"]["depth"] = 5
    content["parts"]["top"]["facts"]["licence"] = "public domain"
    record.write_text(json.dumps(content))
    made = import_weights([tmp_path / "weights"], tmp_path / "again")
    assert "another top" in caplog.text and "public" not in read_facts(made["top"])["licence"]
    record.write_text('{"format": 2, "parts": {}}')
    with pytest.raises(UserError, match="format 2"):
        import_weights([tmp_path / "weights"], tmp_path / "more")


def test_lyrics_of_other_sizes_have_no_tokenizer_in_the_files(tmp_path):
    files = written(tmp_path, ("vqvae", "prior_5b_lyrics"), n_vocab=43)
    with pytest.raises(UserError, match=r"43 tokens.*--layout megajukebox"):
        import_weights(files, tmp_path / "run")


def test_the_export_lists_names_and_says_what_is_left_out(runs, tmp_path):
    other = changed(runs, tmp_path / "own", "top", lambda facts: None)
    names = {
        "artist": ["<unknown>", "the_band", *map(str, range(7))],
        "genres": ["<unknown>", "pop"],
    }
    (other / TOP / "vocabularies.json").write_text(json.dumps(names))
    (other / "top_student").mkdir()
    (other / "top_student" / "student.json").write_text("{}")
    export = command_app(export_main, "export")
    for layout in ("openai", "huggingface"):
        to = ["--to", str(tmp_path / layout), "--layout", layout]
        answer = CliRunner().invoke(export, [str(other), *to])
        assert answer.exit_code == 0 and "left out: top_student" in answer.output
    assert "the_band;1\n" in (tmp_path / "openai" / "v2_artist_ids.txt").read_text()
    artists = json.loads((tmp_path / "huggingface" / "artists.json").read_text())
    assert artists["the_band.v2"] == 1 and artists["unknown.v2"] == 0
    tokenizer = json.loads((tmp_path / "huggingface" / "tokenizer_config.json").read_text())
    assert tokenizer["version"] == ["v2", "v2", "v2"] and tokenizer["max_n_lyric_tokens"] == 16
