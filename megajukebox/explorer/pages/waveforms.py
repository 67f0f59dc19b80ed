"""A track of a song to see and to click on: waveform over spectrogram. strips.js brings it to life."""

from megajukebox.explorer.loaders.spectrograms import CEILING_DB, FLOOR_DB
from megajukebox.explorer.pages.html import Markup, element, joined
from megajukebox.explorer.pages.layout import clock

SCRIPTS = ("vendor/wavesurfer.min.js", "player.js", "strips.js")


def strip(track: str, about: str, picture: str | None, audio: str) -> Markup:
    """One track; a click plays from there. `audio` is where its recording can be had."""
    image = (
        element("img", src=picture, alt="", class_="spectrogram", draggable="false")
        if picture
        else ""
    )
    bar = element(
        "div", element("div", class_="wave"), scrolled(image), class_="bar", data_track=track
    )
    ending = audio.rpartition(".")[2][:4]
    download = element(
        "a", ending, href=audio, download=True, aria_label=f"Download the {track} level"
    )
    listen = element(
        "button", track, type="button", class_="name", aria_label=f"Listen to the {track} level"
    )
    named = element(
        "div",
        element("h2", listen),
        element("span", about, class_="small"),
        download,
        class_="named",
    )
    return element("div", named, bar, class_="strip", data_track=track)


def scrolled(image: Markup | str) -> Markup:
    return element(
        "div",
        element("div", image, element("i", class_="playhead"), class_="inner"),
        class_="scrolled",
    )


def scale(sample_rate: int | None, seconds: float) -> Markup:
    """What the pictures show, in one line."""
    highest = f"{sample_rate / 2000:.1f} kHz" if sample_rate else "half the sample rate"
    text = f"Spectrograms: 30 Hz to {highest} upwards, mel scale, {FLOOR_DB:.0f} to {CEILING_DB:.0f} dB of full scale."
    times = element(
        "p", element("span", "0:00"), element("span", clock(seconds)), class_="times small"
    )
    return joined(times, element("p", text, class_="small"))
