"""Notes written as MusicXML and ABC: read again they are the same piece, but for what is said to be lost."""

from dataclasses import replace

import numpy as np
import pytest
from fixtures.random_notes import random_piece
from hypothesis import given
from hypothesis import strategies as st

from megajukebox.notes.instruments import CHOIR, DRUMS, ScorePart
from megajukebox.notes.notation import (
    NOTE_VALUES,
    TRIPLET_VALUES,
    key_fifths,
    measures_of,
    printed_values,
    signature_alter,
    spelled,
)
from megajukebox.notes.notes import (
    NOTE,
    TEMPO,
    NoteMark,
    Notes,
    bars_of_metre,
    steady,
)
from megajukebox.notes.readers import pieces_of
from megajukebox.notes.writers import ABC, MIDI, MUSICXML, NOTE_FORMATS, written, written_losses

LETTERS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}


def read_again(piece: Notes, form: str) -> Notes:
    (read,) = pieces_of(written(piece, form, "A title"), f".{form}")
    assert read.notes is not None and read.repairs == ()
    return read.notes


def choir(**changes) -> Notes:
    """Two bars in four voices behind a pickup, in G minor, with words and a change of tempo."""
    rows = []
    for part, pitches in enumerate([(67, 70, 69), (62, 62, 66), (58, 57, 60), (43, 50, 38)]):
        rows += [(0, part, pitches[0], 24, 0), (24, part, pitches[1], 60, 0)]
        rows += [(84, part, pitches[2], 36, 0), (120, part, pitches[0], 72, 0)]
    names = ("Soprano", "Alto", "Tenor", "Bass")
    return replace(
        Notes(
            np.array(sorted(rows), NOTE),
            tuple(ScorePart(name, CHOIR) for name in names),
            bars_of_metre(4, 4, 216, first=24),
            np.array([(0, 96), (120, 60)], TEMPO),
            216,
            key="G minor",
        ),
        **changes,
    )


@pytest.mark.parametrize("form", NOTE_FORMATS)
def test_a_chorale_comes_back_as_it_was(form: str) -> None:
    piece = choir() if form != ABC else choir(tempo=steady(96.0))
    if form == MIDI:  # which has no note without a loudness
        loud = piece.notes.copy()
        loud["velocity"] = 80
        piece = replace(piece, notes=loud)
    assert written_losses(piece, form) == []
    assert read_again(piece, form) == piece


def test_words_fermatas_and_chords_stand_in_musicxml_and_in_the_text_of_abc() -> None:
    marks = (
        NoteMark(0, "chord", "G-m7/D-", 0),
        NoteMark(24, "phrase_end", "", 3),
        NoteMark(24, "word", "lie-", 0),
        NoteMark(84, "word", "der", 0),
    )
    piece = choir(marks=marks)
    assert written_losses(piece, MUSICXML) == [] and read_again(piece, MUSICXML) == piece
    text = written(piece, ABC).decode()
    assert '"Gbm7/Db"' in text and "!fermata!" in text and "w: * lie- _ der *" in text
    lost = ["4 words, fermatas and chord symbols", "changes of tempo"]
    assert written_losses(piece, ABC) == lost and "[Q:1/4=60]" in text
    assert read_again(replace(piece, marks=()), ABC) == choir(tempo=steady(96.0))


def test_what_musicxml_cannot_hold_is_said() -> None:
    marks = (NoteMark(1, "word", "off", 0), NoteMark(0, "chord", "C(tritone)", 0))
    piece = choir(marks=marks, key="G# major")
    assert written_losses(piece, MUSICXML) == [
        "words and fermatas where no note begins",
        "chord symbols of unknown kinds",
        "a key without a signature",
    ]
    assert read_again(piece, MUSICXML) == replace(choir(), key="")


def test_performed_music_gets_bars() -> None:
    played = choir(bars=bars_of_metre(4, 4, 0)[:0], played=True)
    again = read_again(played, MUSICXML)
    assert again.bars.tolist() == bars_of_metre(4, 4, 216).tolist()
    assert np.array_equal(again.notes, played.notes)
    assert written_losses(played, MUSICXML) == [
        "the freedom of performed time: it is written in bars"
    ]


@pytest.mark.parametrize("seeds", [range(3), pytest.param(range(3, 60), marks=pytest.mark.slow)])
def test_any_piece_comes_back_from_musicxml_loudness_drums_and_all(seeds: range) -> None:
    for seed in seeds:
        piece = random_piece(np.random.default_rng(seed))
        assert written_losses(piece, MUSICXML) == []
        assert read_again(piece, MUSICXML) == piece, seed


@pytest.mark.parametrize("seeds", [range(2), pytest.param(range(3, 40), marks=pytest.mark.slow)])
def test_abc_keeps_notes_bars_and_tempo_of_any_piece_without_tied_chords(seeds: range) -> None:
    for seed in seeds:
        piece = random_piece(np.random.default_rng(seed))
        lost = " ".join(written_losses(piece, ABC))
        if "ties of chords" in lost or "behind the sixteenth" in lost:
            continue
        again = read_again(piece, ABC)
        for name in ("onset", "pitch", "length"):
            assert sorted(again.notes[name]) == sorted(piece.notes[name]), (seed, name)
        assert again.bars.tolist() == piece.bars.tolist() and again.length == piece.length
        assert again.tempo.tolist() == piece.tempo.tolist()[:1] and again.key == piece.key
        names = [part.name for part in again.parts]
        assert sorted(set(names)) == sorted({part.name for part in piece.parts})


def test_text_cannot_break_a_file_or_begin_another_field() -> None:
    hostile = 'a"]\nX:2\n<script>&\x00\x1b[31m % %%abc'
    piece = choir(parts=tuple(ScorePart(hostile + str(n), 0) for n in range(4)), key="")
    for form in (MUSICXML, ABC):
        data = written(piece, form, hostile)
        (read,) = pieces_of(data, f".{form}")
        assert read.notes is not None and np.array_equal(read.notes.notes, piece.notes)


def test_a_part_without_notes_and_drums_keep_their_place() -> None:
    parts = (*choir().parts, ScorePart("kit", DRUMS), ScorePart("Soprano", 0))
    piece = choir(parts=parts)
    assert read_again(piece, MUSICXML).parts == parts


@given(st.integers(1, 2000))
def test_every_length_is_printed_in_values_that_add_up_to_it(ticks: int) -> None:
    values = printed_values(ticks)
    assert sum(values) == ticks and all(value in NOTE_VALUES for value in values)
    assert sum(value in TRIPLET_VALUES for value in values) <= 1


@given(st.integers(0, 127), st.integers(-7, 7))
def test_a_spelled_pitch_sounds_as_it_is_named(pitch: int, fifths: int) -> None:
    name = spelled(pitch, fifths)
    assert 12 * (name.octave + 1) + LETTERS[name.letter] + name.alter == pitch
    assert abs(name.alter) <= 2


def test_scales_are_spelled_as_their_signatures_say() -> None:
    for key, fifths in (("Db major", -5), ("F# minor", 3), ("C# major", 7), ("Ab minor", -7)):
        assert key_fifths(key) == fifths
        tonic = key.split()[0]
        steps = (0, 2, 4, 5, 7, 9, 11) if "major" in key else (0, 2, 3, 5, 7, 8, 10)
        first = 60 + LETTERS[tonic[0]] + tonic.count("#") - tonic.count("b")
        scale = [spelled(first + step, fifths) for step in steps]
        assert len({name.letter for name in scale}) == 7
        assert all(name.alter == signature_alter(name.letter, fifths) for name in scale)
    assert key_fifths("H major") is None and key_fifths("G# major") is None


def test_voices_of_a_bar_fill_it() -> None:
    piece = random_piece(np.random.default_rng(5))
    for part in range(len(piece.parts)):
        for measure in measures_of(piece, part):
            for voice in measure.voices:
                assert sum(written.ticks for written in voice) == measure.ticks
                onsets = np.cumsum([measure.onset, *[written.ticks for written in voice[:-1]]])
                assert [written.onset for written in voice] == onsets.tolist()


def test_the_tempo_of_a_scale_is_written_once() -> None:
    piece = choir(tempo=steady(90.0))
    assert written(piece, ABC).decode().count("Q:") == 1
    assert written(piece, MUSICXML).decode().count("<sound ") == 1
