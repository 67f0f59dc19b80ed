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


@dataclass(frozen=True)
class Scale:
    """What the pictures of a song show."""

    duration: str
    text: str


def scale(sample_rate: int | None, seconds: float) -> Scale:
    """The scale of a song's pictures, in one line."""
    highest = f"{sample_rate / 2000:.1f} kHz" if sample_rate else "half the sample rate"
    loudness = f"{FLOOR_DB:.0f} to {CEILING_DB:.0f} dB of full scale"
    text = f"Spectrograms: 30 Hz to {highest} upwards, mel scale, {loudness}."
    return Scale(clock(seconds), text)
