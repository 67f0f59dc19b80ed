"""The sounds of the demo songs: a singing voice, three instruments and a drum kit, all as plain
numpy synthesis.

Every sound is float32 mono [T] at the asked sample rate, and holds nothing above BAND of it: a song
rendered at 11025 Hz is the song rendered at 44100 Hz, less its upper octaves.
"""

from dataclasses import dataclass

import numpy as np

TABLE = 2048  # samples in one stored cycle of a voice
VOICED_UP_TO = 8000.0  # Hz, where the harmonics of a voice end
BAND = 0.45  # of the sample rate: the highest frequency that is synthesised
RELEASE = 0.12  # seconds in which a note ends
TREMOLO_HZ = 6.0
VIBRATO_HZ = 5.6
OVERLAP = 0.012  # seconds by which neighbouring speech sounds reach into each other
KEPT_HZ = 4900  # below BAND of the smallest rate, 11025 Hz

Wave = np.ndarray


@dataclass(frozen=True)
class Sound:
    """One sound of speech: resonances a buzz goes through, a band of noise, or both."""

    formants: tuple[float, float, float] | None = None  # Hz, for a voice of formant scale 1
    noise: tuple[float, float] | None = None  # Hz, lowest and highest
    loudness: float = 1.0
    seconds: float = 0.07  # vowels ignore it: they fill what the consonants leave
    vowel: bool = False
    closed: float = 0.0  # seconds of closed mouth before the noise, for p t k


SOUNDS = {
    "a": Sound((760, 1250, 2600), vowel=True),
    "e": Sound((500, 1850, 2550), vowel=True),
    "i": Sound((290, 2300, 3050), vowel=True),
    "o": Sound((480, 850, 2450), vowel=True),
    "u": Sound((310, 650, 2300), vowel=True),
    "m": Sound((250, 1000, 2200), loudness=0.4),
    "n": Sound((250, 1500, 2500), loudness=0.4),
    "l": Sound((350, 1050, 2700), loudness=0.5),
    "r": Sound((400, 1200, 1650), loudness=0.5, seconds=0.06),
    "y": Sound((280, 2200, 3000), loudness=0.7, seconds=0.06),
    "w": Sound((300, 620, 2250), loudness=0.6, seconds=0.06),
    "v": Sound((270, 1100, 2300), (1500, 5000), 0.3),
    "z": Sound((260, 1600, 2500), (3300, 8000), 0.3),
    "Z": Sound((260, 1800, 2500), (1900, 4500), 0.3),
    "b": Sound((220, 800, 2200), (300, 1200), 0.3, 0.05),
    "d": Sound((220, 1700, 2600), (2200, 5000), 0.3, 0.05),
    "g": Sound((220, 1900, 2300), (1300, 2600), 0.3, 0.05),
    "s": Sound(None, (3300, 9000), 0.6, 0.1),
    "S": Sound(None, (1800, 5000), 0.6, 0.1),
    "f": Sound(None, (1200, 8000), 0.3, 0.09),
    "h": Sound(None, (600, 3000), 0.25),
    "p": Sound(None, (300, 1500), 0.6, 0.06, closed=0.04),
    "t": Sound(None, (2500, 7000), 0.7, 0.06, closed=0.04),
    "k": Sound(None, (1300, 2800), 0.7, 0.07, closed=0.04),
}


@dataclass(frozen=True)
class Voice:
    """Who sings: the length of the throat, how high, how it trembles."""

    name: str
    centre: int  # MIDI note in the middle of its range
    formants: float  # all formants are multiplied by this: 1 for a grown man, 1.3 for a child
    vibrato: float  # semitones either way
    breath: float  # loudness of the air heard beside the tone, 0..1
    slope: float  # of the throat's own spectrum: harmonic k has k ** -slope, before the resonances


@dataclass(frozen=True)
class Instrument:
    """A sum of partials that ring and fade."""

    name: str
    ratios: tuple[float, ...]  # of each partial to the note's frequency
    loudness: tuple[float, ...]
    fade: tuple[float, ...]  # seconds in which each partial falls to 1/e
    attack: float  # seconds
    octave: int  # where it plays, against the voice
    tremolo: float = 0.0  # depth, 0..1


def frequency(pitch: float) -> float:
    """Hz of a MIDI pitch."""
    return float(440.0 * 2.0 ** ((pitch - 69.0) / 12.0))


def tone(instrument: Instrument, pitch: float, seconds: float, rate: int) -> Wave:
    """One note. It rings a little past `seconds`."""
    time = np.arange(int((seconds + RELEASE) * rate), dtype=np.float32) / np.float32(rate)
    wave = np.zeros_like(time)
    for ratio, loudness, fade in zip(instrument.ratios, instrument.loudness, instrument.fade):
        hertz = frequency(pitch) * ratio
        if hertz < BAND * rate:
            wave += np.float32(loudness) * np.exp(time * np.float32(-1 / fade)) * sine(time, hertz)
    if instrument.tremolo:
        wave *= 1 - np.float32(instrument.tremolo) * (0.5 + 0.5 * sine(time, TREMOLO_HZ))
    return wave * envelope(len(time), instrument.attack, RELEASE, rate)


def sine(time: Wave, hertz: float) -> Wave:
    return np.sin(np.float32(2 * np.pi * hertz) * time)


def envelope(length: int, attack: float, release: float, rate: int) -> Wave:
    """[length] rising over `attack` and falling over `release` seconds, as raised cosines; 1
    between.
    """
    shape = np.ones(length, np.float32)
    rise = min(int(attack * rate), length // 2)
    fall = min(int(release * rate), length // 2)
    shape[:rise] = ramp(rise)
    shape[length - fall :] = ramp(fall)[::-1]
    return shape


def ramp(length: int) -> Wave:
    """[length] from 0 to 1 as a raised cosine."""
    phase = np.pi * (np.arange(length) + 0.5) / max(length, 1)
    return (0.5 - 0.5 * np.cos(phase)).astype(np.float32)


def sing(
    voice: Voice, sounds: str, pitch: float, came_from: float, seconds: float, rate: int
) -> Wave:
    """One syllable on one note, gliding in from the pitch `came_from`.

    time     |--s--|----------- i ------------|--n-|
    buzz            ~~~~~~~~~~~~~~~~~~~~~~~~~~~ ~~~     its harmonics weighted by the formants of i, then n
    noise     ::::: . . . . . . . breath . . . .
    """
    length = int(seconds * rate)
    phase = vocal_phase(voice, pitch, came_from, length, rate)
    wave = np.zeros(length, np.float32)
    for name, start, end in timing(sounds, seconds):
        sound = SOUNDS[name]
        first = max(int(start * rate), 0)
        last = min(int(end * rate), length)
        if sound.formants:
            shape = np.float32(sound.loudness) * envelope(last - first, 0.025, 0.025, rate)
            wave[first:last] += shape * throat(voice, sound, pitch, rate)[phase[first:last]]
        if sound.noise:
            wave[first:last] += burst(sound, last - first, rate, seed=ord(name))
        if sound.vowel and voice.breath:
            air = Sound(None, (1500 * voice.formants, 5000), voice.breath)
            wave[first:last] += burst(air, last - first, rate, seed=ord(name))
    return wave * envelope(length, 0.012, 0.05, rate)


def timing(sounds: str, seconds: float) -> list[tuple[str, float, float]]:
    """(sound, start, end) in seconds of each speech sound of a syllable.

    Consonants take their own time, up to half the syllable, vowels the remainder. Neighbours
    overlap a little, so that one turns into the next.
    """
    vowels = [n for n, name in enumerate(sounds) if SOUNDS[name].vowel]
    assert vowels, f"no vowel in {sounds!r}"
    lengths = np.array([0.0 if SOUNDS[name].vowel else SOUNDS[name].seconds for name in sounds])
    lengths *= min(1.0, 0.5 * seconds / max(lengths.sum(), 1e-9))
    shares = np.ones(1)
    if len(vowels) > 1:  # of two vowels (a diphthong) the first is held
        shares = np.array([0.65] + [0.35 / (len(vowels) - 1)] * (len(vowels) - 1))
    lengths[vowels] = shares * (seconds - lengths.sum())
    timed = []
    for name, length, end in zip(sounds, lengths, np.cumsum(lengths)):
        timed.append((name, end - length - OVERLAP, end + OVERLAP))
    return timed


def vocal_phase(voice: Voice, pitch: float, came_from: float, length: int, rate: int) -> np.ndarray:
    """[length] int, the index into the stored cycle: a short glide in, then vibrato on a held
    note.
    """
    time = np.arange(length, dtype=np.float32) / np.float32(rate)
    glide = np.float32(came_from - pitch) * np.exp(time * np.float32(-1 / 0.025))
    trembling = (
        np.float32(voice.vibrato) * np.clip(time / 0.25 - 0.6, 0, 1) * sine(time, VIBRATO_HZ)
    )
    # semitones to a ratio, for small bends
    bend = 1 + np.float32(np.log(2) / 12) * (glide + trembling)
    turns = np.cumsum(bend, dtype=np.float64) * (frequency(pitch) / rate * TABLE)
    return turns.astype(np.int64) & (TABLE - 1)


def throat(voice: Voice, sound: Sound, pitch: float, rate: int) -> Wave:
    """[TABLE] one cycle of the voice: a glottal buzz through three resonances; its effective value
    is 0.35.

    Harmonics stand still while vibrato moves the pitch, so the formants tremble too, by less than a
    semitone.
    """
    assert sound.formants is not None
    harmonics = int(min(VOICED_UP_TO, BAND * rate) / frequency(pitch))
    hertz = frequency(pitch) * np.arange(1, harmonics + 1)
    answer = np.ones(len(hertz), np.complex128)
    for centre, width in zip(sound.formants, (80, 110, 160)):
        ratio = hertz / (centre * voice.formants)
        answer /= 1 - ratio**2 + 1j * ratio * width / centre
    spectrum = np.zeros(TABLE // 2 + 1, np.complex128)
    spectrum[1 : len(hertz) + 1] = answer * (hertz / hertz[0]) ** -voice.slope
    # Loudness is set by the harmonics the smallest rate keeps, so that a vowel is as loud at every
    # rate.
    kept = np.abs(spectrum[1 : int(KEPT_HZ / hertz[0]) + 1])
    return (np.fft.irfft(spectrum) * (0.25 * TABLE / np.sqrt((kept**2).sum()))).astype(np.float32)


def burst(sound: Sound, length: int, rate: int, seed: int) -> Wave:
    """[length] noise in the sound's band, silent while the mouth is closed.

    The same sound gives the same noise.
    """
    assert sound.noise is not None
    closed = min(int(sound.closed * rate), length // 2)
    wave = np.zeros(length, np.float32)
    wave[closed:] = hiss(length - closed, *sound.noise, rate, seed)
    wave[closed:] *= np.float32(0.3 * sound.loudness) * envelope(length - closed, 0.004, 0.03, rate)
    return wave


def hiss(length: int, low: float, high: float, rate: int, seed: int) -> Wave:
    """[length] noise between about `low` and `high` Hz, of the same strength per Hz at every
    rate.
    """
    noise = np.random.default_rng(seed).standard_normal(length, dtype=np.float32)
    spectrum = np.fft.rfft(noise)
    hertz = np.fft.rfftfreq(length, 1 / rate)
    spectrum *= 1 / (1 + (low / np.maximum(hertz, 1)) ** 6) / (1 + (hertz / high) ** 6)
    return (np.fft.irfft(spectrum, length) * np.sqrt(rate / (2 * 4000.0))).astype(np.float32)


def kick(rate: int) -> Wave:
    """A low drum: a tone that falls from 160 to 50 Hz, with a click on top."""
    time = np.arange(int(0.28 * rate), dtype=np.float32) / np.float32(rate)
    phase = 2 * np.pi * (50 * time + 110 * 0.03 * (1 - np.exp(-time / 0.03)))
    click = 0.3 * hiss(len(time), 800, 3500, rate, seed=1) * np.exp(-time / 0.004)
    drum = (np.sin(phase) * np.exp(-time / 0.09) + click).astype(np.float32)
    return drum * envelope(len(time), 0.001, 0.05, rate)


def snare(rate: int) -> Wave:
    """A rattle: noise around 1 to 7 kHz over a short 190 Hz tone."""
    time = np.arange(int(0.2 * rate), dtype=np.float32) / np.float32(rate)
    rattle = hiss(len(time), 1000, 7000, rate, seed=2) * np.exp(-time / 0.05)
    skin = 0.5 * sine(time, 190) * np.exp(-time / 0.04)
    return (0.6 * rattle + skin).astype(np.float32) * envelope(len(time), 0.001, 0.05, rate)


def hat(rate: int) -> Wave:
    """A short bright tick: noise above 3 kHz, so that a song of 11025 Hz still has it."""
    time = np.arange(int(0.07 * rate), dtype=np.float32) / np.float32(rate)
    tick = hiss(len(time), 3000, 14000, rate, seed=3) * np.exp(-time / 0.018)
    return tick * envelope(len(time), 0.001, 0.02, rate)


def drum_kit(rate: int) -> dict[str, Wave]:
    """The drums by the names that genres have for them."""
    return {"kick": kick(rate), "snare": snare(rate), "hat": hat(rate)}
