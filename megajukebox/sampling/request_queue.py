"""The requests of one folder, shared by processes that know nothing of each other but that folder.

Each process takes its own share first, then whatever no living process works on: so the fast ranks help the slow ones,
and the songs of a process that died are resumed by the others (resume_store.py).
"""

from pathlib import Path

from megajukebox.common.plain_text import plain
from megajukebox.common.untrusted_files import parse_json, read_inside
from megajukebox.records.sample_record import current_sample_record
from megajukebox.sampling.jukebox import Jukebox
from megajukebox.sampling.songs.requests import SongRequest
from megajukebox.sampling.songs.resume_store import ResumeStore


class RequestQueue:
    """The requests that `rank` of `ranks` processes works on. `failed`: reasons by request id.

    Who has claimed a request calls `resume_store.release` when it is done with it.
    """

    def __init__(
        self, jukebox: Jukebox, requests: list[SongRequest], out: Path, rank: int, ranks: int
    ):
        self.jukebox = jukebox
        self.out = out
        self.resume_store = ResumeStore(out)
        self.failed: dict[str, str] = {}
        own = requests[rank::ranks]
        own_ids = {request.id for request in own}
        self.requests = own + [request for request in requests if request.id not in own_ids]

    def pending(self) -> list[SongRequest]:
        """Requests that are not complete and have not failed here, this process's own share first."""
        pending = []
        for request in self.requests:
            if request.id in self.failed or is_complete(self.jukebox, self.out, request):
                continue
            pending.append(request)
        return pending

    def claim(self, count: int) -> list[SongRequest]:
        """Up to `count` pending requests that no other process works on; they are this process's until released."""
        claimed: list[SongRequest] = []
        for request in self.pending():
            if len(claimed) == count:
                break
            if self.resume_store.claim(request.id):
                claimed.append(request)
        return claimed

    def fail(self, song: str, reason: str) -> None:
        """Give up on a request in this process: it is not pending here any more."""
        self.failed[song] = plain(" ".join(reason.split()))
        self.resume_store.release(song)


def is_complete(jukebox: Jukebox, out: Path, request: SongRequest) -> bool:
    """Whether the song is there, of this very request, these weights and a decoding that gives the same codes."""
    try:
        stored = parse_json(read_inside(out, f"{request.id}.json"))
    except (OSError, ValueError):  # not there, or not of ours: the song is made
        return False
    if not isinstance(stored, dict) or not isinstance(stored.get("request"), dict):
        return False
    record = current_sample_record(stored)
    key = jukebox.song_key(request)
    asked = key.pop("request")
    recorded = record["request"]
    if request.source is not None:  # the record has the length that the source gave
        recorded = recorded | {"seconds": request.seconds}
    if recorded != asked:
        return False
    # Records of before the field `decoding` are of exact decoding.
    return all(record.get(name, {"exact": True}) == value for name, value in key.items())
