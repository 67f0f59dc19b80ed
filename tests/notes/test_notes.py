"""Notes: a piece keeps what it is through files, events and cuts; the grammar allows what is written, and only pieces."""

import io
from dataclasses import replace
from pathlib import Path

import mido
import numpy as np
import pytest
from fixtures.random_notes import pieces, random_piece
from hypothesis import given, settings
from hypothesis import strategies as st

from megajukebox.common.errors import UserError
from megajukebox.notes.clock import Clock, decode, places
from megajukebox.notes.events import (
    END,
    LENGTHS,
    SHIFTS,
    NoteVocabulary,
    encode,
    in_steps,
    on_steps,
)
from megajukebox.notes.grammar import Grammar, goes_on
from megajukebox.notes.instruments import DRUMS, FAMILIES, ScorePart, family_of, program_of
from megajukebox.notes.midi import read_midi, to_midi
from megajukebox.notes.notes import (
    BAR,
    NOTE,
    TEMPO,
    TICKS_PER_QUARTER,
    NoteMark,
    Notes,
    bars_of_metre,
    in_order,
    steady,
    ticks_of_bar,
)
from megajukebox.notes.parts import merge_parts
from megajukebox.notes.readers import pieces_of, read_notes

SCALE = """<?xml version="1.0"?><score-partwise version="3.1"><part-list><score-part id="P1">
<part-name>Soprano</part-name></score-part></part-list><part id="P1"><measure number="1"><attributes>
<divisions>2</divisions><key><fifths>-1</fifths><mode>minor</mode></key><time><beats>3</beats><beat-type>4</beat-type>
</time></attributes>{}</measure></part></score-partwise>"""
XML_NOTE = (
    "<note><pitch><step>{}</step><octave>4</octave></pitch><duration>{}</duration>"
    "<voice>1</voice>{}</note>"
)


def table(*rows: tuple[int, int, int, int, int]) -> np.ndarray:
    """Rows of (onset, part, pitch, length, velocity)."""
    return np.array(list(rows), NOTE)


def small_piece(**changes) -> Notes:
    notes = table((0, 0, 60, 24, 0), (24, 0, 62, 24, 0), (48, 0, 64, 24, 0))
    piece = Notes(notes, (ScorePart("tune", 0),), bars_of_metre(3, 4, 72), steady(90.0), 72)
    return replace(piece, **changes)


# ---- The type ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"notes": table((24, 0, 60, 1, 0), (0, 0, 60, 1, 0))}, "order"),
        ({"notes": table((0, 1, 60, 1, 0))}, "part 1"),
        ({"notes": table((0, 0, 60, 0, 0))}, "no length"),
        ({"notes": table((0, 0, 200, 1, 0))}, "over 127"),
        ({"length": 71}, "before its last note"),
        ({"tempo": np.array([(4, 90)], TEMPO)}, "tempo at its beginning"),
        ({"tempo": steady(0.0)}, "beats a minute"),
        ({"tempo": steady(float("nan"))}, "beats a minute"),
        ({"bars": np.array([(0, 3, 5)], BAR)}, "metre"),
        ({"bars": np.array([(3, 3, 4)], BAR)}, "begin late"),
        ({"marks": (NoteMark(0, "colour"),)}, "kind"),
        ({"parts": (ScorePart("", 0),) * 17}, "17 parts"),
    ],
)
def test_no_piece_says_what_no_piece_can_be(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_piece(**changes)


def test_seconds_follow_the_tempo_map_and_not_a_mean_tempo() -> None:
    quarter = TICKS_PER_QUARTER
    tempo = np.array([(0, 60), (2 * quarter, 120), (4 * quarter, 240)], TEMPO)
    piece = small_piece(tempo=tempo, length=8 * quarter)
    ticks = np.arange(9) * quarter
    expected = [0, 1, 2, 2.5, 3, 3.25, 3.5, 3.75, 4]
    assert piece.seconds_at(ticks) == pytest.approx(expected)
    assert piece.ticks_at(np.array(expected)) == pytest.approx(ticks)
    assert piece.seconds == pytest.approx(4)


def test_a_note_is_cut_where_the_same_pitch_begins_again() -> None:
    overlapping = table((0, 0, 60, 48, 0), (24, 0, 60, 24, 0), (24, 0, 60, 30, 0), (0, 0, 64, 9, 0))
    assert in_order(overlapping).tolist() == [
        (0, 0, 60, 24, 0),
        (0, 0, 64, 9, 0),
        (24, 0, 60, 30, 0),
    ]


def test_a_cut_keeps_metre_and_tempo_that_hold_there() -> None:
    piece = small_piece(tempo=np.array([(0, 60), (30, 120)], TEMPO))
    cut = piece.clipped(36, 60)
    assert cut.notes.tolist() == [(0, 0, 62, 12, 0), (12, 0, 64, 12, 0)]
    assert cut.tempo.tolist() == [(0, 120.0)] and cut.length == 24
    assert cut.bars.tolist() == [(0, 3, 4)]


def test_drums_are_not_transposed() -> None:
    notes = table((0, 0, 60, 24, 0), (0, 1, 36, 24, 0))
    piece = small_piece(notes=notes, parts=(ScorePart("", 0), ScorePart("", DRUMS)), key="C major")
    moved = piece.transposed(5)
    assert moved.notes["pitch"].tolist() == [65, 36] and moved.key == ""
    with pytest.raises(ValueError, match="out of 0 to 127"):
        piece.transposed(80)


@given(pieces())
def test_a_piece_comes_back_from_a_shard_as_it_was(piece: Notes) -> None:
    assert Notes.from_npz(piece.to_npz()) == piece


def test_what_is_no_piece_in_a_shard_is_refused() -> None:
    file = io.BytesIO()
    np.savez(file, note_onset=np.zeros(3), length=np.array(4))
    with pytest.raises(ValueError, match="no notes"):
        Notes.from_npz(file.getvalue())
    with pytest.raises(ValueError, match="npz"):
        Notes.from_npz(b"MThd")


def test_families_cover_all_programs() -> None:
    assert {family_of(program) for program in range(129)} == set(FAMILIES)
    assert all(family_of(program_of(family)) == family for family in FAMILIES)


def test_parts_beyond_sixteen_join_their_family() -> None:
    parts = [ScorePart(f"violin {n}", 40) for n in range(20)] + [ScorePart("flute", 73)]
    merged, numbers = merge_parts(parts)
    assert len(merged) == 16 and merged[numbers[-1]].name == "flute"
    assert all(merged[number].family == "violin" for number in numbers[:20])


# ---- MIDI -------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(pieces())
def test_a_piece_comes_back_from_midi_as_it_was(piece: Notes) -> None:
    piece = replace(piece, parts=tuple(ScorePart(p.name, p.program or 1) for p in piece.parts))
    used = sorted(set(piece.notes["part"].tolist()))
    piece = replace(piece.only(used), marks=())  # a part without notes is none in a file
    again = read_midi(to_midi(piece))
    assert again.repairs == ()
    silent = piece.notes["velocity"] == 0
    assert np.array_equal(again.notes.notes["velocity"][~silent], piece.notes["velocity"][~silent])
    for name in ("onset", "length", "pitch", "part"):
        assert np.array_equal(again.notes.notes[name], piece.notes[name]), name
    assert [p.program for p in again.notes.parts] == [p.program for p in piece.parts]
    assert again.notes.length == piece.length
    assert np.allclose(again.notes.tempo["bpm"], piece.tempo["bpm"], rtol=1e-3)
    assert np.array_equal(again.notes.bars, piece.bars)


def midi(*messages: mido.Message | mido.MetaMessage, division: int = 24, form: int = 1) -> bytes:
    file = mido.MidiFile(type=form, ticks_per_beat=division)
    file.tracks.append(mido.MidiTrack(messages))
    written = io.BytesIO()
    file.save(file=written)
    return written.getvalue()


def on(pitch: int, time: int = 0, velocity: int = 64, channel: int = 0) -> mido.Message:
    return mido.Message("note_on", note=pitch, time=time, velocity=velocity, channel=channel)


def off(pitch: int, time: int = 0, channel: int = 0) -> mido.Message:
    return mido.Message("note_off", note=pitch, time=time, channel=channel)


def test_notes_without_an_end_last_to_the_end_of_their_track_and_are_told() -> None:
    piece = read_midi(midi(on(60), on(64, 24), off(64, 24)))
    assert piece.notes.notes["length"].tolist() == [48, 24]
    assert piece.repairs == ("1 notes without an end",)


def test_a_note_on_of_velocity_0_ends_a_note() -> None:
    piece = read_midi(midi(on(60), on(60, 12, velocity=0), off(61, 3)))
    assert piece.notes.notes["length"].tolist() == [12]
    assert piece.repairs == ("1 ends of notes that never began",)


def test_the_sustain_pedal_lengthens_notes_unless_it_is_left_out() -> None:
    def pedal(value: int, time: int) -> mido.Message:
        return mido.Message("control_change", control=64, value=value, time=time)

    data = midi(pedal(127, 0), on(60), off(60, 12), pedal(0, 36), on(62, 0), off(62, 6))
    assert read_midi(data).notes.notes["length"].tolist() == [48, 6]
    assert read_midi(data, pedal=False).notes.notes["length"].tolist() == [12, 6]


def test_channel_10_is_drums_and_a_change_of_program_another_part() -> None:
    change = mido.Message("program_change", program=40)
    data = midi(
        on(36, channel=9), off(36, 6, channel=9), on(60), off(60, 6), change, on(60), off(60, 6)
    )
    assert [part.program for part in read_midi(data).notes.parts] == [0, 40, DRUMS]


def test_several_tempi_in_any_track_hold() -> None:
    def tempo(microseconds: int, time: int = 0) -> mido.MetaMessage:
        return mido.MetaMessage("set_tempo", tempo=microseconds, time=time)

    file = mido.MidiFile(type=1, ticks_per_beat=24)
    file.tracks.append(mido.MidiTrack([on(60), off(60, 96)]))
    file.tracks.append(mido.MidiTrack([tempo(1_000_000), tempo(500_000, 48)]))
    written = io.BytesIO()
    file.save(file=written)
    piece = read_midi(written.getvalue()).notes
    assert piece.tempo.tolist() == [(0, 60.0), (48, 120.0)] and piece.seconds == pytest.approx(3)


def test_performed_times_are_kept_to_10_ms_without_bars() -> None:
    rng = np.random.default_rng(0)
    gaps = rng.integers(100, 500, 40).tolist()
    messages = [m for gap in gaps for m in (on(60, gap), off(60, 57))]
    piece = read_midi(midi(*messages, division=1000)).notes
    assert piece.played and not len(piece.bars)
    seconds = np.cumsum([gap + 57 for gap in gaps]) * 0.5e-3 - 57 * 0.5e-3
    assert piece.seconds_at(piece.notes["onset"]) == pytest.approx(seconds, abs=0.0051)


def damaged(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


WHOLE = midi(on(60), off(60, 24))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not as a MIDI file"),
        (b"RIFF" + b"\0" * 40, "not as a MIDI file"),
        (WHOLE[:20], "damaged"),
        (WHOLE[:-3], "damaged"),
        (damaged(WHOLE, 12, b"\0\0"), "0 ticks"),
        (damaged(WHOLE, 12, b"\xe7\x00"), "0 ticks"),
        (damaged(WHOLE, 8, b"\0\2"), "format 2"),
        (damaged(WHOLE, 10, b"\x7f\xff"), "tracks"),
        (midi(mido.MetaMessage("set_tempo", tempo=0), on(60), off(60, 24)), "tempo of 0"),
        (midi(mido.MetaMessage("set_tempo", tempo=9), on(60), off(60, 24)), "tempo of 9"),
        (midi(on(60), off(60, 2**27)), "hours|seconds"),
        (midi(on(60), off(60, 24 * 1000)), "note of 500 seconds"),
        (midi(mido.MetaMessage("text", text="nothing")), "no notes"),
    ],
)
def test_midi_that_is_no_music_is_refused_with_a_reason(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_midi(data)


def test_smpte_times_are_converted_and_told() -> None:
    data = damaged(WHOLE, 12, bytes([256 - 25, 40]))  # 25 frames of 40: a tick is a millisecond
    piece = read_midi(data)
    assert piece.notes.seconds == pytest.approx(0.024, abs=0.01)
    assert "1 times in SMPTE frames" in piece.repairs


def test_midi_within_riff_is_read() -> None:
    wrapped = b"RIFF" + b"\0\0\0\0" + b"RMID" + b"data" + b"\0\0\0\0" + WHOLE
    assert read_midi(wrapped).notes == read_midi(WHOLE).notes


@pytest.mark.parametrize(
    "seeds", [range(300), pytest.param(range(300, 20_300), marks=pytest.mark.slow)]
)
def test_mutated_midi_is_refused_or_read_as_a_piece(seeds: range) -> None:
    """Every input: a ValueError, or a piece that comes back from our own file."""
    original = to_midi(random_piece(np.random.default_rng(3)))
    taken = 0
    for seed in seeds:
        rng = np.random.default_rng(seed)
        data = bytearray(original)
        for _ in range(rng.integers(1, 6)):
            data[rng.integers(len(data))] = rng.integers(256)
        cut = rng.integers(1, len(data) + 1) if rng.random() < 0.2 else len(data)
        try:
            piece = read_midi(bytes(data[:cut]))
        except ValueError:
            continue
        taken += 1
        again = read_midi(to_midi(piece.notes)).notes
        assert np.array_equal(again.notes["onset"], piece.notes.notes["onset"])
        assert np.array_equal(again.notes["length"], piece.notes.notes["length"])
    assert 0 < taken < len(seeds)


# ---- Sheets -----------------------------------------------------------------------------------------------------------


def test_musicxml_gives_parts_bars_key_words_and_ties() -> None:
    notes = XML_NOTE.format("D", 2, "<lyric><syllabic>begin</syllabic><text>sing</text></lyric>")
    notes += XML_NOTE.format("E", 2, '<tie type="start"/>')
    notes += XML_NOTE.format("E", 2, '<tie type="stop"/>')
    (read,) = pieces_of(SCALE.format(notes).encode(), ".musicxml")
    piece = read.notes
    assert piece.notes.tolist() == [(0, 0, 62, 24, 0), (24, 0, 64, 48, 0)]
    assert piece.key == "D minor" and piece.parts[0] == ScorePart("Soprano", 52)
    assert piece.marks == (NoteMark(0, "word", "sing-", 0),)
    assert piece.bars.tolist() == [(0, 3, 4)]


def test_abc_tunebooks_hold_several_pieces_and_a_broken_one_costs_itself() -> None:
    book = (
        "X:1\nT:one\nM:3/4\nL:1/4\nK:C\nCDE|FGA|]\n\nX:2\nT:two\nM:2/4\nL:1/8\nK:G\nGABc|d2d2|]\n"
    )
    read = list(pieces_of(book.encode(), ".abc"))
    assert [piece.name for piece in read] == ["1", "2"]
    assert read[0].notes.notes["pitch"].tolist() == [60, 62, 64, 65, 67, 69]
    assert read[1].notes.notes["length"].tolist() == [12] * 4 + [24] * 2
    assert read[1].notes.bars.tolist() == [(0, 2, 4), (48, 2, 4)]


def test_repeats_are_played() -> None:
    head = b"X:1\nM:2/4\nL:1/4\nK:C\n"
    once = next(pieces_of(head + b"CD|EF|GA|Bc|]\n", ".abc")).notes
    twice = next(pieces_of(head + b"|:CD|EF|GA|Bc:|\n", ".abc")).notes
    assert twice.notes["pitch"].tolist() == once.notes["pitch"].tolist() * 2


@pytest.mark.parametrize(
    ("data", "ending", "message"),
    [
        (b"no tune", ".abc", "no line X:"),
        (b"<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>", ".musicxml", "entities"),
        (b"<a", ".xml", "no musicxml"),
        (b"PK\3\4" + b"\0" * 40, ".mxl", "packed MusicXML"),
        (b"MThd", ".doc", "notes are read from"),
    ],
)
def test_sheets_that_are_none_are_refused(data: bytes, ending: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(pieces_of(data, ending))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.mid"
    path.write_bytes(WHOLE)
    assert read_notes(path) == read_midi(WHOLE).notes
    path.write_bytes(b"MThd")
    with pytest.raises(UserError, match=r"a\.mid: starts with"):
        read_notes(path)


# ---- Events -----------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(pieces())
def test_events_say_the_whole_piece(piece: Notes) -> None:
    vocabulary = NoteVocabulary.of([piece])
    events = encode(piece, vocabulary)
    assert events[-1] == END
    assert decode(events, vocabulary) == on_steps(piece) == on_steps(on_steps(piece))


@settings(deadline=None)
@given(pieces())
def test_the_clock_of_a_sequence_is_that_of_each_step_and_what_is_written_is_legal(
    piece: Notes,
) -> None:
    vocabulary = NoteVocabulary.of([piece])
    events = encode(piece, vocabulary)
    grammar, clock, at_once = Grammar(vocabulary), Clock(vocabulary), places(events, vocabulary)
    for index, event in enumerate(events.tolist()):
        stepwise = (clock.tick, clock.place, clock.bar, clock.notes_in_chord)
        assert tuple(column[index] for column in at_once) == stepwise
        assert grammar.legal(clock)[event], vocabulary.events[event]
        clock.push(event)


@given(st.integers(0, 3000), st.sampled_from([SHIFTS, LENGTHS]))
def test_steps_add_up_and_only_the_written_sum_goes_on(total: int, steps: tuple[int, ...]) -> None:
    written = in_steps(total, steps)
    assert sum(written) == total
    for count, step in enumerate(written):
        assert step in goes_on(sum(written[:count]), steps)


def drawn(rng: np.random.Generator, vocabulary: NoteVocabulary, at_least: int) -> list[int]:
    """Events drawn evenly from what is legal, ended as soon as that is legal after `at_least` of them."""
    grammar, clock, events = Grammar(vocabulary), Clock(vocabulary), []
    while not clock.ended:
        legal = np.flatnonzero(grammar.legal(clock))
        assert len(legal), "every legal beginning goes on"
        if len(events) >= at_least:
            shifts = [n for n in legal if vocabulary.events[n].kind in ("SHIFT", "LENGTH")]
            legal = [END] if END in legal else shifts or legal
        events.append(int(rng.choice(legal)))
        clock.push(events[-1])
    return events


@pytest.mark.parametrize("seeds", [range(20), pytest.param(range(20, 520), marks=pytest.mark.slow)])
def test_whatever_is_drawn_by_the_grammar_is_a_piece_written_as_it_was_drawn(seeds: range) -> None:
    for seed in seeds:
        rng = np.random.default_rng(seed)
        vocabulary = NoteVocabulary.of([random_piece(rng)])
        events = drawn(rng, vocabulary, 60)
        piece = decode(events, vocabulary)
        assert encode(piece, vocabulary).tolist() == events


def test_a_vocabulary_names_what_it_lacks_and_comes_back_from_its_file() -> None:
    vocabulary = NoteVocabulary.of([small_piece()]).transposed(range(-1, 2))
    assert NoteVocabulary.from_json(vocabulary.to_json()) == vocabulary
    assert vocabulary.size == len(vocabulary.events)
    encode(small_piece().transposed(1), vocabulary)
    with pytest.raises(ValueError, match=r"lacks: .*NOTE.*67"):
        encode(small_piece().transposed(7), vocabulary)
    with pytest.raises(ValueError, match="family"):
        NoteVocabulary.from_json({"metres": [], "notes": [["kazoo", 0, 60]], "loudness": False})


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (["LENGTH"], "without a note"),
        (["LOUD"], "without a note"),
        (["NOTE", "SHIFT"], "not by its LENGTH"),
        (["NOTE"], "has no LENGTH"),
        (["PAD"], "no music"),
    ],
)
def test_events_that_are_no_music_are_refused(kinds: list[str], message: str) -> None:
    piece = small_piece(notes=table((0, 0, 60, 24, 70)))
    vocabulary = NoteVocabulary.of([piece])
    numbers = {event.kind: number for number, event in enumerate(vocabulary.events)}
    with pytest.raises(ValueError, match=message):
        decode([numbers[kind] for kind in kinds], vocabulary)


def test_bars_to_the_end_and_a_pickup_are_kept() -> None:
    bars = bars_of_metre(3, 4, 200, first=24)
    piece = small_piece(bars=bars[:2], length=200)
    told = on_steps(piece)
    assert told.bars["onset"].tolist() == [0, 24, 96, 168]
    assert ticks_of_bar(3, 4) == 72
