"""Composes the demo songs: verses and a returning chorus, with melody, words, chords and drums, still on paper."""

from dataclasses import dataclass, replace

import numpy as np

from megajukebox.data.demo.lyric_text import LANGUAGES, LyricWord, sung_lines
from megajukebox.data.demo.styles import ARTISTS, GENRES, Artist, Genre

TAIL = 0.7  # seconds the last notes ring


@dataclass(frozen=True)
class Note:
    """A note of the instrument, or a drum; times in seconds from the start of its section."""

    start: float
    seconds: float
    pitch: float


@dataclass(frozen=True)
class Syllable:
    """One sung syllable: `sounds` on a MIDI pitch, in seconds from the start of its section."""

    start: float
    seconds: float
    pitch: float
    sounds: str


@dataclass(frozen=True)
class SongSection:
    """One line of a song with everything that sounds in it. A chorus that returns is an equal section."""

    kind: str  # "lead-in", "verse" or "chorus"
    seconds: float
    strums: tuple[Note, ...]
    picks: tuple[Note, ...]
    bass: tuple[Note, ...]
    drums: tuple[tuple[str, float], ...]  # (drum, seconds from the start)
    syllables: tuple[Syllable, ...] = ()
    words: tuple[tuple[str, float, float], ...] = ()  # (word, start, end)


@dataclass(frozen=True)
class DemoSong:
    """A song on paper: who, what, and its sections one after another."""

    name: str
    artist: Artist
    genre: Genre
    language: str
    title: str
    moods: tuple[str, ...]
    tempo: float  # beats a minute
    tonic: int  # MIDI pitch around which the voice sings
    sections: tuple[SongSection, ...]
    seconds: float

    def starts(self) -> list[float]:
        """Seconds at which each section starts."""
        return [
            sum(section.seconds for section in self.sections[:n]) for n in range(len(self.sections))
        ]

    def words(self) -> list[list[tuple[str, float, float]]]:
        """The lyrics, line by line: (word, start, end) in seconds of the song."""
        return [
            [(word, start + first, start + last) for word, first, last in section.words]
            for start, section in zip(self.starts(), self.sections)
            if section.words
        ]


def compose(number: int, seed: int, seconds: tuple[float, float]) -> DemoSong:
    """Song `number` of a seed, of a length between the two `seconds`.

    Artist, genre and language follow from the number: each (artist, genre) pair comes once in nine songs, and once
    with each language in thirty-six.
    """
    rng = np.random.default_rng([seed, number])
    artist, genre = ARTISTS[number % 3], GENRES[number // 3 % 3]
    language = LANGUAGES[number % len(LANGUAGES)]
    tempo = genre.tempo * rng.uniform(0.985, 1.015)
    tonic = artist.voice.centre + int(rng.integers(-3, 4))
    plan = section_plan(seconds, genre.beats * 60 / tempo, rng)
    lines = write_lines(plan, language, genre, rng)
    melodies = {kind: write_melody(genre, kind, rng) for kind in ("verse", "chorus")}
    score = Score(artist, genre, tonic, 60 / tempo)
    sections = tuple(
        with_voice(band(score, kind), score, line, melodies[kind]) if line else band(score, kind)
        for kind, line in zip(plan, lines)
    )
    length = min(sum(section.seconds for section in sections) + TAIL, seconds[1])
    moods = (genre.moods[rng.integers(len(genre.moods))], artist.mood)
    name = f"{number:04d}-{artist.name.lower().replace(' ', '-')}-{genre.name}"
    title = title_of(lines[plan.index("chorus")])
    return DemoSong(name, artist, genre, language, title, moods, tempo, tonic, sections, length)


def section_plan(
    seconds: tuple[float, float], section: float, rng: np.random.Generator
) -> tuple[str, ...]:
    """Kinds of sections, of `section` seconds each after a lead-in of half of one, that fill between the `seconds`."""
    least, most = ((limit - TAIL) / section - 0.5 for limit in seconds)
    if most < 1 or seconds[0] > seconds[1]:
        raise ValueError(
            f"seconds {seconds} leave no room for one line of a song; give (shortest, longest) from 6.5 up"
        )
    lines = int(rng.integers(min(max(1, np.ceil(least)), int(most)), int(most) + 1))
    order = ("verse", "chorus") if lines % 2 == 0 else ("chorus", "verse")
    return ("lead-in", *(order[n % 2] for n in range(lines)))


def write_lines(
    plan: tuple[str, ...], language: str, genre: Genre, rng: np.random.Generator
) -> list[tuple[LyricWord, ...]]:
    """Words for each section: none for the lead-in, new ones for each verse, always the same for the chorus."""
    chorus, *verses = sung_lines(language, len(genre.syllables), rng)
    return [
        {"lead-in": (), "verse": verses[n % len(verses)], "chorus": chorus}[kind]
        for n, kind in enumerate(plan)
    ]


def title_of(line: tuple[LyricWord, ...]) -> str:
    title = " ".join(word.text for word in line[:2])
    return title[0].upper() + title[1:]


def write_melody(genre: Genre, kind: str, rng: np.random.Generator) -> tuple[int, ...]:
    """Semitones above the tonic for each syllable: small steps along the scale, into the chord where it changes."""
    ladder = [octave + step for octave in (-12, 0, 12) for step in genre.scale]
    lowest, highest = ladder.index(0) - 2, ladder.index(12)
    place, melody = ladder.index(7 if kind == "chorus" else 0), []
    chords = [genre.chord_at(kind, beat) for beat in genre.syllables]
    for chord, before in zip(chords, [None, *chords]):
        if chord != before:
            place = nearest_in_chord(ladder, place, chord)
        melody.append(ladder[place])
        place = int(np.clip(place + rng.choice((-2, -1, -1, 1, 1, 2)), lowest, highest))
    return tuple(melody)


def nearest_in_chord(ladder: list[int], place: int, chord: tuple[int, ...]) -> int:
    fitting = [n for n, note in enumerate(ladder) if note % 12 in {tone % 12 for tone in chord}]
    return min(fitting, key=lambda n: abs(n - place))


@dataclass(frozen=True)
class Score:
    """What all sections of one song share."""

    artist: Artist
    genre: Genre
    tonic: int  # MIDI pitch
    beat: float  # seconds


def band(score: Score, kind: str) -> SongSection:
    """A section without its voice. A lead-in is the first half of a verse."""
    genre, beat = score.genre, score.beat
    beats = genre.beats / 2 if kind == "lead-in" else genre.beats
    home = score.tonic + 12 * score.artist.instrument.octave
    chord_kind = "verse" if kind == "lead-in" else kind
    strums, picks, bass = (
        held(onsets, beats) for onsets in (genre.strums, genre.picks, genre.bass)
    )
    return SongSection(
        kind,
        seconds=beats * beat,
        strums=tuple(
            Note(start * beat, min(long, 2) * beat * 0.9, home + note)
            for start, long in strums
            for note in genre.chord_at(chord_kind, start)
        ),
        picks=tuple(
            Note(
                start * beat,
                min(long, 1) * beat * 0.9,
                home + 12 + genre.chord_at(chord_kind, start)[n % 3],
            )
            for n, (start, long) in enumerate(picks)
        ),
        bass=tuple(
            Note(
                start * beat,
                min(long, 2) * beat * 0.9,
                bass_pitch(score.tonic + genre.chord_at(chord_kind, start)[0]),
            )
            for start, long in bass
        ),
        drums=tuple(
            (drum, start * beat)
            for drum, hits in genre.drums.items()
            for start in hits
            if start < beats
        ),
    )


def held(onsets: tuple[float, ...], beats: float) -> list[tuple[float, float]]:
    """(onset, time until the next one) of the onsets before `beats`, all in beats."""
    within = [onset for onset in onsets if onset < beats]
    return [(onset, following - onset) for onset, following in zip(within, [*within[1:], beats])]


def bass_pitch(pitch: int) -> int:
    """The same note in the octave from C2 up."""
    return 36 + pitch % 12


def with_voice(
    section: SongSection, score: Score, line: tuple[LyricWord, ...], melody: tuple[int, ...]
) -> SongSection:
    """The section with `line` sung to as much of the melody as it has syllables; the last one is held to the end."""
    count = sum(len(word.syllables) for word in line)
    edges = [beat * score.beat for beat in (*score.genre.syllables[:count], score.genre.line_end)]
    sounds = [sounds for word in line for sounds in word.syllables]
    sung = tuple(
        Syllable(start, end - start, score.tonic + note, sound)
        for start, end, note, sound in zip(edges, edges[1:], melody, sounds)
    )
    firsts = np.cumsum([0, *(len(word.syllables) for word in line)])
    words = tuple(
        (word.text, edges[first], edges[last])
        for word, first, last in zip(line, firsts, firsts[1:])
    )
    return replace(section, syllables=sung, words=words)
