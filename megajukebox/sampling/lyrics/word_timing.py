"""When each word is sung: the best walk through the words of a song, forwards, over what the attention says."""

# T codes of a song   N words   K attention heads   S states of a walk (2 N + 1)
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megajukebox.conditioning.lrc import TimedWord
from megajukebox.conditioning.tokenizers import TokenizedLyrics

FLOOR = 0.01  # attention below this share of a word's mean counts as this share: one code must not veto a walk


@dataclass(frozen=True)
class SungWord(TimedWord):
    """A word with its times and, in 0..1, its share of the attention that all words get while it is sung."""

    confidence: float


def words_of(text: str) -> list[tuple[int, int]]:
    """The characters [start, end) of every word of `text`."""
    return [word.span() for word in re.finditer(r"\S+", text)]


def attention_over_words(
    attention_TN: np.ndarray, tokens: TokenizedLyrics, words: Sequence[tuple[int, int]]
) -> np.ndarray:
    """Attention to tokens [..., tokens] summed to attention to `words` [..., N].

    What a code reads at token j was made of the tokens before j (spec section 14), so token j is found at j + 1:

        tokens     mo  on   _li  ght
        read at   [ ]  mo   on   _li  (ght: nowhere, so the last token is looked for at its own place)
    """
    starts, ends = np.array(tokens.spans).T
    out = np.zeros((*attention_TN.shape[:-1], len(words)), dtype=np.float32)
    for n, (start, end) in enumerate(words):
        of_word = np.flatnonzero((starts < end) & (ends > start))
        out[..., n] = attention_TN[..., np.unique(np.minimum(of_word + 1, len(starts) - 1))].sum(-1)
    return out


def evidence(attention_TN: np.ndarray) -> np.ndarray:
    """How much more each code reads each word than codes do on average, [..., T, N] in nats.

    Heads like some words (the first, the rare ones) whatever is sung; measured against the word's own mean, over the
    codes whose window held it, that liking is gone, and 0 says "nothing special", which is what a pause should say.
    """
    seen = np.maximum((attention_TN > 0).sum(-2, keepdims=True), 1)
    mean = np.maximum(attention_TN.sum(-2, keepdims=True) / seen, 1e-20)
    return np.log((attention_TN / mean + FLOOR) / (1 + FLOOR))


# ---- Walks: pause, word 0, pause, word 1, ... pause ------------------------------------------------------------------


def advance(best_KS: np.ndarray, gain_KN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One code further: the best sum that ends in each state, and by how many states (0, 1, 2) it came there.

    A walk stays, goes on by one, or from word to word over a pause of no length. A pause gains nothing.
    """
    come = np.full((3, *best_KS.shape), -np.inf)
    come[0] = best_KS
    come[1, :, 1:] = best_KS[:, :-1]
    come[2, :, 3::2] = best_KS[:, 1:-2:2]
    best = come.max(0)
    best[:, 1::2] += gain_KN
    return best, come.argmax(0)


def initial_scores(gain_KN: np.ndarray) -> np.ndarray:
    """The first code is a pause or the first word."""
    best = np.full((len(gain_KN), 2 * gain_KN.shape[1] + 1), -np.inf)
    best[:, 0] = 0.0
    best[:, 1] = gain_KN[:, 0]
    return best


def walk_gain(gain_KTN: np.ndarray) -> np.ndarray:
    """What the best walk from the first word to the last gains, [K]; if the codes are too few, to any word."""
    best = initial_scores(gain_KTN[:, 0])
    for t in range(1, gain_KTN.shape[1]):
        best, _ = advance(best, gain_KTN[:, t])
    return (best[:, -2:] if gain_KTN.shape[2] <= gain_KTN.shape[1] else best).max(1)


def best_walk(gain_TN: np.ndarray, whole: bool = True) -> np.ndarray:
    """The word at which the best walk is for each code, [T] int64; -1 in a pause. Not `whole`: it ends at any word."""
    best = initial_scores(gain_TN[:1])
    came = []
    for gain in gain_TN[1:]:
        best, move = advance(best, gain[None])
        came.append(move[0].astype(np.int8))
    last = best.shape[1] - 2 if whole else 0
    states = [last + int(best[0, last:].argmax())]
    for move in reversed(came):
        states.append(states[-1] - int(move[states[-1]]))
    walk = np.array(states[::-1])
    return np.where(walk % 2 == 1, walk // 2, -1)


def monotonicity(attention_KTN: np.ndarray) -> np.ndarray:
    """How much better each head reads the words forwards than backwards, [K] in nats a code.

    The gain of the best walk through the words, less that of the best walk through the same attention with time
    reversed. A walk finds some gain in any noise, but as much in either direction: what does not follow the words
    scores about 0, and so does what never moves.
    """
    gain = evidence(attention_KTN)
    return (walk_gain(gain) - walk_gain(gain[:, ::-1])) / gain.shape[1]


def word_times(
    attention_TN: np.ndarray,
    words: Sequence[tuple[int, int]],
    seconds_per_code: float,
    whole: bool = True,
) -> list[SungWord]:
    """The `words` (spans of characters) with their times, by the best walk over attention [T, N].

    With `whole` all of them are sung, if there are codes enough; else those that the walk reaches.
    A pause is what gains less than half of what sung codes do. Without that, chance readings that
    gain a little would draw a word out into the pause beside it.
    """
    whole = whole and len(words) <= len(attention_TN)
    gain_TN = evidence(attention_TN)
    first_walk = best_walk(gain_TN, whole)
    sung_codes = np.flatnonzero(first_walk >= 0)
    typical = gain_TN[sung_codes, first_walk[sung_codes]].mean() if len(sung_codes) else 0.0
    walk = best_walk(gain_TN - max(0.0, typical / 2), whole)
    shares = attention_TN / np.maximum(attention_TN.sum(1, keepdims=True), 1e-20)
    sung = []
    for n in range(walk.max() + 1):
        codes = np.flatnonzero(walk == n)
        t0 = float(codes[0] * seconds_per_code)
        t1 = float((codes[-1] + 1) * seconds_per_code)
        sung.append(SungWord(*words[n], t0, t1, float(shares[codes, n].mean())))
    return sung


def proportional_starts(
    tokens: TokenizedLyrics, words: Sequence[tuple[int, int]], seconds: float
) -> np.ndarray:
    """Start of each word, [N] seconds, if the tokens were sung evenly over the song: what an alignment has to beat."""
    _, token_ends = np.array(tokens.spans).reshape(-1, 2).T
    word_starts, _ = np.array(words).reshape(-1, 2).T
    first = np.searchsorted(token_ends, word_starts, side="right")
    return first * seconds / max(1, len(tokens.spans))
