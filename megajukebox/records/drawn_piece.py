"""Four voices as the page Draw sends them, and what the server and the composer's process say to each other of them.

    page -> server -> composer's process      FillOrder
    page <- server <- composer's process      FillAnswer

Sent as JSON and checked at every step; what is not named here is refused.
"""

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

VOICES = ("Soprano", "Alto", "Tenor", "Bass")
VOICE_LETTERS = "SATB"
TICKS_PER_WHOLE = 96  # notes.TICKS_PER_QUARTER x 4
MAX_DRAWN_BARS = 8
MAX_DRAWN_NOTES = 2000
DRAWN_DENOMINATORS = (2, 4, 8, 16)
MAX_VARIATIONS = 16
KEY = r"([A-G][#b]? (major|minor))?"


class DrawnVoices(BaseModel):
    """A few bars of one metre and tempo. Times are ticks, 24 a quarter."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    notes: tuple[tuple[int, int, int, int], ...] = Field(default=(), max_length=MAX_DRAWN_NOTES)
    """(onset, length, pitch of MIDI, number of the voice)"""
    bars: int = Field(default=2, ge=1, le=MAX_DRAWN_BARS)
    metre: tuple[int, int] = (4, 4)
    bpm: float = Field(default=90.0, ge=20, le=400)
    key: str = Field(default="", pattern=f"^{KEY}$")  # empty: not said

    @field_validator("metre")
    @classmethod
    def _is_a_metre(cls, metre: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= metre[0] <= 16 or metre[1] not in DRAWN_DENOMINATORS:
            raise ValueError("is none that can be drawn")
        return metre

    @model_validator(mode="after")
    def _holds_its_notes(self) -> "DrawnVoices":
        for onset, length, pitch, voice in self.notes:
            if onset < 0 or length < 1 or onset + length > self.length:
                raise ValueError("a note lies outside the bars")
            if not 0 <= pitch <= 127 or not 0 <= voice < len(VOICES):
                raise ValueError("a note has no such pitch or voice")
        return self

    @property
    def length(self) -> int:
        """Ticks."""
        numerator, denominator = self.metre
        return self.bars * numerator * TICKS_PER_WHOLE // denominator


class FillOrder(BaseModel):
    """Write voices, in all bars or in some, told all the rest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    piece: DrawnVoices
    voices: str = Field(default="ATB", pattern=f"^[{VOICE_LETTERS}]{{1,4}}$")
    first_bar: int = Field(default=1, ge=1, le=MAX_DRAWN_BARS)
    last_bar: int = Field(default=MAX_DRAWN_BARS, ge=1, le=MAX_DRAWN_BARS)
    seed: int = Field(default=0, ge=0, lt=2**53)  # what a number of JavaScript holds
    variations: int = Field(default=8, ge=1, le=MAX_VARIATIONS)  # drawn
    keep: int = Field(default=3, ge=1, le=MAX_VARIATIONS)  # of them, the best


class DrawnAnswer(BaseModel):
    """One piece that a composer wrote, and figures of its counterpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    piece: DrawnVoices
    seed: int
    figures: dict[str, float] = {}


class FillAnswer(BaseModel):
    """What the composer's process answers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: str  # done, failed
    reason: str = ""
    answers: tuple[DrawnAnswer, ...] = ()
    seconds: float = 0.0  # that it took
    memory: int = 0  # bytes of the process
    gpu_memory: int = 0
