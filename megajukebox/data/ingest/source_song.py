"""One song on its way in: its file, what is known of it, its words; and the checks that all sources of them share."""

import codecs
import re
import unicodedata
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
)
from pydantic_core import PydanticCustomError

from megajukebox.common.errors import UserError
from megajukebox.common.untrusted_files import open_given, open_inside, parse_json
from megajukebox.common.validation_errors import no_switch, shortened
from megajukebox.conditioning.song_sections import checked_sections, read_label_lines
from megajukebox.records.ingest_notes import IngestNote

LYRICS_SUFFIXES = (".lrc", ".txt")  # where a song has both, the timed ones count
SECTIONS_SUFFIX = ".sections.txt"  # lines `12.4 verse`
MAX_BESIDE = 4 << 20  # bytes of a file beside a song
MAX_LYRICS = 200_000  # characters; a longer text beside a song is not its lyrics


@dataclass(frozen=True)
class SourceSong:
    """One song on the way in. `refusal` says why it cannot be used, `notes` what was ignored."""

    path: Path
    name: str  # in reports: its path below the folder, or as the manifest has it
    metadata: dict[str, Any] = field(default_factory=dict)  # the known fields of SongMetadata
    lyrics: str | None = None
    lyrics_kind: str | None = None  # "txt" plain, "lrc" timed
    refusal: str | None = None
    notes: tuple[IngestNote, ...] = ()
    within: tuple[Path, Path] | None = None  # (folder, path in it) that are opened, past no link

    def open(self) -> BinaryIO:
        """The audio, open. Of a folder it is what was found there: nothing can be exchanged for a link since.

        Raises:
            OSError: it is gone, or no regular file.
        """
        return open_inside(*self.within) if self.within else open_given(self.path)


def as_list(value: Any) -> Any:
    """`"rock; pop"` -> ["rock", "pop"]; lists as they are.

    Empty entries go, order stays, repeats go.
    """
    parts = value.split(";") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)) or not all(isinstance(part, str) for part in parts):
        return value
    return list(dict.fromkeys(part.strip() for part in parts if part.strip()))


def one_line(text: str) -> str:
    """A name without breaks of lines.

    Raises:
        PydanticCustomError: it was decoded wrongly, for it holds what nobody writes into a name.
    """
    line = re.sub(r"[\t\n\v\f\r\x85\u2028\u2029]+", " ", text)
    for character in line:
        if character == "\ufffd" or unicodedata.category(character) in ("Cc", "Cs"):
            raise PydanticCustomError(
                "unreadable_text",
                "it holds {code}, so it is no readable text: mend its encoding",
                {"code": f"U+{ord(character):04X}"},
            )
    return line


Text = Annotated[str, Field(max_length=1000), AfterValidator(one_line)]
Labels = Annotated[list[Text], BeforeValidator(as_list)]


def as_sections(value: Any) -> list[dict[str, Any]]:
    """Sections as a list of mappings, or as text: `12.4 verse; 33.2 chorus`."""
    try:
        return read_label_lines(value) if isinstance(value, str) else checked_sections(value)
    except UserError as error:
        raise PydanticCustomError("sections", "{reason}", {"reason": str(error)}) from None


Sections = Annotated[list[dict[str, Any]], BeforeValidator(as_sections)]


class SongMetadata(BaseModel):
    """What may be known of a song. Every field is optional; other fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)

    artist: Text | None = None
    album: Text | None = None
    title: Text | None = None
    genres: Labels | None = None
    year: Annotated[int, Field(ge=0, le=9999), BeforeValidator(no_switch)] | None = None
    moods: Labels | None = None
    keywords: Labels | None = None
    language: Text | None = None
    licence: Text | None = None
    sections: Sections | None = None


def place_within(folder: Path, path: Path) -> tuple[Path, Path]:
    """(folder, path in it) of what `path` leads to, both without links.

    Raises:
        UserError: it is a link that leaves the folder.
    """
    root = folder.resolve()
    try:
        file = path.resolve()
    except (OSError, RuntimeError) as error:  # links in a circle
        raise UserError(f"{path.name} cannot be followed ({error})") from None
    if not file.is_relative_to(root):
        raise UserError(
            f"{path.name} is a link that leaves the folder; put the file there, or give --follow-links"
        )
    return root, file.relative_to(root)


# ---- checks shared by all


def checked(values: dict[str, Any], where: str) -> dict[str, Any]:
    """The known metadata, in the order of SongMetadata's fields; what is empty counts as
    missing.
    """
    try:
        metadata = SongMetadata.model_validate(values).model_dump()
    except ValidationError as error:
        mistake = error.errors()[0]
        name = mistake["loc"][0]
        reason = mistake["msg"].removeprefix("Value error, ")
        way_out = reason[0].lower() + reason[1:]
        raise UserError(
            f"{where}: field {name!r} is {shortened(mistake['input'])}; {way_out}, or leave the field out"
        ) from error
    return {name: value for name, value in metadata.items() if value not in (None, "", [])}


def with_lyrics(song: SourceSong, lyrics: Any, kind: str, where: str) -> SourceSong:
    """`song` with these lyrics; blank ones are none."""
    if not isinstance(lyrics, str):
        raise UserError(
            f"{where}: field 'lyrics' is {lyrics!r}; give the text itself, or leave the field out"
        )
    if len(lyrics) > MAX_LYRICS:
        raise UserError(
            f"{where}: lyrics of {len(lyrics)} characters; at most {MAX_LYRICS} are taken"
        )
    # JSON can spell halves of characters
    text = lyrics.replace("\r\n", "\n").encode("utf-8", "replace").decode()
    return replace(song, lyrics=text, lyrics_kind=kind) if text.strip() else song


def json_object(text: str, where: str) -> dict[str, Any]:
    """The JSON object in `text`."""
    try:
        value = parse_json(text)
    except ValueError as error:
        raise UserError(f"{where}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(
            f"{where}: {type(value).__name__} instead of an object; write {{...}} with the fields in it"
        )
    return value


# mark at the start of a text -> its encoding; the longer one first, for UTF-32's begins like UTF-16's
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def decoded_text(data: bytes) -> tuple[str, str]:
    """(text, its encoding) of a file: by its byte order mark, else UTF-8, else UTF-16 that shows by its zero bytes.

    Raises:
        ValueError: it is none of these.
    """
    for mark, encoding in MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding), encoding
    if b"\0" not in data:
        return data.decode(), "utf-8"
    # Letters, digits and brackets have their zero behind them in little endian, before them in big endian.
    little = data[1::2].count(0) >= data[0::2].count(0)
    encoding = "utf-16-le" if little else "utf-16-be"
    text = data.decode(encoding)
    if any(unicodedata.category(c) in ("Cc", "Cn", "Co") and c not in "\t\n\r" for c in text):
        raise ValueError("it holds zero bytes, but is not UTF-16")
    return text, encoding


def text_of(path: Path, data: bytes) -> str:
    """The text in `data` of the file at `path`, without a byte order mark."""
    try:
        return decoded_text(data)[0]
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path.name}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error
    except ValueError as error:
        raise UserError(f"{path.name}: not UTF-8 text ({error}); save it as UTF-8") from error
