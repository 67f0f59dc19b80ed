"""The pictures of a recording: a mel spectrogram as PNG, and the numbers that its waveform is drawn from."""

# T samples   W columns of a picture   R rows of a picture   F frequencies of a spectrum
import io
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
from matplotlib.image import imsave

from megajukebox.data.spectra import frame_spectra, mel_bands, window_size
from megajukebox.explorer import site_files
from megajukebox.explorer.site_files import ContainedFile

COLUMNS = 900
ROWS = 160
LOWEST_HZ = 30.0
WINDOW_SECONDS = 0.09  # semitones apart in the middle of the piano, drum hits still sharp
# 0 dB is a sine of full scale; one scale for all, so that pictures can be compared.
FLOOR_DB = -85.0
CEILING_DB = -15.0
SHADES = 64  # fewer shades than a screen has: a third of the bytes, and no difference to the eye
PEAKS = 900
# Of a recording that is drawn, 30 minutes at 48 kHz: mono, it takes 350 MB while its pictures are drawn.
MAX_FRAMES = 30 * 60 * 48_000
MAX_CHANNELS = 8
SAMPLE_RATES = (
    100,
    192_000,
)  # Hz; the window of a spectrum grows with the rate that a header claims
BLOCK = 1 << 18  # frames decoded at a time
LEAST_POWER = 1e-12  # -120 dB: the logarithm of silence


def write_pictures(audio: ContainedFile, spectrogram_png: Path, peaks_js: Path, name: str) -> None:
    """Draw both pictures of `audio`, and give them its time.

    The script `peaks_js` hands its numbers to the page under `name`; as JSON, a page from disk could not read them.

    Raises:
        soundfile.LibsndfileError: `audio` cannot be decoded.
        ValueError: it is too long, or its header claims what no song has.
        OSError: it is gone, or lies behind a link.
    """
    with audio.reader() as file:
        modified = os.fstat(file.fileno()).st_mtime_ns
        wave_T, rate = read_mono(file)
    numbers = {"peaks": peaks(wave_T), "db": loudness(wave_T)}
    site_files.write(spectrogram_png, png(mel_spectrogram(wave_T, rate)))
    site_files.stamp(spectrogram_png, modified)
    site_files.write(peaks_js, site_files.script(name, numbers))
    site_files.stamp(peaks_js, modified)


def read_mono(file: BinaryIO) -> tuple[np.ndarray, int]:
    """(mean of all channels [T], sample rate in Hz), decoded by blocks: small files can hold hours of silence.

    Raises:
        soundfile.LibsndfileError: it cannot be decoded.
        ValueError: it has more than MAX_FRAMES or MAX_CHANNELS, or a rate outside SAMPLE_RATES.
    """
    with soundfile.SoundFile(file) as sound:
        low, high = SAMPLE_RATES
        if not low <= sound.samplerate <= high:
            raise ValueError(f"sample rate {sound.samplerate} Hz is outside {low}..{high}")
        if sound.channels > MAX_CHANNELS:
            raise ValueError(f"{sound.channels} channels; at most {MAX_CHANNELS} are drawn")
        blocks = []
        frames = 0
        while len(block_TC := sound.read(BLOCK, dtype="float32", always_2d=True)):
            frames += len(block_TC)
            if frames > MAX_FRAMES:
                minutes = MAX_FRAMES / sound.samplerate / 60
                raise ValueError(f"it is too long to be drawn: over {minutes:.0f} minutes")
            blocks.append(block_TC.mean(axis=1))
        wave_T = np.concatenate([np.zeros(0, np.float32), *blocks])
        return np.nan_to_num(wave_T, copy=False), sound.samplerate


def png(decibels_RW: np.ndarray) -> bytes:
    """The spectrogram as a picture, low notes at the bottom."""
    share_RW = np.clip((decibels_RW - FLOOR_DB) / (CEILING_DB - FLOOR_DB), 0, 1)
    shaded_RW = np.round(share_RW * SHADES) / SHADES
    buffer = io.BytesIO()
    imsave(buffer, shaded_RW, cmap="magma", vmin=0, vmax=1, origin="lower", format="png")
    return buffer.getvalue()


def mel_spectrogram(wave_T: np.ndarray, rate: int) -> np.ndarray:
    """Decibels [ROWS, COLUMNS] of `wave_T`; row 0 is 30 Hz, the last is half the rate."""
    size = window_size(WINDOW_SECONDS, rate)
    window_N = np.hanning(size + 1)[:-1].astype(np.float32)
    starts = np.linspace(0, len(wave_T), COLUMNS).astype(int)
    padded = np.pad(wave_T, (size // 2, size), mode="reflect" if len(wave_T) > 1 else "constant")
    power_WF = np.abs(frame_spectra(padded, starts, window_N) / (window_N.sum() / 2)) ** 2
    bands_FR = mel_bands(np.fft.rfftfreq(size, 1 / rate), LOWEST_HZ, rate / 2, ROWS)
    return 10 * np.log10(np.maximum(power_WF @ bands_FR.astype(np.float32), LEAST_POWER)).T


def peaks(wave_T: np.ndarray) -> list[list[int]]:
    """Highest and lowest point of each stretch of `wave_T`, in hundredths of full scale."""
    wave_T = wave_T if len(wave_T) else np.zeros(1, np.float32)
    starts = np.linspace(0, len(wave_T) - 1, min(PEAKS, len(wave_T))).astype(int)
    extremes = np.stack([np.maximum.reduceat(wave_T, starts), np.minimum.reduceat(wave_T, starts)])
    return np.round(100 * np.clip(extremes, -1, 1)).astype(int).tolist()


def loudness(wave_T: np.ndarray) -> float:
    """Root mean square in dB of full scale, at least -120."""
    power = float(np.mean(np.square(wave_T, dtype=np.float64))) if len(wave_T) else 0.0
    return round(10 * np.log10(max(power, LEAST_POWER)), 2)
