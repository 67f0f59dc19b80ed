"""What the page Draw can ask of its server.

    GET  /api/draw                 -> what can be asked for: whether there is a composer, formats of files
    POST /api/draw/fill            FillOrder (records/drawn_piece.py) -> {answers, seconds}
    POST /api/draw/files/FORMAT    DrawnVoices -> the piece as a .mid, .musicxml or .abc file
    POST /api/draw/open/ENDING     a file of notes as the body -> {piece, told}

A composer's process is kept loaded, as the Studio's sampler is. Files from outside are read in a process of their own.
"""

import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import BoundedSemaphore, Lock, Timer
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from megajukebox.common.child_processes import module_command
from megajukebox.common.errors import UserError
from megajukebox.common.untrusted_files import parse_json
from megajukebox.data.drawn_notes import notes_of
from megajukebox.explorer.loaders.samples import describe_error
from megajukebox.explorer.server.json_handlers import (
    AsciiResponse,
    Handler,
    error_response,
    json_handler,
)
from megajukebox.explorer.server.request_limits import RateLimit, RequestRefused, bounded_body
from megajukebox.explorer.server.sampler_process import SamplerDied, SamplerProcess
from megajukebox.explorer.server.uploads import decoder_environment
from megajukebox.notes.readers import ENDINGS
from megajukebox.notes.writers import NOTE_FORMATS, written
from megajukebox.records.drawn_piece import (
    MAX_DRAWN_BARS,
    DrawnVoices,
    FillAnswer,
    FillOrder,
)

FILL_SECONDS = 60.0  # that a composer has for an answer; a busy laptop needs a few
LOAD_SECONDS = 240.0  # and for its first one besides: torch is imported and weights are read
MAX_WAITING = 4  # orders, the one that is filled among them
FILLS_PER_MINUTE = 60
FILES_PER_MINUTE = 120
OPENED_PER_MINUTE = 30
MAX_NOTE_FILE_BYTES = 1 << 20
OPEN_SECONDS = 30.0  # until a file is whole
READ_SECONDS = 20  # of CPU, and of waiting, for its reader
READ_MEMORY = 2 << 30  # bytes of address space
MAX_READERS = 2  # processes that read at once
MEDIA_TYPES = {
    "mid": "audio/midi",
    "musicxml": "application/vnd.recordare.musicxml+xml",
    "abc": "text/vnd.abc",
}
ComposerCommand = Callable[[Path], list[str]]
Record = TypeVar("Record", bound=BaseModel)


def composer_command(run: Path) -> list[str]:
    """The command that starts sampling/composing/composer_worker.py."""
    return module_command("megajukebox.sampling.composing.composer_worker", str(run))


@dataclass
class DrawServices:
    """What the page Draw needs of its server; `run` has a composer, or is None."""

    run: Path | None = None
    work: Path | None = None  # for the process' log
    idle_minutes: float = 10.0
    command: ComposerCommand = composer_command
    lock: Lock = field(default_factory=Lock)  # one order at a time
    waiting: BoundedSemaphore = field(default_factory=lambda: BoundedSemaphore(MAX_WAITING))
    readers: BoundedSemaphore = field(default_factory=lambda: BoundedSemaphore(MAX_READERS))
    process: SamplerProcess | None = None
    idle: Timer | None = None
    closed: bool = False

    def __post_init__(self) -> None:
        if self.run is not None:
            assert self.work is not None
            run = self.run
            self.process = SamplerProcess(lambda _: self.command(run), self.work / "composer.log")

    def warm_up(self) -> None:
        """Start the composer's process, so that it is loaded by the time somebody has drawn a melody."""
        if self.process is None or not self.lock.acquire(blocking=False):
            return  # an order is filled: it is loaded
        try:
            if not self.process.alive and not self.closed:
                self.process.start([])
                self._wait_idle()
        finally:
            self.lock.release()

    def fill(self, order: FillOrder) -> FillAnswer:
        """Let the composer write.

        Raises:
            RequestRefused: too many wait.
            UserError: there is no composer, it took too long, or it cannot write that.
        """
        if self.process is None:
            raise UserError("this server has no composer; start it with: explore serve --run RUN")
        if not self.waiting.acquire(blocking=False):
            raise RequestRefused(429, f"{MAX_WAITING} melodies wait already; try again soon")
        try:
            with self.lock:
                return self._fill(self.process, order)
        finally:
            self.waiting.release()

    def _fill(self, process: SamplerProcess, order: FillOrder) -> FillAnswer:
        """The lock is held."""
        if self.closed:
            raise UserError("the server is ending")
        seconds = FILL_SECONDS + (0 if process.alive and process.songs else LOAD_SECONDS)
        late: list[bool] = []

        def end_late() -> None:
            late.append(True)
            process.end()

        deadline = Timer(seconds, end_late)
        deadline.daemon = True
        deadline.start()
        try:
            answer = FillAnswer.model_validate(process.generate([], order.model_dump(mode="json")))
        except SamplerDied as death:
            reason = f"the composer took over {seconds:g} seconds" if late else str(death)
            raise UserError(reason) from None
        finally:
            deadline.cancel()
            self._wait_idle()
        if answer.state != "done":
            raise UserError(answer.reason)
        return answer

    def _wait_idle(self) -> None:
        """End the process some minutes after its last order. The lock is held."""
        if self.idle is not None:
            self.idle.cancel()
        self.idle = Timer(self.idle_minutes * 60, self._end_idle)
        self.idle.daemon = True
        self.idle.start()

    def _end_idle(self) -> None:
        with self.lock:
            if self.process is not None:
                self.process.end()

    def read(self, data: bytes, ending: str) -> dict[str, Any]:
        """The piece of a file from outside.

        Raises:
            RequestRefused: too many are being read.
            UserError: it cannot be read.
        """
        if not self.readers.acquire(blocking=False):
            raise RequestRefused(429, f"{MAX_READERS} files are being read; try again soon")
        try:
            return read_in_process(data, ending)
        finally:
            self.readers.release()

    def close(self) -> None:
        """End the composer's process."""
        self.closed = True
        if self.idle is not None:
            self.idle.cancel()
        if self.process is not None:
            self.process.end()


def draw_routes(services: DrawServices) -> list[Route]:
    """Routes of the page; they are there without a composer, too."""
    fills = RateLimit("melodies", FILLS_PER_MINUTE)
    files = RateLimit("files", FILES_PER_MINUTE)

    def about(_: dict[str, Any], __: Request) -> dict[str, Any]:
        services.warm_up()
        return {
            "composer": services.process is not None,
            "formats": list(NOTE_FORMATS),
            "endings": list(ENDINGS),
            "bars": MAX_DRAWN_BARS,
        }

    def fill(body: dict[str, Any], _: Request) -> dict[str, Any]:
        order = parsed(FillOrder, body)
        fills.take()
        answer = services.fill(order)
        return {
            "answers": [one.model_dump(mode="json") for one in answer.answers],
            "seconds": round(answer.seconds, 3),
        }

    def file(body: dict[str, Any], request: Request) -> Response:
        form = request.path_params["form"]
        if form not in MEDIA_TYPES:
            raise UserError(f"format {form!r} is none of {', '.join(MEDIA_TYPES)}")
        piece = parsed(DrawnVoices, body)
        if not piece.notes:
            raise UserError("nothing is drawn yet")
        files.take()
        headers = {"Content-Disposition": f'attachment; filename="drawn.{form}"'}
        data = written(notes_of(piece), form, "Drawn")
        return Response(data, media_type=MEDIA_TYPES[form], headers=headers)

    return [
        Route("/api/draw", json_handler(about)),
        Route("/api/draw/fill", json_handler(fill), methods=["POST"]),
        Route("/api/draw/files/{form}", json_handler(file), methods=["POST"]),
        Route("/api/draw/open/{ending}", open_handler(services), methods=["POST"]),
    ]


def parsed(record: type[Record], body: dict[str, Any]) -> Record:
    """The record that the page sent.

    Raises:
        UserError: a field is wrong; the message is for the reader of the page.
    """
    try:
        return record.model_validate(body)
    except ValidationError as error:
        raise UserError(describe_error(error)) from None


def open_handler(services: DrawServices) -> Handler:
    """Take a file of notes as the body, bounded; another process reads it."""
    opened = RateLimit("files", OPENED_PER_MINUTE)

    async def handle(request: Request) -> Response:
        try:
            ending = f".{request.path_params['ending'].lower()}"
            if ending not in ENDINGS:
                raise UserError(f"notes are read from {', '.join(ENDINGS)}, not from {ending}")
            opened.take()
            sent = b""
            async for block in bounded_body(request, MAX_NOTE_FILE_BYTES, OPEN_SECONDS):
                sent += block
            return AsciiResponse(await run_in_threadpool(services.read, sent, ending))
        except RequestRefused as refusal:
            return error_response(str(refusal), refusal.status)
        except UserError as error:
            return error_response(str(error))
        except ClientDisconnect:
            return error_response("the upload was broken off")

    return handle


def read_in_process(data: bytes, ending: str) -> dict[str, Any]:
    """The answer of read_note_file.py: whatever a hostile file does to a reader, it does it in another process.

    Raises:
        UserError: the file cannot be read; the message says why.
    """
    module = "megajukebox.explorer.server.read_note_file"
    command = module_command(module, ending, str(READ_MEMORY), str(READ_SECONDS))
    with tempfile.TemporaryDirectory() as empty_folder:
        try:
            done = subprocess.run(
                command,
                input=data,
                capture_output=True,
                timeout=READ_SECONDS * 3,
                cwd=empty_folder,
                env=decoder_environment(),
            )
        except subprocess.TimeoutExpired:
            raise UserError("This file cannot be used: reading it takes too long.") from None
    try:
        answer = parse_json(done.stdout) if done.returncode == 0 else {}
    except ValueError:
        answer = {}
    if "piece" not in answer:
        raise UserError(f"This file cannot be used: {answer.get('error', 'it cannot be read')}.")
    return answer
