"""How much may be asked of the server, how often and how slowly; what is over a limit is answered with a sentence."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from threading import Lock

from starlette.requests import Request

from megajukebox.common.errors import UserError

MINUTE = 60.0  # seconds


class RequestRefused(UserError):
    """A request that is over a limit, and the status of the answer: 408 too slow, 413 too large, 429 too often."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass
class RateLimit:
    """At most `per_minute` of `what` within a minute, in all and, where names are given, of each name."""

    what: str
    per_minute: int
    per_name: int | None = None
    times: dict[str, deque[float]] = field(default_factory=dict)  # name -> when it asked
    lock: Lock = field(default_factory=Lock)

    def take(self, name: str = "", now: float | None = None) -> None:
        """Count one more.

        Raises:
            RequestRefused: it is one too many (429); it is not counted.
        """
        now = time.monotonic() if now is None else now
        with self.lock:
            for known in list(self.times):
                times = self.times[known]
                while times and times[0] <= now - MINUTE:
                    times.popleft()
                if not times:
                    del self.times[known]
            total = sum(map(len, self.times.values()))
            own = self.times.get(name, deque())
            limit = self.per_minute if self.per_name is None else self.per_name
            if total >= self.per_minute or len(own) >= limit:
                raise RequestRefused(
                    429, f"more than {limit} {self.what} within a minute; try again in a minute"
                )
            own.append(now)
            self.times[name] = own


async def bounded_body(request: Request, max_bytes: int, seconds: float) -> AsyncIterator[bytes]:
    """The body of a request, block by block.

    Raises:
        RequestRefused: it is larger than `max_bytes` (413), or not there after `seconds` (408).
    """
    size = 0
    deadline = time.monotonic() + seconds
    blocks = request.stream().__aiter__()
    while True:
        try:
            left = deadline - time.monotonic()
            block = await asyncio.wait_for(blocks.__anext__(), max(left, 0))
        except StopAsyncIteration:
            return
        except (asyncio.TimeoutError, TimeoutError):
            reason = f"the request was not whole after {seconds:g} seconds"
            raise RequestRefused(408, reason) from None
        size += len(block)
        if size > max_bytes:
            limit = f"{max_bytes >> 20} MB" if max_bytes >= 1 << 20 else f"{max_bytes >> 10} kB"
            raise RequestRefused(413, f"that is larger than {limit}")
        yield block
