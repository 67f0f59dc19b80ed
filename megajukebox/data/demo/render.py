"""Renders the demo songs: a folder of CC0 music with metadata and timed lyrics, input for every
command.

Each song is three files: `<name>.wav` (16 bit stereo), `<name>.json` (metadata) and `<name>.lrc`
(words and times).
"""

import json
from functools import partial
from pathlib import Path

import numpy as np

from megajukebox.common.files import write_atomic
from megajukebox.common.process_pool import cores, in_order
from megajukebox.common.untrusted_files import read_given
from megajukebox.conditioning.lrc import clock
from megajukebox.data import audio
from megajukebox.data.demo.composition import DemoSong, SongSection, compose
from megajukebox.data.demo.synth import Instrument, Wave, drum_kit, sing, tone

PEAK = 10 ** (-1 / 20)  # of full scale: -1 dBFS
RING = 0.6  # seconds that a section goes on sounding after its end
FADE_OUT = 0.3  # seconds at the end of a song
DRIVE = 1.2  # amplitude of the loudest peak before tanh softens it
LICENCE = "CC0-1.0"

# Loudness and panning of each part: 0 is the left loudspeaker, 1 the right.
MIX = {
    "voice": (0.75, 0.5),
    "strums": (0.25, 0.2),
    "picks": (0.36, 0.85),
    "bass": (0.3, 0.5),
    "kick": (0.6, 0.5),
    "snare": (0.55, 0.4),
    "hat": (0.55, 0.75),
}
BASS = Instrument("bass", (1, 2, 3), (0.7, 0.3, 0.12), (0.8, 0.4, 0.2), 0.008, octave=0)
# Delay in seconds and strength of the early echoes, for the left and the right channel.
ECHOES = (
    ((0.023, 0.22), (0.041, 0.18), (0.067, 0.14), (0.109, 0.1), (0.163, 0.07)),
    ((0.029, 0.22), (0.047, 0.18), (0.073, 0.14), (0.097, 0.1), (0.151, 0.07)),
)


def write_demo_songs(
    folder: Path,
    count: int = 48,
    seed: int = 0,
    seconds: tuple[float, float] = (10, 20),
    sample_rate: int = 44100,
    processes: int | None = None,
) -> list[Path]:
    """Write `count` songs of a length between the two `seconds` into `folder`; the paths of their
    wav files, in order.

    Song n of a seed has the same bytes whatever the count and the number of processes (default: one
    for each core). Songs that are already there, whole and the same, are left alone. Raises
    UserError if `seconds` leave no room.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    songs = [compose(number, seed, seconds) for number in range(count)]
    missing = [song for song in songs if not is_written(folder, song, sample_rate)]
    write = partial(write_song, folder, sample_rate=sample_rate)
    workers = max(1, min(processes or cores(), len(missing)))
    for _ in in_order(write, missing, workers, crashed=raise_for_crash):
        pass
    return [folder / f"{song.name}.wav" for song in songs]


def raise_for_crash(song: DemoSong) -> None:
    raise RuntimeError(
        f"making {song.name} killed its process twice; ask for fewer processes if memory is short"
    )


def write_song(folder: Path, song: DemoSong, sample_rate: int) -> None:
    """Write the three files of a song, the audio first: where the lyrics and metadata fit, the
    audio does too.
    """
    audio.write_wav(folder / f"{song.name}.wav", render(song, sample_rate), sample_rate, bits=16)
    for path, text in texts_beside(folder, song).items():
        write_atomic(path, text)


def texts_beside(folder: Path, song: DemoSong) -> dict[Path, bytes]:
    """What is written beside the audio."""
    metadata = json.dumps(metadata_of(song), ensure_ascii=False, indent=1) + "\n"
    return {
        folder / f"{song.name}.lrc": lrc(song).encode(),
        folder / f"{song.name}.json": metadata.encode(),
    }


def is_written(folder: Path, song: DemoSong, sample_rate: int) -> bool:
    """Whether the folder holds just this song, whole."""
    sound = folder / f"{song.name}.wav"
    if not sound.is_file():
        return False
    for path, text in texts_beside(folder, song).items():
        if not path.is_file() or read_given(path) != text:
            return False
    facts = audio.facts(sound)
    return (facts.sample_rate, facts.frames) == (sample_rate, int(song.seconds * sample_rate))


def metadata_of(song: DemoSong) -> dict[str, object]:
    artist = song.artist
    genre = song.genre
    return {
        "artist": artist.name,
        "title": song.title,
        "album": f"{artist.album} {genre.album}",
        "genres": [genre.name],
        "year": artist.since + genre.years_later,
        "moods": list(song.moods),
        "keywords": [artist.instrument.name, artist.voice.name],
        "language": song.language,
        "licence": LICENCE,
        "sections": sections_of(song),
    }


def sections_of(song: DemoSong) -> list[dict[str, object]]:
    """The sections of a song as its JSON has them; the last one lasts until the song ends."""
    sections: list[dict[str, object]] = []
    for section, start in zip(song.sections, song.starts()):
        kind = "intro" if section.kind == "lead-in" else section.kind
        sections.append({"kind": kind, "start": round(start, 3)})
    return sections


def lrc(song: DemoSong) -> str:
    """Enhanced LRC: one line for each sung line, a time before each word, and the end of the
    last word after it.
    """
    lines = []
    for words in song.words():
        timed = " ".join(f"<{clock(start)}> {word}" for word, start, _ in words)
        lines.append(f"[{clock(words[0][1])}] {timed} <{clock(words[-1][2])}>\n")
    return "".join(lines)


def render(song: DemoSong, rate: int) -> Wave:
    """The song as sound: [T, 2] float32, peak -1 dBFS, no DC."""
    kit = drum_kit(rate)
    # A section that returns (the chorus) is played once.
    played = {
        section: render_section(section, song, kit, rate)
        for section in dict.fromkeys(song.sections)
    }
    mix = np.zeros((2, int(song.seconds * rate)), np.float32)
    for section, start in zip(song.sections, song.starts()):
        add(mix, played[section], int(start * rate))
    wet = mix.copy()
    for channel, echoes in enumerate(ECHOES):
        for delay, strength in echoes:
            late = int(delay * rate)
            wet[channel, late:] += np.float32(strength) * mix[channel, : mix.shape[1] - late]
    return master(wet, rate).T


def render_section(section: SongSection, song: DemoSong, kit: dict[str, Wave], rate: int) -> Wave:
    """[2, T] one section: instrument, bass, voice and drums, until its last notes have faded."""
    mix = np.zeros((2, int((section.seconds + RING) * rate)), np.float32)
    instrument = song.artist.instrument
    parts = (
        ("strums", section.strums, instrument),
        ("picks", section.picks, instrument),
        ("bass", section.bass, BASS),
    )
    for part, notes, player in parts:
        for note in notes:
            sound = tone(player, note.pitch, note.seconds, rate)
            add(mix, panned(sound, part), int(note.start * rate))
    pitch_before = section.syllables[0].pitch if section.syllables else 0.0
    for syllable in section.syllables:  # each glides in from the pitch of the one before
        sound = sing(
            song.artist.voice, syllable.sounds, syllable.pitch, pitch_before, syllable.seconds, rate
        )
        pitch_before = syllable.pitch
        add(mix, panned(sound, "voice"), int(syllable.start * rate))
    for drum, start in section.drums:
        add(mix, panned(kit[drum], drum), int(start * rate))
    return mix


def panned(sound: Wave, part: str) -> Wave:
    """[2, T] at the loudness and panning of the part, of the same power at any panning."""
    loudness, panning = MIX[part]
    sides = np.array([np.cos(panning * np.pi / 2), np.sin(panning * np.pi / 2)], np.float32)
    return np.float32(loudness) * sides[:, None] * sound


def add(mix: Wave, sound: Wave, start: int) -> None:
    """Add `sound` [2, N] to `mix` [2, T] from `start`, as far as it fits."""
    length = max(min(sound.shape[1], mix.shape[1] - start), 0)
    mix[:, start : start + length] += sound[:, :length]


def master(mix: Wave, rate: int) -> Wave:
    """Soften the loudest peaks, end in silence, take out DC, and bring the peak to -1 dBFS."""
    fade = int(FADE_OUT * rate)
    loud = np.tanh(mix * np.float32(DRIVE / max(np.abs(mix).max(), 1e-9)))
    loud[:, -fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
    loud -= loud.mean(axis=1, keepdims=True)
    return loud * np.float32(PEAK / np.abs(loud).max())
