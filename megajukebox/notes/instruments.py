"""Families of instruments, which a model is told instead of 128 programs, and the classes of parts.

General MIDI numbers 128 programs; many differ in colour alone. They are grouped into families that a listener tells
apart, as MT3 does (Gardner et al. 2021, arXiv 2111.03017). The grouping is our own.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

PROGRAMS = 128  # of General MIDI; drums have none
DRUMS = 128  # in place of a program

# The first program of each family; it goes on until the next one begins.
FAMILY_STARTS = {
    "acoustic_piano": 0,
    "electric_piano": 4,
    "harpsichord": 6,
    "chromatic_percussion": 8,
    "organ": 16,
    "accordion": 21,
    "acoustic_guitar": 24,
    "clean_electric_guitar": 26,
    "distorted_electric_guitar": 29,
    "acoustic_bass": 32,
    "electric_bass": 33,
    "synth_bass": 38,
    "violin": 40,
    "viola": 41,
    "cello": 42,
    "contrabass": 43,
    "tremolo_and_pizzicato": 44,
    "harp": 46,
    "timpani": 47,
    "string_ensemble": 48,
    "synth_strings": 50,
    "voice": 52,
    "orchestra_hit": 55,
    "trumpet": 56,
    "trombone": 57,
    "tuba": 58,
    "french_horn": 60,
    "brass_section": 61,
    "saxophone": 64,
    "oboe": 68,
    "bassoon": 70,
    "clarinet": 71,
    "flute": 72,
    "synth": 80,
    "folk_strings_and_pipes": 104,
    "percussion_and_effects": 112,
}
DRUMS_FAMILY = "drums"
FAMILIES = (*FAMILY_STARTS, DRUMS_FAMILY)
CHOIR = 52  # the program of voices that a file gives no program

_OF_PROGRAM: list[str] = []
for (_name, _first), (_, _next) in pairwise([*FAMILY_STARTS.items(), ("", PROGRAMS)]):
    _OF_PROGRAM += [_name] * (_next - _first)
_OF_PROGRAM[59] = "trumpet"  # a muted one, numbered behind the tuba
_OF_PROGRAM.append(DRUMS_FAMILY)

# Voices of a choir; one of these beside it makes a "bass" a singer too.
VOICE_WORDS = ("soprano", "alto", "tenor", "superius", "cantus", "altus", "bassus", "quintus")

# Words in names of parts, as files have them, to programs; the first that fits. English, German, Italian, French.
PROGRAM_WORDS = (
    (("drum", "percussion", "schlagzeug", "batter"), DRUMS),
    (("voice", "vocal", "choir", "coro", "singstimme", "canto", "quinto", "basso"), CHOIR),
    (("violoncello", "cello"), 42),
    (("viola", "bratsche"), 41),
    (("violin", "violino", "geige"), 40),
    (("contrabass", "double bass", "kontrabass"), 43),
    (("piano", "klavier", "pianoforte"), 0),
    (("harpsichord", "cembalo", "clavecin"), 6),
    (("organ", "orgel"), 19),
    (("guitar", "gitarre", "chitarra"), 24),
    (("flute", "flauto", "querfl", "traverso"), 73),
    (("oboe", "hautbois"), 68),
    (("clarinet", "klarinette"), 71),
    (("bassoon", "fagott"), 70),
    (("saxophon",), 65),
    (("trumpet", "tromba", "trompete"), 56),
    (("trombone", "posaune"), 57),
    (("horn", "corno"), 60),
    (("tuba",), 58),
    (("harp", "arpa"), 46),
    (("timpani", "pauken"), 47),
    (("strings", "streicher"), 48),
    (("bass",), 33),
)


class ScorePart(NamedTuple):
    """One part of a piece: a voice, an instrument, or the drums."""

    name: str  # as the file calls it; may be empty
    program: int  # of General MIDI, 0 to 127; DRUMS

    @property
    def family(self) -> str:
        return family_of(self.program)

    @property
    def is_drums(self) -> bool:
        return self.program == DRUMS


def family_of(program: int) -> str:
    """The family of a program, 0 to 127, or of DRUMS."""
    return _OF_PROGRAM[program]


def program_of(family: str) -> int:
    """The program that stands for a family: its first."""
    return DRUMS if family == DRUMS_FAMILY else FAMILY_STARTS[family]


def programs_by_names(names: Sequence[str]) -> list[int | None]:
    """The program that each part's name speaks of; None where it speaks of none."""
    lowered = [name.lower() for name in names]
    choir = any(word in name for name in lowered for word in VOICE_WORDS)
    programs: list[int | None] = []
    for name in lowered:
        sings = any(word in name for word in VOICE_WORDS) or (choir and name.startswith("bass"))
        programs.append(CHOIR if sings and "sax" not in name else _by_words(name))
    return programs


def _by_words(name: str) -> int | None:
    for words, program in PROGRAM_WORDS:
        if any(word in name for word in words):
            return program
    return None
