"""Lyrics for the page: lines of pieces, with the time each is sung where an alignment or an `.lrc` file gives it."""

from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from megajukebox.common.untrusted_files import read_inside
from megajukebox.conditioning.lrc import TimedWord, parse_lrc

MAX_LYRICS_BYTES = 1 << 20
LATEST_SECONDS = 1e9  # later times are no times of a song


@dataclass(frozen=True)
class LyricPiece:
    """A word, or what stands between words. Seconds from the start of the song; None where they are not known."""

    text: str
    start: float | None = None
    end: float | None = None
    confidence: float | None = None  # 0..1, of words timed by a model's attention


@dataclass(frozen=True)
class AlignedLyricWord(TimedWord):
    confidence: float | None = None


LyricLine = list[LyricPiece]


def read_lyrics(
    folder: Path, document: PurePath, requested: str, alignment: Any
) -> list[LyricLine]:
    """Lyrics of a sample: timed by its JSON's alignment, else its `.lrc`; else `.txt`, or as requested.

    Args:
        document: the name of its JSON within `folder`; lyrics that lie behind a link are none.
    """
    for sung in (requested, parse_lrc(requested)[0]):  # as a prior reads them: without headers
        aligned = aligned_words(sung, alignment)
        if aligned:
            return split_lines(sung, aligned)
    text = requested
    for extension in (".lrc", ".txt"):
        try:
            content = read_inside(folder, document.with_suffix(extension), MAX_LYRICS_BYTES)
        except OSError:
            continue
        text = content.decode("utf-8", errors="replace")
        break
    return split_lines(*parse_lrc(text))  # a request may hold times; plain text comes back as it is


def aligned_words(text: str, alignment: Any) -> list[TimedWord]:
    """The words of a sample's alignment, in order; [] unless every one of them fits the text."""
    records = alignment.get("words") if isinstance(alignment, dict) else None
    words: list[TimedWord] = []
    previous_end = 0
    for record in records if isinstance(records, list) else []:
        word = parse_aligned_word(record)
        if word is None or not word.t0 <= word.t1 < LATEST_SECONDS:
            return []
        if not previous_end <= word.start_char < word.end_char <= len(text):
            return []
        written = text[word.start_char : word.end_char]
        if record.get("text", written) != written:  # of lyrics that were read otherwise
            return []
        words.append(word)
        previous_end = word.end_char
    return words


def parse_aligned_word(record: Any) -> AlignedLyricWord | None:
    """None if the record is not one of a word."""
    try:
        confidence = record.get("confidence")
        return AlignedLyricWord(
            int(record["start_char"]),
            int(record["end_char"]),
            float(record["t0"]),
            float(record["t1"]),
            confidence and float(confidence),
        )
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        return None


def split_lines(text: str, words: list[TimedWord]) -> list[LyricLine]:
    """Cut `text` into lines, each into its timed words and what is between them; [] for blank text."""
    if not text.strip():
        return []
    lines = []
    start = 0
    first = 0  # of the words that are not in a line yet
    for line in text.rstrip().split("\n"):
        end = start + len(line)
        last = first
        while last < len(words) and words[last].start_char < end:
            last += 1
        lines.append(split_words(text, start, end, words[first:last]))
        first = last
        start = end + 1
    return lines


def split_words(text: str, start: int, end: int, words: list[TimedWord]) -> LyricLine:
    """The pieces of `text[start:end]`, in which `words` are timed."""
    pieces = []
    for word in words:
        confidence = getattr(word, "confidence", None)
        sung = text[word.start_char : word.end_char]
        pieces.append(LyricPiece(text[start : word.start_char]))
        pieces.append(LyricPiece(sung, word.t0, word.t1, confidence))
        start = word.end_char
    pieces.append(LyricPiece(text[start:end]))
    return [piece for piece in pieces if piece.text]


def plain_text(lyrics: list[LyricLine]) -> str:
    """The words alone."""
    lines = []
    for pieces in lyrics:
        lines.append("".join(piece.text for piece in pieces))
    return "\n".join(lines)
