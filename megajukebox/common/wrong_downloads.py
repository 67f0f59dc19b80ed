"""What a file is that was fetched in place of another: its first bytes tell, and the way out with them.

The page of an error, a pointer that Git LFS left, an empty file: the parser of what was expected would only say that it
is damaged.
"""

from pathlib import Path

from megajukebox.common.plain_text import plain
from megajukebox.common.untrusted_files import open_given

HEAD_BYTES = 512  # that are enough to tell
SHOWN = 24  # characters of a page or a text in the message
LFS = b"version https://git-lfs"
ANNEX = (b"/annex/objects/", b".git/annex/objects/", b"../.git/annex/")
FETCH = "fetch it again"
# First bytes -> what they are, and the way out.
MAGIC = (
    (b"\x1f\x8b", "a gzip file", "unpack it with gunzip"),
    (b"BZh", "a bzip2 file", "unpack it with bunzip2"),
    (b"\xfd7zXZ\x00", "an xz file", "unpack it with unxz"),
    (b"\x28\xb5\x2f\xfd", "a zstd file", "unpack it with unzstd"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it"),
    (b"Rar!", "a RAR archive", "unpack it"),
    (b"%PDF", "a PDF", FETCH),
    (b"\x89PNG", "a picture", FETCH),
    (b"\xff\xd8\xff", "a picture", FETCH),
)


def wrong_download(head: bytes, wanted: str) -> str:
    """`is a web page (<!DOCTYPE html ...), not a checkpoint; fetch it again`; "" if `head` is none of these.

    Args:
        head: the first HEAD_BYTES of the file.
        wanted: what it should be: "a checkpoint".
    """
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not head:
        return f"is empty: damaged or not {wanted}; {FETCH}"
    if text.startswith(LFS):
        return f"is a Git LFS pointer, not {wanted}; run git lfs pull"
    if any(mark in text[:HEAD_BYTES] for mark in ANNEX) and text.isascii():
        return f"is a pointer of git-annex, not {wanted}; run git annex get"
    if text.startswith(b"<"):
        return f"is a web page ({_beginning(text)}), not {wanted}; {FETCH}"
    if text.startswith((b'{"', b"{ ", b"{\n", b"[{")):
        return f"is JSON ({_beginning(text)}), not {wanted}; {FETCH}"
    for magic, kind, way_out in MAGIC:
        if head.startswith(magic):
            return f"is {kind}, not {wanted}; {way_out}"
    if head[257:262] == b"ustar":
        return f"is a tar archive, not {wanted}; unpack it and give the file in it"
    is_text = b"\0" not in head and text.isascii() and len(text.split()) > 1
    if is_text and text.splitlines()[0].decode().isprintable():
        return f"is a text ({_beginning(text)}), not {wanted}; {FETCH}"
    return ""


def wrong_file(path: Path, wanted: str) -> str:
    """`wrong_download` of the file at `path`; "" where it cannot be opened."""
    try:
        with open_given(path) as file:
            return wrong_download(file.read(HEAD_BYTES), wanted)
    except OSError:
        return ""


def _beginning(text: bytes) -> str:
    line = text.splitlines()[0] if text else b""
    shown = plain(line[:SHOWN].decode("utf-8", "replace"))
    return f"{shown} ..." if len(text) > SHOWN else shown
