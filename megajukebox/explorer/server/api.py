"""What the pages can ask of their server: blind trials, votes, and songs of the Studio."""

import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkstemp
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from megajukebox.explorer.server import votes
from megajukebox.explorer.server.blind_trials import Trials
from megajukebox.explorer.server.static_files import (
    Guard,
    Library,
    Pages,
    Recordings,
    file_response,
)
from megajukebox.explorer.server.studio_form import (
    Check,
    Offer,
    job_json,
    parsed,
    request_of,
    samplers_of,
)
from megajukebox.explorer.server.studio_jobs import Job, Studio
from megajukebox.explorer.server.uploads import MOST_BYTES, Uploads

__all__ = ["Library", "Recordings", "Workshop", "application"]
MOST_JSON = 256 << 10  # bytes of one question
Answer = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Workshop:
    """What the Studio needs, where there is one."""

    studio: Studio
    uploads: Uploads
    offer: Offer
    check: Check


def application(
    library: Library, votes_file: Path, workshop: Workshop | None, token: str | None, nonce: str
) -> Starlette | Guard:
    """The whole server, guard and all."""
    abilities = {"nonce": nonce, "studio": workshop is not None}
    routes = vote_routes(library, Trials(votes_file, library.out))
    routes += studio_routes(library, workshop) if workshop else []
    pages = Route("/{path:path}", Pages(library, abilities).get, methods=["GET"])
    app = Starlette(
        routes=[*routes, Route("/api/{path:path}", nothing_here, methods=["GET", "POST"]), pages]
    )
    return Guard(app, token, nonce)


def nothing_here(request: Request) -> Response:
    return refused("there is nothing to ask at this address", 404)


def refused(reason: str, status: int = 400) -> Response:
    return JSONResponse({"error": reason}, status)


def asked(action: Callable[[dict[str, Any], Request], Any]) -> Answer:
    """A route that takes a JSON object, asks `action` in a thread, and answers with what it returns.

    Its ValueErrors are the asker's mistakes and are told in their words.
    """

    async def answer(request: Request) -> Response:
        try:
            body = json.loads(await bounded(request, MOST_JSON) or b"{}")
            if not isinstance(body, dict):
                raise ValueError("the question is no JSON object")
            return JSONResponse(await run_in_threadpool(action, body, request))
        except (ValueError, RecursionError) as error:
            return refused(str(error))

    return answer


async def bounded(request: Request, most: int) -> bytes:
    """The body, or ValueError as soon as it is longer than `most` bytes."""
    body = b""
    async for block in request.stream():
        body += block
        if len(body) > most:
            raise ValueError(f"that is more than {most >> 10} kB")
    return body


# ---- Votes.


def vote_routes(library: Library, trials: Trials) -> list[Route]:
    def next_trial(body: dict[str, Any], _: Request) -> dict[str, Any]:
        field, a, b = (str(body.get(name, "")) for name in ("field", "a", "b"))
        return trials.next(library.by_name, library.listed.entries, field, a, b)

    def vote(body: dict[str, Any], _: Request) -> dict[str, str]:
        return trials.vote(str(body.get("trial", "")), str(body.get("vote", "")))

    def summed(_: dict[str, Any], __: Request) -> dict[str, Any]:
        kept, skipped = votes.read(trials.votes)
        return {"sums": [votes.as_json(one) for one in votes.sums(kept)], "skipped": skipped}

    def recording(request: Request) -> Response:
        path = trials.recording(
            library.by_name, request.path_params["id"], request.path_params["side"]
        )
        if path is None:
            raise HTTPException(404)
        return file_response(path)

    return [
        Route("/api/trials", asked(next_trial), methods=["POST"]),
        Route("/api/trials/{id}/{side}", recording),
        Route("/api/votes", asked(vote), methods=["POST"]),
        Route("/api/votes", asked(summed)),
    ]


# ---- Studio.


def studio_routes(library: Library, shop: Workshop) -> list[Route]:
    def song(job: Job) -> dict[str, Any]:
        sample = made_by(job, library)
        page = library.address(library.page(sample)) if sample else None
        audio = (
            library.address(sample.audio["bottom"]) if sample and "bottom" in sample.audio else None
        )
        return job_json(job, page, audio)

    def ask(body: dict[str, Any], _: Request) -> dict[str, Any]:
        form = parsed(body)
        upload = shop.uploads.find(form.upload) if form.upload is not None else None
        request = request_of(form, shop.offer, upload, shop.check)
        return song(shop.studio.ask(request, samplers_of(form, shop.offer)))

    def listed(_: dict[str, Any], __: Request) -> dict[str, Any]:
        return {"songs": [song(job) for job in shop.studio.newest()], "model": shop.studio.model()}

    return [
        Route("/api/studio", asked(lambda *_: shop.offer.as_json())),
        Route("/api/songs", asked(ask), methods=["POST"]),
        Route("/api/songs", asked(listed)),
        Route(
            "/api/songs/{id}/cancel",
            asked(lambda _, request: song(shop.studio.cancel(request.path_params["id"]))),
            methods=["POST"],
        ),
        Route("/api/uploads", uploaded(shop.uploads), methods=["POST"]),
    ]


def made_by(job: Job, library: Library) -> Any:
    """The sample that a song became."""
    if job.state != "done":
        return None
    return next(
        (sample for name, sample in library.by_name.items() if name.split("/")[-1] == job.id), None
    )


def uploaded(uploads: Uploads) -> Answer:
    """Takes a recording as the body, bounded, into a file of ours; then another process decodes it."""

    async def answer(request: Request) -> Response:
        handle, name = mkstemp(prefix="megajukebox-upload-")
        try:
            with os.fdopen(handle, "wb") as file:
                size = 0
                async for block in request.stream():
                    size += len(block)
                    if size > MOST_BYTES:
                        return refused(f"This recording is larger than {MOST_BYTES >> 20} MB.", 413)
                    file.write(block)
            upload = await run_in_threadpool(uploads.decode, Path(name))
            return JSONResponse({"id": upload.id, "seconds": upload.seconds})
        except ValueError as error:
            return refused(str(error))
        except ClientDisconnect:
            return refused("the upload was broken off")
        finally:
            os.unlink(name)

    return answer
