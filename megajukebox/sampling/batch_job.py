"""Sample the songs of many requests into one folder: shared with other ranks, with progress, resumable.

    run = SamplingRun(jukebox, requests, Path("samples"), batch_size=8)
    failed = run.run()                       # {request id: reason}; the other songs are complete

A request that fails does not stop the others. SIGTERM or SIGINT saves what is sampled and raises SamplingInterrupted;
the same call resumes from there, and so does any other rank if this one is killed.
"""

import json
import logging
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from megajukebox.common.files import write_atomic
from megajukebox.common.plain_text import plain
from megajukebox.common.untrusted_files import parse_json, read_inside
from megajukebox.sampling.jukebox import Jukebox, SamplingInterrupted
from megajukebox.sampling.memory_budget import fit_jukebox, free_memory
from megajukebox.sampling.progress import ProgressDisplay, ProgressFile
from megajukebox.sampling.request_queue import RequestQueue
from megajukebox.sampling.songs.requests import SongRequest
from megajukebox.sampling.songs.resume_store import FOLDER
from megajukebox.sampling.songs.song import GeneratedSong
from megajukebox.sampling.songs.song_writer import SongWriter

log = logging.getLogger(__name__)

# What a request or its prompt may bring about; torch raises RuntimeError when memory is full.
ONE_SONG_ERRORS = (RuntimeError, ValueError, OSError, ArithmeticError, MemoryError)
POLL_SECONDS = 1.0  # between two looks at the songs that other ranks work on


class SamplingRun:
    """What one rank samples of `requests`. Rank 0 shows progress and keeps `progress_file` (progress.py).

    Args:
        refused: one line for each request of the user's that is not valid.
    """

    def __init__(
        self,
        jukebox: Jukebox,
        requests: list[SongRequest],
        out: Path,
        *,
        refused: list[str] | None = None,
        batch_size: int = 16,
        rank: int = 0,
        ranks: int = 1,
        progress_file: Path | None = None,
    ):
        self.jukebox = jukebox
        self.requests = requests
        self.refused = refused or []
        self.out = out
        self.batch_size = batch_size
        self.ranks = ranks
        self.is_first = rank == 0
        self.queue = RequestQueue(jukebox, requests, out, rank, ranks)
        totals = dict.fromkeys(jukebox.levels, 0)
        for level in totals:
            for request in requests:
                totals[level] += jukebox.num_codes(request, level)
        self.progress_file = ProgressFile(progress_file if self.is_first else None, totals)
        self.interrupted = False

    def fit_to_memory(self, batch_size: int, gigabytes: float | None = None) -> None:
        """Choose the largest batch up to `batch_size` that fits, and whether priors stay loaded.

        Args:
            gigabytes: the limit; None: what is free now.
        """
        if not self.requests:
            return
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", self.ranks))
        limit = free_memory(self.jukebox.device, processes)
        if gigabytes is not None:
            limit = gigabytes * 1e9
        fit = fit_jukebox(self.jukebox, self.requests, batch_size, limit)
        self.batch_size = fit.songs
        if self.is_first:
            source = "free" if gigabytes is None else "asked for"
            log.info("memory: %s; %.3g GB are %s", fit, limit / 1e9, source)

    def run_and_report(self) -> bool:
        """Run, print what became of the requests, and return whether all of them are complete.

        Raises:
            SamplingInterrupted: see `run`.
        """
        if self.is_first:
            for line in self.refused:
                log.error("%s", plain(line))
            if self.requests and not self.queue.pending():
                log.info("all %d songs are complete in %s", len(self.requests), self.out)
        try:
            failed = self.run()
        except SamplingInterrupted:
            log.warning("interrupted; sampled codes are saved, the same command resumes from there")
            raise
        if self.is_first:
            complete = write_summary(self.out, self.requests, self.refused, failed)
            total = len(self.requests) + len(self.refused)
            if total > 1:
                print(f"{complete} of {total} songs are in {self.out}", flush=True)
        return not failed and not self.refused

    def run(self) -> dict[str, str]:
        """Sample until every request is complete, here or on another rank, or has failed here.

        Returns the reasons of those that failed here, by request id.

        Raises:
            SamplingInterrupted: SIGTERM or SIGINT came; the same run resumes later.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._interrupt)
        while True:
            batch = self._next_batch()
            if batch:
                self._sample_or_fail(batch)
            elif self.queue.pending():
                time.sleep(
                    POLL_SECONDS
                )  # other ranks work on these; should they die, we resume them
            else:
                return self.queue.failed

    def _interrupt(self, *_: Any) -> None:
        self.interrupted = True

    def _next_batch(self) -> list[GeneratedSong]:
        """Up to `batch_size` songs that this rank now works on. Requests that cannot be started fail here."""
        batch = []
        for request in self.queue.claim(self.batch_size):
            if (self.out / f"{request.id}.json").exists():
                log.warning(
                    "overwriting %s.json: it was made from another request or with other weights",
                    self.out / request.id,
                )
            try:
                batch.append(self.jukebox.start_song(request))
            except ONE_SONG_ERRORS as error:
                self._fail(request.id, str(error) or type(error).__name__)
        return batch

    def _fail(self, song: str, reason: str) -> None:
        self.queue.fail(song, reason)
        log.error("request %s: %s", song, self.queue.failed[song])

    def _sample_or_fail(self, batch: list[GeneratedSong]) -> None:
        """Sample a batch; if it fails, each song by itself, so that one song's fault does not fail the others."""
        try:
            self._sample(batch)
        except ONE_SONG_ERRORS as error:
            if len(batch) > 1:
                for song in batch:
                    self._sample_or_fail([song])
            else:
                self._fail(batch[0].request.id, f"{type(error).__name__}: {error}")
        finally:
            for song in batch:
                self.queue.resume_store.release(song.request.id)

    def _sample(self, batch: list[GeneratedSong]) -> None:
        writer = SongWriter(self.jukebox, self.out, stop=lambda: self.interrupted)
        with ProgressDisplay(self.jukebox, batch, self.is_first) as display:

            def on_progress(level: str, count: int) -> None:
                display.advance(level, count)
                self.progress_file.advance(level, count)

            def on_level(level: str, songs: list[GeneratedSong]) -> None:
                if self.is_first and level != self.jukebox.main_level:
                    log.info("%s level done: %s", level, self.out / songs[0].levels[level]["audio"])

            songs = self.jukebox.sample(batch, self.batch_size, on_progress, on_level, writer)
        for song in songs:
            print(f"{self.out / song.request.id}.wav  {song.seconds:.1f} s", flush=True)
            for note in song.notes:
                print(f"  note: {plain(note)}", flush=True)


def write_summary(
    out: Path, requests: list[SongRequest], refused: list[str], failed: dict[str, str]
) -> int:
    """Update `.unfinished/summary.json`: the state of every request that this folder was ever asked for.

    Returns how many of `requests` are complete.

    Args:
        refused: one line for each request that is not valid.
        failed: reasons by request id.
    """
    path = out / FOLDER / "summary.json"
    before: dict[str, Any] = {"made": [], "failed": {}, "refused": []}
    with suppress(OSError, ValueError):  # not there, torn, or not ours: it is written anew
        written = parse_json(read_inside(out / FOLDER, path.name))
        kinds = {name: isinstance(written.get(name), type(before[name])) for name in before}
        before = written if all(kinds.values()) else before
    asked = [request.id for request in requests]
    known = dict.fromkeys([*before["made"], *asked])
    complete = [song for song in known if (out / f"{song}.json").exists()]
    outdated = {*asked, *complete}
    still_failed = {
        song: reason for song, reason in before["failed"].items() if song not in outdated
    }
    prefixes = tuple(f"request {song}:" for song in asked)
    still_refused = [line for line in before["refused"] if not str(line).startswith(prefixes)]
    summary = {
        "made": complete,
        "failed": still_failed | failed,
        "refused": list(dict.fromkeys([*still_refused, *refused])),
    }
    write_atomic(path, (json.dumps(summary, indent=1) + "\n").encode())
    return len(set(asked) & set(complete))
