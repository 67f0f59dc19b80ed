"""Makes the sounds and pictures of docs/sound.md from pairs of recordings, and prints their peakiness.

    python benchmarks/sound_page.py ilune_emberdance=before.wav:after.wav orrin_lanternfolk=old.wav:new.wav

Of each pair the first seconds become docs/sound/NAME_before.flac, NAME_after.flac and NAME.png: the spectrogram of the
first above that of the second, mel-spaced from 30 Hz to half the rate.
"""

import io
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from matplotlib.image import imread, imsave

from megajukebox.common.files import write_atomic
from megajukebox.common.untrusted_files import open_given
from megajukebox.data.audio import encode_flac, facts, read_mono
from megajukebox.evaluation.evaluators.noise import peakiness_metrics
from megajukebox.explorer.loaders.spectrograms import mel_spectrogram, png

OUT = Path(__file__).parents[1] / "docs" / "sound"
GAP_ROWS = 6  # of white between two spectrograms
SIDES = ("before", "after")


def main(
    pairs: Annotated[list[str], typer.Argument(help="NAME=BEFORE:AFTER")],
    seconds: Annotated[float, typer.Option(min=1, help="Of each recording.")] = 5.0,
    out: Annotated[Path, typer.Option(help="Folder for the files.")] = OUT,
) -> None:
    """Write the files of every pair."""
    out.mkdir(parents=True, exist_ok=True)
    total = 0
    for pair in pairs:
        name, _, paths = pair.partition("=")
        pictures = []
        for side, path in zip(SIDES, paths.split(":"), strict=True):
            wave_T, rate = read_start(Path(path), seconds)
            content = encode_flac(wave_T[:, None], rate)
            write_atomic(out / f"{name}_{side}.flac", content)
            total += len(content)
            pictures.append(imread(io.BytesIO(png(mel_spectrogram(wave_T, rate)))))
            peakiness = peakiness_metrics(wave_T, rate)["peakiness_db"]
            print(f"{name:24} {side:6}  peakiness {peakiness:5.1f} dB")
        gap = np.ones((GAP_ROWS, *pictures[0].shape[1:]), np.float32)
        picture = io.BytesIO()
        imsave(picture, np.concatenate([pictures[0], gap, pictures[1]]), format="png")
        write_atomic(out / f"{name}.png", picture.getvalue())
        total += len(picture.getvalue())
    print(f"{total / 1e6:.2f} MB in {out}")


def read_start(path: Path, seconds: float) -> tuple[np.ndarray, int]:
    """(mono audio [T] of the first seconds, its rate in Hz)."""
    with open_given(path) as file:
        rate = facts(file).sample_rate
    with open_given(path) as file:
        return read_mono(file, rate)[: round(seconds * rate)], rate


if __name__ == "__main__":
    typer.run(main)
