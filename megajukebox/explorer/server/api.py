"""What the pages can ask of their server: blind trials, votes, and songs of the Studio.

    POST /api/trials               {field, a, b} -> {id, artist, genres, lyrics, seconds, audio, db, pairs, voted}
    GET  /api/trials/ID/SIDE       the recording behind side a or b
    POST /api/votes                {trial, vote: a | b | same} -> {A, B}: which value of the field was behind which side
    GET  /api/votes                -> {tallies, skipped}
    POST /api/tests                {conditions, listener} -> {id, seconds, clips, rated, audio, db}
    GET  /api/stimuli/ID/NUMBER    a recording of the test; 0 is the reference
    POST /api/ratings              {test, scores: {number: 0 to 100}} -> {number: what it was}
    GET  /api/ratings              -> {conditions, clips, scores, differences, apart, reasons ...}
    GET  /api/studio               -> what the run can be asked for
    POST /api/songs                the form (studio_form.py) -> the song, queued
    GET  /api/songs                -> {songs, model}, the newest first
    POST /api/songs/ID/cancel      -> the song
    POST /api/uploads              a recording as the body -> {id, seconds}
    /api/draw                      draw.py

Bodies and answers are JSON objects. What cannot be done is answered with status 400 and {error}, in words for the
reader of the page; what is over a limit with 408 (too slow), 413 (too large) or 429 (too often).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from megajukebox.common.errors import UserError
from megajukebox.common.levels import LEVELS
from megajukebox.explorer.server.access import AccessGuard, AccessRules
from megajukebox.explorer.server.blind_trials import BlindTrials
from megajukebox.explorer.server.draw_api import DrawServices, draw_routes
from megajukebox.explorer.server.json_handlers import Handler, error_response, json_handler
from megajukebox.explorer.server.listening_tests import (
    MAX_CONDITIONS,
    ListeningTests,
    clips_of,
)
from megajukebox.explorer.server.ratings import read_ratings, results
from megajukebox.explorer.server.request_limits import RateLimit, RequestRefused, bounded_body
from megajukebox.explorer.server.static_files import Library, StaticPages, file_response
from megajukebox.explorer.server.studio_form import (
    RequestCheck,
    StudioOptions,
    build_request,
    parse_form,
)
from megajukebox.explorer.server.studio_jobs import Studio, StudioJob
from megajukebox.explorer.server.uploads import MAX_BYTES, UploadStore
from megajukebox.explorer.server.votes import MAX_VOTER_LETTERS, VoteTally, read_votes, tally_votes

MAX_LISTED = 50  # songs of the queue; older ones are in the folder
UPLOAD_SECONDS = 300.0  # until a recording is whole: 64 MB at 2 Mbit/s
MAX_UPLOADS = 4  # that come in or wait for a decoder at once
SONGS_PER_MINUTE = 30
# A listener needs seconds for a pair; a room of them may vote at once.
VOTES_PER_MINUTE = 300
VOTES_PER_VOTER = 30
TRIALS_PER_VOTER = 60


@dataclass(frozen=True)
class StudioServices:
    """What the Studio needs, where there is one."""

    studio: Studio
    uploads: UploadStore
    options: StudioOptions
    check: RequestCheck

    def close(self) -> None:
        """End the songs that are generated, and remove what was uploaded."""
        self.studio.close()
        self.uploads.close()


def application(
    library: Library,
    votes_file: Path,
    services: StudioServices | None,
    rules: AccessRules,
    draw: DrawServices | None = None,
) -> AccessGuard:
    """The whole server, guard and all. `draw`: with a composer; None: the page Draw has none."""
    no_such_route = error_response("there is nothing to ask at this address", 404)
    routes = vote_routes(library, BlindTrials(votes_file, library.out))
    ratings_file = votes_file.with_name(f"{votes_file.stem}.ratings.jsonl")
    routes += rating_routes(library, ListeningTests(ratings_file, library.out))
    if services:
        routes += studio_routes(library, services)
    routes += draw_routes(draw or DrawServices())
    pages = StaticPages(library, {"nonce": rules.nonce, "studio": services is not None})
    routes += [
        Route("/api/{path:path}", lambda _: no_such_route, methods=["GET", "POST"]),
        Route("/{path:path}", pages.get, methods=["GET"]),
    ]
    return AccessGuard(Starlette(routes=routes), rules)


# ---- Votes.


def vote_routes(library: Library, trials: BlindTrials) -> list[Route]:
    trials_limit = RateLimit("pairs", VOTES_PER_MINUTE, TRIALS_PER_VOTER)
    votes_limit = RateLimit("votes", VOTES_PER_MINUTE, VOTES_PER_VOTER)

    def next_trial(body: dict[str, Any], _: Request) -> dict[str, Any]:
        field, a, b = (str(body.get(name, "")) for name in ("field", "a", "b"))
        voter = str(body.get("voter", ""))[:MAX_VOTER_LETTERS]
        trials_limit.take(voter)
        return trials.next(library.by_name, library.listed.entries, field, a, b, voter)

    def vote(body: dict[str, Any], _: Request) -> dict[str, str]:
        identity = str(body.get("trial", ""))
        votes_limit.take(trials.voter(identity))
        return trials.vote(identity, str(body.get("vote", "")))

    def tallies(_: dict[str, Any], __: Request) -> dict[str, Any]:
        votes, skipped = read_votes(trials.votes)
        tallied = list(map(VoteTally.as_json, tally_votes(votes)))
        return {"tallies": tallied, "skipped": skipped}

    def recording(request: Request) -> Response:
        parameters = request.path_params
        file = trials.recording(library.by_name, parameters["id"], parameters["side"])
        if file is None:
            raise HTTPException(404)
        return file_response(file, request)

    return [
        Route("/api/trials", json_handler(next_trial), methods=["POST"]),
        Route("/api/trials/{id}/{side}", recording),
        Route("/api/votes", json_handler(vote), methods=["POST"]),
        Route("/api/votes", json_handler(tallies)),
    ]


# ---- Ratings.


def rating_routes(library: Library, tests: ListeningTests) -> list[Route]:
    """Listening tests after MUSHRA: several recordings of one clip at once."""
    tests_limit = RateLimit("clips", VOTES_PER_MINUTE, TRIALS_PER_VOTER)
    ratings_limit = RateLimit("ratings", VOTES_PER_MINUTE, VOTES_PER_VOTER)

    def next_test(body: dict[str, Any], _: Request) -> dict[str, Any]:
        chosen = body.get("conditions")
        conditions = list(dict.fromkeys(map(str, chosen))) if isinstance(chosen, list) else []
        listener = str(body.get("listener", ""))[:MAX_VOTER_LETTERS]
        tests_limit.take(listener)
        clips = clips_of(library.by_name, library.listed.entries)
        return tests.next(library.by_name, clips, conditions, listener)

    def rate(body: dict[str, Any], _: Request) -> dict[str, str]:
        identity = str(body.get("test", ""))
        ratings_limit.take(tests.listener(identity))
        return tests.rate(identity, body.get("scores"))

    def rated(_: dict[str, Any], __: Request) -> dict[str, Any]:
        clips = clips_of(library.by_name, library.listed.entries)
        conditions = list(dict.fromkeys(name for clip in clips for name in clip.tracks))
        given = {"conditions": conditions, "clips": len(clips), "most": MAX_CONDITIONS}
        return {**given, **results(*read_ratings(tests.ratings))}

    def recording(request: Request) -> Response:
        parameters = request.path_params
        try:
            file = tests.recording(library.by_name, parameters["id"], parameters["number"])
        except UserError:  # the original is gone since
            file = None
        if file is None:
            raise HTTPException(404)
        return file_response(file, request)

    return [
        Route("/api/tests", json_handler(next_test), methods=["POST"]),
        Route("/api/stimuli/{id}/{number}", recording),
        Route("/api/ratings", json_handler(rate), methods=["POST"]),
        Route("/api/ratings", json_handler(rated)),
    ]


# ---- Studio.


def studio_routes(library: Library, services: StudioServices) -> list[Route]:
    studio = services.studio
    options = services.options
    songs_limit = RateLimit("songs", SONGS_PER_MINUTE)

    def job_json(job: StudioJob) -> dict[str, Any]:
        """A song of the queue; once it is done, with the addresses of the sample that it became."""
        if job.state == "done":
            for name, sample in library.by_name.items():
                if name.split("/")[-1] == job.id:
                    finest = next((x for x in LEVELS[::-1] if x in sample.audio), "bottom")
                    audio = sample.audio.get(finest)
                    page = library.address(library.page(sample))
                    return job.as_json(page, library.address(audio) if audio else None)
        return job.as_json(page=None, audio=None)

    def enqueue(body: dict[str, Any], _: Request) -> dict[str, Any]:
        form = parse_form(body)
        upload = services.uploads.get(form.upload) if form.upload is not None else None
        request = build_request(form, options, upload, services.check)
        songs_limit.take()
        is_default = form.sampler in ("", options.samplers[0])
        return job_json(studio.enqueue(request, [] if is_default else [form.sampler]))

    def list_jobs(_: dict[str, Any], __: Request) -> dict[str, Any]:
        newest = studio.listed()[: -MAX_LISTED - 1 : -1]
        return {"songs": list(map(job_json, newest)), "model": studio.model_status()}

    return [
        Route("/api/studio", json_handler(lambda *_: options.as_json())),
        Route("/api/songs", json_handler(enqueue), methods=["POST"]),
        Route("/api/songs", json_handler(list_jobs)),
        Route(
            "/api/songs/{id}/cancel",
            json_handler(lambda _, request: job_json(studio.cancel(request.path_params["id"]))),
            methods=["POST"],
        ),
        Route("/api/uploads", upload_handler(services.uploads), methods=["POST"]),
    ]


def upload_handler(uploads: UploadStore) -> Handler:
    """Take a recording as the body, bounded, into a file of ours alone; then another process decodes it."""
    coming = 0

    async def handle(request: Request) -> Response:
        nonlocal coming
        if coming >= MAX_UPLOADS:
            return error_response(f"{MAX_UPLOADS} recordings are being read; try again soon", 429)
        coming += 1
        try:
            with uploads.incoming() as (path, file):
                async for block in bounded_body(request, MAX_BYTES, UPLOAD_SECONDS):
                    file.write(block)
                file.close()
                upload = await run_in_threadpool(uploads.decode, path)
                return JSONResponse({"id": upload.id, "seconds": upload.seconds})
        except RequestRefused as refusal:
            return error_response(str(refusal), refusal.status)
        except UserError as error:
            return error_response(str(error))
        except ClientDisconnect:
            return error_response("the upload was broken off")
        finally:
            coming -= 1

    return handle
