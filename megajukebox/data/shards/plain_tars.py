"""Songs of WebDataset tars as other programs make them: no index, any names, one pass from start to end.

    000000.flac 000000.json 000000.txt 000001.mp3 ...      as webdataset's writers and audio2dataset have it
    ./000000.flac, train/000000.OGG, Ännchen, live.wav     as GNU tar packs a folder; capitals, spaces, accents

As in webdataset, a song's files stand together and share their key: the path up to the first dot of the
file's name (after the last slash). What follows that dot is the extension, in any case. Only the audio
is read: a VQ-VAE needs no JSON. A tar may be compressed by gzip or bzip2, which its first bytes tell.
"""

import bz2
import gzip
import http.client
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from megajukebox.common.errors import BadSampleError
from megajukebox.common.plain_text import plain
from megajukebox.common.untrusted_files import open_given
from megajukebox.data.shards.remote import RemoteConfig
from megajukebox.data.shards.source_url import SourceUrl
from megajukebox.data.shards.tar_stream import SKIP_BYTES, TarMember, TarStream
from megajukebox.data.shards.transports import is_url, open_stream

# What libsndfile reads, the first of a song's own files before the later ones.
AUDIO = ("flac", "wav", "wave", "aiff", "aif", "caf", "ogg", "oga", "opus", "mp3")
OTHER_AUDIO = ("m4a", "m4b", "aac", "mp4", "wma", "webm", "mka", "ape", "wv", "amr", "ac3", "mid")
MAX_AUDIO_BYTES = 1 << 30  # of one song; it is held in memory, since a pipe cannot go back
MAX_UNPACKED_BYTES = 64 << 30  # of a compressed tar: 1 GB of gzip can hold a TB of zeros
MAX_ENDINGS = 4  # that a message names
COMPRESSED: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
}
NOT_UNPACKED = {b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip"}
META = re.compile(r"__[^/]*__($|/)")  # of webdataset's own


@dataclass
class UnindexedSong:
    """One song of a tar as it came."""

    key: str
    tar: str  # its name
    audio: bytes | None = None
    extension: str = ""  # of the audio
    fault: BadSampleError | None = None  # why it has none

    def take(self, extension: str, member: TarMember, stream: TarStream) -> None:
        """Read the member that `stream` is at, if it is the audio of this song."""
        if extension in AUDIO:
            if self.audio is not None and AUDIO.index(self.extension) <= AUDIO.index(extension):
                return
            if member.size > MAX_AUDIO_BYTES:
                why = f"{plain(member.name)} has {member.size} bytes; at most {MAX_AUDIO_BYTES} are read"
                self.fault = BadSampleError("too_large", f"{why}; cut it into songs")
                return
            self.audio = stream.read()
            self.extension = extension
        elif extension.rpartition(".")[2] in (*AUDIO, *OTHER_AUDIO):
            self.fault = unread(member.name, extension)

    @property
    def is_empty(self) -> bool:
        """Whether nothing of it is audio: the words of a tar whose files are not sorted by song."""
        return self.audio is None and self.fault is None


def unread(name: str, extension: str) -> BadSampleError:
    """Why an audio file of a tar is not read."""
    ending = extension.rpartition(".")[2]
    if ending in OTHER_AUDIO:
        why = f"{ending} is not read from tars; convert it to FLAC, WAV, OGG or MP3"
    else:
        why = (
            f"in a WebDataset tar the key ends at the first dot of the name, so this one ends in "
            f"{plain(extension)!r}; leave no other dot than the one before {ending}"
        )
    return BadSampleError("undecodable", f"{plain(name)!r}: {why}, or use prepare")


def songs_of(tar: str, remote: RemoteConfig) -> Iterator[UnindexedSong]:
    """The songs of one tar, in order; nothing is written to disk.

    Raises:
        BadSampleError: the tar is damaged, or no file in it is audio.
        OSError: less of it came than there is.
    """
    name = tar_name(tar)
    file: BinaryIO | None = None
    packed: BinaryIO | UnpackedTar | None = None
    stream: TarStream | None = None
    missing = 0  # bytes that the site promised and did not send
    endings: Counter[str] = Counter()
    songs = 0
    try:
        with open_stream(tar, remote) if is_url(tar) else open_given(tar) as file:
            packed = unpacked(file)
            stream = TarStream(packed)  # type: ignore[arg-type]
            for song in grouped(stream, name, endings):
                songs += 1
                yield song
            if isinstance(packed, UnpackedTar):
                packed.finish()
            missing = missing_bytes(file, stream.ends_early)
    except http.client.HTTPException as error:
        raise ConnectionError(f"{name} broke off ({error!r})") from error
    except BadSampleError as error:
        is_cut = isinstance(packed, UnpackedTar) and packed.is_cut
        missing = missing_bytes(file, is_cut or (stream is not None and stream.ends_early))
        if not missing:
            raise BadSampleError(error.kind, f"{name}: {error}") from None
    if missing:
        raise ConnectionError(f"{name} broke off, {missing} bytes before its end")
    if not songs:
        found = ", ".join(f".{plain(ending)}" for ending, _ in endings.most_common(MAX_ENDINGS))
        raise BadSampleError(
            "undecodable",
            f"{name}: none of its {endings.total()} files is audio ({found or 'it is empty'}); a song's file ends in "
            f"one of .{', .'.join(AUDIO)}",
        )


def grouped(stream: TarStream, tar: str, endings: Counter[str]) -> Iterator[UnindexedSong]:
    """The songs of a tar's members; counts the extensions of all."""
    song: UnindexedSong | None = None
    for member in stream:
        folder, slash, file = member.name.rpartition("/")
        stem, dot, extension = file.partition(".")
        # A hidden file (._song.flac of macOS) is never a song's, though webdataset may think so.
        if not member.is_file or not stem or not dot or META.match(member.name):
            continue
        key = f"{folder}{slash}{stem}".removeprefix("./")
        extension = extension.lower()
        endings[extension] += 1
        if song is not None and song.key != key and not song.is_empty:
            yield song
        if song is None or song.key != key:
            song = UnindexedSong(key, tar)
        song.take(extension, member, stream)
    if song is not None and not song.is_empty:
        yield song


def missing_bytes(file: BinaryIO | None, ends_early: bool) -> int:
    """How many bytes of a tar that ended early the site promised and did not send."""
    return (getattr(file, "length", None) or 0) if ends_early else 0


def tar_name(tar: str) -> str:
    """The file's name in a path, a URL or a command."""
    if not is_url(tar):
        return Path(tar).name
    return Path(SourceUrl.parse(tar).base.split()[-1]).name


# ---- compressed tars


class UnpackedTar:
    """The bytes in a compressed tar, to be read once, at most MAX_UNPACKED_BYTES of them."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self._left = MAX_UNPACKED_BYTES
        self.is_cut = False

    def read(self, size: int) -> bytes:
        """`size` bytes, fewer at the end.

        Raises:
            BadSampleError: the compressed file is damaged or ends early, or unpacks to too much.
        """
        data = bytearray()
        try:
            while len(data) < size:
                block = self._reader.read(size - len(data))
                if not block:
                    break
                data += block
        except EOFError:
            self.is_cut = True
            raise BadSampleError("damaged", "the compressed tar ends early") from None
        except (gzip.BadGzipFile, zlib.error, OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # of the disk or the net
            raise BadSampleError(
                "damaged", f"the tar is damaged (unpacking it: {error})"
            ) from error
        self._left -= len(data)
        if self._left < 0:
            raise BadSampleError(
                "too_large", f"it unpacks to more than {MAX_UNPACKED_BYTES >> 30} GB; split it"
            )
        return bytes(data)

    def finish(self) -> None:
        """Read on from the tar's end to the file's, where its checksum is."""
        while self.read(SKIP_BYTES):
            pass


def unpacked(file: Any) -> Any:
    """`file`, or what it holds where its first bytes say that it is compressed.

    Raises:
        BadSampleError: by a way that is not read here.
    """
    head = file.peek(6)[:6]
    for magic, opener in COMPRESSED.items():
        if head.startswith(magic):
            return UnpackedTar(opener(file))
    for magic, way in NOT_UNPACKED.items():
        if head.startswith(magic):
            raise BadSampleError(
                "damaged", f"it is compressed by {way}; unpack it, or compress it by gzip"
            )
    return file
