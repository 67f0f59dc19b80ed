"""Lyrics for the page: lines of pieces, with the time each is sung where an `.lrc` file knows it."""

from dataclasses import dataclass
from pathlib import Path

from megajukebox.data.lrc import Word, parse_lrc


@dataclass(frozen=True)
class Piece:
    """A word, or what stands between words. Seconds from the start of the song; None where nobody knows."""

    text: str
    start: float | None = None
    end: float | None = None


Line = list[Piece]


def read_lyrics(folder: Path, name: str, requested: str) -> list[Line]:
    """Lyrics of a sample: from `<name>.lrc`, else from `<name>.txt`, else those that were asked for."""
    written = next((path for path in (folder / f"{name}.lrc", folder / f"{name}.txt") if path.is_file()), None)
    text = written.read_text(encoding="utf-8", errors="replace") if written else requested
    return lines(*parse_lrc(text))  # a request may hold times too; plain text comes back as it is


def lines(text: str, words: list[Word]) -> list[Line]:
    """Cut `text` into lines, each into its timed words and what is between them."""
    start, cut = 0, []
    for line in text.rstrip().split("\n"):
        end = start + len(line)
        cut.append(pieces(text, start, end, [word for word in words if start <= word.start_char < end]))
        start = end + 1
    return cut if text.strip() else []


def pieces(text: str, start: int, end: int, words: list[Word]) -> Line:
    line = []
    for word in words:
        line += [Piece(text[start : word.start_char]), Piece(text[word.start_char : word.end_char], word.t0, word.t1)]
        start = word.end_char
    return [piece for piece in [*line, Piece(text[start:end])] if piece.text]
