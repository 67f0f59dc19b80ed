"""Progress of sampling: a bar a level on a terminal, lines in a log, and a JSON file that another program may read."""

import json
import time
from pathlib import Path

from megajukebox.common.files import write_atomic
from megajukebox.common.progress import ProgressReporter
from megajukebox.sampling.jukebox import Jukebox
from megajukebox.sampling.levels.level_sampler import DEFAULT_HOP_FRACTIONS, window_hop
from megajukebox.sampling.levels.level_windows import window_spans
from megajukebox.sampling.songs.song import GeneratedSong

FILE_INTERVAL = 0.5  # seconds between two writes of the file


class ProgressDisplay:
    """Codes, window, codes per second and seconds left of each level while `songs` are sampled.

    Use it as a context; pass `advance` to `Jukebox.sample`.
    """

    def __init__(self, jukebox: Jukebox, songs: list[GeneratedSong], show: bool):
        self.jukebox = jukebox
        self.songs = songs
        self.reporter = ProgressReporter(show)

    def __enter__(self) -> "ProgressDisplay":
        self.reporter.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self.reporter.__exit__(*exception)

    def advance(self, level: str, count: int) -> None:
        """Count `count` more codes of a level; the first call of a level gives those known before it started."""
        if level not in self.reporter.tasks:
            total = sum(self.jukebox.num_codes(song.request, level) for song in self.songs)
            self.reporter.add(level, total, completed=count)
            return
        task = self.reporter.tasks[level]
        config = self.jukebox.levels[level].config
        fraction = self.songs[0].request.at("hop_fraction", level, DEFAULT_HOP_FRACTIONS[level])
        # The window, numbered from 1, that an average song has reached.
        song_total = task.total // len(self.songs)
        song_done = (task.completed + count) // len(self.songs)
        spans = window_spans(song_total, config.window, window_hop(config, fraction))
        reached = 0
        for span in spans:
            reached += span.new <= song_done and span.new < song_total
        window = f"window {max(1, reached)}/{len(spans)}"
        status = f"{task.describe()}, {task.speed():.0f} codes/s, {window}"
        self.reporter.advance(level, count, status)


class ProgressFile:
    """Keeps {"done": {level: codes}, "total": {level: codes}} at `path`; None keeps nothing."""

    def __init__(self, path: Path | None, total: dict[str, int]) -> None:
        self.path = path
        self.total = total
        self.done = dict.fromkeys(total, 0)
        self.last_write = 0.0
        self.write()

    def advance(self, level: str, count: int) -> None:
        self.done[level] += count
        if time.monotonic() > self.last_write + FILE_INTERVAL or self.done == self.total:
            self.write()

    def write(self) -> None:
        if self.path:
            write_atomic(self.path, json.dumps({"done": self.done, "total": self.total}).encode())
        self.last_write = time.monotonic()
