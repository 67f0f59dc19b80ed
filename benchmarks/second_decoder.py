"""Compares what we read of recordings with what ffmpeg reads; writes benchmarks/results/second_decoder.json.

    python benchmarks/second_decoder.py /usr/share/sounds                  # any folders or files
    python benchmarks/second_decoder.py song.ogg --variants                # and as made by ffmpeg in other formats

For every file: its length, the loudness of each channel and the largest difference of a sample. ffmpeg folds more than
two channels into left and right by the same equations (ITU-R BS.775). It needs ffmpeg and ffprobe on the search path.
"""

import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from megajukebox.data import audio
from megajukebox.data.recordings.kinds import SUFFIXES_OF_EXTRA, SUFFIXES_READ

RESULT = Path(__file__).parent / "results" / "second_decoder.json"
SUFFIXES = (*SUFFIXES_READ, *SUFFIXES_OF_EXTRA)
LENGTH_TOLERANCE = (
    0.05  # seconds; programs differ in how they cut what an encoder put before and after
)
LOUDNESS_TOLERANCE = 0.1  # dB
OWN_RATE = 44_100  # at which a file is read that ffmpeg cannot open
QUIET = -80.0  # dB; below it a difference of loudness says nothing
# name of a variant: what ffmpeg is told
STEREO_VARIANTS = {
    "cbr.mp3": ["-b:a", "128k"],
    "vbr.mp3": ["-q:a", "4"],
    "vbr_without_xing.mp3": ["-q:a", "4", "-write_xing", "0"],
    "layer2.mp2": [],
    "vorbis.ogg": ["-c:a", "libvorbis"],
    "opus.opus": ["-c:a", "libopus"],
    "flac.flac": [],
    "flac.oga": ["-c:a", "flac"],
    "pcm16.wav": [],
    "float.wav": ["-c:a", "pcm_f32le"],
    "rf64.wav": ["-rf64", "always"],
    "pcm24.aiff": ["-c:a", "pcm_s24be"],
    "pcm16.caf": ["-c:a", "pcm_s16le"],
    "aac.m4a": ["-c:a", "aac"],
    "alac.m4a": ["-c:a", "alac"],
    "aac.aac": [],
    "wma.wma": ["-c:a", "wmav2"],
    "opus.webm": ["-c:a", "libopus"],
    "flac.mka": ["-c:a", "flac"],
    "wavpack.wv": [],
    "tta.tta": [],
    "pcm16.w64": [],
    "pcm16.au": ["-c:a", "pcm_s16be"],
    "ac3.ac3": [],
}
SURROUND = "pan=5.1|FL=FL|FR=FR|FC=0.5*FL+0.5*FR|LFE=0.3*FL|BL=0.4*FL|BR=0.4*FR"
SURROUND_VARIANTS = {
    "surround.wav": [],
    "surround.flac": [],
    "surround.ogg": ["-c:a", "libvorbis"],
    "surround.opus": ["-c:a", "libopus", "-mapping_family", "1"],
    "surround.m4a": ["-c:a", "aac"],
    "surround.caf": ["-c:a", "pcm_s16le"],
}


def main(
    sources: Annotated[list[Path], typer.Argument(help="Folders and files of recordings.")],
    variants: Annotated[
        bool, typer.Option(help="Also convert the given files to other formats and compare those.")
    ] = False,
    seconds: Annotated[float, typer.Option(help="Of each recording that is converted.")] = 30.0,
) -> None:
    """Compare."""
    started = time.monotonic()
    rows: list[dict[str, Any]] = []
    for path in recordings(sources):
        rows.append(compare(path))
        report(rows[-1])
    if variants:
        for source in sources:
            if source.is_file():
                rows += of_variants(source, seconds)
    result = summary(rows) | {
        "ffmpeg": version(),
        "seconds": round(time.monotonic() - started),
        "files": rows,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(summary(rows), indent=1))
    raise SystemExit(1 if result["differ"] else 0)


def recordings(sources: list[Path]) -> list[Path]:
    found: list[Path] = []
    for source in sources:
        inside = sorted(source.rglob("*")) if source.is_dir() else [source]
        found += [path for path in inside if path.is_file() and not path.is_symlink()]
    return [path for path in found if path.name.lower().endswith(SUFFIXES)]


def of_variants(source: Path, seconds: float) -> list[dict[str, Any]]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, options in STEREO_VARIANTS.items():
            rows.append(variant(source, Path(folder, name), seconds, options))
        for name, options in SURROUND_VARIANTS.items():
            mixed = ["-af", f"aformat=channel_layouts=stereo,{SURROUND}", *options]
            rows.append(variant(source, Path(folder, name), seconds, mixed))
    return rows


def variant(source: Path, path: Path, seconds: float, options: list[str]) -> dict[str, Any]:
    cut = ["-t", str(seconds), "-map", "0:a", "-map_metadata", "-1"]
    ffmpeg("-i", str(source), *cut, *options, str(path))
    row = compare(path) | {"file": f"{source.stem[:24]} as {path.name}"}
    report(row)
    return row


def compare(path: Path) -> dict[str, Any]:
    """What both read of one file."""
    try:
        facts = probed(path)
    except subprocess.CalledProcessError:
        return {"file": path.name, "codec": "none", "unread_by_ffmpeg": True, **ours_alone(path)}
    row: dict[str, Any] = {"file": path.name, "codec": facts["codec_name"]}
    rate = int(facts["sample_rate"])
    channels = min(2, int(facts["channels"]))
    theirs = np.frombuffer(
        ffmpeg("-i", str(path), "-map", "0:a:0", "-ac", str(channels), "-f", "f32le", "-"), "<f4"
    ).reshape(-1, channels)
    try:
        ours = audio.read_recording(path, rate)
    except ValueError as error:
        return row | {"their_seconds": round(len(theirs) / rate, 4), "refused": str(error)}
    x = ours.samples
    row |= {"channels": int(facts["channels"]), "rate": rate, "notes": []}
    row["notes"] = [f"{note.kind}: {note.detail}" for note in ours.notes]
    for note in ours.notes:
        if "scaled by" in note.detail:
            x = x * (np.abs(theirs).max() / np.abs(x).max())
    row["our_seconds"] = round(len(x) / rate, 4)
    row["their_seconds"] = round(len(theirs) / rate, 4)
    if x.shape[1] != channels:
        return row | {"our_channels": x.shape[1], "differs": True}
    both = min(len(x), len(theirs))
    loudness = []
    for side in range(channels):
        loudness.append(decibels(x[:both, side]) - decibels(theirs[:both, side]))
    row["loudness_difference_db"] = [round(value, 3) for value in loudness]
    row["largest_difference"] = float(f"{np.abs(x[:both] - theirs[:both]).max(initial=0):.2g}")
    is_long = abs(len(x) - len(theirs)) > LENGTH_TOLERANCE * rate
    row["differs"] = is_long or max(map(abs, loudness)) > LOUDNESS_TOLERANCE
    return row


def ours_alone(path: Path) -> dict[str, Any]:
    """What we read of a file that ffmpeg cannot open."""
    try:
        ours = audio.read_recording(path, OWN_RATE)
    except ValueError as error:
        return {"refused": str(error)}
    return {"our_seconds": round(len(ours.samples) / OWN_RATE, 4)}


def decibels(x_T: np.ndarray) -> float:
    power = float(np.mean(np.square(x_T, dtype=np.float64))) if len(x_T) else 0.0
    return max(QUIET, 10 * math.log10(power)) if power else QUIET


def probed(path: Path) -> dict[str, Any]:
    command = ["ffprobe", "-v", "error", "-select_streams", "a:0", "-show_streams", "-of", "json"]
    done = subprocess.run([*command, str(path)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)["streams"][0]


def ffmpeg(*arguments: str) -> bytes:
    command = ["ffmpeg", "-nostdin", "-v", "error", "-y", *arguments]
    return subprocess.run(command, capture_output=True, check=True).stdout


def version() -> str:
    done = subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True, check=True)
    return done.stdout.split()[2]


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    read = [row for row in rows if "refused" not in row and "unread_by_ffmpeg" not in row]
    unread = sum(row.get("unread_by_ffmpeg", False) for row in rows)
    lengths = [abs(row["our_seconds"] - row["their_seconds"]) for row in read]
    loudness = [max(map(abs, row.get("loudness_difference_db", [99.0]))) for row in read]
    return {
        "recordings": len(rows),
        "codecs": dict(Counter(row["codec"] for row in rows).most_common()),
        "refused": sum("refused" in row for row in rows),
        "unread_by_ffmpeg": unread,
        "differ": sum(row.get("differs", False) for row in rows),
        "largest_difference_of_length_seconds": round(max(lengths, default=0), 4),
        "largest_difference_of_loudness_db": round(max(loudness, default=0), 3),
    }


def report(row: dict[str, Any]) -> None:
    if row.get("differs") or "refused" in row:
        print(json.dumps(row), file=sys.stderr, flush=True)


if __name__ == "__main__":
    if not shutil.which("ffmpeg"):
        raise SystemExit("ffmpeg is not on the search path; install it")
    typer.run(main)
