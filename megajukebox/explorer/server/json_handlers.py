"""JSON in, JSON out: how a function becomes a handler of the pages' server."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from megajukebox.common.errors import UserError
from megajukebox.common.untrusted_files import parse_json
from megajukebox.explorer.server.request_limits import RequestRefused, bounded_body

MAX_JSON_BYTES = 256 << 10  # of one question
JSON_SECONDS = 10.0  # until a question is whole
Handler = Callable[[Request], Awaitable[Response]]
Action = Callable[[dict[str, Any], Request], Any]  # the JSON object that was sent, its request


class AsciiResponse(JSONResponse):
    """JSON whose texts may hold what no UTF-8 can: half a surrogate pair, as a question or a sample may have it."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def error_response(reason: str, status: int = 400) -> Response:
    # Whoever is too slow is not waited for any longer.
    return AsciiResponse(
        {"error": reason}, status, {"Connection": "close"} if status == 408 else {}
    )


def json_handler(action: Action) -> Handler:
    """Take a JSON object, run `action` in a thread, and answer with what it returns: JSON, or a whole response.

    Its UserErrors are mistakes of the page or its reader: they are answered in their words.
    """

    async def handle(request: Request) -> Response:
        try:
            sent = b""
            async for block in bounded_body(request, MAX_JSON_BYTES, JSON_SECONDS):
                sent += block
            try:
                body = parse_json(sent or b"{}")
            except ValueError as error:
                return error_response(str(error))
            if not isinstance(body, dict):
                raise UserError("the question is no JSON object")
            answer = await run_in_threadpool(action, body, request)
            return answer if isinstance(answer, Response) else AsciiResponse(answer)
        except RequestRefused as refusal:
            return error_response(str(refusal), refusal.status)
        except ClientDisconnect:
            return error_response("the request was broken off")
        except UserError as error:
            return error_response(str(error))

    return handle
