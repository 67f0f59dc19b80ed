"""Composes the demo songs: verses and a returning chorus, with melody, words, chords and drums,
still on paper.
"""

from dataclasses import dataclass, replace

import numpy as np

from megajukebox.common.errors import UserError
from megajukebox.data.demo.lyric_text import LANGUAGES, LyricWord, sung_lines
from megajukebox.data.demo.styles import ARTISTS, GENRES, Artist, Genre

TAIL = 0.7  # seconds the last notes ring
STACCATO = 0.9  # of the time until the next note that a note sounds
LOWEST_BASS = 36  # MIDI pitch C2; the bass plays in the octave above it


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
    """One line of a song with everything that sounds in it.

    A chorus that returns is an equal section.
    """

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
        starts = []
        for n in range(len(self.sections)):
            starts.append(sum(section.seconds for section in self.sections[:n]))
        return starts

    def words(self) -> list[list[tuple[str, float, float]]]:
        """The lyrics, line by line: (word, start, end) in seconds of the song."""
        lines = []
        for start, section in zip(self.starts(), self.sections):
            if section.words:
                lines.append([(word, start + a, start + b) for word, a, b in section.words])
        return lines


@dataclass(frozen=True)
class Score:
    """What all sections of one song share."""

    artist: Artist
    genre: Genre
    tonic: int  # MIDI pitch
    beat: float  # seconds


def compose(number: int, seed: int, seconds: tuple[float, float]) -> DemoSong:
    """Song `number` of a seed, of a length between the two `seconds`.

    Artist, genre and language follow from the number: each (artist, genre) pair comes once in nine
    songs, and once with each language in thirty-six. Raises UserError if `seconds` leave no room.
    """
    rng = np.random.default_rng([seed, number])
    artist = ARTISTS[number % 3]
    genre = GENRES[number // 3 % 3]
    language = LANGUAGES[number % len(LANGUAGES)]
    tempo = genre.tempo * rng.uniform(0.985, 1.015)
    tonic = artist.voice.centre + int(rng.integers(-3, 4))
    plan = section_plan(seconds, genre.beats * 60 / tempo, rng)
    lines = write_lines(plan, language, genre, rng)
    melodies = {kind: write_melody(genre, kind, rng) for kind in ("verse", "chorus")}
    score = Score(artist, genre, tonic, 60 / tempo)
    sections = []
    for kind, line in zip(plan, lines):
        section = accompaniment(score, kind)
        if line:
            section = with_voice(section, score, line, melodies[kind])
        sections.append(section)
    length = min(sum(section.seconds for section in sections) + TAIL, seconds[1])
    moods = (genre.moods[rng.integers(len(genre.moods))], artist.mood)
    name = f"{number:04d}-{artist.name.lower().replace(' ', '-')}-{genre.name}"
    first_words = " ".join(word.text for word in lines[plan.index("chorus")][:2])
    title = first_words[0].upper() + first_words[1:]
    return DemoSong(
        name, artist, genre, language, title, moods, tempo, tonic, tuple(sections), length
    )


def section_plan(
    seconds: tuple[float, float], section: float, rng: np.random.Generator
) -> tuple[str, ...]:
    """Kinds of sections that fill between the `seconds`: a lead-in of half a section, then lines.

    `section` is the length of one line in seconds.
    """
    least, most = ((limit - TAIL) / section - 0.5 for limit in seconds)
    if most < 1 or seconds[0] > seconds[1]:
        raise UserError(
            f"seconds {seconds} leave no room for one line of a song; "
            "give (shortest, longest) from 6.5 up"
        )
    lines = int(rng.integers(min(max(1, np.ceil(least)), int(most)), int(most) + 1))
    order = ("verse", "chorus") if lines % 2 == 0 else ("chorus", "verse")
    return ("lead-in", *(order[n % 2] for n in range(lines)))


def write_lines(
    plan: tuple[str, ...], language: str, genre: Genre, rng: np.random.Generator
) -> list[tuple[LyricWord, ...]]:
    """Words of each section: none for the lead-in, new ones for each verse, the same for each
    chorus.
    """
    chorus, *verses = sung_lines(language, len(genre.syllables), rng)
    lines: list[tuple[LyricWord, ...]] = []
    for n, kind in enumerate(plan):
        if kind == "lead-in":
            lines.append(())
        elif kind == "verse":
            lines.append(verses[n % len(verses)])
        else:
            lines.append(chorus)
    return lines


def write_melody(genre: Genre, kind: str, rng: np.random.Generator) -> tuple[int, ...]:
    """Semitones above the tonic for each syllable: small steps along the scale.

    Where the chord changes, the melody goes to the nearest note of the new chord.
    """
    ladder: list[int] = []
    for octave in (-12, 0, 12):
        ladder += [octave + step for step in genre.scale]
    lowest = ladder.index(0) - 2
    highest = ladder.index(12)
    rung = ladder.index(7 if kind == "chorus" else 0)
    melody = []
    chord_before = None
    for beat in genre.syllables:
        chord = genre.chord_at(kind, beat)
        if chord != chord_before:
            classes = {tone % 12 for tone in chord}
            fitting = [n for n, note in enumerate(ladder) if note % 12 in classes]
            distances = [abs(n - rung) for n in fitting]
            rung = fitting[int(np.argmin(distances))]
        chord_before = chord
        melody.append(ladder[rung])
        rung = int(np.clip(rung + rng.choice((-2, -1, -1, 1, 1, 2)), lowest, highest))
    return tuple(melody)


def accompaniment(score: Score, kind: str) -> SongSection:
    """A section without its voice: chords, picked notes, bass and drums.

    A lead-in is half a verse.
    """
    genre = score.genre
    beat = score.beat
    beats = genre.beats / 2 if kind == "lead-in" else genre.beats
    chords = "verse" if kind == "lead-in" else kind
    home = score.tonic + 12 * score.artist.instrument.octave
    strums = []
    for start, until_next in onsets_of(genre.strums, beats):
        seconds = min(until_next, 2) * beat * STACCATO
        for note in genre.chord_at(chords, start):
            strums.append(Note(start * beat, seconds, home + note))
    picks = []
    for n, (start, until_next) in enumerate(onsets_of(genre.picks, beats)):
        seconds = min(until_next, 1) * beat * STACCATO
        note = genre.chord_at(chords, start)[n % 3]
        picks.append(Note(start * beat, seconds, home + 12 + note))
    bass = []
    for start, until_next in onsets_of(genre.bass, beats):
        seconds = min(until_next, 2) * beat * STACCATO
        root = score.tonic + genre.chord_at(chords, start)[0]
        bass.append(Note(start * beat, seconds, LOWEST_BASS + root % 12))
    drums = []
    for drum, hits in genre.drums.items():
        drums += [(drum, start * beat) for start in hits if start < beats]
    return SongSection(
        kind,
        seconds=beats * beat,
        strums=tuple(strums),
        picks=tuple(picks),
        bass=tuple(bass),
        drums=tuple(drums),
    )


def onsets_of(onsets: tuple[float, ...], beats: float) -> list[tuple[float, float]]:
    """(onset, time until the next one) of the onsets before `beats`, all in beats."""
    within = [onset for onset in onsets if onset < beats]
    return [(onset, following - onset) for onset, following in zip(within, [*within[1:], beats])]


def with_voice(
    section: SongSection, score: Score, line: tuple[LyricWord, ...], melody: tuple[int, ...]
) -> SongSection:
    """The section with `line` sung to as much of the melody as it has syllables; the last is
    held.
    """
    sounds: list[str] = []
    for word in line:
        sounds += word.syllables
    beats = (*score.genre.syllables[: len(sounds)], score.genre.line_end)
    edges = [beat * score.beat for beat in beats]  # seconds where syllables begin, and the end
    syllables = []
    for start, end, note, sound in zip(edges, edges[1:], melody, sounds):
        syllables.append(Syllable(start, end - start, score.tonic + note, sound))
    words = []
    first = 0
    for word in line:
        last = first + len(word.syllables)
        words.append((word.text, edges[first], edges[last]))
        first = last
    return replace(section, syllables=tuple(syllables), words=tuple(words))
