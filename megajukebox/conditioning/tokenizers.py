"""Lyrics as tokens that remember their characters, and the window of tokens a clip is conditioned on."""

import io
import unicodedata
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import sentencepiece
from anyascii import anyascii

from megajukebox.common.files import write_atomic
from megajukebox.conditioning.lrc import TimedWord

PADDING = 0
LYRICS_MODEL = "lyrics.model"  # a SentencePiece model, beside shards with lyrics and in the runs trained on them
SPACE_PIECE = "▁"  # how SentencePiece writes a space inside its pieces
FIXED_PIECES = 1 + 1 + 256 + 1  # padding, newline, the bytes, space: always in the vocabulary
PROBE = " Two  spaces,\ttab\nline é 音 🎵 ▁ "


@dataclass(frozen=True)
class TokenizedLyrics:
    """Token `ids` and, for each, the characters [start, end) of the original text it stands for.

    The bytes of one character share its span.
    """

    ids: list[int]
    spans: list[tuple[int, int]]


class LyricsTokenizer(Protocol):
    """What the stream, the sampler and the alignment need of a tokenizer."""

    @property
    def size(self) -> int:
        """Number of ids, padding (id 0, prints as nothing) included."""

    def encode(self, text: str) -> TokenizedLyrics: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class SentencePieceTokenizer:
    """Subword tokens with byte fallback: any text of any script comes back unchanged.

    Refuses (ValueError) a model that would change the text; `train_sentencepiece` makes one that does not.
    """

    def __init__(self, path: Path | str) -> None:
        self._model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        self.size = self._model.get_piece_size()
        pieces = [self._model.id_to_piece(i) for i in range(self.size)]
        byte = [
            int(piece[3:5], 16) if self._model.is_byte(i) else -1 for i, piece in enumerate(pieces)
        ]
        self._bytes = [
            bytes([b]) if b >= 0 else p.replace(SPACE_PIECE, " ").encode()
            for p, b in zip(pieces, byte)
        ]
        self._bytes[PADDING] = b""
        # Characters a token moves on by; -1 for a byte, which is only a part of one.
        self._length = [-1 if b >= 0 else len(piece) for piece, b in zip(pieces, byte)]
        self._space_mark = [byte.index(b) for b in SPACE_PIECE.encode()] if max(byte) == 255 else []
        if not self._space_mark or self.decode(self.encode(PROBE).ids) != PROBE:
            raise ValueError(
                f"lyrics model {path} does not keep text as it is; make one with train_sentencepiece"
            )

    def encode(self, text: str) -> TokenizedLyrics:
        # A real "▁" in the text would be read as a space, so it goes in as its three bytes.
        parts = self._model.encode(text.split(SPACE_PIECE))
        ids = parts[0]
        for part in parts[1:]:
            ids = ids + self._space_mark + part
        return TokenizedLyrics(ids, list(self._spans(ids)))

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self._bytes[i] for i in ids).decode("utf-8", errors="replace")

    def _spans(self, ids: Sequence[int]) -> Iterator[tuple[int, int]]:
        end, bytes_left = 0, 0
        for i in ids:
            if self._length[i] >= 0:
                start, end = end, end + self._length[i]
            elif bytes_left:
                bytes_left -= 1
            else:  # the first byte of a character tells how many follow
                start, end = end, end + 1
                bytes_left = utf8_followers(self._bytes[i][0])
            yield start, end


def utf8_followers(first: int) -> int:
    return 3 if first >= 0xF0 else 2 if first >= 0xE0 else 1 if first >= 0xC0 else 0


def train_sentencepiece(texts: Iterable[str], path: Path, vocabulary: int) -> None:
    """Write to `path` a SentencePiece model of at most `vocabulary` pieces (fewer where `texts` support fewer).

    The same texts give the same file. ValueError when there is no text, or no room for the bytes and the space.
    """
    if vocabulary < FIXED_PIECES + 1:
        raise ValueError(
            f"vocabulary {vocabulary} has no room beside bytes, space and newline; set at least {FIXED_PIECES + 1}"
        )
    counts = Counter(
        line for text in texts for line in text.replace("\t", " ").split("\n") if line.strip()
    )
    if not counts:
        raise ValueError(
            "no lyrics to train a tokenizer on; give songs with lyrics or train without lyrics"
        )
    lines = without_rare_characters(counts, room=(vocabulary - FIXED_PIECES + 1) // 2)
    sentencepiece.set_random_generator_seed(0)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=vocabulary,
        hard_vocab_limit=False,
        model_type="unigram",
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        byte_fallback=True,
        character_coverage=1.0,
        required_chars=SPACE_PIECE,
        user_defined_symbols=["\n"],
        unk_id=PADDING,
        pad_id=-1,
        bos_id=-1,
        eos_id=-1,
        input_sentence_size=4_000_000,
        shuffle_input_sentence=True,
        num_threads=1,
        minloglevel=2,
    )
    write_atomic(path, model.getvalue())


def without_rare_characters(counts: Counter[str], room: int) -> list[str]:
    """Lines (as often as they were sung) cut at all but the `room` most common characters; the rest will be bytes."""
    characters: Counter[str] = Counter()
    for line, times in counts.items():
        for character in line:
            characters[character] += times
    common = sorted(characters, key=lambda c: (-characters[c], c))[:room]
    cut = str.maketrans({c: "\n" for c in characters.keys() - set(common) - {" "}})
    lines = (line for line, times in counts.items() for _ in range(times))
    kept = [part for line in lines for part in line.translate(cut).split("\n") if part.strip()]
    return kept or [" "]


# ---- Jukebox's characters -------------------------------------------------------------------------------------------

LETTERS_AND_DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
CHARACTERS = {
    "v2": LETTERS_AND_DIGITS + ".,:;!?-+'\"()[] \t\n",
    "v3": LETTERS_AND_DIGITS + ".,:;!?-'\"()[] \t\n",
}
# What the released models were trained on where it differs from anyascii: double dashes, Greek by its classical values.
SPELLINGS = {"—": "--", "―": "--", "β": "b", "η": "e", "υ": "u", "φ": "ph", "χ": "kh"}


@lru_cache(maxsize=65536)
def spell(character: str) -> str:
    """One character in ASCII, as the released Jukebox models expect it; "" if it has no spelling."""
    base = unicodedata.normalize("NFD", character)[:1]
    if base.lower() in SPELLINGS:
        ascii = SPELLINGS[base.lower()]
        return ascii.capitalize() if base.isupper() else ascii
    if "⁄" in unicodedata.normalize(
        "NFKC", character
    ):  # a vulgar fraction stands off the word before it
        return " " + anyascii(character)
    if (
        "\u3400" <= character <= "\u9fff" or "\uf900" <= character <= "\ufaff"
    ):  # a Han character is a word of its own
        return anyascii(character) + " "
    return anyascii(character)


class JukeboxCharacters:
    """The released models' vocabulary: one token a character of the ASCII spelling. v2: 80 ids, v3 (without +): 79."""

    def __init__(self, version: Literal["v2", "v3"] = "v2") -> None:
        if version not in CHARACTERS:
            raise ValueError(f"character vocabulary {version!r} is not known; choose v2 or v3")
        self._characters = CHARACTERS[version]
        self._ids = {c: i for i, c in enumerate(self._characters, start=1)}
        self.size = len(self._characters) + 1

    def encode(self, text: str) -> TokenizedLyrics:
        spelt = [
            (c, i) for i, character in enumerate(text) for c in spell(character).replace("\\", "\n")
        ]
        kept = [(self._ids[c], i) for c, i in spelt if c in self._ids]
        return TokenizedLyrics([token for token, _ in kept], [(i, i + 1) for _, i in kept])

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self._characters[i - 1] for i in ids if i != PADDING)


def run_tokenizer(run: Path, facts: Mapping[str, Any]) -> LyricsTokenizer:
    """The tokenizer that the prior in `run` was trained with, by what its model.json (`facts`) says."""
    kind = facts.get("tokenizer") or LYRICS_MODEL
    if kind == "jukebox_v2":
        return JukeboxCharacters("v2")
    if kind == "jukebox_v3":
        return JukeboxCharacters("v3")
    return SentencePieceTokenizer(run / kind)


# ---- The window of lyrics for a clip --------------------------------------------------------------------------------


def linear_centre(tokens: int, song: int, offset: int, clip: int) -> int:
    """The token in the middle of a clip if `tokens` were sung evenly over the song (song, offset, clip in samples)."""
    return int(tokens * (offset + clip / 2.0) / song)


def linear_centre_float32(tokens: int, song: int, offset: int, clip: int) -> int:
    """`linear_centre` as Jukebox computes it while sampling: in single precision, so it can differ by one."""
    f = np.float32
    return int(f(tokens) * (f(offset) + f(clip) / f(2)) / f(song))


def sung_centre(tokens: TokenizedLyrics, words: Sequence[TimedWord], t: float) -> int:
    """The token sung at `t` seconds; between words the place moves evenly from one's end to the next one's start."""
    times = np.maximum.accumulate([time for word in words for time in (word.t0, word.t1)])
    characters = [character for word in words for character in (word.start_char, word.end_char)]
    character = float(np.interp(t, times, characters))
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
        raise ValueError(
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
