"""What a demo is worth: its times, reconstructions, bits per code, and whether it listens to what it is told.

    python benchmarks/demo_report.py demo            # prints the tables, writes benchmarks/results/demo.json

The folder is that of a finished `megajukebox demo`.
"""

import json
import os
import platform
import sys
from datetime import date
from math import comb
from pathlib import Path

import numpy as np
import soundfile
import torch
from rich.console import Console
from rich.table import Table

from megajukebox.data.audio import downmix, read_slice
from megajukebox.data.clips import split
from megajukebox.data.listening import learn, rhythm, timbre
from megajukebox.data.provenance import made_by
from megajukebox.data.shards import ShardSet
from megajukebox.encode import load_vqvae
from megajukebox.models.long_audio import decode_long, encode_long
from megajukebox.models.losses import STFT, spectral_convergence
from megajukebox.models.vqvae import VQVAE
from megajukebox.monitoring.metrics import read_lines

LEVELS = ("top", "middle", "bottom")
RUNS = {"top": "top_prior", "middle": "middle_upsampler", "bottom": "bottom_upsampler"}
RESULTS = Path(__file__).parent / "results"


def last(run: Path, which: str) -> dict:
    """The last metrics of a split; without held-out songs there are none of held_out."""
    return next((m for m in reversed(read_lines(run / "metrics.jsonl")) if m["split"] == which), {})


def reconstruction(demo: Path) -> dict:
    """SNR and spectral convergence in dB of whole songs through each level: held-out songs, or all where none is."""
    songs = ShardSet(demo / "shards/songs")
    model, _ = load_vqvae(demo / "runs/vqvae", songs, torch.device("cpu"))
    held_out = split(songs.songs["key"], 0.1)
    rows = np.flatnonzero(held_out if held_out.any() else ~held_out)
    judged: dict = {"songs": len(rows), "held_out": bool(held_out.any())}
    for level in LEVELS:
        measures = np.array([through(model, mono(songs, row), level) for row in rows])
        judged[level] = dict(zip(("snr_db", "spectral_convergence_db"), measures.mean(0).tolist()))
    return judged


def mono(songs: ShardSet, row: int) -> np.ndarray:
    with songs.open_member(row, "audio") as file:
        return downmix(read_slice(file, 0, int(songs.songs["frames"][row])))


def through(model: VQVAE, audio: np.ndarray, level: str) -> tuple[float, float]:
    """(SNR, spectral convergence) in dB of one song encoded and decoded."""
    x = torch.from_numpy(audio)
    y = decode_long(model, encode_long(model, x, level), level)
    x = x[: len(y)]
    snr = 10 * torch.log10(x.square().sum() / (x - y).square().sum())
    return float(snr), float(20 * torch.log10(spectral_convergence(STFT(), x[None], y[None])))


def unigram_entropy(codes: ShardSet, level: str) -> float:
    """Bits per code of the codes' own histogram, over the whole set."""
    size = codes.index["vqvae"]["codes"][level]
    counts = np.zeros(size)
    for row in range(len(codes)):
        with codes.open_member(row, level) as file:
            counts += np.bincount(np.load(file), minlength=size)
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log2(share)).sum())


def bits(demo: Path) -> dict:
    codes = ShardSet(demo / "shards/codes")
    return {
        level: {
            "held_out_bits": last(demo / "runs" / RUNS[level], "held_out").get("bits_per_code", float("nan")),
            "train_bits": last(demo / "runs" / RUNS[level], "train")["bits_per_code"],
            "unigram_entropy_bits": unigram_entropy(codes, level),
        }
        for level in LEVELS
    }


def songs_with_labels(songs: ShardSet) -> list[tuple[np.ndarray, str, str]]:
    """(mono audio, artist, genre) of the songs that were trained on and have both."""
    held_out = split(songs.songs["key"], 0.1)
    found = []
    for row in np.flatnonzero(~held_out):
        facts = json.loads(songs.read_member(row, "json"))
        if facts.get("artist") and facts.get("genres"):
            found.append((mono(songs, row), facts["artist"], facts["genres"][0]))
    return found


def adherence(demo: Path, level: str) -> dict:
    """Share of samples whose artist and genre are heard in their audio; the p value is that of guessing as well."""
    songs = ShardSet(demo / "shards/songs")
    known, rate = songs_with_labels(songs), songs.index["sample_rate"]
    records = [json.loads(p.read_text()) for p in sorted((demo / "samples").glob("*.json"))]
    audio = [soundfile.read(demo / "samples" / r["levels"][level]["audio"], dtype="float32")[0] for r in records]
    told = {
        "artist": (timbre, [artist for _, artist, _ in known], [r["request"]["artist"] for r in records]),
        "genre": (rhythm, [genre for _, _, genre in known], [(*r["request"]["genres"], None)[0] for r in records]),
    }
    found = {}
    for what, (features, labels, asked) in told.items():
        if len(set(labels)) > 1:
            ears = learn([(song[0], label) for song, label in zip(known, labels)], rate, features)
            found[what] = count_right(ears.name(audio), asked, len(set(labels)))
    return found


def count_right(heard: list[str], asked: list[str], names: int) -> dict:
    right = sum(a == b for a, b in zip(heard, asked))
    return {"right": right, "of": len(asked), "p_value": at_least(right, len(asked), 1 / names)}


def at_least(right: int, of: int, chance: float) -> float:
    """Probability that guessing gets `right` or more of `of`."""
    return sum(comb(of, k) * chance**k * (1 - chance) ** (of - k) for k in range(right, of + 1))


def report(demo: Path) -> dict:
    return {
        "date": date.today().isoformat(),
        "commit": made_by()["commit"],
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "seconds": json.loads((demo / "times.json").read_text()),
        "reconstruction": reconstruction(demo),
        "bits": bits(demo),
        "listens": {level: adherence(demo, level) for level in LEVELS},
    }


def show(found: dict) -> None:
    console = Console()
    times = Table("stage", "seconds")
    for name, seconds in [*found["seconds"].items(), ("all", sum(found["seconds"].values()))]:
        times.add_row(name, f"{seconds:.0f}")
    console.print(times)
    columns = ("SNR dB", "spectral convergence dB", "bits/code held out", "train", "unigram", "artist", "genre")
    levels = Table("level", *columns)
    for level in LEVELS:
        heard = (f"{w['right']}/{w['of']} (p {w['p_value']:.1g})" for w in found["listens"][level].values())
        numbers = (*found["reconstruction"][level].values(), *found["bits"][level].values())
        levels.add_row(level, *(f"{n:.2f}" for n in numbers), *heard)
    console.print(levels)


if __name__ == "__main__":
    found = report(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "demo.json").write_text(json.dumps(found, indent=1) + "\n")
    show(found)
