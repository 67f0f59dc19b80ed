"""Bits per code: what a prior needs to write down songs it has not heard; and teacher against student, both ways."""

# B windows   T codes of a window   N lyric tokens
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from megajukebox.conditioning.vocabulary import Vocabulary
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.stream.code_dataset import (
    CodeWindows,
    ConditionColumn,
    LyricsColumn,
    check_codes,
)
from megajukebox.evaluation.inputs import Say, paced, silent
from megajukebox.evaluation.metrics import MetricValue, mean_score
from megajukebox.models.prior import Prior
from megajukebox.sampling.jukebox import PriorRun

BATCH = 8  # windows that are judged at once
WindowBits = Callable[
    [dict[str, Any]], Tensor
]  # a batch of windows -> mean bits [B] a code of each
Bits = Callable[[Any], float]  # a song's codes, and what is told with them -> mean bits a code


def windows_of(run: PriorRun, codes: ShardSet) -> CodeWindows:
    """The windows of `codes` as the run's prior was trained on them, told everything.

    Raises ValueError if the codes are of another VQ-VAE than the prior was trained on.
    """
    check_codes(codes, run.folder, run.facts)
    config = run.config
    known = {
        name: ConditionColumn(run.vocabularies.get(name, Vocabulary()), label.max_values)
        for name, label in config.conditions.items()
    }
    lyrics = (
        LyricsColumn(run.tokenizer, config.lyrics.tokens)
        if config.lyrics and run.tokenizer
        else None
    )
    return CodeWindows(codes, config.level, config.window, conditions=known, lyrics=lyrics)


def held_out_bits(
    bits: WindowBits, windows: CodeWindows, rows: list[int], most_windows: int, device: torch.device,
    say: Say = silent,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """{song: {"bits_per_code", "label_gain_bits"}} of at most `most_windows` of each song.

    `label_gain_bits` is what the labels are worth: the bits with those of another song in their place, less the bits.
    """
    found: dict[str, dict[str, float]] = {}
    counts = windows.clips("train")  # nothing is held out here: `rows` says which songs
    labels = {row: windows.read(row, 0, None)["conditions"] for row in rows if counts[row]}
    for row in paced(list(labels), say, "bits per code"):
        samples = song_windows(windows, row, most_windows)
        own = {"bits_per_code": song_bits(bits, samples, device)}
        others = other_labels(labels, row)
        if others is not None:
            swapped = [sample | {"conditions": others} for sample in samples]
            own["label_gain_bits"] = song_bits(bits, swapped, device) - own["bits_per_code"]
        found[windows.shards.key(row)] = own
    return found


def other_labels(
    labels: Mapping[int, Mapping[str, np.ndarray]], row: int
) -> Mapping[str, np.ndarray] | None:
    """The labels of the next song whose labels differ in every condition if there is one, else in any."""
    rows = list(labels)
    place = rows.index(row)
    following = [labels[other] for other in rows[place + 1 :] + rows[:place]]

    def differing(other: Mapping[str, np.ndarray]) -> int:
        return sum(not np.array_equal(other[name], ids) for name, ids in labels[row].items())

    best = max(following, key=differing, default=None)
    return best if best is not None and differing(best) else None


def song_windows(windows: CodeWindows, row: int, most: int) -> list[dict]:
    """At most `most` windows of a song, evenly spread."""
    count = windows.clips("train")[row]
    chosen = np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int))
    return [windows.read(row, int(clip), None) for clip in chosen]


def song_bits(bits: WindowBits, samples: list[dict], device: torch.device) -> float:
    """Mean bits a code over the windows of one song."""
    batches = (samples[first : first + BATCH] for first in range(0, len(samples), BATCH))
    return float(torch.cat([bits(collated(batch, device)).cpu() for batch in batches]).mean())


def collated(samples: list[dict], device: torch.device) -> dict[str, Any]:
    """Windows as one batch."""

    def stack(values: list) -> Any:
        if isinstance(values[0], Mapping):
            return {name: stack([value[name] for value in values]) for name in values[0]}
        return torch.from_numpy(np.stack(values)).to(device)

    return stack(samples)


@torch.inference_mode()
def window_bits(prior: Prior, batch: dict[str, Any]) -> Tensor:
    """Mean bits [B] a code of each window; `Prior.forward` gives the mean over the batch."""
    given, tokens = prior.conditioning(batch), prior.tokens(batch)
    logits_BTV, prefix = prior.logits(tokens, given), prior.config.prefix_tokens
    nats_BT = F.cross_entropy(
        logits_BTV[:, prefix:].transpose(1, 2), tokens[:, prefix:], reduction="none"
    )
    return nats_BT.mean(1) / np.log(2)


# ---- Teacher and student


def divergence(
    teacher: Bits, student: Bits, of_teacher: Mapping[str, Any], of_student: Mapping[str, Any]
) -> Iterator[MetricValue]:
    """KL divergences per code, by Monte Carlo: exact likelihoods of songs that each of the two has sampled.

        forward  E over the teacher's songs of  log p(teacher) - log p(student)      what the student cannot say
        reverse  E over the student's songs of  log p(student) - log p(teacher)      what the teacher would not say

    `teacher` and `student` give the bits a code of one song; what a song is, is theirs to know.
    """
    if of_teacher:
        yield mean_score(
            "forward_kl_bits", {k: student(song) - teacher(song) for k, song in of_teacher.items()}
        )
    if of_student:
        yield mean_score(
            "reverse_kl_bits", {k: teacher(song) - student(song) for k, song in of_student.items()}
        )


JUDGED = {
    "kl_forward": "forward_kl_bits",
    "kl_reverse": "reverse_kl_bits",
    "bits_per_code_of_songs": "bits_per_code",
}


def judged_windows(found: Mapping[str, Tensor]) -> Iterator[MetricValue]:
    """Scores of what the judge of a student in training measures, a value [windows] each, by the judge's own names."""
    for name, values in found.items():
        if name in JUDGED:
            yield mean_score(
                JUDGED[name], {f"window-{n:04d}": value for n, value in enumerate(values.tolist())}
            )
