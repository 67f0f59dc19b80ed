"""The pages' own server: the files of the site, the recordings of the samples, and nothing else of the disk."""

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import unquote_to_bytes

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from megajukebox.common.errors import UserError
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.explorer import site_files
from megajukebox.explorer.loaders.corpus import CorpusSong
from megajukebox.explorer.loaders.samples import ListedSample, find_samples
from megajukebox.explorer.site_builder import (
    SampleList,
    preview_file,
    write_runs,
    write_samples,
)
from megajukebox.explorer.site_files import AUDIO_TYPES, ContainedFile

RUNS_INTERVAL_SECONDS = 10.0  # between two writings of the runs' pages
BLOCK_BYTES = 1 << 16  # of a song sent at a time
# What the site may hold; anything else in its folder is not served.
PAGE_TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".png": "image/png",
    ".txt": "text/plain",
}
# A recording is bytes from somebody else: whatever they are, a browser may run nothing of them.
SANDBOX = {"Content-Security-Policy": "sandbox; default-src 'none'; media-src 'self'"}


class RangeResponse(StreamingResponse):
    """An open file, or the range of it that was asked for; closes it in the end.

    The file is never opened a second time by its name, which may be another file by then.
    """

    def __init__(
        self, reader: Any, size: int, request: Request, media_type: str, etag: str | None = None
    ) -> None:
        """Take `reader`, a seekable file of `size` bytes.

        Raises:
            HTTPException: the range begins behind its end (416).
        """
        self.reader = reader
        asked = request.headers.get("range")
        if request.headers.get("if-range", etag) != etag:
            asked = None  # the range of a file that has changed since
        try:
            first, last, status = parse_range(asked, size)
        except HTTPException:
            reader.close()
            raise
        headers = {
            "Accept-Ranges": "bytes",
            "Content-Length": str(last - first + 1),
            "Cache-Control": "no-cache",
        }
        if etag is not None:
            headers["ETag"] = etag
        if status == 206:
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        if media_type in AUDIO_TYPES.values():
            headers |= SANDBOX
        blocks = iter(()) if request.method == "HEAD" else read_blocks(reader, first, last)
        super().__init__(blocks, status, headers, media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.reader.close()


class ShardRecordings:
    """The songs of a shard set that are played straight out of its tars, by the paths that the pages name."""

    def __init__(self, shards: ShardSet, songs: list[CorpusSong]) -> None:
        self.shards = shards
        self.rows = {}
        for song in songs:
            if song.excerpt.seconds is None and song.audio:
                self.rows[str(song.audio["original"])] = song.row

    def get(self, path: str, request: Request) -> Response | None:
        """The song at `path`, or the range of it that is asked for; None if it is none of the songs."""
        media_type = AUDIO_TYPES.get(Path(path).suffix)
        if path not in self.rows or media_type is None:
            return None
        reader = self.shards.open_member(self.rows[path], "audio")
        return RangeResponse(reader, reader.size, request, media_type)


def parse_range(header: str | None, size: int) -> tuple[int, int, int]:
    """(first byte, last byte, status) of a Range header; all of it where the header is none that is known."""
    # ASCII alone, and at most the digits of any file: int() refuses thousands of them.
    match = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", (header or "").strip(), re.ASCII)
    if not match or not any(match.groups()):
        return 0, size - 1, 200
    if match[1]:
        first = int(match[1])
        last = min(int(match[2] or size), size - 1)
    else:
        first = size - min(int(match[2]), size)
        last = size - 1
    if first >= size:
        raise HTTPException(416, headers={"Content-Range": f"bytes */{size}"})
    if last < first:
        return 0, size - 1, 200
    return first, last, 206


def read_blocks(reader: Any, first: int, last: int) -> Iterator[bytes]:
    """The bytes from `first` to `last`."""
    reader.seek(first)
    while first <= last:
        block = reader.read(min(BLOCK_BYTES, last - first + 1))
        if not block:
            return
        first += len(block)
        yield block


@dataclass
class Library:
    """What is shown, and its site at `out`: built anew when a sample came, went or changed, or a run went on.

    Only these files are served: those of the site, the recordings of listed samples (`recordings`), the previews of
    listed runs (`run_recordings`), and the songs of `corpus`, each by its exact path.
    """

    samples: list[Path]
    out: Path
    runs: list[Path] = field(default_factory=list)
    corpus: ShardRecordings | None = None
    listed: SampleList = field(default_factory=lambda: SampleList([], []))
    by_name: dict[str, ListedSample] = field(default_factory=dict)
    recordings: dict[str, ContainedFile] = field(default_factory=dict)  # by path, of the samples
    run_recordings: dict[str, ContainedFile] = field(default_factory=dict)  # and the runs' previews
    modified: dict[str, int] | None = None  # path of a sample -> time in ns, at the last refresh
    runs_written: float = -RUNS_INTERVAL_SECONDS
    lock: Lock = field(default_factory=Lock)

    def refresh(self) -> None:
        """Look at the folders; costs a stat a sample when nothing changed."""
        with self.lock:
            modified = {}
            for found in find_samples(self.samples):
                with contextlib.suppress(OSError):  # it is gone since the folder was listed
                    modified[str(found.path)] = found.path.lstat().st_mtime_ns
            if modified != self.modified:
                self.listed = write_samples(self.samples, self.out)
                self.by_name = {}
                self.recordings = {}
                for sample in self.listed.samples:
                    self.by_name[sample.name] = sample
                    for track, path in sample.audio.items():
                        self.recordings[str(path)] = sample.recording(track)
                self.modified = modified
            if time.monotonic() > self.runs_written + RUNS_INTERVAL_SECONDS:
                runs = write_runs(self.runs, self.out)
                self.run_recordings = {}
                for run in runs:
                    for preview in run.previews:
                        self.run_recordings[str(preview.path)] = preview_file(preview.path)
                self.runs_written = time.monotonic()

    def site_file(self, path: str) -> ContainedFile | None:
        """The file at `path` if it is one of the site's own; None if it lies elsewhere, or among samples or runs."""
        holders = [
            folder for folder in (self.out, *self.samples, *self.runs) if lies_in(path, folder)
        ]
        if not holders or max(holders, key=lambda folder: len(str(folder))) != self.out:
            return None
        return ContainedFile(self.out, Path(path).relative_to(self.out))

    @property
    def base(self) -> str:
        """The folder that holds site and samples: addresses are paths from it, so the links of the pages are right."""
        return os.path.commonpath([self.out, *self.samples, *self.runs])

    def address(self, path: Path) -> str:
        return "/" + site_files.relative_url(path, Path(self.base))

    def page(self, sample: ListedSample) -> Path:
        return self.out / "sample" / f"{site_files.safe_name(sample.name)}.html"


class StaticPages:
    """GET of anything that is no part of the API. `abilities` is what the pages learn of their server."""

    def __init__(self, library: Library, abilities: dict[str, Any]) -> None:
        self.library = library
        self.script = f'"use strict";\nconst served = {json.dumps(abilities)};\n'

    def get(self, request: Request) -> Response:
        """The site's files and the recordings it knows, by their exact paths; 404 for anything else."""
        library = self.library
        address = os.fsdecode(unquote_to_bytes(request.scope["raw_path"].split(b"?")[0]))
        if address == "/":
            return RedirectResponse(library.address(library.out / "index.html"), 303)
        path = os.path.normpath(library.base.rstrip(os.sep) + address)
        # No file has a name with a zero, and the system refuses to look for it.
        if not address.startswith("/") or "\0" in path:
            raise HTTPException(404)
        if path == str(library.out / "static" / "served.js"):
            headers = {"Cache-Control": "no-store"}
            return Response(self.script, media_type="text/javascript", headers=headers)
        if path in (str(library.out / "index.html"), str(library.out / "runs.html")):
            try:
                library.refresh()
            except UserError as error:
                return PlainTextResponse(f"{error}\n", 503)
        song = library.corpus.get(path, request) if library.corpus else None
        if song is not None:
            return song
        recording = library.recordings.get(path) or library.run_recordings.get(path)
        if recording is not None:
            return file_response(recording, request)
        page = library.site_file(path)
        if page is None:
            raise HTTPException(404)
        return file_response(page, request, PAGE_TYPES.get(page.name.suffix))


def lies_in(path: str, folder: Path) -> bool:
    return path.startswith(f"{str(folder).rstrip(os.sep)}{os.sep}")


def file_response(
    file: ContainedFile, request: Request, media_type: str | None = None
) -> RangeResponse:
    """A recording, or with `media_type` a page of ours; or the range of it that is asked for.

    Raises:
        HTTPException: it is gone, is of no type that is served, lies behind a link, or is a page that somebody else
            wrote: whoever may write to the folder around the site could put another site in its place (404).
    """
    is_page = media_type is not None
    media_type = media_type or file.audio_type
    if media_type is None:
        raise HTTPException(404)
    try:
        opened = file.reader()
    except OSError:
        raise HTTPException(404) from None
    facts = os.fstat(opened.fileno())
    if is_page and facts.st_uid != os.getuid():
        opened.close()
        raise HTTPException(404)
    etag = f'"{facts.st_mtime_ns:x}-{facts.st_size:x}"'
    return RangeResponse(opened, facts.st_size, request, media_type, etag)
