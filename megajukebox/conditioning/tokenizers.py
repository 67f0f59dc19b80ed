"""Lyrics as tokens that remember their characters, and the window of tokens a clip is conditioned on."""

import io
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol

import sentencepiece
from text_unidecode import unidecode

from megajukebox.common.errors import UserError
from megajukebox.common.files import write_atomic

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

    Refuses (UserError) a model that would change the text; `train_sentencepiece` makes one that does not.
    """

    def __init__(self, path: Path | str) -> None:
        self._model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        self.size = self._model.get_piece_size()
        self._bytes: list[bytes] = []  # of each token
        self._length: list[int] = []  # characters a token moves on by; -1 for a byte, a part of one
        id_of_byte: dict[int, int] = {}
        for i in range(self.size):
            piece = self._model.id_to_piece(i)
            if self._model.is_byte(i):
                byte = int(piece[3:5], 16)  # "<0xE2>"
                id_of_byte.setdefault(byte, i)
                self._bytes.append(bytes([byte]))
                self._length.append(-1)
            else:
                self._bytes.append(piece.replace(SPACE_PIECE, " ").encode())
                self._length.append(len(piece))
        self._bytes[PADDING] = b""
        self._space_mark: list[int] = []
        if len(id_of_byte) == 256:
            self._space_mark = [id_of_byte[byte] for byte in SPACE_PIECE.encode()]
        if not self._space_mark or self.decode(self.encode(PROBE).ids) != PROBE:
            raise UserError(
                f"lyrics model {path} does not keep text as it is; make one with train_sentencepiece"
            )

    def encode(self, text: str) -> TokenizedLyrics:
        # A real "▁" in the text would be read as a space, so it goes in as its three bytes.
        parts = self._model.encode(text.split(SPACE_PIECE))
        ids = parts[0]
        for part in parts[1:]:
            ids = ids + self._space_mark + part
        spans: list[tuple[int, int]] = []
        start = 0
        end = 0
        bytes_left = 0  # of the character that the last byte token began
        for i in ids:
            if self._length[i] >= 0:
                start = end
                end += self._length[i]
            elif bytes_left:
                bytes_left -= 1
            else:
                start = end
                end += 1
                first = self._bytes[i][0]  # UTF-8: it says how many bytes follow
                bytes_left = (first >= 0xC0) + (first >= 0xE0) + (first >= 0xF0)
            spans.append((start, end))
        return TokenizedLyrics(ids, spans)

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self._bytes[i] for i in ids).decode("utf-8", errors="replace")


def train_sentencepiece(texts: Iterable[str], path: Path, vocabulary: int) -> None:
    """Write to `path` a SentencePiece model of at most `vocabulary` pieces (fewer where `texts` support fewer).

    The same texts give the same file. UserError when there is no text, or no room for the bytes and the space.
    """
    if vocabulary < FIXED_PIECES + 1:
        raise UserError(
            f"vocabulary {vocabulary} has no room beside bytes, space and newline; set at least {FIXED_PIECES + 1}"
        )
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(filter(str.strip, text.replace("\t", " ").split("\n")))
    if not counts:
        raise UserError(
            "no lyrics to train a tokenizer on; give songs with lyrics or train without lyrics"
        )
    trained_on = without_rare_characters(counts, (vocabulary - FIXED_PIECES + 1) // 2)
    sentencepiece.set_random_generator_seed(0)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(trained_on),
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


def without_rare_characters(counts: Counter[str], most: int) -> list[str]:
    """Lines (as often as they were sung) cut at all but the `most` common characters; the rest will be bytes."""
    characters: Counter[str] = Counter()
    for line, times in counts.items():
        for character in line:
            characters[character] += times
    common = sorted(characters, key=lambda c: (-characters[c], c))[:most]
    rare = characters.keys() - set(common) - {" "}
    cut = str.maketrans(dict.fromkeys(rare, "\n"))
    kept: list[str] = []
    for line, times in counts.items():
        parts = list(filter(str.strip, line.translate(cut).split("\n")))
        kept += parts * times
    return kept or [" "]


# ---- Jukebox's characters -------------------------------------------------------------------------------------------

LETTERS_AND_DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
CHARACTERS = {
    "v2": LETTERS_AND_DIGITS + ".,:;!?-+'\"()[] \t\n",
    "v3": LETTERS_AND_DIGITS + ".,:;!?-'\"()[] \t\n",
}
FRACTION_SLASH = "\u2044"  # what a vulgar fraction such as a half decomposes to


@lru_cache(maxsize=65536)
def spell(character: str) -> str:
    """One character in ASCII, as the released Jukebox models expect it; "" if it has no spelling.

    The tables are Unidecode's, which the released models were trained with: a Han character is followed by a space.
    """
    spelling = unidecode(character)
    if FRACTION_SLASH in unicodedata.normalize("NFKC", character):
        return (
            " " + spelling
        )  # newer tables than text-unidecode's set a fraction off from the word before it
    return spelling


class JukeboxCharacters:
    """The released models' vocabulary: one token a character of the ASCII spelling. v2: 80 ids, v3 (without +): 79."""

    def __init__(self, version: Literal["v2", "v3"] = "v2") -> None:
        if version not in CHARACTERS:
            raise UserError(f"character vocabulary {version!r} is not known; choose v2 or v3")
        self._characters = CHARACTERS[version]
        self.size = len(self._characters) + 1
        self._ids = dict(zip(self._characters, range(1, self.size)))

    def encode(self, text: str) -> TokenizedLyrics:
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        for i, character in enumerate(text):
            for spelt in spell(character).replace("\\", "\n"):
                if spelt in self._ids:
                    ids.append(self._ids[spelt])
                    spans.append((i, i + 1))
        return TokenizedLyrics(ids, spans)

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
