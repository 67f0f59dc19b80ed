"""Pieces saved in every format, and as a sound by a soundfont that is found in a known order."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from fixtures.tiny_soundfont import write_soundfont

from megajukebox.commands.convert_notes import main as convert
from megajukebox.common.errors import UserError
from megajukebox.data import piece_files
from megajukebox.data.piece_files import PEAK, find_soundfont, rendered, save_piece
from megajukebox.notes.instruments import ScorePart
from megajukebox.notes.notes import NOTE, Notes, bars_of_metre, steady
from megajukebox.notes.readers import read_notes


@pytest.fixture
def tune() -> Notes:
    """A4 for a second, then silence for one."""
    notes = np.array([(0, 0, 69, 24, 80)], NOTE)
    return Notes(notes, (ScorePart("tune", 0),), bars_of_metre(2, 4, 48), steady(60.0), 48)


@pytest.fixture
def no_soundfont(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(piece_files.SOUNDFONT_VARIABLE, raising=False)
    monkeypatch.setattr(piece_files, "SOUNDFONT_FOLDERS", ())
    monkeypatch.setattr(piece_files, "find_spec", lambda _: None)


def test_a_piece_is_saved_in_every_format_of_notes(tmp_path: Path, tune: Notes) -> None:
    saved = save_piece(tune, tmp_path, "a", ["mid", "musicxml", "abc"])
    assert [file.path.name for file in saved] == ["a.mid", "a.musicxml", "a.abc"]
    assert [file.lost for file in saved] == [(), (), ("loudnesses",)]
    for file in saved[:2]:
        assert read_notes(file.path) == tune
    with pytest.raises(UserError, match=r"'pdf' is none of mid, musicxml, abc, wav"):
        save_piece(tune, tmp_path, "a", ["pdf"])


def test_a_note_sounds_at_its_pitch_for_its_length_and_as_loud_as_all(
    tmp_path: Path, tune: Notes
) -> None:
    pytest.importorskip("symusic")
    wave = rendered(tune, write_soundfont(tmp_path / "sine.sf2"))
    assert wave.shape[1] == 2 and np.abs(wave).max() == pytest.approx(PEAK)
    spectrum = np.abs(np.fft.rfft(wave[4410:39690, 0]))
    hertz = spectrum.argmax() * piece_files.SAMPLE_RATE / 35280
    assert hertz == pytest.approx(440, abs=3)
    assert np.abs(wave[66150:]).max(initial=0.0) < 0.02 * PEAK
    (saved,) = save_piece(tune, tmp_path, "a", ["wav"], soundfont=tmp_path / "sine.sf2")
    assert soundfile.info(saved.path).samplerate == piece_files.SAMPLE_RATE


def test_a_soundfont_is_looked_for_where_it_was_named_then_in_the_systems_folders(
    tmp_path: Path, no_soundfont: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"no soundfont was found; name one with --soundfont"):
        find_soundfont()
    system = tmp_path / "sf2"
    system.mkdir()
    for name in ("Bells", "TimGM6mb", "FluidR3_GM"):
        write_soundfont(system / f"{name}.sf2")
    monkeypatch.setattr(piece_files, "SOUNDFONT_FOLDERS", (str(system),))
    assert find_soundfont().name == "FluidR3_GM.sf2"
    monkeypatch.setenv(piece_files.SOUNDFONT_VARIABLE, str(system / "Bells.sf2"))
    assert find_soundfont().name == "Bells.sf2"
    assert find_soundfont(system / "TimGM6mb.sf2").name == "TimGM6mb.sf2"
    with pytest.raises(UserError, match=r"--soundfont '.*gone.sf2' is no file"):
        find_soundfont(tmp_path / "gone.sf2")


def test_what_is_no_soundfont_is_named(tmp_path: Path, tune: Notes) -> None:
    pytest.importorskip("symusic")
    (tmp_path / "bad.sf2").write_bytes(b"RIFF")
    with pytest.raises(UserError, match=r"bad\.sf2 cannot be used as a soundfont"):
        rendered(tune, tmp_path / "bad.sf2")


def test_without_anything_to_render_with_the_way_out_is_said(
    tmp_path: Path, tune: Notes, no_soundfont: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"symusic or fluidsynth is needed .*\[soundfont\]"):
        rendered(tune, write_soundfont(tmp_path / "sine.sf2"))


def test_files_are_converted_and_what_is_lost_is_printed(
    tmp_path: Path, tune: Notes, capsys: pytest.CaptureFixture[str]
) -> None:
    save_piece(tune, tmp_path, "a")
    convert(tmp_path / "a.mid", tmp_path / "out" / "b.abc")
    said = capsys.readouterr().err
    assert "1 parts, 1 bars, 1 notes, 2 s" in said and "not in the file: loudnesses" in said
    assert np.array_equal(read_notes(tmp_path / "out" / "b.abc").notes["pitch"], [69])
    with pytest.raises(UserError, match=r"\.midi.*give it one of \.mid"):
        convert(tmp_path / "a.mid", tmp_path / "b.midi")
