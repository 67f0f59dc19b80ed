"""Which head of a prior follows the lyrics: chosen over a few songs, kept as `alignment.json` in the prior's run."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from megajukebox.common.errors import UserError
from megajukebox.common.files import write_atomic
from megajukebox.common.levels import ALIGNMENT_FILE
from megajukebox.common.untrusted_files import parse_json, read_inside
from megajukebox.conditioning.schema import SongConditioning
from megajukebox.models.lyric_attention import lyric_layers
from megajukebox.models.prior import Prior
from megajukebox.sampling.lyrics.alignment import Head, align
from megajukebox.sampling.lyrics.word_timing import (
    SungWord,
    attention_over_words,
    monotonicity,
    proportional_starts,
    word_times,
    words_of,
)

# Nats a code. Heads that do not follow the lyrics scored up to 0.1, one that had learned to 1.35 (docs/decisions/0031).
MIN_FOLLOWING_SCORE = 0.3


class AlignmentHead(BaseModel):
    """The head whose attention gives the words their times, and how far it is to be trusted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: int
    head: int
    score: float | None = (
        None  # monotonicity, nats a code; None: the pair was known, as for released weights
    )
    songs: int = 0  # it was chosen over
    follows: bool = True  # False: it gives words no times
    error_ms: float | None = None  # median error of the start of words whose times are known
    proportion_ms: float | None = None  # the same if the words were sung evenly over the song
    weights: str | None = None  # fingerprint of the prior

    @property
    def pair(self) -> Head:
        return self.layer, self.head


def read_alignment_head(folder: Path) -> AlignmentHead | None:
    """The head that `align` chose for a run, if it did."""
    try:
        return AlignmentHead.model_validate(parse_json(read_inside(folder, ALIGNMENT_FILE)))
    except FileNotFoundError:
        return None


def write_alignment_head(folder: Path, choice: AlignmentHead) -> None:
    write_atomic(
        folder / ALIGNMENT_FILE, (json.dumps(choice.model_dump(), indent=1) + "\n").encode()
    )


@dataclass(frozen=True)
class AlignedSong:
    """A real song of `samples` audio samples, to choose by. Its words have times where they are known."""

    conditioning: SongConditioning
    text: str
    codes: Tensor  # [T] int64
    samples: int


def score_heads(prior: Prior, songs: Sequence[AlignedSong]) -> dict[Head, float]:
    """The mean monotonicity of every (layer, head) that reads lyrics, in nats a code."""
    device = next(prior.parameters()).device
    mean_scores: dict[Head, float] = {}
    for layer in lyric_layers(
        prior
    ):  # layer by layer: the heads of one over a song fill enough memory
        pairs = [(layer, head) for head in range(prior.config.transformer.heads)]
        scores = []
        for song in songs:
            codes_BT = song.codes[None].to(device)
            untimed = song.conditioning.without_word_times()  # the prior is to find them
            attention = align(prior, [untimed], codes_BT, song.samples, pairs)
            words = words_of(song.text)
            over_words = []
            for pair in pairs:
                attention_TN = attention[pair][0]
                over_words.append(
                    attention_over_words(attention_TN, song.conditioning.tokens, words)
                )
            scores.append(monotonicity(np.stack(over_words)))
        for pair, score in zip(pairs, np.mean(scores, axis=0)):
            mean_scores[pair] = float(score)
    return mean_scores


def choose_head(
    prior: Prior, songs: Sequence[AlignedSong], weights: str | None = None
) -> tuple[AlignmentHead, dict[Head, float]]:
    """The head of the best score over `songs`, and the scores of all.

    Where words have known times, it follows the lyrics if its times are better than those of words sung evenly; else
    if its score is that of a head that follows.

    Raises:
        UserError: the prior reads no lyrics, or there is no song to choose by.
    """
    if not lyric_layers(prior):
        raise UserError(
            f"the {prior.config.level} prior reads no lyrics; there is nothing to align"
        )
    if not songs:
        raise UserError("no song with lyrics to choose by; give code shards of songs with lyrics")
    scores = score_heads(prior, songs)
    (layer, head), score = max(scores.items(), key=lambda item: item[1])
    choice = AlignmentHead(
        layer=layer,
        head=head,
        score=score,
        songs=len(songs),
        follows=score > MIN_FOLLOWING_SCORE,
        weights=weights,
    )
    errors, even_errors = word_start_errors(prior, songs, choice.pair)
    if not len(errors):
        return choice, scores
    error_ms = float(np.median(errors))
    even_ms = float(np.median(even_errors))
    measured = {
        "error_ms": error_ms,
        "proportion_ms": even_ms,
        "follows": choice.follows and error_ms < even_ms,
    }
    return choice.model_copy(update=measured), scores


def word_start_errors(
    prior: Prior, songs: Sequence[AlignedSong], pair: Head
) -> tuple[np.ndarray, np.ndarray]:
    """How far (ms) each word's start is from its known one: by the head `pair`, and sung evenly over the song."""
    errors: list[float] = []
    even_errors: list[float] = []
    for song in songs:
        known_starts = {word.start_char: word.t0 for word in song.conditioning.words}
        if not known_starts:
            continue
        seconds = song.samples / prior.config.sample_rate
        even_starts = proportional_starts(song.conditioning.tokens, words_of(song.text), seconds)
        untimed = song.conditioning.without_word_times()
        words = sung_words(prior, untimed, song.text, song.codes, song.samples, pair)
        for word, even_start in zip(words, even_starts):
            if word.start_char in known_starts:
                known = known_starts[word.start_char]
                errors.append(abs(word.t0 - known) * 1000)
                even_errors.append(abs(even_start - known) * 1000)
    return np.array(errors), np.array(even_errors)


@torch.inference_mode()
def sung_words(
    prior: Prior,
    conditioning: SongConditioning,
    text: str,
    codes_T: Tensor,
    samples: int,
    pair: Head,
    whole: bool = True,
) -> list[SungWord]:
    """When each word of `text` is sung in `codes`, read from one head; [] where there are no words.

    Args:
        whole: False where the codes end before the song does, so that the last words may not be sung.
    """
    words = words_of(text)
    if not words or not conditioning.tokens.ids or not len(codes_T):
        return []
    codes_BT = codes_T[None].to(next(prior.parameters()).device)
    attention = align(prior, [conditioning], codes_BT, samples, [pair])[pair][0]
    seconds_per_code = prior.config.hop / prior.config.sample_rate
    return word_times(
        attention_over_words(attention, conditioning.tokens, words), words, seconds_per_code, whole
    )
