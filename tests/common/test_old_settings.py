"""Settings of the version before are read under their present names: presets, run.yaml and overrides."""

import logging
from copy import deepcopy
from pathlib import Path

import pytest
import yaml
from fixtures.paths import FILES

from megajukebox.common.errors import UserError
from megajukebox.common.old_settings import (
    RENAMED_SETTINGS,
    describe_renamed,
    present_path,
    upgrade_settings,
    upgrade_stage,
)
from megajukebox.models.prior import PriorConfig
from megajukebox.training.config import Preset, dump, load_preset, validate
from megajukebox.training.settings import TrainingSettings

# The preset `mini` in the keys of version 1; the present file says the same in the present ones.
OLD_STAGE = {"held_out": 0.3, "held_out_batches": 1, "log_every": 1}


def old_mini() -> dict:
    preset = yaml.safe_load((FILES / "mini.yaml").read_text())
    preset["vqvae"]["codes"] = preset["vqvae"].pop("codebook_size")
    preset["conditions"] = {
        "artist": {"size": 8, "dropout": 0.1},
        "genres": {"slots": 2, "size": 8},
    }
    for level in ("top", "middle", "bottom"):
        prior = preset[level]
        prior["labels"] = prior.pop("conditions")
        prior["transformer"]["rows"] = prior["transformer"].pop("blocks")
        if level != "top":
            prior["upper"] = prior.pop("upsampler_conditioner")
    encoder = preset["top"]["lyrics"]["encoder"]
    encoder["rows"] = encoder.pop("blocks")
    for stage, own in {
        "vqvae": {"evaluate_every": 6, "save_every": 5},
        "top_prior": {"evaluate_every": 10, "save_every": 5},
        "middle_upsampler": {},
        "bottom_upsampler": {},
    }.items():
        settings = preset["training"][stage]
        del settings["evaluation"]
        settings.pop("checkpointing", None)
        settings.update(OLD_STAGE, **own)
    return preset


def test_a_preset_in_the_old_keys_means_the_same() -> None:
    assert validate(old_mini(), "old") == load_preset(str(FILES / "mini.yaml"))


def test_every_present_path_of_the_table_is_a_setting() -> None:
    """A renamed setting that leads nowhere would be refused under both of its names."""
    full = dump(load_preset(str(FILES / "mini.yaml")))
    full["top"]["condition_tables"] = {"artist": {"max_values": 1, "table_size": 16}}
    for present in RENAMED_SETTINGS.values():
        if present.split(".")[0] in ("middle", "bottom"):
            continue  # as of top, but for the lyrics
        tree = full
        for name in present.split("."):
            name = next(iter(tree)) if name == "*" else name
            assert name in tree, present
            tree = tree[name]


def test_an_override_by_an_old_key_is_applied_and_its_present_name_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        preset = load_preset("tiny", ["training.vqvae.keep=7", "top.labels=[artist]"])
    assert preset.stage("vqvae").checkpointing.keep_last == 7
    assert preset.top.conditions == ("artist",)
    assert "training.vqvae.keep is now training.vqvae.checkpointing.keep_last" in caplog.text
    assert "top.labels is now top.conditions" in caplog.text


def test_an_override_replaces_what_the_file_says_under_the_other_name(tmp_path: Path) -> None:
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    old.write_text(yaml.safe_dump(old_mini()))
    new.write_text((FILES / "mini.yaml").read_text())
    for path in (old, new):
        for setting in ("save_every=9", "checkpointing.every=9"):
            preset = load_preset(str(path), [f"training.top_prior.{setting}"])
            assert preset.stage("top_prior").checkpointing.every == 9


def test_old_values_are_read_too() -> None:
    preset = load_preset("tiny", ["training.vqvae.mode=stream"])
    assert preset.stage("vqvae").loader.data_mode == "unindexed"
    value = load_preset("tiny", ["bottom.label_tables={genres: {slots: 1, size: 9}}"])
    assert value.condition("bottom", "genres").table_size == 9


def test_presets_of_the_present_version_are_not_said_to_be_old(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        load_preset("tiny", ["training.vqvae.checkpointing.keep_last=7"])
    assert not caplog.text


def test_a_setting_under_both_names_is_refused() -> None:
    settings = old_mini()
    settings["training"]["vqvae"]["checkpointing"] = {"every": 3}
    with pytest.raises(UserError, match=r"vqvae.save_every is now .*checkpointing.every, and both"):
        upgrade_settings(settings)


def test_upgrading_changes_nothing_that_it_was_given() -> None:
    settings = old_mini()
    before = deepcopy(settings)
    upgrade_settings(settings)
    assert settings == before


def test_a_path_that_was_not_renamed_stays() -> None:
    for path in ("training.vqvae.steps", "top.window", "training", "top.transformer.rows.deeper"):
        assert present_path(path) in (path, "top.transformer.blocks.deeper")
    assert present_path("bottom.label_tables.genres.slots") == (
        "bottom.condition_tables.genres.max_values"
    )


def test_the_stage_of_a_run_is_read_in_the_present_keys() -> None:
    stage = upgrade_stage({"ds_config": "x.json", "steps": 3, "save_every": 5, "hang_seconds": 9})
    settings = TrainingSettings(**stage)
    assert settings.checkpointing.every == 5 and settings.watchdog.step_timeout_seconds == 9
    assert upgrade_stage(None) == {}


def test_the_log_names_a_few_and_counts_the_others() -> None:
    renamed = {f"old{n}": f"new{n}" for n in range(6)}
    assert describe_renamed(renamed).endswith("old3 is now new3 and 2 more")


def test_a_model_written_in_the_old_keys_is_read() -> None:
    transformer = {"width": 8, "depth": 2, "heads": 2, "rows": 4}
    old = {"level": "top", "sample_rate": 8000, "hop": 4, "codes": 16, "window": 16}
    labels = {"genres": {"slots": 3, "size": 6}}
    config = PriorConfig(
        **old, transformer=transformer, labels=labels, labels_everywhere=True, upper=None
    )
    assert config.conditions["genres"].table_size == 6 and config.transformer.blocks == 4
    assert PriorConfig(**config.model_dump()) == config


def test_a_model_with_a_setting_under_both_names_is_refused() -> None:
    transformer = {"width": 8, "depth": 2, "heads": 2, "rows": 4, "blocks": 4}
    with pytest.raises(ValueError, match="rows was renamed blocks, and both are given"):
        PriorConfig(
            level="top",
            sample_rate=8000,
            hop=4,
            codebook_size=16,
            window=16,
            transformer=transformer,
        )  # type: ignore[arg-type]


def test_the_preset_class_knows_no_old_key() -> None:
    """Old names are known by the table alone."""
    names = set(TrainingSettings.model_fields) | set(Preset.model_fields)
    assert not names & {path.split(".")[-1] for path in RENAMED_SETTINGS if path.count(".") == 2}
