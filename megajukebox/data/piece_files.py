"""Saving a piece of written music: as notes in every format asked for, and as a sound by a soundfont.

A soundfont is looked for in this order: the one that was named, MEGAJUKEBOX_SOUNDFONT, the system's folders, the one
within pretty_midi's wheel. symusic renders; where it is not installed or fails, the command fluidsynth does.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

from megajukebox.common.child_processes import child_environment
from megajukebox.common.errors import UserError
from megajukebox.common.files import write_atomic
from megajukebox.data import audio
from megajukebox.notes.notes import Notes
from megajukebox.notes.writers import MIDI, NOTE_FORMATS, written, written_losses

WAV = "wav"
PIECE_FORMATS = (*NOTE_FORMATS, WAV)
SAMPLE_RATE = 44_100  # Hz
MAX_RENDERED_SECONDS = 3600.0
PEAK = 0.9  # of the loudest sample after rendering; soundfonts clip at full scale, or stay far below it
RENDER_TIMEOUT_SECONDS = 600
SOUNDFONT_VARIABLE = "MEGAJUKEBOX_SOUNDFONT"
SOUNDFONT_FOLDERS = ("/usr/share/sounds/sf2", "/usr/share/sounds/sf3", "/usr/share/soundfonts")
SOUNDFONT_ENDINGS = (".sf2", ".sf3")
# General MIDI's sets first: a folder may also hold a single instrument.
KNOWN_SOUNDFONTS = ("default-GM", "FluidR3_GM", "MuseScore_General", "TimGM6mb")
EXTRA = "pip install 'megajukebox[soundfont]'"
HOW_TO_GET_ONE = (
    f"name one with --soundfont or {SOUNDFONT_VARIABLE}, install the system's package"
    f" fluid-soundfont-gm, or {EXTRA}"
)


class SavedFile(NamedTuple):
    """A file of a piece, and what its format could not hold."""

    path: Path
    lost: tuple[str, ...] = ()


def save_piece(
    notes: Notes,
    folder: Path,
    name: str,
    formats: Sequence[str] = (MIDI,),
    title: str = "",
    soundfont: Path | None = None,
) -> list[SavedFile]:
    """Write `name`.mid, .musicxml, .abc, .wav into `folder`, each whole or not at all.

    Raises:
        UserError: a format is unknown, what writes it is not installed, or there is no soundfont.
    """
    check_formats(formats)
    saved = []
    for form in formats:
        path = folder / f"{name}.{form}"
        if form == WAV:
            audio.write_wav(path, rendered(notes, soundfont), SAMPLE_RATE)
            saved.append(SavedFile(path))
        else:
            write_atomic(path, written(notes, form, title or name))
            saved.append(SavedFile(path, tuple(written_losses(notes, form))))
    return saved


def check_formats(formats: Sequence[str]) -> None:
    """Raises UserError for one that is none."""
    for form in formats:
        if form not in PIECE_FORMATS:
            raise UserError(f"format {form!r} is none of {', '.join(PIECE_FORMATS)}")


def rendered(
    notes: Notes, soundfont: Path | None = None, sample_rate: int = SAMPLE_RATE
) -> np.ndarray:
    """The piece as stereo float32 [T, 2], its loudest sample at PEAK.

    Raises:
        UserError: there is no soundfont, nothing to render with, or the piece is longer than an hour.
    """
    if notes.seconds > MAX_RENDERED_SECONDS:
        raise UserError(
            f"the piece lasts {notes.seconds:.0f} s; at most {MAX_RENDERED_SECONDS:.0f} s are rendered"
        )
    font = find_soundfont(soundfont)
    midi = written(notes, MIDI)
    if find_spec("symusic"):
        wave_TC = _render_by_symusic(midi, font, sample_rate)
    elif shutil.which("fluidsynth"):
        wave_TC = render_by_fluidsynth(midi, font, sample_rate)
    else:
        raise UserError(f"symusic or fluidsynth is needed to render a piece: {EXTRA}")
    peak = float(np.abs(wave_TC).max(initial=0.0))
    return wave_TC * np.float32(PEAK / peak) if peak > 0 else wave_TC


def find_soundfont(named: Path | None = None) -> Path:
    """The soundfont to render with.

    Raises:
        UserError: the one that was named is not there, or there is none at all.
    """
    variable = os.environ.get(SOUNDFONT_VARIABLE)
    for asked, source in ((named, "--soundfont"), (variable, SOUNDFONT_VARIABLE)):
        if asked:
            if not Path(asked).is_file():
                raise UserError(f"{source} {str(asked)!r} is no file; {HOW_TO_GET_ONE}")
            return Path(asked)
    found = []
    for folder in map(Path, SOUNDFONT_FOLDERS):
        if folder.is_dir():
            found += [path for path in folder.iterdir() if path.suffix in SOUNDFONT_ENDINGS]
    spec = find_spec("pretty_midi")
    for folder in map(Path, (spec and spec.submodule_search_locations) or ()):
        found += sorted(folder.glob("*.sf2"))
    if not found:
        raise UserError(f"no soundfont was found; {HOW_TO_GET_ONE}")
    return min(found, key=_rank)


def _rank(path: Path) -> tuple[int, str]:
    known = [path.stem.startswith(name) for name in KNOWN_SOUNDFONTS]
    return known.index(True) if any(known) else len(known), str(path)


def _render_by_symusic(midi: bytes, font: Path, sample_rate: int) -> np.ndarray:
    """[T, 2]

    Raises:
        UserError: the soundfont cannot be read.
    """
    import symusic

    score = symusic.Score.from_midi(midi)
    try:
        synthesizer = symusic.Synthesizer(str(font), sample_rate)
        wave_CT = np.asarray(synthesizer.render(score, stereo=True), np.float32)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{font} cannot be used as a soundfont: {error}") from None
    return np.ascontiguousarray(wave_CT.T)


def render_by_fluidsynth(midi: bytes, font: Path, sample_rate: int) -> np.ndarray:
    """[T, 2], by the command fluidsynth.

    Raises:
        UserError: it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "piece.mid")
        target = Path(folder, "piece.wav")
        write_atomic(source, midi)
        options = ["-ni", "-g", "0.5", "-r", str(sample_rate), "-T", "wav", "-F", str(target)]
        command = ["fluidsynth", *options, str(font.absolute()), str(source)]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=RENDER_TIMEOUT_SECONDS,
            env=child_environment(),
        )
        if done.returncode != 0 or not target.is_file():
            lines = done.stderr.strip().splitlines() or ["it wrote no sound"]
            raise UserError(f"fluidsynth cannot render with {font}: {lines[-1]}")
        return audio.read(target, sample_rate, MAX_RENDERED_SECONDS * 2)
