"""The window of lyric tokens that a window of codes is conditioned on: by the words' times, else by a linear rule."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megajukebox.common.errors import UserError
from megajukebox.conditioning.lrc import TimedWord
from megajukebox.conditioning.tokenizers import PADDING, TokenizedLyrics


def linear_centre(tokens: int, song: int, offset: int, clip: int) -> int:
    """The token in the middle of a clip if `tokens` were sung evenly over the song (song, offset, clip in samples)."""
    return int(tokens * (offset + clip / 2.0) / song)


def linear_centre_float32(tokens: int, song: int, offset: int, clip: int) -> int:
    """`linear_centre` as Jukebox computes it while sampling: in single precision, so it can differ by one."""
    f = np.float32
    return int(f(tokens) * (f(offset) + f(clip) / f(2)) / f(song))


def sung_centre(tokens: TokenizedLyrics, words: Sequence[TimedWord], t: float) -> int:
    """The token sung at `t` seconds; between words the place moves evenly from one's end to the next one's start."""
    times: list[float] = []
    characters: list[int] = []
    for word in words:
        times += (word.t0, word.t1)
        characters += (word.start_char, word.end_char)
    character = float(np.interp(t, np.maximum.accumulate(times), characters))
    return max(0, bisect_right([start for start, _ in tokens.spans], character) - 1)


@dataclass(frozen=True)
class LyricWindow:
    """`ids` [size] int64 (0 = padding) and `index` [size] int64: which token of the song each is (-1 = padding)."""

    ids: np.ndarray
    index: np.ndarray


def lyric_window(ids: Sequence[int] | np.ndarray, centre: int, size: int) -> LyricWindow:
    """The `size` tokens around token `centre`, kept inside the song; short lyrics are padded on the left.

    tokens  l l l l l [l l l l l l] l l l l l     or, short:  [0 0 0 l l l]
                             centre
    """
    if size % 2:
        raise UserError(
            f"lyric window of {size} tokens cannot be centred; set an even number, such as {size + 1}"
        )
    index = np.full(size, -1, dtype=np.int64)
    if len(ids) < size:
        index[size - len(ids) :] = np.arange(len(ids))
    else:
        middle = min(max(centre, size // 2), len(ids) - size // 2)
        index[:] = np.arange(middle - size // 2, middle + size // 2)
    padded = np.append(np.asarray(ids, dtype=np.int64), PADDING)  # index -1 finds the padding
    return LyricWindow(ids=padded[index], index=index)


def window_of_lyrics(
    tokens: TokenizedLyrics,
    words: Sequence[TimedWord],
    song: int,
    offset: int,
    clip: int,
    sample_rate: int,
    size: int,
) -> LyricWindow:
    """The lyrics around the middle of a clip: by the words' times where there are any, else by the linear rule.

    `song`, `offset` and `clip` in audio samples.
    """
    if words and tokens.ids:
        centre = sung_centre(tokens, words, (offset + clip / 2) / sample_rate)
    else:
        centre = linear_centre(len(tokens.ids), song, offset, clip)
    return lyric_window(tokens.ids, centre, size)
