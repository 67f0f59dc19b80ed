"""Lyrics for the page: lines of pieces, with the time each is sung where an alignment or an `.lrc` file knows it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megajukebox.conditioning.lrc import TimedWord, parse_lrc


@dataclass(frozen=True)
class Piece:
    """A word, or what stands between words. Seconds from the start of the song; None where nobody knows."""

    text: str
    start: float | None = None
    end: float | None = None
    confidence: float | None = None  # 0..1, of words timed by a model's attention


@dataclass(frozen=True)
class AlignedLyricWord(TimedWord):
    confidence: float | None = None


Line = list[Piece]


def read_lyrics(path: Path, requested: str, alignment: Any) -> list[Line]:
    """Lyrics of the sample at `path`: timed by its JSON's alignment, else its `.lrc`; else `.txt`, or as asked."""
    heard = aligned_words(requested, alignment)
    if heard:
        return lines(requested, heard)
    written = next(
        (file for ending in (".lrc", ".txt") if (file := path.with_suffix(ending)).is_file()), None
    )
    text = written.read_text(encoding="utf-8", errors="replace") if written else requested
    return lines(*parse_lrc(text))  # a request may hold times too; plain text comes back as it is


def aligned_words(text: str, alignment: Any) -> list[TimedWord]:
    """The words of a sample's alignment, in order; [] unless every one of them fits the text."""
    given = alignment.get("words") if isinstance(alignment, dict) else None
    words: list[TimedWord] = []
    for one in given if isinstance(given, list) else []:
        try:
            start, end, confidence = (
                int(one["start_char"]),
                int(one["end_char"]),
                one.get("confidence"),
            )
            word = AlignedLyricWord(
                start, end, float(one["t0"]), float(one["t1"]), confidence and float(confidence)
            )
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
            return []
        if (
            not (words[-1].end_char if words else 0) <= start < end <= len(text)
            or not word.t0 <= word.t1 < 1e9
        ):
            return []
        words.append(word)
    return words


def lines(text: str, words: list[TimedWord]) -> list[Line]:
    """Cut `text` into lines, each into its timed words and what is between them."""
    start, cut, following = 0, [], list(words)[::-1]
    for line in text.rstrip().split("\n"):
        end = start + len(line)
        sung = []
        while following and following[-1].start_char < end:
            sung.append(following.pop())
        cut.append(pieces(text, start, end, sung))
        start = end + 1
    return cut if text.strip() else []


def pieces(text: str, start: int, end: int, words: list[TimedWord]) -> Line:
    line = []
    for word in words:
        confidence = getattr(word, "confidence", None)
        line.append(Piece(text[start : word.start_char]))
        line.append(Piece(text[word.start_char : word.end_char], word.t0, word.t1, confidence))
        start = word.end_char
    return [piece for piece in [*line, Piece(text[start:end])] if piece.text]


def plain(lyrics: list[Line]) -> str:
    """The words alone."""
    return "\n".join("".join(piece.text for piece in line) for line in lyrics)
