"""Presets and settings: the shipped ones are valid, and a mistake is named before anything is built."""

from copy import deepcopy
from pathlib import Path

import pytest
import yaml

from megajukebox.training.config import (
    PRESETS,
    STAGE_NAMES,
    STUDENT_NAMES,
    dump,
    load_preset,
    override,
    validate,
)
from megajukebox.training.engines.ds_config import read_ds_config
from megajukebox.training.lr_schedule import ScheduleSettings, lr_factor

NAMES = sorted(path.stem for path in PRESETS.glob("*.yaml"))


def tiny() -> dict:
    return yaml.safe_load((PRESETS / "tiny.yaml").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_loads_and_comes_back_from_its_own_dump(name: str) -> None:
    preset = load_preset(name)
    assert preset.name == name
    assert validate(yaml.safe_load(yaml.safe_dump(dump(preset))), "dump") == preset
    assert (
        set(preset.training) <= {*STAGE_NAMES, *STUDENT_NAMES}
        and preset.vqvae.sample_rate == preset.audio.sample_rate
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_names_ds_configs_that_are_there(name: str) -> None:
    for stage in load_preset(name).training.values():
        assert read_ds_config(stage.ds_config)


def test_a_preset_may_be_a_file_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(tiny() | {"name": "mine"}))
    assert load_preset(str(path)).name == "mine"


def test_overrides_change_one_value_each_and_leave_the_rest() -> None:
    before = load_preset("tiny")
    changes = [
        "top.transformer.width=320",
        "training.vqvae.steps=7",
        "conditions.genres.dropout=0.5",
        "top.separate_head=true",
    ]
    after = load_preset("tiny", changes)
    assert after.top.transformer.width == 320 and after.training["vqvae"].steps == 7
    assert after.conditions["genres"].dropout == 0.5 and after.top.separate_head is True
    assert after.bottom == before.bottom and after.vqvae == before.vqvae
    assert (
        load_preset("tiny", ["training.vqvae.steps=7", "training.vqvae.steps=8"])
        .training["vqvae"]
        .steps
        == 8
    )


def test_an_override_may_set_what_the_preset_leaves_to_its_default() -> None:
    assert load_preset("tiny", ["vqvae.loss.linf=0.5"]).vqvae.loss.linf == 0.5
    assert (
        load_preset("tiny", ["training.top_prior.checkpointing.keep_last=9"])
        .stage("top_prior")
        .checkpointing.keep_last
        == 9
    )
    assert (
        load_preset("tiny", ["top.transformer.schedule=factored", "top.lyrics=null"]).top.lyrics
        is None
    )


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("top.transformer.witdh=8", ["top.transformer.witdh is no setting; did you mean width?"]),
        (
            "training.vqvae.checkpointing.evry=8",
            ["training.vqvae.checkpointing.evry is no setting; did you mean every?"],
        ),
        (
            "training.vqvae.checkpoint.every=8",
            ["training.vqvae.checkpoint is no setting; did you mean checkpointing?"],
        ),
        ("vqvae.loss.linff=1", ["vqvae.loss.linff is no setting; did you mean linf?"]),
        ("topp.window=8", ["topp"]),
        ("training.vqvae.stepz=8", ["training.vqvae.stepz"]),
        ("top.transformer.width=wide", ["top.transformer.width", "'wide'"]),
        ("top.transformer.width=-8", ["top.transformer.width", "greater than 0"]),
        ("top.transformer.width=1.5", ["top.transformer.width", "1.5"]),
        ("training.vqvae.steps=0", ["training.vqvae.steps", "greater than 0"]),
        (
            "training.vqvae.evaluation.held_out=1",
            ["training.vqvae.evaluation.held_out", "less than 1"],
        ),
        ("training.vqvae.schedule.decay=stairs", ["training.vqvae.schedule.decay", "stairs"]),
        ("audio.sample_rate=10", ["audio.sample_rate", "1000"]),
        ("top.lyrics.mode=suffix", ["top.lyrics.mode", "suffix"]),
        ("vqvae.codebook_size=100000", ["vqvae.codebook_size", "65536"]),
        ("top=5", ["top"]),
        ("top.window.size=5", ["top.window.size=5", "top.window holds no further settings"]),
        ("top.window", ["top.window", "key.sub=value"]),
        ("=5", ["'=5'", "key.sub=value"]),
        ("top..window=5", ["top."]),
        ("top.window=[", ["top.window=[", "not YAML"]),
        ("audio=5", ["audio"]),
        ("vqvae=null", ["vqvae"]),
        # No nearest name beside it: one of the same name elsewhere.
        ("steps=6", ["steps is no setting; did you mean training.<stage>.steps?"]),
        ("sample_rate=8000", ["did you mean audio.sample_rate or vqvae.sample_rate?"]),
        (
            "training.vqvae.seed=99999999999999999999",
            ["training.vqvae.seed: must be at most 9223372036854775807 (got 9999999999999999999"],
        ),
        ("training.vqvae.watchdog.step_timeout_seconds=.inf", ["finite number (got inf)"]),
        ("training.vqvae.batch=1000000000000", ["training.vqvae.batch: must be at most 10000000"]),
        ("training.vqvae.steps=true", ["training.vqvae.steps: must be a number, not true"]),
        ("top.lyrics={width: 8, width: 9}", ["'width' is given twice (line 1)"]),
    ],
)
def test_a_wrong_setting_is_refused_with_its_key_named(setting: str, told: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        load_preset("tiny", [setting])
    for word in told:
        assert word in str(error.value), error.value


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            ["top.conditions=[artist, tempo]"],
            r"top.conditions names 'tempo', which is not among conditions \(artist, genres\)",
        ),
        (
            ["top.upsampler_conditioner={width: 8, depth: 1}"],
            "top.upsampler_conditioner must be left out",
        ),
        (
            ["middle.upsampler_conditioner=null"],
            "middle.upsampler_conditioner must describe how the top codes are read",
        ),
        (
            ["middle.upsampler_conditioner.down=2"],
            "middle.upsampler_conditioner lengthens by 4, but a top code lasts 8 middle codes",
        ),
        (
            ["vqvae.down=[3, 3, 3]"],
            "bottom.upsampler_conditioner lengthens by 4, but a middle code lasts 8 bottom codes",
        ),
        (["vqvae.sample_rate=22050"], "vqvae.sample_rate 22050 is not audio.sample_rate 11025"),
        (["training.drummer={ds_config: x.json, steps: 1}"], "unknown stages .'drummer'."),
        (["top.transformer.heads=3"], "heads 3 does not divide the attention width"),
        (["top.transformer.schedule=zigzag"], "schedule 'zigzag' is unknown"),
        (["middle=null"], "the preset describes no middle prior"),
        (["vqvae.stride=[2, 3, 2]"], "odd entry"),
        (["top.transformer.blocks=7"], "blocks 7 does not divide"),
        (
            ["top.transformer.schedule=factored_lyrics"],
            "schedule 'factored_lyrics' needs a lyrics encoder",
        ),
        (
            ["middle.window=510", "middle.transformer.blocks=30"],
            "window 510 is not a multiple of 8",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_settings_that_cannot_go_together_are_refused_before_anything_is_built(
    changes: list[str], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        load_preset("tiny", changes)


def test_a_missing_preset_is_refused_and_the_known_ones_named() -> None:
    with pytest.raises(ValueError, match=r"preset 'huge' is neither a file nor one of .*tiny"):
        load_preset("huge")
    with pytest.raises(ValueError, match="neither a file"):
        load_preset("nowhere/mine.yaml")


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words", "name: {"])
def test_a_preset_file_that_holds_no_settings_says_so(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"broken.yaml"):
        load_preset(str(path))


def test_a_stage_that_is_not_trained_is_refused() -> None:
    with pytest.raises(
        ValueError, match="'tiny' does not train 'drummer'; it trains vqvae, refiner, top_prior"
    ):
        load_preset("tiny").stage("drummer")


def test_overriding_touches_only_its_own_value() -> None:
    settings = tiny()
    changed = deepcopy(settings)
    override(changed, "top.transformer.depth=9")
    assert changed["top"]["transformer"].pop("depth") == 9
    settings["top"]["transformer"].pop("depth")
    assert changed == settings


@pytest.mark.parametrize("decay", ["constant", "linear", "cosine"])
@pytest.mark.parametrize(
    ("steps", "warmup"), [(1, 0), (2, 0), (100, 0), (100, 10), (100, 99), (10, 20)]
)
def test_the_rate_rises_then_falls_to_its_floor_and_is_never_zero(
    decay: str, steps: int, warmup: int
) -> None:
    schedule = ScheduleSettings(warmup=warmup, decay=decay, decay_floor=0.1)
    rates = [lr_factor(step, steps, schedule) for step in range(steps)]
    assert all(0 < r <= 1 for r in rates)
    assert rates[:warmup] == [(step + 1) / (warmup + 1) for step in range(min(warmup, steps))]
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    if steps > warmup + 1:
        assert rates[warmup] == 1.0
        assert rates[-1] == pytest.approx(1.0 if decay == "constant" else 0.1)


def test_the_rate_of_the_middle_is_half_way() -> None:
    cosine = ScheduleSettings(decay="cosine", decay_floor=0.2)
    assert lr_factor(50, 101, ScheduleSettings(decay="linear")) == pytest.approx(0.5)
    assert lr_factor(50, 101, cosine) == pytest.approx(0.6)
    assert lr_factor(500, 101, cosine) == pytest.approx(0.2), "past the end it stays at the floor"


def test_a_run_is_annealed_from_a_given_step_and_value() -> None:
    """Trained for 1000 steps at a constant rate of 0.3, going on to 0 within 200 steps."""
    schedule = ScheduleSettings(
        warmup=10, decay="linear", decay_start=1000, decay_steps=200, lr_scale=0.3
    )
    rates = [lr_factor(step, 1300, schedule) for step in range(1300)]
    assert set(rates[10:1001]) == {0.3} and rates[1100] == pytest.approx(0.15)
    assert rates[1200:] == [0.0] * 100


def test_a_level_may_have_a_table_of_its_own_for_a_label() -> None:
    preset = load_preset(
        "tiny", ["bottom.condition_tables={genres: {max_values: 1, table_size: 9}}"]
    )
    (bottom, top) = (
        preset.prior_config(level, 9).conditions["genres"] for level in ("bottom", "top")
    )
    assert (bottom.max_values, bottom.table_size) == (1, 9) and (
        top.max_values,
        top.table_size,
    ) == (2, 16)
    assert preset.condition("bottom", "genres").dropout == preset.conditions["genres"].dropout


def test_a_table_for_a_label_that_the_level_is_not_told_is_refused() -> None:
    with pytest.raises(ValueError, match=r"bottom.condition_tables names 'moods'.*artist, genres"):
        load_preset("tiny", ["bottom.condition_tables={moods: {table_size: 9}}"])


def test_the_stage_that_is_trained_is_in_the_suggestion() -> None:
    with pytest.raises(ValueError, match=r"did you mean training\.vqvae\.steps\?"):
        load_preset("tiny", ["steps=6"], stage="vqvae")


def test_a_preset_that_gives_a_key_twice_is_refused_and_one_with_aliases_is_read(tmp_path) -> None:
    tiny = (PRESETS / "tiny.yaml").read_text()
    (tmp_path / "twice.yaml").write_text(tiny + "\nname: other\n")
    with pytest.raises(ValueError, match=r"'name' is given twice \(line \d+\)"):
        load_preset(str(tmp_path / "twice.yaml"))
    merged = tiny.replace("{sample_rate: 11025}", "{<<: &rate {sample_rate: 11025}}")
    assert merged != tiny
    (tmp_path / "mine.yaml").write_text(merged)
    assert load_preset(str(tmp_path / "mine.yaml")).audio.sample_rate == 11025
