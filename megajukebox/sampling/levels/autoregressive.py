"""The autoregressive level samplers: windows in order, exactly; or all at once, each after a short run-up of its own.

sequential   code by code                                         the reference, and best for many songs at once
ahead        an int8 copy of the prior guesses, one pass decides  the same codes; best for a wide prior and few songs
fixed_point  the last pass's codes are the guess                  the same codes
across       the codes of `windows` are the guess                 the same codes
windows      all windows of a song in lockstep                    other codes: a seam between windows (docs/decisions/0022)
"""

# B songs   M rows (a song and one of its windows)
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from megajukebox.models.prior import Prior
from megajukebox.sampling.decoding.cuda_graph_rows import sample_window_cuda_graph
from megajukebox.sampling.decoding.decoder import PackedPrior, WindowDecoder
from megajukebox.sampling.decoding.window_sampler import (
    SamplingWindow,
    sample_window,
    sample_window_speculative,
    write_tokens,
)
from megajukebox.sampling.levels.level_sampler import LevelJob, LevelSampler, Progress, window_hop
from megajukebox.sampling.levels.level_windows import (
    WindowRow,
    WindowSpan,
    build_window,
    window_spans,
)

WIDE_PRIOR = 512  # from this width on a step is so much reading of weights that an int8 copy is worth its guesses
DECODINGS = ("sequential", "ahead", "fixed_point", "across", "rows", "windows")


@dataclass
class Autoregressive:
    """Windows in order, all songs in lockstep."""

    prior: Prior
    decoding: str = "sequential"
    num_draft_tokens: int = 16  # codes that are guessed before one pass decides
    int8: bool = False  # rounded weights decide: not exact
    exact: bool = True

    def __post_init__(self) -> None:
        self.packed = PackedPrior(self.prior, self.int8)
        self.rough = PackedPrior(self.prior, int8=True) if self.decoding == "ahead" else None
        self.exact = not self.int8

    @torch.inference_mode()
    def sample(self, job: LevelJob, progress: Progress) -> None:
        config = self.prior.config
        for span in window_spans(job.total, config.window, window_hop(config, job.hop_fraction)):
            if not bool(job.known_BT[:, span.new : span.end].all()):
                rows = [WindowRow(song, span) for song in range(len(job.conditioning))]
                self.run(job, rows, build_window(self.prior, job, rows), progress)

    def run(
        self, job: LevelJob, rows: list[WindowRow], window: SamplingWindow, progress: Progress
    ) -> None:
        """Sample one window of every row; codes count as done row by row of the transformer."""

        def note(t: int) -> None:
            progress(
                sum(self.write(job, row, window.tokens_BT[m], t) for m, row in enumerate(rows))
            )

        self.way_of(window)(self.packed, window, progress=note)

    def write(self, job: LevelJob, row: WindowRow, tokens_T: Tensor, t: int) -> int:
        """Hand on the row's own codes before position t of its window; how many of them are new."""
        config, span = self.prior.config, row.span
        first, end = (
            config.prefix_tokens + span.new - span.start,
            min(t, config.prefix_tokens + span.end - span.start),
        )
        # A model of one sequence may emit a lyric token where music belongs; that is read as code 0 (spec 7.5).
        return (
            job.write(row.song, span.new, (tokens_T[first:end] - config.shift).clamp(min=0))
            if end > first
            else 0
        )

    def way_of(self, window: SamplingWindow) -> Callable:
        if self.decoding == "ahead":
            return partial(
                sample_window_speculative, draft=self.guess, num_draft_tokens=self.num_draft_tokens
            )
        return sample_window_cuda_graph if self.decoding == "rows" else sample_window

    def guess(self, decoder: WindowDecoder, window: SamplingWindow, t: int, end: int) -> int:
        """Sample roughly, with the same noise: the same code nine times of ten or more. Steps cannot leave a row.

        Not the last one: nothing is read after it, so the pass decides it without a guess.
        """
        assert self.rough is not None
        end = min(end, (t // decoder.row + 1) * decoder.row)
        for now in range(t, end - 1):
            logits = decoder.step(self.rough, window.tokens_BT, now)
            write_tokens(window, now, window.sample(logits, now).codes)
        return end


@dataclass
class JacobiDecoding(Autoregressive):
    """Exact: what a pass over a block of codes draws is the guess of the next pass, until it draws it again.

    Song by song: side by side they would wait for each other at every wrong guess. What `job.codes` holds where nothing
    is known yet is the first guess.
    """

    num_draft_tokens: int = 128  # codes of a block at most

    @torch.inference_mode()
    def sample(self, job: LevelJob, progress: Progress) -> None:
        for song in range(len(job.conditioning)):
            super().sample(job.for_song(song), progress)

    def way_of(self, window: SamplingWindow) -> Callable:
        return partial(
            sample_window_speculative,
            draft=lambda decoder, window, t, end: end,
            num_draft_tokens=self.num_draft_tokens,
        )


@dataclass
class WindowParallelDecoding(Autoregressive):
    """All windows of the songs in lockstep, `max_rows` at a time: not the codes of the windows in order.

    Every window but the first samples a run-up of its own, which is thrown away, and waits for no other:

        in order    |========|            in parallel   |========|
                        |----====|                           |--======|       - run-up
                            |----====|                             |--======|
    """

    run_up: float = 0.125  # share of a window
    max_rows: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        self.exact = False

    @torch.inference_mode()
    def sample(self, job: LevelJob, progress: Progress) -> None:
        rows = [
            WindowRow(song, span)
            for span in self.spans(job.total)
            for song in range(len(job.conditioning))
        ]
        rows = [
            row
            for row in rows
            if not bool(job.known_BT[row.song, row.span.new : row.span.end].all())
        ]
        for first in range(0, len(rows), self.max_rows):
            some = rows[first : first + self.max_rows]
            window = build_window(self.prior, job, some)
            prefix = self.prior.config.prefix_tokens
            for m, row in enumerate(
                some
            ):  # the run-up must not depend on what a neighbour has done by now
                run_up = slice(prefix, prefix + row.span.new - row.span.start)
                window.known_BT[m, run_up] = job.prompt_BT[row.song, row.span.start : row.span.new]
            for g, song in enumerate(
                getattr(window.token_sampler, "songs_G", torch.zeros(0)).tolist()
            ):
                window.known_BT[len(some) + g] = window.known_BT[song]
            self.run(job, some, window, progress)

    def spans(self, total: int) -> list[WindowSpan]:
        window, run_up = self.prior.config.window, window_hop(self.prior.config, self.run_up)
        if total <= window:
            return [WindowSpan(0, 0, total)]
        starts = range(0, total - run_up, window - run_up)
        return [WindowSpan(s, s + run_up if s else 0, min(s + window, total)) for s in starts]


@dataclass
class JacobiAcrossWindows(JacobiDecoding):
    """Exact: the codes of all windows at once are the guess; what a seam changed is settled again, window by window."""

    def __post_init__(self) -> None:
        super().__post_init__()
        wide = (
            self.prior.config.transformer.width >= WIDE_PRIOR
            and self.prior.head.weight.device.type == "cpu"
        )
        self.windows = WindowParallelDecoding(self.prior, int8=self.int8 or wide)

    @torch.inference_mode()
    def sample(self, job: LevelJob, progress: Progress) -> None:
        guess = replace(job, codes_BT=job.codes_BT.clone(), known_BT=job.known_BT.clone())
        self.windows.sample(guess, lambda count: progress(0))
        job.codes_BT.copy_(guess.codes_BT)
        super().sample(job, progress)


def build_level_sampler(prior: Prior, way: str, **settings) -> LevelSampler:
    """The level sampler of that name. ValueError if there is none."""
    if way not in DECODINGS:
        raise ValueError(f"sampler {way!r} is unknown; choose one of {', '.join(DECODINGS)}")
    own = {
        "fixed_point": JacobiDecoding,
        "windows": WindowParallelDecoding,
        "across": JacobiAcrossWindows,
    }
    return own[way](prior, **settings) if way in own else Autoregressive(prior, way, **settings)
