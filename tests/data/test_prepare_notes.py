"""prepare-notes: files of notes become one set of note shards, the same however often it is interrupted."""

import json
from pathlib import Path

import numpy as np
import pytest
from fixtures.random_notes import random_piece
from typer.testing import CliRunner

from megajukebox.cli import app
from megajukebox.common.errors import UserError
from megajukebox.data.ingest.note_pieces import (
    NotesIngestConfig,
    NotesReport,
    find_note_files,
    prepare_notes,
)
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.shards.verify import check_shard
from megajukebox.notes.midi import read_midi, to_midi
from megajukebox.notes.notes import Notes

TUNES = "X:1\nM:2/4\nL:1/4\nK:C\nCD|EF|GA|Bc|]\n\nX:2\nM:2/4\nL:1/4\nK:G\nGA|Bc|de|^fg|]\n"


def collection(folder: Path) -> Path:
    """Five MIDI files of which two are the same, a tunebook, side-cars, a broken file, others."""
    (folder / "deep").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(4):
        (folder / f"piece {number}.MID").write_bytes(to_midi(random_piece(rng)))
    (folder / "deep/again.mid").write_bytes((folder / "piece 1.MID").read_bytes())
    (folder / "deep/tunes.abc").write_text(TUNES)
    (folder / "broken.mid").write_bytes(b"MThd")
    (folder / "piece 0.json").write_text(
        '{"artist": "Ännchen", "genres": ["reel"], "licence": "CC0-1.0"}'
    )
    (folder / "piece 2.json").write_text('{"composer": 3}')
    (folder / "readme.txt").write_text("about")
    (folder / ".hidden.mid").write_bytes(b"")
    return folder


def prepared(folder: Path, out: Path, **options) -> NotesReport:
    files, passed_over = find_note_files(folder, {"genres": ["dance"]})
    settings = NotesIngestConfig(files_per_shard=3)
    return prepare_notes(files, passed_over, out, settings, processes=1, made_by={}, **options)


def test_a_folder_becomes_shards_and_everything_left_out_is_told(tmp_path: Path) -> None:
    folder = collection(tmp_path / "in")
    report = prepared(folder, tmp_path / "out")
    shards = ShardSet(tmp_path / "out")
    for number in range(len(shards.index["shards"])):
        assert check_shard((shards, number)) == []
    facts = {shards.read_facts(row)["source"]: shards.read_facts(row) for row in range(len(shards))}
    # The first of two with the same notes stays, in the order of their names.
    sources = ["deep/again.mid", "deep/tunes.abc#1", "deep/tunes.abc#2"]
    assert sorted(facts) == sorted([*sources, *(f"piece {n}.MID" for n in (0, 2, 3))])
    assert facts["piece 0.MID"]["artist"] == "Ännchen" and facts["piece 0.MID"]["genres"] == [
        "reel"
    ]
    assert facts["piece 2.MID"]["genres"] == ["dance"]
    refused = {line["song"]: line["reason"] for line in report.refused}
    assert refused["piece 1.MID"] == "duplicate" and "broken.mid" in refused
    told = {note.source: note.kind.value for note in report.notes}
    assert told["piece 2.MID"] == "bad_sidecar" and told[".hidden.mid"] == "hidden"
    assert told["readme.txt"] == "not_audio"
    assert report.licences == {"CC0-1.0": 1, "not said": 5}
    assert set(shards.index["vocabulary"]["instruments"]) <= {
        family for fact in facts.values() for family in fact["instruments"]
    }
    for row in range(len(shards)):
        piece = Notes.from_npz(shards.read_member(row, "notes"))
        fact = shards.read_facts(row)
        assert piece.fingerprint() == fact["fingerprint"]
        assert int(shards.songs[row]["frames"]) == fact["frames"]
        if fact["source"].endswith("MID"):
            assert piece == read_midi((folder / fact["source"]).read_bytes()).notes


def test_an_interrupted_run_goes_on_to_the_same_shards(tmp_path: Path) -> None:
    folder = collection(tmp_path / "in")
    prepared(folder, tmp_path / "whole")

    class Interrupted(Exception):
        pass

    def stop(count: int) -> None:
        stop.done += count
        if stop.done == 5:
            raise Interrupted

    stop.done = 0
    with pytest.raises(Interrupted):
        prepared(folder, tmp_path / "out", after_file=stop)
    first = tmp_path / "out/notes-000000.tar"
    before = first.stat().st_mtime_ns
    prepared(folder, tmp_path / "out")
    assert first.stat().st_mtime_ns == before
    for path in sorted((tmp_path / "whole").iterdir()):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name


def test_other_settings_need_fresh(tmp_path: Path) -> None:
    folder = collection(tmp_path / "in")
    prepared(folder, tmp_path / "out")
    (folder / "more.mid").write_bytes(to_midi(random_piece(np.random.default_rng(9))))
    with pytest.raises(UserError, match="--fresh"):
        prepared(folder, tmp_path / "out")
    assert prepared(folder, tmp_path / "out", fresh=True).index["songs"] == 7


def test_the_command_prints_what_was_made_and_refused(tmp_path: Path) -> None:
    folder = collection(tmp_path / "in")
    arguments = ["prepare-notes", str(folder), "--out", str(tmp_path / "out"), "--processes", "1"]
    done = CliRunner().invoke(app, [*arguments, "--licence", "CC-BY-4.0"])
    assert done.exit_code == 0, done.output
    assert "6 pieces" in done.output and "licence of 5: CC-BY-4.0" in done.output
    assert "duplicate" in done.output
    index = json.loads((tmp_path / "out/index.json").read_text())
    assert index["kind"] == "notes"
    wrong = CliRunner().invoke(
        app, ["prepare-notes", "music21:kazoo", "--out", str(tmp_path / "x")]
    )
    assert wrong.exit_code != 0


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no notes"):
        find_note_files(tmp_path, {})
    with pytest.raises(UserError, match="no folder"):
        find_note_files(tmp_path / "none", {})
