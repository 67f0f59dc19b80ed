"""Requests dealt over processes that share nothing but the folder of the songs; none of them waits for another's word.

Each process makes its share first, then whatever no living process is at: so the quick help the slow, and the songs of
a process that died are made by the others, from where it was (unfinished.py).
"""

import time
from collections.abc import Callable
from pathlib import Path

from megajukebox.sampling.jukebox import Jukebox, is_complete
from megajukebox.sampling.songs.requests import SongRequest
from megajukebox.sampling.songs.resume_store import ResumeStore
from megajukebox.sampling.songs.song import GeneratedSong

Make = Callable[[list[GeneratedSong]], list[GeneratedSong]]


class RequestQueue:
    """What `rank` of `size` processes makes of the requests, `batch_size` at a time. Failures are kept by id."""

    def __init__(
        self,
        jukebox: Jukebox,
        requests: list[SongRequest],
        out: Path,
        rank: int,
        size: int,
        batch_size: int,
    ):
        self.jukebox, self.requests, self.out, self.batch_size = jukebox, requests, out, batch_size
        self.mine = requests[rank::size]
        self.unfinished = ResumeStore(out)
        self.failed: dict[str, str] = {}
        self.completed: list[str] = []

    def run(self, make: Make, tell: Callable[[str], None], poll: float = 1.0) -> None:
        """Make songs until every request is made or has failed here."""
        while True:
            batch = self.next_batch(tell)
            if batch:
                self._make(batch, make, tell)
            elif self.pending():
                time.sleep(poll)  # others are at the rest; should they die, it is ours
            else:
                return

    def pending(self) -> list[SongRequest]:
        """Requests that are not made and have not failed, our own share first."""
        ours = {request.id for request in self.mine}
        order = [*self.mine, *(r for r in self.requests if r.id not in ours)]
        return [
            r
            for r in order
            if r.id not in self.failed and not is_complete(self.jukebox, self.out, r)
        ]

    def next_batch(self, tell: Callable[[str], None]) -> list[GeneratedSong]:
        """Songs that are ours to make now: claimed, and begun as far as their files are good."""
        batch: list[GeneratedSong] = []
        for request in self.pending():
            if len(batch) < self.batch_size and self.unfinished.claim(request.id):
                if (self.out / f"{request.id}.json").exists():
                    tell(
                        f"request {request.id}: a song of that name is there, of another request or weights; made anew"
                    )
                try:
                    batch.append(self.jukebox.start_song(request))
                except (ValueError, OSError) as error:
                    self.fail(request.id, str(error), tell)
        return batch

    def fail(self, song: str, why: str, tell: Callable[[str], None]) -> None:
        self.failed[song] = " ".join(why.split())
        self.unfinished.release(song)
        tell(f"request {song}: {self.failed[song]}")

    def _make(self, batch: list[GeneratedSong], make: Make, tell: Callable[[str], None]) -> None:
        try:
            self.completed += [song.request.id for song in make(batch)]
        except (RuntimeError, ValueError, OSError) as error:
            if len(batch) == 1:
                self.fail(batch[0].request.id, f"{type(error).__name__}: {error}", tell)
            else:  # one song's fault is not the others': each by itself
                for song in batch:
                    self._make([song], make, tell)
        finally:
            for song in batch:
                self.unfinished.release(song.request.id)
