"""What a demo is worth: its times, reconstructions, bits per code, and whether it listens to what it is told.

    python benchmarks/demo_report.py demo            # prints the tables, writes benchmarks/results/demo.json
"""

import json
import platform
import sys
from datetime import date
from math import comb
from pathlib import Path

import numpy as np
import soundfile
from rich.console import Console
from rich.table import Table

from megajukebox.data.audio import downmix, read_slice
from megajukebox.data.clips import split
from megajukebox.data.listening import learn, rhythm, timbre
from megajukebox.data.provenance import made_by
from megajukebox.data.shards import ShardSet
from megajukebox.monitoring.metrics import read_lines

LEVELS = ("top", "middle", "bottom")
RUNS = {"top": "top_prior", "middle": "middle_upsampler", "bottom": "bottom_upsampler"}
RESULTS = Path(__file__).parent / "results"


def last(run: Path, which: str) -> dict:
    return [m for m in read_lines(run / "metrics.jsonl") if m["split"] == which][-1]


def reconstruction(demo: Path) -> dict:
    """SNR and spectral convergence in dB of held-out clips, by level."""
    held_out = last(demo / "runs/vqvae", "held_out")
    return {level: {name: held_out[f"{level}/{name}"] for name in ("snr_db", "spectral_convergence_db")} for level in LEVELS}


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
            "held_out_bits": last(demo / "runs" / RUNS[level], "held_out")["bits_per_code"],
            "train_bits": last(demo / "runs" / RUNS[level], "train")["bits_per_code"],
            "unigram_entropy_bits": unigram_entropy(codes, level),
        }
        for level in LEVELS
    }


def songs_with_labels(songs: ShardSet) -> list[tuple[np.ndarray, str, str]]:
    """(mono audio, artist, genre) of the songs that were trained on."""
    held_out = split(songs.songs["key"], 0.1)
    found = []
    for row in np.flatnonzero(~held_out):
        facts = json.loads(songs.read_member(row, "json"))
        with songs.open_member(row, "audio") as file:
            audio = downmix(read_slice(file, 0, int(songs.songs["frames"][row])))
        found.append((audio, facts["artist"], facts["genres"][0]))
    return found


def adherence(demo: Path, level: str) -> dict:
    """Share of the samples whose artist and genre are heard in their audio, with the chance that guessing does as well."""
    songs = ShardSet(demo / "shards/songs")
    known, rate = songs_with_labels(songs), songs.index["sample_rate"]
    ears = {"artist": learn([(a, artist) for a, artist, _ in known], rate, timbre), "genre": learn([(a, genre) for a, _, genre in known], rate, rhythm)}
    records = [json.loads(p.read_text()) for p in sorted((demo / "samples").glob("*.json"))]
    audio = [soundfile.read(demo / "samples" / r["levels"][level]["audio"], dtype="float32")[0] for r in records]
    asked = {"artist": [r["request"]["artist"] for r in records], "genre": [r["request"]["genres"][0] for r in records]}
    result: dict = {}
    for what, hearing in ears.items():
        right = sum(a == b for a, b in zip(hearing.name(audio), asked[what]))
        chance = 1 / len(set(asked[what]))
        result[what] = {"right": right, "of": len(records), "chance": chance, "p_value": at_least(right, len(records), chance)}
    return result


def at_least(right: int, of: int, chance: float) -> float:
    """Probability that guessing gets `right` or more of `of`."""
    return sum(comb(of, k) * chance**k * (1 - chance) ** (of - k) for k in range(right, of + 1))


def report(demo: Path) -> dict:
    return {
        "date": date.today().isoformat(), "commit": made_by()["commit"], "machine": f"{platform.machine()}, 2 cores",
        "seconds": json.loads((demo / "times.json").read_text()),
        "reconstruction": reconstruction(demo), "bits": bits(demo),
        "listens": {level: adherence(demo, level) for level in LEVELS},
    }  # fmt: skip


def show(found: dict) -> None:
    console = Console()
    times = Table("stage", "seconds")
    for name, seconds in [*found["seconds"].items(), ("all", sum(found["seconds"].values()))]:
        times.add_row(name, f"{seconds:.0f}")
    console.print(times)
    levels = Table("level", "SNR dB", "spectral convergence dB", "bits/code held out", "train", "unigram", "artist", "genre")
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
