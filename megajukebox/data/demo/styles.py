"""Who plays the demo songs, and how they go: three invented artists and three invented genres."""

from dataclasses import dataclass

from megajukebox.data.demo.synth import Instrument, Voice


@dataclass(frozen=True)
class Artist:
    """Who plays: an instrument and a voice nobody else has."""

    name: str
    voice: Voice
    instrument: Instrument
    album: str  # first word of all its albums
    mood: str
    since: int  # year of its first album


@dataclass(frozen=True)
class Genre:
    """How it goes: tempo, metre, drums, scale and chords.

    Beats count from the start of a section.
    """

    name: str
    tempo: float  # beats a minute
    beats: int  # in a section, which is one sung line
    scale: tuple[int, ...]  # semitones above the tonic
    # of a verse, of a chorus: equal shares of the section
    chords: dict[str, tuple[tuple[int, ...], ...]]
    drums: dict[str, tuple[float, ...]]  # drum -> beats
    strums: tuple[float, ...]  # beats on which the whole chord sounds
    picks: tuple[float, ...]  # beats on which its notes sound one by one
    bass: tuple[float, ...]
    syllables: tuple[float, ...]  # beats on which syllables begin
    line_end: float  # beat on which the last syllable ends
    album: str  # last word of its albums
    years_later: int  # than the artist's first album
    moods: tuple[str, ...]

    def chord_at(self, kind: str, beat: float) -> tuple[int, ...]:
        """Semitones above the tonic of the chord that sounds on a beat of a verse or chorus."""
        return self.chords[kind][int(beat / self.beats * len(self.chords[kind]))]


ARTISTS = (
    Artist(
        "Orrin Vask",
        Voice("baritone", centre=50, formants=0.92, vibrato=0.12, breath=0.02, slope=0.1),
        # Only odd partials, none fading: a small dark reed organ.
        Instrument(
            "reed organ",
            (1, 3, 5, 7),
            (0.5, 0.26, 0.1, 0.04),
            (9, 9, 9, 9),
            0.035,
            octave=0,
            tremolo=0.35,
        ),
        album="Copper",
        mood="grave",
        since=1998,
    ),
    Artist(
        "Tessaly Quill",
        Voice("alto", centre=56, formants=1.1, vibrato=0.25, breath=0.06, slope=0.0),
        # Every partial, the high ones gone at once: a plucked steel string.
        Instrument(
            "steel harp",
            (1, 2, 3, 4, 5, 6, 8),
            (0.54, 0.52, 0.48, 0.42, 0.36, 0.3, 0.26),
            (0.6, 0.4, 0.3, 0.22, 0.17, 0.13, 0.1),
            0.002,
            octave=0,
        ),
        album="Paper",
        mood="playful",
        since=2007,
    ),
    Artist(
        "Ilune Mirado",
        Voice("treble", centre=68, formants=1.32, vibrato=0.5, breath=0.04, slope=0.1),
        # Partials of a struck bar, far from whole ratios: glass bells.
        Instrument(
            "glass bells",
            (1, 2.756, 5.404),
            (0.7, 0.5, 0.3),
            (0.9, 0.45, 0.2),
            0.002,
            octave=1,
            tremolo=0.15,
        ),
        album="Glass",
        mood="airy",
        since=2015,
    ),
)

GENRES = (
    Genre(
        "lanternfolk",
        tempo=72,
        beats=4,
        scale=(0, 2, 4, 7, 9),
        chords={"verse": ((0, 4, 7), (-3, 0, 4)), "chorus": ((-3, 0, 4), (-5, 0, 2))},
        drums={"kick": (0, 2), "snare": (1, 3), "hat": (0, 1, 2, 3)},
        strums=(0, 2),
        picks=(1, 1.5, 3),
        bass=(0, 2),
        syllables=(0, 0.5, 1, 1.5, 2, 2.5, 3),
        line_end=3.6,
        album="Lanterns",
        years_later=0,
        moods=("calm", "warm"),
    ),
    Genre(
        "brinewaltz",
        tempo=100,
        beats=6,
        scale=(0, 2, 3, 5, 7, 8, 10),
        chords={"verse": ((0, 3, 7), (-4, 0, 3)), "chorus": ((3, 7, 10), (-2, 2, 5))},
        drums={"kick": (0, 3), "snare": (1, 4), "hat": (1, 2, 4, 5)},
        strums=(1, 2, 4, 5),
        picks=(0, 3),
        bass=(0, 3),
        syllables=(0, 1, 1.5, 2, 3, 4, 4.5),
        line_end=5.5,
        album="Tides",
        years_later=2,
        moods=("wistful", "tender"),
    ),
    Genre(
        "emberdance",
        tempo=140,
        beats=8,
        scale=(0, 1, 4, 5, 7, 8, 10),
        chords={
            "verse": ((0, 4, 7), (1, 5, 8), (0, 4, 7), (-2, 1, 5)),
            "chorus": ((5, 8, 12), (0, 4, 7), (1, 5, 8), (0, 4, 7)),
        },
        drums={
            "kick": (0, 1, 2, 3, 4, 5, 6, 7),
            "snare": (1, 3, 5, 7),
            "hat": tuple(n + 0.5 for n in range(8)),
        },
        strums=(0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5),
        picks=(0, 2, 4, 6),
        bass=(0, 0.75, 2, 2.75, 4, 4.75, 6, 6.75),
        syllables=(0, 1, 1.5, 2.5, 4, 5, 5.5),
        line_end=7,
        album="Embers",
        years_later=5,
        moods=("restless", "fiery"),
    ),
)
