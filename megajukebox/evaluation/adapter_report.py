"""What an adapter did: learned, forgot, copied, is heard; each figure with its interval, beside that of the base alone."""

# B windows   T codes
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megajukebox.common.files import write_atomic
from megajukebox.conditioning.schema import ConditionResources, conditions_of
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.stream.batches import stack, tensors
from megajukebox.data.stream.code_dataset import CodeWindows, check_codes
from megajukebox.data.stream.song_dataset import split
from megajukebox.distillation.teacher_sampling import to_device
from megajukebox.evaluation.evaluators.adherence import classify_by_codes, code_counts
from megajukebox.evaluation.evaluators.likelihood import BATCH, song_windows, window_bits
from megajukebox.evaluation.evaluators.memorization import (
    RARE,
    cut_into_pieces,
    longest_shared,
    median_length,
)
from megajukebox.evaluation.inputs import load_codes
from megajukebox.sampling.jukebox import Jukebox, PriorRun, SongRequest
from megajukebox.sampling.songs.song import GeneratedSong

NORMAL_95 = 1.96  # standard errors that half of a 95 % interval is wide
MAX_WINDOWS = 8  # of a song
MAX_OTHER_SONGS = 24
FORGOTTEN_BITS = 0.05  # on other songs, beyond which the report warns
OTHERS = "other"  # the name that songs without an artist count under


@dataclass(frozen=True)
class Listening:
    """The same requests sampled without and with the adapter, seed by seed."""

    base: list[GeneratedSong]
    adapted: list[GeneratedSong]


def sample_both(jukebox: Jukebox, request: SongRequest, adapter: str, seeds: int) -> Listening:
    """`seeds` songs of `request` without the adapter and as many with it."""
    songs = []
    for name, scales in (("base", {}), ("adapted", {adapter: 1.0})):
        requests = []
        for seed in range(seeds):
            changes = {"id": f"{name}-{seed}", "seed": seed, "adapters": scales}
            requests.append(request.model_copy(update=changes))
        songs.append(jukebox.sample(requests, seeds))
    return Listening(*songs)


def paired_bits(
    base: PriorRun,
    adapted: PriorRun,
    codes: ShardSet,
    rows: Sequence[int],
    labels: Mapping[str, str],
    device: torch.device,
) -> dict[str, Any]:
    """Bits per code of songs by the base and with the adapter, and their difference with its 95 % interval.

    Args:
        labels: by condition, the name that every song is given.
    """
    bits = {}
    for name, run in (("base", base), ("adapted", adapted)):
        check_codes(codes, run.folder, run.facts)
        spelling = run.facts.get("names")
        resources = ConditionResources(run.vocabularies, run.tokenizer, {}, spelling, labels)
        conditions = conditions_of(run.config, resources)
        windows = CodeWindows(codes, run.config.level, run.config.window, conditions=conditions)
        samples: list[dict] = []
        for row in rows:
            if windows.clips("train")[row]:
                samples += song_windows(windows, row, MAX_WINDOWS)
        values = []
        with run.loaded(device, torch.float32) as prior:
            for first in range(0, len(samples), BATCH):
                batch = to_device(tensors(stack(samples[first : first + BATCH])), device)
                values.append(window_bits(prior, batch).cpu())
        bits[name] = torch.cat(values).double().numpy() if values else np.zeros(0)
    change_B = bits["adapted"] - bits["base"]
    count = len(change_B)
    if not count:
        return {"windows": 0}
    error = float(change_B.std(ddof=1) / count**0.5) if count > 1 else float("nan")
    return {
        "windows": count,
        "base": float(bits["base"].mean()),
        "adapted": float(bits["adapted"].mean()),
        "change": float(change_B.mean()),
        "change_ci": NORMAL_95 * error,
    }


def copying(
    listening: Listening, level: str, codes: ShardSet, trained: Sequence[int], held: Sequence[int]
) -> dict[str, Any]:
    """The longest passages that samples and held-out songs share with the songs trained on, and how many are suspicious."""
    corpus = [load_codes(codes, row, level) for row in trained]
    songs = {song.request.id: song.codes[level] for song in listening.adapted}
    real = {codes.key(row): load_codes(codes, row, level) for row in held}
    of_samples = longest_shared(songs, corpus)
    of_held_out = longest_shared(cut_into_pieces(real, median_length(songs)), corpus)
    report: dict[str, Any] = {"samples": of_samples, "held_out": of_held_out}
    if of_held_out:
        limit = float(np.quantile(list(of_held_out.values()), 1 - RARE, method="higher"))
        report |= {"limit": limit, "suspicious": sum(n > limit for n in of_samples.values())}
    return report


def heard(
    listening: Listening, level: str, size: int, mine: ShardSet, others: ShardSet
) -> dict[str, Any]:
    """How many samples a classifier by counts of codes takes for the new songs rather than for another artist's.

    Every artist has as many songs as the new one, at most: so no name is likelier by its songs.
    """
    corpus: dict[str, tuple[np.ndarray, str]] = {}
    own = "(new songs)"
    for row in range(len(mine)):
        corpus[f"mine/{row}"] = (code_counts(load_codes(mine, row, level), size), own)
    taken: dict[str, int] = {}
    for row in range(len(others)):
        name = str(others.read_facts(row).get("artist") or OTHERS)
        if taken.get(name, 0) < len(mine):
            taken[name] = taken.get(name, 0) + 1
            corpus[f"others/{row}"] = (code_counts(load_codes(others, row, level), size), name)
    report: dict[str, Any] = {"chance": 1 / (1 + len(taken))}
    for name, songs in (("base", listening.base), ("adapted", listening.adapted)):
        counts = {song.request.id: code_counts(song.codes[level], size) for song in songs}
        found = classify_by_codes(corpus, counts)
        ratio = sum(label == own for label in found.values()) / len(found)
        low, high = score_interval(ratio, len(found))
        report[name] = {"ratio": ratio, "low": low, "high": high, "songs": len(found)}
    return report


def score_interval(ratio: float, n: int) -> tuple[float, float]:
    """95 % interval of the `ratio` of successes of `n` trials (Wilson 1927), without scipy, which is an extra."""
    spread = NORMAL_95**2 / n
    centre = (ratio + spread / 2) / (1 + spread)
    half = (spread * ratio * (1 - ratio) + spread**2 / 4) ** 0.5 / (1 + spread)
    return centre - half, centre + half


def adapter_report(
    jukebox: Jukebox,
    level: str,
    adapter: str,
    mine: ShardSet,
    others: ShardSet | None,
    held_out: float,
    others_held_out: float,
    listening: Listening | None,
) -> dict[str, Any]:
    """All figures of one level's adapter.

    Args:
        held_out: share of the new songs that was not trained on; `others_held_out`: of the base's own.
    """
    base = jukebox.levels[level]
    asked = SongRequest.model_validate({"id": "a", "adapters": {adapter: 1.0}})
    adapted = jukebox.run_of(level, asked)
    ((one, _),) = adapted.adapters.parts
    is_held = split(mine.songs["key"], held_out)
    held = np.flatnonzero(is_held).tolist()
    trained = np.flatnonzero(~is_held).tolist()
    labels = one.record.labels
    report: dict[str, Any] = {
        "level": level,
        "adapter": one.record.fingerprint,
        "base": one.record.base,
        "step": one.record.step,
        "learned": paired_bits(base, adapted, mine, held, labels, jukebox.device),
    }
    if others is not None:
        rows = np.flatnonzero(split(others.songs["key"], others_held_out)).tolist()
        rows = (rows or list(range(len(others))))[:MAX_OTHER_SONGS]
        report["forgot"] = paired_bits(base, adapted, others, rows, {}, jukebox.device)
    if listening is not None and level in listening.base[0].codes:
        report["copied"] = copying(listening, level, mine, trained, held)
        differing = 0
        for plain, own in zip(listening.base, listening.adapted):
            differing += not np.array_equal(plain.codes[level], own.codes[level])
        report["songs_that_differ"] = differing
        if others is not None:
            size = base.config.codebook_size
            report["heard"] = heard(listening, level, size, mine, others)
    return report


def verdict(report: Mapping[str, Any]) -> list[str]:
    """The report in sentences: the first says whether anything was learned."""
    lines = []
    learned = report["learned"]
    if not learned["windows"]:
        lines.append("nothing is held out: whether it learned is not known")
    else:
        gain = -learned["change"]
        spread = learned["change_ci"]
        is_certain = gain > spread or (np.isnan(spread) and gain > 0)
        word = "it learned" if is_certain else "it learned nothing that shows"
        lines.append(
            f"{word}: held-out new songs {learned['base']:.3f} -> {learned['adapted']:.3f} bits per"
            f" code ({learned['change']:+.3f} +- {spread:.3f}, {learned['windows']} windows)"
        )
    forgot = report.get("forgot")
    if forgot is None:
        lines.append("other songs were not looked at; give --also CODES")
    elif forgot["windows"]:
        loss = forgot["change"]
        word = "it forgot: lower the scale or the steps" if loss > FORGOTTEN_BITS else "it kept"
        lines.append(f"{word}: other songs {loss:+.3f} +- {forgot['change_ci']:.3f} bits per code")
    copied = report.get("copied")
    if copied and "limit" in copied:
        longest = max(copied["samples"].values())
        lines.append(
            f"copying: {copied['suspicious']} of {len(copied['samples'])} samples share more than held-out"
            f" songs do (longest passage {longest} codes; limit {copied['limit']:.0f})"
        )
    if "heard" in report:
        own = report["heard"]["adapted"]
        lines.append(
            f"heard: {own['ratio']:.0%} of {own['songs']} samples are taken for the new songs"
            f" ({own['low']:.0%} to {own['high']:.0%}; without the adapter"
            f" {report['heard']['base']['ratio']:.0%}; chance {report['heard']['chance']:.0%})"
        )
    return lines


def write_adapter_report(folder: Path, reports: Sequence[Mapping[str, Any]]) -> Path:
    """report.json of all levels."""
    path = folder / "report.json"
    levels = [{**report, "verdict": verdict(report)} for report in reports]
    write_atomic(path, (json.dumps(levels, indent=1) + "\n").encode())
    return path
