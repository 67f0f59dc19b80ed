"""The stage `composer`: it trains on notes, says whose they are, resumes bit for bit, and refuses what does not fit."""

import shutil
from pathlib import Path

import pytest
import yaml
from fixtures.paths import FILES
from fixtures.tiny_composer import chorale
from fixtures.tiny_runs import command, events, finish, losses, start_ranks
from fixtures.tiny_shards import write_codes

from megajukebox.common.errors import UserError
from megajukebox.common.model_files import load_weights, read_facts
from megajukebox.data.ingest.note_pieces import NotesIngestConfig, find_note_files, prepare_notes
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.stream.note_windows import check_notes
from megajukebox.notes.midi import to_midi
from megajukebox.sampling.composing.composer import Composer
from megajukebox.training.composer_task import composer_settings
from megajukebox.training.config import load_preset

pytestmark = pytest.mark.timeout(600)


def write_notes(folder: Path, seeds: range, licence: str = "CC0-1.0") -> Path:
    """Note shards of chorales of random notes."""
    (folder / "in").mkdir(parents=True)
    for seed in seeds:
        (folder / f"in/{seed}.mid").write_bytes(to_midi(chorale(seed, 4)))
    files, notes = find_note_files(folder / "in", {"artist": "Ann", "licence": licence})
    settings = NotesIngestConfig(files_per_shard=4)
    prepare_notes(files, notes, folder / "out", settings, processes=1, made_by={})
    return folder / "out"


def write_preset(folder: Path, **training) -> Path:
    settings = yaml.safe_load((FILES / "nano.yaml").read_text())
    settings["composer"]["conditions"] = {"artist": {"table_size": 4, "dropout": 0.1}}
    settings["training"]["composer"] |= training
    path = folder / "nano.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def train(preset: Path, out: Path, *data: Path | str, ranks: int = 1, expect: int = 0) -> str:
    told = command(Path(data[0]), preset, out, stage="composer")
    for one in data[1:]:
        told[2:2] = ["--data", str(one)]
    codes, said = finish(start_ranks(told, ranks))
    assert codes == [expect] * ranks, said[-4000:]
    return said


def test_a_composer_is_trained_and_composes(tmp_path: Path) -> None:
    data = write_notes(tmp_path / "a", range(6))
    out = tmp_path / "runs/composer"
    train(write_preset(tmp_path, steps=2), out, data)
    facts = read_facts(out)
    assert facts["kind"] == "composer" and facts["licences"] == {"CC0-1.0": 6}
    assert events(out, "done")
    melody = chorale(50, 2, parts=1)
    (piece,) = Composer(tmp_path / "runs").fill(melody, parts="ATB")
    assert piece.notes.length == melody.length


@pytest.mark.slow
def test_two_processes_learn_what_one_learns_and_a_blend_is_read(tmp_path: Path) -> None:
    first, second = write_notes(tmp_path / "a", range(8)), write_notes(tmp_path / "b", range(8, 12))
    preset = write_preset(tmp_path, steps=4, log_every=1)
    sets = (f"{first}:2", f"{second}:1")
    alone = yaml.safe_load(preset.read_text())
    train(preset, tmp_path / "two", *sets, ranks=2)
    alone["training"]["composer"]["batch"] = 4  # as many windows a step as two processes read
    one = tmp_path / "one.yaml"
    one.write_text(yaml.safe_dump(alone))
    train(one, tmp_path / "one", *sets)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    facts = read_facts(tmp_path / "one")
    assert facts["licences"] == {"CC0-1.0": 12} and len(facts["sets"]) == 2


@pytest.mark.slow
def test_a_composer_resumes_bit_for_bit(tmp_path: Path) -> None:
    data = write_notes(tmp_path / "a", range(8))
    preset = write_preset(tmp_path, steps=6, log_every=1, checkpointing={"every": 3})
    whole = tmp_path / "whole"
    train(preset, whole, data)
    resumed = tmp_path / "resumed"
    shutil.copytree(whole, resumed)
    (resumed / "DONE").unlink(missing_ok=True)
    shutil.rmtree(resumed / "checkpoints/step-00000006")
    train(preset, resumed, data)
    before, after = load_weights(whole)[1], load_weights(resumed)[1]
    assert all(before[name].equal(after[name]) for name in before)
    assert losses(resumed, first=3)[-3:] == losses(whole, first=3)


def test_codes_are_no_notes_and_a_preset_may_describe_no_composer(tmp_path: Path) -> None:
    codes = write_codes(tmp_path / "codes")
    with pytest.raises(UserError, match="holds codes, the composer reads notes; run prepare-notes"):
        check_notes(ShardSet(codes))
    with pytest.raises(UserError, match="preset 'jukebox_5b' describes no composer"):
        composer_settings(load_preset("jukebox_5b"))
