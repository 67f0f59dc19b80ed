"""A page, a pointer or another kind of file in place of weights is named, with the way out (case 24)."""

from pathlib import Path

import pytest

from megajukebox.common.errors import UserError
from megajukebox.common.model_files import StoredTensors
from megajukebox.common.wrong_downloads import wrong_download
from megajukebox.interop.checkpoints import read_file

PAGE = b"<!DOCTYPE html><html>404 Not Found</html>\n"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d4d\nsize 123456\n"
FILES = [
    (PAGE, "is a web page (<!DOCTYPE html><html>404", "fetch it again"),
    (b"\xef\xbb\xbf\n  <?xml version='1.0'?><Error/>", "is a web page (<?xml", "fetch it again"),
    (POINTER, "is a Git LFS pointer", "run git lfs pull"),
    (b"../.git/annex/objects/xx/yy/SHA256E-s9--1.pth", "pointer of git-annex", "git annex get"),
    (b'{"error": "rate limited"}', 'is JSON ({"error": "rate limited"', "fetch it again"),
    (b"Access denied\n", "is a text (Access denied", "fetch it again"),
    (b"", "is empty: damaged or not", "fetch it again"),
    (b"\x1f\x8b\x08\x00aaaa", "is a gzip file", "unpack it with gunzip"),
    (b"x" * 257 + b"ustar\0" + b"0" * 300, "is a tar archive", "give the file in it"),
]


@pytest.mark.parametrize(("content", "kind", "way_out"), FILES)
@pytest.mark.parametrize("name", ["vqvae.pth.tar", "model.safetensors"])
def test_what_was_fetched_instead_is_named(
    tmp_path: Path, name: str, content: bytes, kind: str, way_out: str
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(UserError) as refused:
        read_file(file)
    message = str(refused.value)
    assert message.startswith(f"{file} ") and kind in message
    assert way_out in message and "issue" not in message and "\n" not in message


def test_a_model_of_a_run_that_is_a_pointer_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(POINTER)
    with pytest.raises(UserError, match="is a Git LFS pointer, not a safetensors file; run git"):
        StoredTensors(tmp_path / "model.safetensors")


@pytest.mark.parametrize("head", [b"PK\x03\x04", b"\x80\x02}q\x00", b"RIFF....WAVE", b"\x00" * 99])
def test_what_it_cannot_tell_it_leaves_to_the_reader(head: bytes) -> None:
    assert wrong_download(head, "a checkpoint") == ""


def test_a_page_moves_no_cursor() -> None:
    assert wrong_download(b"<\x1b]52;c;aGk=\x07>", "a checkpoint").isprintable()
