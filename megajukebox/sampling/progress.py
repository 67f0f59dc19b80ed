"""How far sampling has come, live: level, window, codes a second, time left; bars, or lines without a screen."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from megajukebox.sampling.jukebox import Jukebox
from megajukebox.sampling.levels.level_sampler import DEFAULT_HOP_FRACTIONS, window_hop
from megajukebox.sampling.levels.level_windows import window_spans
from megajukebox.sampling.songs.song import GeneratedSong

EVERY = 10.0  # seconds between two lines where there is no screen


class ProgressDisplay:
    """A bar a level while `songs` are made. Use it as a context; `advance` is what `Jukebox.sample` calls."""

    def __init__(self, jukebox: Jukebox, songs: list[GeneratedSong], show: bool):
        self.show, self.screen = show, sys.stdout.isatty()
        columns = (
            TextColumn("{task.description:>6}"),
            BarColumn(),
            TextColumn("{task.fields[said]}"),
        )
        self.bars = Progress(*columns, console=Console(), disable=not (show and self.screen))
        self.songs, self.jukebox = songs, jukebox
        self.totals = {
            n: sum(jukebox.num_codes(s.request, n) for s in songs) for n in jukebox.levels
        }
        self.done = dict.fromkeys(self.totals, 0)
        self.rows = {
            n: self.bars.add_task(n, total=total, said="") for n, total in self.totals.items()
        }
        self.begun: dict[str, tuple[float, int]] = {}
        self.told = time.monotonic()

    def __enter__(self) -> "ProgressDisplay":
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def advance(self, level: str, count: int) -> None:
        """`count` more codes of a level are there; the first call of a level tells what was there before."""
        self.done[level] += count
        self.begun.setdefault(level, (time.monotonic(), self.done[level]))
        said = self.line(level)
        self.bars.update(self.rows[level], completed=self.done[level], said=said)
        if self.show and not self.screen and time.monotonic() > self.told + EVERY:
            self.told = time.monotonic()
            print(f"{level}: {said}", flush=True)

    def line(self, level: str) -> str:
        """Codes, window (of an average song), codes a second since the level began, and the seconds it still takes."""
        begun, before = self.begun[level]
        speed = (self.done[level] - before) / max(1e-9, time.monotonic() - begun)
        left = f", {(self.totals[level] - self.done[level]) / speed:.0f} s left" if speed else ""
        now, windows = self.window(level)
        codes = f"{self.done[level]}/{self.totals[level]} codes"
        return f"{codes}, window {now}/{windows}, {speed:.0f} codes/s{left}"

    def window(self, level: str) -> tuple[int, int]:
        config, total = self.jukebox.levels[level].config, self.totals[level] // len(self.songs)
        hop = window_hop(
            config, self.songs[0].request.at("hop_fraction", level, DEFAULT_HOP_FRACTIONS[level])
        )
        windows = window_spans(total, config.window, hop)
        done = self.done[level] // len(self.songs)
        return max(1, sum(span.new <= done and span.new < total for span in windows)), len(windows)
