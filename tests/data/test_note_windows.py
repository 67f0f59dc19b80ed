"""Windows of notes: every event of every piece is read, each window is music, transposed ones are the piece moved."""

import numpy as np
import pytest
from fixtures.random_notes import random_piece

from megajukebox.data.ingest.note_pieces import NotesIngestConfig, find_note_files, prepare_notes
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.stream.note_windows import (
    CLOCK_COLUMNS,
    PROGRESS,
    NoteWindows,
    check_notes,
)
from megajukebox.notes.clock import Clock, decode, places, voice_states
from megajukebox.notes.events import PAD, NoteVocabulary, encode
from megajukebox.notes.holes import ScoreLayout
from megajukebox.notes.midi import to_midi

WINDOW = 48


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    folder = tmp_path_factory.mktemp("notes")
    (folder / "in").mkdir()
    for seed in range(12):
        data = to_midi(random_piece(np.random.default_rng(seed)))
        (folder / f"in/{seed}.mid").write_bytes(data)
    files, notes = find_note_files(folder / "in", {"artist": "Ann"})
    settings = NotesIngestConfig(files_per_shard=5)
    prepare_notes(files, notes, folder / "out", settings, processes=1, made_by={})
    return ShardSet(folder / "out")


def windows(shards: ShardSet, **options) -> NoteWindows:
    vocabulary = NoteVocabulary.from_json(shards.index["notes"]["vocabulary"])
    transpose = options.pop("transpose", (0, 0))
    vocabulary = vocabulary.transposed(range(transpose[0], transpose[1] + 1))
    options = {"held_out": 0.0, "conditions": ()} | options
    return NoteWindows(shards, vocabulary, WINDOW, transpose=transpose, **options)


def test_without_chance_windows_reach_from_beginning_to_end(shards: ShardSet) -> None:
    source = windows(shards)
    check_notes(shards)
    for song, clips in enumerate(source.clips("train").tolist()):
        piece, _ = source._read_piece(song)
        first = source.read(song, 0, None)
        assert first["codes"][0] == piece.events[0]
        last = source.read(song, clips - 1, None)
        if clips > 1 or len(piece.events) <= WINDOW:
            predicted = last["codes"][last["predicted"]]
            assert (piece.events[-1] == 1 and predicted[-1] == 1) or len(predicted) == WINDOW


def test_every_window_is_music_and_its_clock_that_of_the_piece(shards: ShardSet) -> None:
    source = windows(shards)
    rng = np.random.default_rng(0)
    kinds = [event.kind for event in source.vocabulary.events]
    for song, clips in enumerate(source.clips("train").tolist()):
        for clip in range(clips):
            window = source.read(song, clip, rng)
            filled = window["codes"] != PAD
            events = window["codes"][filled].tolist()
            assert kinds[events[0]] == "BAR"
            while kinds[events[-1]] in ("NOTE", "LOUD"):
                events.pop()  # cut by the window's end
            decode(events, source.vocabulary)
            assert window["codes"].shape == (WINDOW,) and window["clock"].shape == (
                WINDOW,
                CLOCK_COLUMNS,
            )
            assert (window["clock"][~filled] == 0).all()
            assert (window["clock"][filled][:, :PROGRESS] > 0).all()
            assert not (window["predicted"] & ~filled).any()
            # A tempo that was put in behind the first bar line is given.
            assert window["predicted"].sum() >= filled.sum() - 1
            assert set(window["timing"].shape) == {3} if "timing" in window else True


def test_transposed_windows_are_the_piece_in_another_key(shards: ShardSet) -> None:
    plain, moved = windows(shards), windows(shards, transpose=(-3, 3))
    found = set()
    for song in range(len(shards)):
        whole, _ = plain._read_piece(song)
        if len(whole.events) > WINDOW:
            continue
        original = decode(whole.events.tolist(), plain.vocabulary)
        for seed in range(8):
            window = moved.read(song, 0, np.random.default_rng(seed))
            events = window["codes"][window["predicted"]].tolist()
            piece = decode(events, moved.vocabulary)
            steps = {
                step
                for step in range(-3, 4)
                if original.transposed(step).notes.tolist() == piece.notes.tolist()
            }
            assert steps
            found |= steps
    assert len(found) > 3


def test_held_out_pieces_are_not_trained_on(shards: ShardSet) -> None:
    source = windows(shards, held_out=0.4)
    train, held = source.clips("train") > 0, source.clips("held_out") > 0
    assert not (train & held).any() and (train | held).all() and held.any() and train.any()


def test_the_same_seed_reads_the_same_window(shards: ShardSet) -> None:
    source = windows(shards, transpose=(-5, 6))
    for song in range(4):
        one = source.read(song, 0, np.random.default_rng(9))
        two = source.read(song, 0, np.random.default_rng(9))
        assert all(np.array_equal(one[name], two[name]) for name in ("codes", "clock", "predicted"))


@pytest.mark.parametrize("seed", range(12))
def test_what_voices_sing_is_what_the_clock_says(seed: int) -> None:
    piece = random_piece(np.random.default_rng(seed))
    vocabulary = NoteVocabulary.of([piece])
    events = encode(piece, vocabulary)
    at_once = voice_states(events, places(events, vocabulary).tick, vocabulary)
    clock = Clock(vocabulary)
    for row, event in enumerate(events.tolist()):
        assert clock.voices() == [at_once.wait[row], *at_once.ids[row]]
        clock.push(event)


def known_ids(window: dict, layout: ScoreLayout) -> set[int]:
    """NOTE events that begin somewhere in the score of a window."""
    ids = window["score"][:, 1:]
    begins = (ids >= layout.begins) & (ids < layout.part_known)
    return set((ids[begins] - layout.begins).tolist())


def test_known_notes_are_told_and_not_predicted(shards: ShardSet) -> None:
    source = windows(shards, transpose=(-2, 2), slots=64)
    kinds = np.array([event.kind for event in source.vocabulary.events])
    told, untold = 0, 0
    for seed in range(40):
        song = seed % len(shards)
        window = source.read(song, 0, np.random.default_rng(seed))
        codes, predicted = window["codes"], window["predicted"]
        notes = (kinds[codes] == "NOTE") & (codes != PAD)
        if not window["score"].any():
            assert predicted[notes].all()
            untold += 1
            continue
        told += 1
        within = window["score"][:, 0] > 0  # what lies beyond the last frame is not told
        said = set(codes[notes & ~predicted & within].tolist())
        assert said <= known_ids(window, source.layout)
        # The length of a known note is known too; bars and shifts are predicted always.
        tails = kinds[codes[1:]] == "LENGTH"
        after_known = notes[:-1] & ~predicted[:-1] & tails
        assert not predicted[1:][after_known].any()
        assert predicted[(kinds[codes] == "SHIFT") & (codes != PAD)].all()
        frames = window["score"][codes != PAD, 0]
        assert (frames >= 0).all() and (np.diff(frames[frames > 0]) >= 0).all()
    assert told > 10 and untold > 5
    held_out = source.read(0, 0, None)
    assert not held_out["score"].any() and not held_out["clock"][:, PROGRESS].any()
