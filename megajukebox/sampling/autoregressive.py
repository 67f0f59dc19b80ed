"""The autoregressive level samplers: windows in order, exactly; or all at once, each after a short run-up of its own.

sequential   code by code                                         the reference, and best for many songs at once
ahead        an int8 copy of the prior guesses, one pass decides  the same codes; best for a wide prior and few songs
fixed_point  the last pass's codes are the guess                  the same codes
windows      all windows of a song in lockstep                    other codes: a seam between windows (LOG.md)
"""

# B songs   M rows (a song and one of its windows)
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from megajukebox.models.prior import Prior
from megajukebox.sampling.decoder import Packed, WindowDecoder
from megajukebox.sampling.level import LevelJob, LevelSampler, Progress, hop_of
from megajukebox.sampling.rows import sample_window_rows
from megajukebox.sampling.window import Window, drawn, sample_window, sample_window_ahead, take
from megajukebox.sampling.windows import Row, Span, spans, window_of

WAYS = ("sequential", "ahead", "fixed_point", "across", "rows", "windows")


@dataclass
class Autoregressive:
    """Windows in order, all songs in lockstep."""

    prior: Prior
    way: str = "sequential"
    ahead: int = 16  # codes that are guessed before one pass decides
    int8: bool = False  # rounded weights decide: not exact
    exact: bool = True

    def __post_init__(self) -> None:
        self.packed = Packed(self.prior, self.int8)
        self.rough = Packed(self.prior, int8=True) if self.way == "ahead" else None
        self.exact = not self.int8

    @torch.inference_mode()
    def sample(self, job: LevelJob, progress: Progress) -> None:
        config = self.prior.config
        for span in spans(job.total, config.window, hop_of(config, job.hop_fraction)):
            if not bool(job.known_BT[:, span.new : span.end].all()):
                rows = [Row(song, span) for song in range(len(job.told))]
                self.run(job, rows, window_of(self.prior, job, rows), progress)

    def run(self, job: LevelJob, rows: list[Row], window: Window, progress: Progress) -> None:
        """Sample one window of every row; codes count as done row by row of the transformer."""

        def note(t: int) -> None:
            progress(sum(self.write(job, row, window.tokens_BT[m], t) for m, row in enumerate(rows)))

        self.way_of(window)(self.packed, window, progress=note)

    def write(self, job: LevelJob, row: Row, tokens_T: Tensor, t: int) -> int:
        """Hand on the row's own codes before position t of its window; how many of them are new."""
        config, span = self.prior.config, row.span
        first, end = config.prefix_tokens + span.new - span.start, min(t, config.prefix_tokens + span.end - span.start)
        # A model of one sequence may emit a lyric token where music belongs; that is read as code 0 (spec 7.5).
        return job.write(row.song, span.new, (tokens_T[first:end] - config.shift).clamp(min=0)) if end > first else 0

    def way_of(self, window: Window) -> Callable:
        if self.way == "ahead":
            return partial(sample_window_ahead, guess=self.guess, ahead=self.ahead)
        if self.way == "fixed_point":
            return partial(sample_window_ahead, guess=lambda *_: None, ahead=self.ahead)
        return sample_window_rows if self.way == "rows" else sample_window

    def guess(self, decoder: WindowDecoder, window: Window, t: int, end: int) -> None:
        """Sample roughly, with the same noise: the same code nine times of ten or more.

        Not the last one: nothing is read after it, so the pass decides it without a guess.
        """
        assert self.rough is not None
        for now in range(t, end - 1):
            logits = decoder.step(self.rough, window.tokens_BT, now)
            take(window, now, window.drawn(logits, now).codes)


@dataclass
class ParallelWindows(Autoregressive):
    """All windows of the songs in lockstep, `most_rows` at a time: not the codes of the windows in order.

    Every window but the first samples a run-up of its own, which is thrown away, and waits for no other:

        in order    |========|            in parallel   |========|
                        |----====|                           |--======|       - run-up
                            |----====|                             |--======|
    """

    run_up: float = 0.125  # share of a window
    most_rows: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        self.exact = False

    @torch.inference_mode()
    def sample(self, job: LevelJob, progress: Progress) -> None:
        rows = [Row(song, span) for span in self.spans(job.total) for song in range(len(job.told))]
        rows = [row for row in rows if not bool(job.known_BT[row.song, row.span.new : row.span.end].all())]
        for first in range(0, len(rows), self.most_rows):
            some = rows[first : first + self.most_rows]
            window = window_of(self.prior, job, some)
            prefix = self.prior.config.prefix_tokens
            for m, row in enumerate(some):  # the run-up must not depend on what a neighbour has done by now
                run_up = slice(prefix, prefix + row.span.new - row.span.start)
                window.known_BT[m, run_up] = job.given_BT[row.song, row.span.start : row.span.new]
            for g, song in enumerate(getattr(window.draw, "songs_G", torch.zeros(0)).tolist()):
                window.known_BT[len(some) + g] = window.known_BT[song]
            self.run(job, some, window, progress)

    def spans(self, total: int) -> list[Span]:
        window, run_up = self.prior.config.window, hop_of(self.prior.config, self.run_up)
        if total <= window:
            return [Span(0, 0, total)]
        starts = range(0, total - run_up, window - run_up)
        return [Span(s, s + run_up if s else 0, min(s + window, total)) for s in starts]


@dataclass
class AcrossWindows(ParallelWindows):
    """Exact, all windows at once: codes of windows in parallel are only the first guess.

    Each round is one pass over the windows that are not final, told the codes before them as they are guessed by now. A
    window is final when the one before it is and the pass gives its own codes again: then every code is the one that
    the codes before it and the noise decide. At worst there are as many rounds as codes; that codes depend on few
    codes before them makes it fewer.
    """

    rounds: int = 0  # of the last level, all windows of a song counted once

    def __post_init__(self) -> None:
        super().__post_init__()
        self.exact = not self.int8

    @torch.inference_mode()
    def sample(self, job: LevelJob, progress: Progress) -> None:
        guess = replace(job, codes_BT=job.codes_BT.clone(), known_BT=job.known_BT.clone())
        super().sample(guess, lambda count: None)
        guess.known_BT = job.known_BT.clone()
        config, self.rounds = self.prior.config, 0
        order = spans(job.total, config.window, hop_of(config, job.hop_fraction))
        for song in range(len(job.told)):
            left = [Row(song, span) for span in order if not bool(job.known_BT[song, span.new : span.end].all())]
            tokens: dict[int, Tensor] = {}
            while left:
                self.rounds += 1
                final, changed = 0, [self.again(guess, row, tokens) for row in left[: self.most_rows]]
                while final < len(changed) and not changed[final]:
                    final += 1
                for row in left[:final]:
                    own = slice(row.span.new, row.span.end)
                    progress(job.write(song, row.span.new, guess.codes_BT[song, own]))
                left = left[final:]

    def again(self, guess: LevelJob, row: Row, tokens: dict[int, Tensor]) -> bool:
        """One pass over a window; whether its own tokens came out otherwise than they were guessed.

        `tokens` keeps them from pass to pass by the window's first new code: of a model of one sequence they may be
        lyrics, which its own window goes on reading and everybody else reads as code 0.
        """
        window = window_of(self.prior, guess, [row])
        config, span = self.prior.config, row.span
        first = config.prefix_tokens + span.new - span.start
        window.known_BT[:, :first] = True  # another window's codes, as they are guessed by now
        begin, until = window.beginning(), window.last()
        before = tokens.get(span.new, window.tokens_BT[:, begin:until].clone())
        window.tokens_BT[:, begin:until] = before
        logits = self.prior.logits(window.tokens_BT, window.given)[:, begin:until]
        take(window, begin, drawn(self.packed, window, logits, begin, before))
        codes = (window.tokens_BT[0, first : first + span.end - span.new] - config.shift).clamp(min=0)
        guess.codes_BT[row.song, span.new : span.end] = codes
        tokens[span.new] = window.tokens_BT[:, begin:until].clone()
        return bool((before != tokens[span.new]).any())


def sampler_of(prior: Prior, way: str, **settings) -> LevelSampler:
    """The level sampler of that name. ValueError if there is none."""
    if way not in WAYS:
        raise ValueError(f"sampler {way!r} is unknown; choose one of {', '.join(WAYS)}")
    if way in ("windows", "across"):
        return {"windows": ParallelWindows, "across": AcrossWindows}[way](prior, **settings)
    return Autoregressive(prior, way, **settings)
