"""MIDI files to `Notes` and back, by mido; what a file leaves open is decided here, and said.

Format: Standard MIDI Files 1.0 (RP-001). mido reads the messages; pairing of notes, the pedal, parts, bars and limits
are ours, for readers of whole files drop what does not fit without a word.
"""

import io
from collections import Counter, defaultdict, deque
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import mido
import numpy as np

from megajukebox.notes.instruments import DRUMS, ScorePart, programs_by_names
from megajukebox.notes.notes import (
    BAR,
    DEFAULT_BPM,
    MAX_BPM,
    MAX_HOURS,
    MAX_NOTES,
    NOTE,
    TEMPO,
    TICKS_PER_QUARTER,
    WORD,
    NoteMark,
    Notes,
    in_order,
    steady,
    ticks_of_bar,
)
from megajukebox.notes.parts import MAX_OFF_GRID, ReadPiece, merge_parts

MAX_TRACKS = 256
MAX_NOTE_SECONDS = 300.0
MAX_METRE = 64  # beats of a bar
MOSTLY = 0.5  # share of onsets off the grid from which on a piece without metre was performed
DRUM_CHANNEL = 9  # counted from 0
PEDAL = 64  # controller of the sustain pedal
PEDAL_DOWN = 64  # its least value while it is down
SMPTE_BIT = 0x8000
DEFAULT_TEMPO = 500_000  # microseconds a quarter
TICK_SECONDS_PLAYED = 0.01
# At this tempo a tick is 10 ms, as in MAESTRO's usual coding.
PLAYED_BPM = 60.0 / (TICKS_PER_QUARTER * TICK_SECONDS_PLAYED)
WRITTEN_VELOCITY = 80  # where nothing is said
WRITTEN_TICKS = 480  # of a quarter in files that we write: 20 a tick of ours


class RawNote(NamedTuple):
    """Times in ticks of the file."""

    onset: int
    end: int
    pitch: int
    velocity: int
    part: tuple[int, int, int]  # track, channel, program


@dataclass
class MidiContents:
    """What the messages of a file say, in ticks of the file."""

    notes: list[RawNote] = field(default_factory=list)
    tempi: list[tuple[int, int]] = field(default_factory=list)  # microseconds a quarter
    metres: list[tuple[int, int, int]] = field(default_factory=list)
    words: list[tuple[int, str, int]] = field(default_factory=list)  # with the track
    names: dict[int, str] = field(default_factory=dict)  # of tracks
    key: str = ""
    end: int = 0
    odd: Counter[str] = field(default_factory=Counter)  # what was found and repaired, how often


def read_midi(data: bytes, pedal: bool = True) -> ReadPiece:
    """The piece of a MIDI file. `pedal`: the sustain pedal lengthens notes.

    Raises:
        ValueError: it is damaged, or has more of something than music has; the message says what.
    """
    data = _without_riff(data)
    division = _checked_division(data)
    try:
        file = mido.MidiFile(file=io.BytesIO(data))
    except Exception as error:  # mido fails in many ways, all of them the file's fault
        what = str(error) or "it ends too early"
        raise ValueError(f"is a damaged MIDI file: {type(error).__name__}: {what}") from None
    contents = MidiContents()
    for number, track in enumerate(file.tracks):
        _read_track(number, track, contents, pedal)
    if division & SMPTE_BIT:
        frames = 256 - (division >> 8)
        per_quarter = (
            frames * (division & 0xFF) // 2
        )  # at 120 beats a minute, which is then the tempo
        contents.tempi = []
        contents.odd["times in SMPTE frames"] += 1
    else:
        per_quarter = division
    return _piece(contents, per_quarter)


def _without_riff(data: bytes) -> bytes:
    """The MIDI file within a RIFF file (RMID), or the data themselves."""
    if data[:4] == b"RIFF" and data[8:12] == b"RMID":
        start = data.find(b"MThd", 12, 64)
        return data[start:] if start > 0 else data
    return data


def _checked_division(data: bytes) -> int:
    """What a header says that a reader must not believe unseen."""
    if data[:4] != b"MThd" or len(data) < 14:
        raise ValueError(f"starts with {data[:4]!r}, not as a MIDI file (MThd)")
    form, tracks, division = (int.from_bytes(data[at : at + 2], "big") for at in (8, 10, 12))
    if form not in (0, 1):
        raise ValueError(
            f"is of format {form}: several pieces in one file; split it into files of format 1"
        )
    if tracks > MAX_TRACKS:
        raise ValueError(f"has {tracks} tracks, more than {MAX_TRACKS}")
    if division == 0 or (division & SMPTE_BIT and division & 0xFF == 0):
        raise ValueError("has 0 ticks a quarter")
    return division


def _read_track(number: int, track: mido.MidiTrack, contents: MidiContents, pedal: bool) -> None:
    """Add what one track says."""
    now = 0
    programs = dict.fromkeys(range(16), 0)
    sounding: dict[tuple[int, int], deque[tuple[int, int, int]]] = defaultdict(deque)
    held: dict[int, list[RawNote]] = {}  # of channels whose pedal is down: notes that were let go

    def release(channel: int, pitch: int) -> None:
        queue = sounding.get((channel, pitch))
        if not queue:
            contents.odd["ends of notes that never began"] += 1
            return
        onset, velocity, program = queue.popleft()
        note = RawNote(onset, now, pitch, velocity, (number, channel, program))
        if channel in held:
            held[channel].append(note)
        else:
            contents.notes.append(note)

    def lift(channel: int) -> None:
        for note in held.pop(channel, ()):
            contents.notes.append(note._replace(end=max(note.end, now)))

    for message in track:
        now += message.time
        if message.type == "note_on" and message.velocity:
            program = DRUMS if message.channel == DRUM_CHANNEL else programs[message.channel]
            sounding[message.channel, message.note].append((now, message.velocity, program))
        elif message.type in ("note_on", "note_off"):
            release(message.channel, message.note)
        elif message.type == "program_change":
            programs[message.channel] = message.program
        elif message.type == "control_change" and message.control == PEDAL and pedal:
            if message.value >= PEDAL_DOWN:
                held.setdefault(message.channel, [])
            else:
                lift(message.channel)
        elif message.is_meta:
            _read_meta(number, message, now, contents)
        if len(contents.notes) > MAX_NOTES:
            raise ValueError(f"has more than {MAX_NOTES:,} notes")
    for (channel, pitch), queue in list(sounding.items()):
        contents.odd["notes without an end"] += len(queue)
        for _ in range(len(queue)):
            release(channel, pitch)
    for channel in list(held):
        lift(channel)
    contents.end = max(contents.end, now)


def _read_meta(number: int, message: mido.MetaMessage, now: int, contents: MidiContents) -> None:
    if message.type == "set_tempo":
        contents.tempi.append((now, message.tempo))
    elif message.type == "time_signature":
        contents.metres.append((now, message.numerator, message.denominator))
    elif message.type == "key_signature" and not contents.key:
        minor = message.key.endswith("m")
        contents.key = f"{message.key.removesuffix('m')} {'minor' if minor else 'major'}"
    elif message.type == "track_name":
        contents.names.setdefault(number, _text(message.name))
    elif message.type == "lyrics" and message.text.strip():
        contents.words.append((now, _text(message.text), number))


def _text(latin: str) -> str:
    """mido reads Latin-1; most files of today are UTF-8."""
    try:
        return latin.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return latin


@dataclass(frozen=True)
class _Timeline:
    """From ticks of the file to ticks of ours: by the beat, or, of what was performed, by hundredths of a second."""

    scale: float
    tempo: np.ndarray  # of TEMPO, of the file
    played: bool = False

    def at(self, ticks: np.ndarray | float) -> np.ndarray:
        """float64, not rounded."""
        beats = np.asarray(ticks, np.float64) * self.scale
        return self.seconds(ticks) / TICK_SECONDS_PLAYED if self.played else beats

    def seconds(self, ticks: np.ndarray | float) -> np.ndarray:
        clock = Notes(np.zeros(0, NOTE), (), np.zeros(0, BAR), self.tempo, 0)
        return clock.seconds_at(np.asarray(ticks, np.float64) * self.scale)


def _piece(contents: MidiContents, per_quarter: int) -> ReadPiece:
    """On our clock, with limits."""
    if not contents.notes:
        raise ValueError("holds no notes")
    _refuse_wrong_values(contents)
    scale = TICKS_PER_QUARTER / per_quarter
    time = _Timeline(scale, _tempo_map(contents.tempi, scale))
    onsets = np.array([note.onset for note in contents.notes], np.float64)
    ends = np.array([note.end for note in contents.notes], np.float64)
    _refuse_endless(time.seconds(onsets), time.seconds(ends))
    off_grid = np.abs(time.at(onsets) - np.round(time.at(onsets))) > MAX_OFF_GRID
    if not contents.metres and off_grid.mean() > MOSTLY:
        time = replace(time, played=True)
    elif off_grid.any():
        contents.odd["onsets between two ticks, rounded"] += int(off_grid.sum())
    parts, numbers = _parts(contents)
    table = np.zeros(len(onsets), NOTE)
    table["onset"] = np.round(time.at(onsets))
    table["length"] = np.maximum(np.round(time.at(ends)) - np.round(time.at(onsets)), 1)
    table["pitch"] = [note.pitch for note in contents.notes]
    table["velocity"] = [note.velocity for note in contents.notes]
    table["part"] = [numbers[note.part] for note in contents.notes]
    last = int((table["onset"].astype(np.int64) + table["length"]).max())
    length = max(last, round(float(time.at(contents.end))))
    notes = Notes(
        in_order(table),
        parts,
        np.zeros(0, BAR) if time.played else _bars(contents.metres, scale, length),
        steady(PLAYED_BPM) if time.played else time.tempo,
        length,
        _marks(contents, time, numbers),
        contents.key,
        played=time.played,
    )
    return ReadPiece(
        notes, tuple(f"{count} {what}" for what, count in contents.odd.items() if count)
    )


def _refuse_wrong_values(contents: MidiContents) -> None:
    for when, tempo in contents.tempi:
        if tempo == 0 or 60e6 / tempo > MAX_BPM:
            raise ValueError(f"has a tempo of {tempo} microseconds a quarter at tick {when}")
    for when, numerator, denominator in contents.metres:
        if not 0 < numerator <= MAX_METRE or denominator > MAX_METRE:
            raise ValueError(f"has a metre of {numerator}/{denominator} at tick {when}")


def _marks(
    contents: MidiContents, time: _Timeline, numbers: dict[tuple[int, int, int], int]
) -> tuple[NoteMark, ...]:
    """Sung words, at the first part of their track."""
    of_track = {track: number for (track, _, _), number in reversed(numbers.items())}
    marks = []
    for when, text, track in contents.words:
        onset = round(float(time.at(when)))
        marks.append(NoteMark(onset, WORD, text, of_track.get(track, 0)))
    return tuple(sorted(marks))


def _refuse_endless(onsets: np.ndarray, ends: np.ndarray) -> None:
    """Of times in seconds."""
    if ends.max() > MAX_HOURS * 3600:
        raise ValueError(f"lasts {ends.max() / 3600:.1f} hours, more than {MAX_HOURS:.0f}")
    longest = (ends - onsets).max()
    if longest > MAX_NOTE_SECONDS:
        raise ValueError(f"has a note of {longest:.0f} seconds, more than {MAX_NOTE_SECONDS:.0f}")


def bpm_of(microseconds: int) -> float:
    """Quarters a minute; files hold whole microseconds, of which 666,667 are 90 a minute."""
    return round(60e6 / microseconds, 3)


def _tempo_map(tempi: list[tuple[int, int]], scale: float) -> np.ndarray:
    steps = {0: DEFAULT_BPM}
    for when, tempo in sorted(
        tempi, key=lambda step: step[0]
    ):  # several at once: the last one holds
        steps[round(when * scale)] = bpm_of(tempo)
    return np.array(sorted(steps.items()), TEMPO)


def _bars(metres: list[tuple[int, int, int]], scale: float, length: int) -> np.ndarray:
    """Bars of the metres; without any 4/4, which is MIDI's own default. A change of metre begins a bar."""
    changes = {0: (4, 4)}
    for when, numerator, denominator in sorted(metres, key=lambda metre: metre[0]):
        changes[round(when * scale)] = (numerator, denominator)
    starts = sorted(changes)
    rows = []
    for start, end in zip(starts, [*starts[1:], max(length, starts[-1] + 1)]):
        numerator, denominator = changes[start]
        whole = max(1, ticks_of_bar(numerator, denominator))
        for onset in range(start, min(end, length), whole):
            rows.append((onset, numerator, denominator))
    return np.array(rows, BAR)


def _parts(contents: MidiContents) -> tuple[tuple[ScorePart, ...], dict[tuple[int, int, int], int]]:
    """Parts in the order of tracks and channels; the number of each (track, channel, program)."""
    keys = sorted({note.part for note in contents.notes})
    names = [contents.names.get(track, "") for track, _, _ in keys]
    parts = []
    for (_, channel, program), name, named in zip(keys, names, programs_by_names(names)):
        if program == 0 and named is not None and channel != DRUM_CHANNEL:
            program = named  # files of sheet editors leave the piano everywhere
        parts.append(ScorePart(name, program))
    merged, numbers = merge_parts(parts)
    return merged, {key: numbers[row] for row, key in enumerate(keys)}


# ---- Writing ----------------------------------------------------------------------------------------------------------


def to_midi(notes: Notes) -> bytes:
    """The piece as a MIDI file of format 1: a track of tempo, metre and key, and one of each part."""
    file = mido.MidiFile(type=1, ticks_per_beat=WRITTEN_TICKS)
    file.tracks.append(_conductor_track(notes))
    pitched_channels = [channel for channel in range(16) if channel != DRUM_CHANNEL]
    pitched = 0
    for number, part in enumerate(notes.parts):
        channel = DRUM_CHANNEL
        if not part.is_drums:
            channel = pitched_channels[pitched % len(pitched_channels)]
            pitched += 1
        file.tracks.append(_part_track(notes, number, part, channel))
    written = io.BytesIO()
    file.save(file=written)
    return written.getvalue()


def _conductor_track(notes: Notes) -> mido.MidiTrack:
    events: list[tuple[int, mido.MetaMessage]] = []
    if notes.key:
        tonic, _, mode = notes.key.partition(" ")
        key = tonic + "m" * (mode == "minor")
        with suppress(ValueError):  # a key that MIDI has no sign for, as G sharp major
            events.append((0, mido.MetaMessage("key_signature", key=key)))
    for onset, bpm in notes.tempo.tolist():
        events.append((onset, mido.MetaMessage("set_tempo", tempo=round(60e6 / bpm))))
    metre, expected = None, 0
    for onset, numerator, denominator in notes.bars.tolist():
        # A bar that is shorter than its metre is followed by the sign again: readers count from there.
        if (numerator, denominator) != metre or onset != expected:
            sign = mido.MetaMessage("time_signature", numerator=numerator, denominator=denominator)
            events.append((onset, sign))
        metre = (numerator, denominator)
        expected = onset + ticks_of_bar(numerator, denominator)
    return _track(events, notes.length)


def _part_track(notes: Notes, number: int, part: ScorePart, channel: int) -> mido.MidiTrack:
    events: list[tuple[int, mido.Message | mido.MetaMessage]] = []
    events.append((0, mido.MetaMessage("track_name", name=_latin(part.name))))
    if not part.is_drums:
        events.append((0, mido.Message("program_change", channel=channel, program=part.program)))
    for mark in notes.marks:
        if mark.kind == WORD and mark.part == number:
            events.append((mark.onset, mido.MetaMessage("lyrics", text=_latin(mark.text))))
    chosen = notes.notes[notes.notes["part"] == number]
    for note in chosen.tolist():
        onset, _, pitch, length, velocity = note
        loud = velocity or WRITTEN_VELOCITY
        events.append((onset, mido.Message("note_on", channel=channel, note=pitch, velocity=loud)))
        end = mido.Message("note_off", channel=channel, note=pitch, velocity=0)
        events.append((onset + length, end))
    return _track(events, notes.length)


def _latin(text: str) -> str:
    """UTF-8 in the letters that mido writes one byte each."""
    return text.encode("utf-8").decode("latin-1")


def _track(events: list, length: int) -> mido.MidiTrack:
    """Messages at (tick, message) as a track; at one tick notes end before others begin."""
    scale = WRITTEN_TICKS // TICKS_PER_QUARTER
    track = mido.MidiTrack()
    now = 0
    for onset, message in sorted(events, key=lambda event: (event[0], event[1].type == "note_on")):
        track.append(message.copy(time=(onset - now) * scale))
        now = onset
    track.append(mido.MetaMessage("end_of_track", time=max(0, length - now) * scale))
    return track
