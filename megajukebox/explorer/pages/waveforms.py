"""A song's tracks to see and to click on: waveform over spectrogram (templates/parts.html, static/strips.js)."""

from dataclasses import dataclass

from megajukebox.explorer.loaders.spectrograms import CEILING_DB, FLOOR_DB
from megajukebox.explorer.pages.layout import clock

SCRIPTS = ("vendor/wavesurfer.min.js", "player.js", "strips.js")


@dataclass(frozen=True)
class Track:
    """One recording of a song: a level, the original or a reconstruction. `audio` and `spectrogram` are URLs."""

    name: str
    about: str
    audio: str
    spectrogram: str | None

    @property
    def extension(self) -> str:
        return self.audio.rpartition(".")[2][:4]


@dataclass(frozen=True)
class Scale:
    """What the pictures show, in one line."""

    sample_rate: int | None
    seconds: float

    @property
    def duration(self) -> str:
        return clock(self.seconds)

    @property
    def text(self) -> str:
        highest = (
            f"{self.sample_rate / 2000:.1f} kHz" if self.sample_rate else "half the sample rate"
        )
        loudness = f"{FLOOR_DB:.0f} to {CEILING_DB:.0f} dB of full scale"
        return f"Spectrograms: 30 Hz to {highest} upwards, mel scale, {loudness}."
