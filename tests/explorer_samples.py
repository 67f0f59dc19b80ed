"""Made-up samples and runs, in the files that `megajukebox sample` and `megajukebox train` leave."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

RATE = 11025


def add_sample(
    folder: Path,
    name: str,
    seconds: float = 1.0,
    levels: tuple[str, ...] = ("top", "middle", "bottom"),
    steps: dict[str, int] | None = None,
    loudness: float = 1.0,
    runs: str = "runs",
    **request: Any,
) -> None:
    """A sample as `megajukebox sample` leaves it: a falling tone, quieter in the coarser levels."""
    folder.mkdir(exist_ok=True)
    time = np.arange(round(seconds * RATE)) / RATE
    audio = {"top": f"{name}.top.wav", "middle": f"{name}.middle.wav", "bottom": f"{name}.wav"}
    audio |= {track: f"{name}.{track}.wav" for track in levels if track not in audio}
    for number, level in enumerate(levels, start=1):
        soundfile.write(
            folder / audio[level], 0.2 * number * loudness * np.sin(2 * np.pi * 880 * np.exp(-time / 5) * time), RATE
        )
    request = {
        "id": name,
        "artist": "Ada",
        "genres": ["waltz"],
        "lyrics": "la la",
        "seconds": seconds,
        "seed": 7,
    } | request
    facts = {"codes": 100, "wall_seconds": 2.0, "tokens_per_second": 50.0}
    sample = {
        "id": name, "request": request, "notes": [], "sample_rate": RATE, "seconds": seconds,
        "levels": {level: {"audio": audio[level], **facts} for level in audio},
        "weights": {"vqvae": "f" * 64, "top": "0" * 64}, "runs": runs, "steps": steps or {},
        "made_by": {"version": "0"},
    }  # fmt: skip
    (folder / f"{name}.json").write_text(json.dumps(sample))


def add_run(folder: Path, lines: list[dict[str, Any]], events: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text("stage: vqvae\n")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


def metrics(steps: int) -> list[dict[str, Any]]:
    lines = [
        {"step": n, "time": 1e9 + n, "split": "train", "loss": 3 / n, "bits_per_code": 4.0} for n in range(1, steps + 1)
    ]
    return [*lines, {"step": steps, "time": 1e9 + steps, "split": "held_out", "loss": 3.5}]
