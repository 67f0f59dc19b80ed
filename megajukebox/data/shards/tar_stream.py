"""The files of a tar, read once from its start to its end; nothing is ever unpacked.

tarfile reads headers of any size into memory (a PAX header may claim 8 GiB), makes files of any size of sparse ones,
and takes a damaged header for the end. Here a header has a bound, and what no writer of songs writes is damage.
"""

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from megajukebox.common.errors import BadSampleError

BLOCK = tarfile.BLOCKSIZE
MAX_HEADER_BYTES = 1 << 20  # of a long name or of PAX records
SKIP_BYTES = 1 << 20  # read at a time of what nobody wants
PAX_RECORD = re.compile(rb"(\d{1,7}) ([^=]+)=")
PAX_TYPES = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
FILE_TYPES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)


@dataclass(frozen=True)
class TarMember:
    """One member: its data is what `TarStream.read` gives until the next one is asked for."""

    name: str
    size: int  # bytes
    is_file: bool


class TarStream:
    """The members of the tar in `file`, in order.

    ends_early   whether the file ended before the tar did, or where a tar without an end mark may end

    Raises, while it is iterated over or read:
        BadSampleError: the tar is damaged, ends early, or has sparse files.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.ends_early = False
        self._unread = 0  # bytes of the present member, and of the padding after it
        self._padding = 0

    def __iter__(self) -> Iterator[TarMember]:
        is_first = True
        name: str | None = None  # as an extended header before the member has it
        size: int | None = None
        while True:
            self._skip()
            header = self._header(is_first)
            if header is None:
                return
            is_first = False
            if header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
                data = self._extended(header)
                if header.type == tarfile.GNUTYPE_LONGNAME:
                    name = data.rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif header.type in PAX_TYPES:
                records = _pax_records(self._extended(header))
                if header.type != tarfile.XGLTYPE:
                    path = records.get("path")
                    name = name if path is None else path
                    size = _pax_size(records, size)
            elif header.type == tarfile.GNUTYPE_SPARSE:
                raise _damage("it has sparse files; write it without --sparse")
            else:
                is_file = header.type in FILE_TYPES
                # As tarfile has it: what is no file, and of a known type, has no data whatever its header says.
                has_data = is_file or header.type not in tarfile.SUPPORTED_TYPES
                bytes_here = (header.size if size is None else size) if has_data else 0
                self._begin(bytes_here)
                yield TarMember(header.name if name is None else name, bytes_here, is_file)
                name = size = None

    def read(self) -> bytes:
        """The data of the present member, once."""
        return self._exactly(self._unread)

    def _header(self, is_first: bool) -> tarfile.TarInfo | None:
        """The next header; None at the end of the tar."""
        block = self.file.read(BLOCK)
        self.ends_early = len(block) < BLOCK
        if not block and is_first:
            raise _damage("it is empty")
        if not block or not block.strip(b"\0"):
            return None
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError, OverflowError) as error:
            raise _damage(str(error)) from None
        if header.size < 0:
            raise _damage(f"a size is {header.size}")
        return header

    def _extended(self, header: tarfile.TarInfo) -> bytes:
        """The data of a header about the next one."""
        if header.size > MAX_HEADER_BYTES:
            raise _damage(
                f"a header claims {header.size} bytes; at most {MAX_HEADER_BYTES} are read"
            )
        self._begin(header.size)
        return self.read()

    def _begin(self, size: int) -> None:
        self._unread = size
        self._padding = -size % BLOCK

    def _exactly(self, size: int) -> bytes:
        data = self.file.read(size)
        if len(data) < size:
            self.ends_early = True
            raise _damage("unexpected end of data")
        self._unread -= size
        return data

    def _skip(self) -> None:
        self._unread += self._padding
        self._padding = 0
        while self._unread:
            self._exactly(min(self._unread, SKIP_BYTES))


def _pax_records(data: bytes) -> dict[str, str]:
    """`25 path=songs/a.json\\n` ... as a dict."""
    records = {}
    position = 0
    while position < len(data) and data[position]:
        match = PAX_RECORD.match(data, position)
        length = int(match[1]) if match else 0
        value_end = position + length - 1
        if not match or value_end < match.end() or data[value_end : value_end + 1] != b"\n":
            raise _damage("its PAX records cannot be read")
        keyword = match[2].decode("utf-8", "surrogateescape")
        if keyword.startswith("GNU.sparse"):
            raise _damage("it has sparse files; write it without --sparse")
        value = data[match.end() : value_end]
        records[keyword] = value.decode("utf-8", "surrogateescape")
        position += length
    return records


def _pax_size(records: dict[str, str], size: int | None) -> int | None:
    """The size that PAX records give the next member."""
    text = records.get("size")
    if text is None:
        return size
    if not re.fullmatch(r"\d{1,18}", text):
        raise _damage(f"a size is {text[:40]!r}")
    return int(text)


def _damage(why: str) -> BadSampleError:
    return BadSampleError("damaged", f"the tar is damaged ({why})")
