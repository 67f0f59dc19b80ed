"""What a file is by its first bytes, whatever its name ends in, and who reads it."""

from enum import Enum
from typing import NamedTuple

from megajukebox.common.errors import BadSampleError
from megajukebox.data.recordings.mpeg_frames import first_frame
from megajukebox.data.recordings.pieces import ByteView

MAX_ZEROS = 1 << 20  # bytes before the first that is not zero
MAX_TAGS = 8  # ID3v2 tags one after another
HEAD = 64  # bytes that tell what a file is
# The extra that reads what libsndfile does not; its name stands in pyproject.toml.
EXTRA = "formats"


class RecordingReader(Enum):
    """Who reads a kind of file."""

    WAV = "wav"
    AIFF = "aiff"
    CAF = "caf"
    FLAC = "flac"
    OGG = "ogg"
    MPEG = "mpeg"
    FFMPEG = "ffmpeg"  # through PyAV, an extra
    NONE = "none"


class FileKind(NamedTuple):
    """A kind of file."""

    name: str  # as people call it
    reader: RecordingReader
    demuxer: str = ""  # ffmpeg's name of it, for RecordingReader.FFMPEG
    way_out: str = ""  # for RecordingReader.NONE


WAV = FileKind("WAV", RecordingReader.WAV)
MP3 = FileKind("MP3", RecordingReader.MPEG)
OGG = FileKind("OGG", RecordingReader.OGG)
CONVERT = "convert it to FLAC"
NO_SOUND = "no sound is in it; take it out of the songs"
DOWNLOAD = "the download went wrong; fetch the file again"
PICTURE = FileKind("a picture", RecordingReader.NONE, way_out=NO_SOUND)

# (offset, first bytes, what it is); the first that fits counts.
KINDS: tuple[tuple[int, bytes, FileKind], ...] = (
    (0, b"fLaC", FileKind("FLAC", RecordingReader.FLAC)),
    (0, b"OggS", OGG),
    (0, b"caff", FileKind("CAF", RecordingReader.CAF)),
    (8, b"AIFF", FileKind("AIFF", RecordingReader.AIFF)),
    (8, b"AIFC", FileKind("AIFF", RecordingReader.AIFF)),
    *((4, b"ftyp" + brand, PICTURE) for brand in (b"heic", b"heix", b"mif1", b"avif", b"crx ")),
    (4, b"ftyp", FileKind("MP4 (m4a, m4b, mp4, mov)", RecordingReader.FFMPEG, "mov")),
    (4, b"moov", FileKind("QuickTime (mov)", RecordingReader.FFMPEG, "mov")),
    (4, b"mdat", FileKind("QuickTime (mov)", RecordingReader.FFMPEG, "mov")),
    (4, b"wide", FileKind("QuickTime (mov)", RecordingReader.FFMPEG, "mov")),
    (
        0,
        b"\x1a\x45\xdf\xa3",
        FileKind("Matroska (webm, mka, mkv)", RecordingReader.FFMPEG, "matroska"),
    ),
    (
        0,
        b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",
        FileKind("Windows Media (wma, wmv)", RecordingReader.FFMPEG, "asf"),
    ),
    (8, b"AVI ", FileKind("AVI", RecordingReader.FFMPEG, "avi")),
    (0, b"FLV", FileKind("Flash video (flv)", RecordingReader.FFMPEG, "flv")),
    (0, b"\x00\x00\x01\xba", FileKind("MPEG video (mpg, vob)", RecordingReader.FFMPEG, "mpeg")),
    (0, b"wvpk", FileKind("WavPack", RecordingReader.FFMPEG, "wv")),
    (0, b"MAC ", FileKind("Monkey's Audio (ape)", RecordingReader.FFMPEG, "ape")),
    (0, b"TTA1", FileKind("True Audio (tta)", RecordingReader.FFMPEG, "tta")),
    (0, b"MP+", FileKind("Musepack", RecordingReader.FFMPEG, "mpc")),
    (0, b"MPCK", FileKind("Musepack", RecordingReader.FFMPEG, "mpc8")),
    (0, b"DSD ", FileKind("DSD (dsf)", RecordingReader.FFMPEG, "dsf")),
    (0, b"tBaK", FileKind("TAK", RecordingReader.FFMPEG, "tak")),
    (0, b".snd", FileKind("AU", RecordingReader.FFMPEG, "au")),
    (0, b"riff\x2e\x91\xcf\x11", FileKind("Wave64 (w64)", RecordingReader.FFMPEG, "w64")),
    (0, b"#!AMR", FileKind("AMR", RecordingReader.FFMPEG, "amr")),
    (0, b"\x0b\x77", FileKind("AC-3", RecordingReader.FFMPEG, "ac3")),
    (0, b"\x7f\xfe\x80\x01", FileKind("DTS", RecordingReader.FFMPEG, "dts")),
    (0, b".RMF", FileKind("RealMedia", RecordingReader.FFMPEG, "rm")),
    (0, b"Creative Voice File", FileKind("VOC", RecordingReader.FFMPEG, "voc")),
    (0, b"ADIF", FileKind("AAC (ADIF)", RecordingReader.NONE, way_out=CONVERT)),
    (0, b"FRM8", FileKind("DSDIFF (dff)", RecordingReader.NONE, way_out=CONVERT)),
    (
        0,
        b"MThd",
        FileKind("MIDI: notes and no sound", RecordingReader.NONE, way_out="render it to FLAC"),
    ),
    (0, b"#EXTM3U", FileKind("a playlist", RecordingReader.NONE, way_out=NO_SOUND)),
    (0, b"[playlist]", FileKind("a playlist", RecordingReader.NONE, way_out=NO_SOUND)),
    (0, b"PK\x03\x04", FileKind("a ZIP archive", RecordingReader.NONE, way_out="unpack it")),
    (0, b"Rar!", FileKind("a RAR archive", RecordingReader.NONE, way_out="unpack it")),
    (0, b"7z\xbc\xaf", FileKind("a 7z archive", RecordingReader.NONE, way_out="unpack it")),
    (0, b"\x1f\x8b", FileKind("gzip", RecordingReader.NONE, way_out="unpack it")),
    (
        0,
        b"version https://git-lfs",
        FileKind("a pointer of Git LFS", RecordingReader.NONE, way_out="run git lfs pull"),
    ),
    (0, b"%PDF", FileKind("a PDF", RecordingReader.NONE, way_out=NO_SOUND)),
    (0, b"\x89PNG", PICTURE),
    (0, b"\xff\xd8\xff", PICTURE),
    (0, b"GIF8", PICTURE),
    (0, b"\x7fELF", FileKind("a program", RecordingReader.NONE, way_out=NO_SOUND)),
    (
        0,
        b"Extended Module",
        FileKind("a tracker module (xm)", RecordingReader.NONE, way_out="render it to FLAC"),
    ),
    (
        0,
        b"IMPM",
        FileKind("a tracker module (it)", RecordingReader.NONE, way_out="render it to FLAC"),
    ),
)
ADTS = FileKind("AAC", RecordingReader.FFMPEG, "aac")
TRANSPORT = FileKind("MPEG transport stream (ts)", RecordingReader.FFMPEG, "mpegts")
TRANSPORT_PACKET = 188  # bytes
FLAC_IN_OGG = FileKind("FLAC in Ogg", RecordingReader.FFMPEG, "ogg")
SPEEX = FileKind("Speex", RecordingReader.FFMPEG, "ogg")

# How names end, of what is read; and of what sounds but is read with the extra.
SUFFIXES_READ = (
    *(".wav", ".wave", ".bwf", ".rf64", ".bw64", ".flac", ".fla", ".ogg", ".oga", ".opus"),
    *(".mp3", ".mp2", ".mpga", ".aif", ".aiff", ".aifc", ".caf"),
)
SUFFIXES_OF_EXTRA = (
    *(".m4a", ".m4b", ".mp4", ".m4v", ".mov", ".3gp", ".aac", ".wma", ".wmv", ".asf", ".webm"),
    *(".weba", ".mka", ".mkv", ".avi", ".flv", ".mpg", ".mpeg", ".vob", ".wv", ".ape"),
    *(".tta", ".mpc", ".mp+", ".dsf", ".tak", ".au", ".snd", ".w64", ".amr", ".ac3", ".dts", ".rm"),
    *(".ra", ".spx", ".ogv", ".ogx", ".voc"),
)
SUFFIXES_UNREAD = (".mid", ".midi", ".kar", ".xm", ".s3m", ".dff", ".shn", ".alac")


class Recognised(NamedTuple):
    """What a file is, and where that begins."""

    kind: FileKind
    start: int  # behind tags and zeros
    left_out: int = 0  # bytes before it, without tags, that are none of its


def recognise(view: ByteView) -> Recognised:
    """What the file is by its bytes; ID3v2 tags and zeros before it are passed over.

    Raises:
        BadSampleError: it is empty, or nobody knows what it is.
    """
    if not view.size:
        raise BadSampleError("undecodable", "unreadable: empty: 0 bytes")
    start = behind_tags(view, 0)
    first = view.after_zeros(start, MAX_ZEROS) if view.at(start, 8) == bytes(8) else start
    if first >= view.size:
        what = "nothing follows its tags" if start >= view.size else "all its bytes are zero"
        raise BadSampleError("undecodable", f"unreadable: {what}; fetch or copy the file again")
    left_out = first - start
    first = behind_tags(view, first)
    kind = kind_at(view, first)
    if kind is None:
        frame = first_frame(view, first)
        if frame >= 0:
            return Recognised(MP3, frame, left_out + frame - first)
        shown = " ".join(f"{byte:02x}" for byte in view.at(first, 8))
        raise BadSampleError(
            "undecodable",
            f"unreadable: its first bytes ({shown}) are those of no kind of sound; {CONVERT}",
        )
    return Recognised(kind, first, left_out)


def name_of_sound(view: ByteView) -> str | None:
    """What kind of sound or video the file is by its bytes; None for what may be by chance, and for anything else."""
    try:
        kind = recognise(view).kind
    except BadSampleError:
        return None
    is_by_chance = kind in (ADTS, TRANSPORT) or kind.name in ("AC-3", "MPEG video (mpg, vob)")
    return None if kind.reader is RecordingReader.NONE or is_by_chance else kind.name


def behind_tags(view: ByteView, start: int) -> int:
    """The first byte that belongs to no ID3v2 tag (id3.org, ID3v2.4.0, section 3.1)."""
    for _ in range(MAX_TAGS):
        header = view.at(start, 10)
        if len(header) < 10 or header[:3] != b"ID3" or max(header[6:10]) > 0x7F:
            break
        size = 0
        for byte in header[6:10]:
            size = size << 7 | byte
        footer = 10 if header[5] & 0x10 else 0
        start = min(view.size, start + 10 + size + footer)
    return start


def kind_at(view: ByteView, start: int) -> FileKind | None:
    """What the bytes from `start` on are; None if no table knows them."""
    head = view.at(start, HEAD)
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64"):
        if head[8:12] == b"WAVE":
            return WAV
        if head[8:12] == b"RMID":
            return FileKind(
                "MIDI: notes and no sound", RecordingReader.NONE, way_out="render it to FLAC"
            )
    for offset, magic, kind in KINDS:
        if head[offset : offset + len(magic)] == magic:
            return kind
    # a frame of ADTS has twelve set bits and a layer of 0, MPEG audio another layer
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:
        return ADTS
    if head[:1] == b"G" and view.at(start + TRANSPORT_PACKET, 1) == b"G":
        return TRANSPORT
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return FileKind("a web page", RecordingReader.NONE, way_out=DOWNLOAD)
    if head.isascii() and all(byte >= 32 or byte in b"\t\r\n" for byte in head):
        return FileKind("a text", RecordingReader.NONE, way_out=NO_SOUND)
    return None
