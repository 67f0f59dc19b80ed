"""ID3v2 and ID3v1 tags: texts, genres by number, lyrics with and without times (id3.org: ID3v2.2, 2.3, 2.4).

Only frames that say something of a song are read, and only those that are neither packed nor encrypted.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from megajukebox.conditioning.lrc import clock

HEADER_BYTES = 10
MAX_TAG_BYTES = 32 << 20  # pictures may stand before the words
ID3V1_BYTES = 128
ENCODINGS = ("latin-1", "utf-16", "utf-16-be", "utf-8")  # by the first byte of a frame
WIDE = (1, 2)  # encodings whose texts end with two zero bytes
# frame of version 2.2, 2.3 or 2.4 -> our name of it
TEXT_FRAMES = {
    **{"TP1": "artist", "TAL": "album", "TT2": "title", "TCO": "genre", "TYE": "date"},
    **{"TPE1": "artist", "TALB": "album", "TIT2": "title", "TCON": "genre", "TYER": "date"},
    **{"TDRC": "date", "TCOP": "copyright"},
}
LYRICS_FRAMES = ("USLT", "ULT")
SYNCED_FRAMES = ("SYLT", "SLT")
MILLISECONDS = 2  # unit of the times in a SYLT frame
SUNG = (1, 2)  # contents of a SYLT frame: lyrics, transcription; others are chords, trivia ...
PACKED_OR_ENCRYPTED = {3: 0xC0, 4: 0x0C}  # bits of a frame's second byte of flags, by version
# The names of ID3v1's numbers, with Winamp's from 80 on.
GENRE_LIST = (
    "Blues|Classic Rock|Country|Dance|Disco|Funk|Grunge|Hip-Hop|Jazz|Metal|New Age|Oldies|Other|Pop|R&B|Rap|Reggae|"
    "Rock|Techno|Industrial|Alternative|Ska|Death Metal|Pranks|Soundtrack|Euro-Techno|Ambient|Trip-Hop|Vocal|"
    "Jazz+Funk|Fusion|Trance|Classical|Instrumental|Acid|House|Game|Sound Clip|Gospel|Noise|Alternative Rock|Bass|"
    "Soul|Punk|Space|Meditative|Instrumental Pop|Instrumental Rock|Ethnic|Gothic|Darkwave|Techno-Industrial|"
    "Electronic|Pop-Folk|Eurodance|Dream|Southern Rock|Comedy|Cult|Gangsta|Top 40|Christian Rap|Pop/Funk|Jungle|"
    "Native American|Cabaret|New Wave|Psychedelic|Rave|Showtunes|Trailer|Lo-Fi|Tribal|Acid Punk|Acid Jazz|Polka|"
    "Retro|Musical|Rock & Roll|Hard Rock|Folk|Folk-Rock|National Folk|Swing|Fast Fusion|Bebop|Latin|Revival|Celtic|"
    "Bluegrass|Avantgarde|Gothic Rock|Progressive Rock|Psychedelic Rock|Symphonic Rock|Slow Rock|Big Band|Chorus|"
    "Easy Listening|Acoustic|Humour|Speech|Chanson|Opera|Chamber Music|Sonata|Symphony|Booty Bass|Primus|Porn Groove|"
    "Satire|Slow Jam|Club|Tango|Samba|Folklore|Ballad|Power Ballad|Rhythmic Soul|Freestyle|Duet|Punk Rock|Drum Solo|"
    "A Cappella|Euro-House|Dance Hall|Goa|Drum & Bass|Club-House|Hardcore|Terror|Indie|BritPop|Afro-Punk|Polsk Punk|"
    "Beat|Christian Gangsta Rap|Heavy Metal|Black Metal|Crossover|Contemporary Christian|Christian Rock|Merengue|"
    "Salsa|Thrash Metal|Anime|JPop|Synthpop|Abstract|Art Rock|Baroque|Bhangra|Big Beat|Breakbeat|Chillout|Downtempo|"
    "Dub|EBM|Eclectic|Electro|Electroclash|Emo|Experimental|Garage|Global|IDM|Illbient|Industro-Goth|Jam Band|"
    "Krautrock|Leftfield|Lounge|Math Rock|New Romantic|Nu-Breakz|Post-Punk|Post-Rock|Psytrance|Shoegaze|Space Rock|"
    "Trop Rock|World Music|Neoclassical|Audiobook|Audio Theatre|Neue Deutsche Welle|Podcast|Indie Rock|G-Funk|"
    "Dubstep|Garage Rock|Psybient"
)
GENRES = tuple(GENRE_LIST.split("|"))
GENRE_WORDS = {"RX": "Remix", "CR": "Cover"}
GENRE_NUMBER = re.compile(r"\((\d{1,3}|RX|CR)\)")


class Id3Tags(NamedTuple):
    """What an ID3 tag says, by our names of its fields."""

    texts: dict[str, list[str]]
    lyrics: list[str]  # plain
    synced_lyrics: list[str]  # LRC


def genre_names(text: str) -> list[str]:
    """The names in a TCON: `(17)Rock` -> Rock, `(4)Eurodisco` -> Eurodisco, `(51)(39)` -> Techno-Industrial, Noise.

    A text behind the last number refines it (ID3v2.3, 4.2.1); `((` is a bracket; a number that nobody named is left out.
    """
    text = text.strip()
    names: list[str | None] = []
    while match := GENRE_NUMBER.match(text):
        names.append(genre_of_number(match[1]))
        text = text[match.end() :].strip()
    text = text.replace("((", "(", 1) if text.startswith("((") else text
    if text.isdecimal() or text in GENRE_WORDS:
        names.append(genre_of_number(text))
    elif text:
        names[-1:] = [text]
    return [name for name in dict.fromkeys(names) if name]


def genre_of_number(number: str) -> str | None:
    """The genre of an ID3 number, or of RX and CR."""
    if not number.isdecimal():
        return GENRE_WORDS.get(number)
    return GENRES[int(number)] if int(number) < len(GENRES) else None


def read_id3(data: bytes) -> Id3Tags:
    """The tag at the start of `data`; frames that are cut or damaged end it."""
    found = Id3Tags({}, [], [])
    for frame, body in id3_frames(data):
        if frame in TEXT_FRAMES and body:
            values = id3_text(body[0], body[1:]).split("\0")
            name = TEXT_FRAMES[frame]
            found.texts.setdefault(name, []).extend(value for value in values if value.strip())
        elif frame in LYRICS_FRAMES and len(body) > 4:
            _, rest = split_text(body[0], body[4:])  # behind a language and a description
            found.lyrics.append(id3_text(body[0], rest).rstrip("\0"))
        elif frame in SYNCED_FRAMES and len(body) > 6 and body[5] in SUNG:
            _, rest = split_text(body[0], body[6:])
            found.synced_lyrics.append(synced_lyrics(body[0], rest, body[4] == MILLISECONDS))
    return found


def id3_size(head: bytes) -> int:
    """Bytes of the ID3v2 tag that begins with `head`, with its header; 0 if none does."""
    if head[:3] != b"ID3" or len(head) < HEADER_BYTES or head[3] not in (2, 3, 4):
        return 0
    return HEADER_BYTES + synchsafe(head[6:10])


def synchsafe(data: bytes) -> int:
    """A number of seven bits a byte."""
    number = 0
    for byte in data:
        number = number << 7 | byte & 0x7F
    return number


def id3_frames(data: bytes) -> Iterator[tuple[str, bytes]]:
    """(name, content) of every frame of the tag at the start of `data`."""
    version, flags = data[3], data[5]
    body = data[HEADER_BYTES : id3_size(data)]
    if flags & 0x80 and version < 4:
        body = body.replace(b"\xff\0", b"\xff")  # unsynchronisation
    if flags & 0x40:
        if version == 2:
            return  # packed in a way that nobody specified
        # The extended header; its size counts itself since 2.4.
        skipped = synchsafe(body[:4]) if version == 4 else 4 + int.from_bytes(body[:4], "big")
        body = body[skipped:]
    header, width = (6, 3) if version == 2 else (10, 4)
    position = 0
    while position + header <= len(body):
        name = body[position : position + width]
        if not re.fullmatch(rb"[A-Z0-9]+", name):
            return  # padding
        size_bytes = body[position + width : position + 2 * width]
        start = position + header
        size = int.from_bytes(size_bytes, "big")
        if version == 4 and starts_frame(body, start + synchsafe(size_bytes)):
            size = synchsafe(size_bytes)  # else it is a plain number, as iTunes wrote them
        content = body[start : start + size]
        position = start + size
        bits = body[start - 1] if version > 2 else 0
        if len(content) < size or bits & PACKED_OR_ENCRYPTED.get(version, 0):
            continue
        if version == 4 and bits & 0x02:
            content = content.replace(b"\xff\0", b"\xff")
        if version == 4 and bits & 0x01:
            content = content[4:]  # behind its length
        yield name.decode("ascii"), content


def starts_frame(body: bytes, position: int) -> bool:
    """Whether a frame, padding or the end is at `position` of a tag's body."""
    following = body[position : position + 4]
    if position >= len(body):
        return position == len(body)
    return following[:1] == b"\0" or re.fullmatch(rb"[A-Z0-9]{4}", following) is not None


def id3_text(encoding: int, data: bytes) -> str:
    """A text of a frame; what is in no known encoding becomes U+FFFD, by which it is recognised as unreadable."""
    if encoding >= len(ENCODINGS):
        return "\ufffd"
    name = ENCODINGS[encoding]
    if name == "utf-16" and data[:2] not in (b"\xff\xfe", b"\xfe\xff"):
        name = "utf-16-le"  # the mark is missing
    return data.decode(name, "replace").replace("\0\ufeff", "\0").removeprefix("\ufeff")


def split_text(encoding: int, data: bytes) -> tuple[bytes, bytes]:
    """(a text up to its zero, what is behind it)."""
    if encoding not in WIDE:
        text, _, rest = data.partition(b"\0")
        return text, rest
    for end in range(0, len(data) - 1, 2):
        if data[end : end + 2] == b"\0\0":
            return data[:end], data[end + 2 :]
    return data, b""


def synced_lyrics(encoding: int, data: bytes, milliseconds: bool) -> str:
    """SYLT's pairs of a text and its time as LRC: a line for each break of line, else for each text.

    Times in frames of MPEG need the sound: such lyrics lose them.
    """
    pairs: list[tuple[str, float]] = []
    while data:
        written, rest = split_text(encoding, data)
        if len(rest) < 4:
            break
        pairs.append((id3_text(encoding, written), int.from_bytes(rest[:4], "big") / 1000))
        data = rest[4:]
    breaks = any("\n" in text.strip("\n") or text.startswith("\n") for text, _ in pairs)
    lines: list[str] = []
    for index, (text, time) in enumerate(pairs):
        words = text.replace("\r", "").strip("\n").replace("\n", " ")
        begins = index == 0 or not breaks or text.startswith(("\n", "\r\n"))
        begins = begins or pairs[index - 1][0].endswith("\n")
        stamp = f"<{clock(time)}>" if milliseconds else ""
        if begins:
            lines.append(f"[{clock(time)}]" if milliseconds else "")
        lines[-1] += f"{stamp if breaks else ''}{words}"
    return "\n".join(lines)


def read_id3v1(data: bytes) -> dict[str, list[str]]:
    """The texts of the 128 bytes at the end of an MP3; {} if they are no tag."""
    if len(data) != ID3V1_BYTES or data[:3] != b"TAG":
        return {}
    fields = {"title": data[3:33], "artist": data[33:63], "album": data[63:93], "date": data[93:97]}
    texts: dict[str, list[str]] = {}
    for name, value in fields.items():
        text = value.partition(b"\0")[0].decode("latin-1").strip()
        if text:
            texts[name] = [text]
    if data[127] < len(GENRES):
        texts["genre"] = [GENRES[data[127]]]
    return texts
