"""The autoregressive level samplers: windows in order, exactly; or all at once, each after a short run-up of its own.

sequential        code by code                                          the reference, and best for many songs at once
speculative       an int8 copy of the prior drafts, one pass verifies   the same codes; best for a wide prior, few songs
jacobi            the codes of the last pass are the draft              the same codes
jacobi_windows    the codes of `parallel_windows` are the draft         the same codes
cuda_graph        code by code, a step replayed as a CUDA graph         the same codes
parallel_windows  all windows of a song in lockstep                     other codes: a seam between windows
"""

# B songs   M rows (a song and one of its windows)
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from megajukebox.common.errors import UserError
from megajukebox.models.prior import Prior
from megajukebox.records.sample_record import current_decoding
from megajukebox.sampling.decoding.cuda_graph_rows import CudaGraphSampler
from megajukebox.sampling.decoding.decoder import PackedPrior, WindowDecoder
from megajukebox.sampling.decoding.token_sampling import ClassifierFreeGuidance
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

WIDE_PRIOR = 512  # from this width on a step is so much reading of weights that an int8 draft pays


@dataclass
class Autoregressive:
    """Windows in order, all songs in lockstep."""

    prior: Prior
    int8: bool = False  # rounded weights decide: not exact
    exact: bool = True

    def __post_init__(self) -> None:
        self.packed = PackedPrior(self.prior, self.int8)
        self.exact = not self.int8

    @torch.inference_mode()
    def sample(self, job: LevelJob, progress: Progress) -> None:
        config = self.prior.config
        known_BT = job.known_BT.cpu()  # of each window's own codes: no other window changes it
        for span in window_spans(job.total, config.window, window_hop(config, job.hop_fraction)):
            if not bool(known_BT[:, span.new : span.end].all()):
                rows = [WindowRow(song, span) for song in range(len(job.conditioning))]
                self.run(job, rows, build_window(self.prior, job, rows), progress)

    def run(
        self, job: LevelJob, rows: list[WindowRow], window: SamplingWindow, progress: Progress
    ) -> None:
        """Sample one window of every row; codes count as done row by row of the transformer."""

        def write_back(t: int) -> None:
            new: Tensor | int = 0
            for row, tokens_T in zip(rows, window.tokens_BT):
                new = new + self.write(job, row, tokens_T, t)
            progress(int(new))

        self.window_sampler()(self.packed, window, progress=write_back)

    def window_sampler(self) -> Callable:
        """What samples one window: called with (packed prior, window, progress)."""
        return sample_window

    def write(self, job: LevelJob, row: WindowRow, tokens_T: Tensor, t: int) -> Tensor | int:
        """Write the row's own codes before position t of its window to the job; how many of them are new.

        window   |prefix|known|new ....|     a row's own codes are `new` .. `end` - 1 of the level
        """
        config = self.prior.config
        span = row.span
        first = config.prefix_tokens + span.new - span.start
        end = min(t, config.prefix_tokens + span.end - span.start)
        if end <= first:
            return 0
        # A model of one sequence may emit a lyric token where music belongs; that is read as code 0 (spec 7.5).
        return job.write(row.song, span.new, (tokens_T[first:end] - config.shift).clamp(min=0))


@dataclass
class CudaGraphDecoding(Autoregressive):
    """Exact: the steps of a row are captured once and replayed, without a word from the host."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.graphs = CudaGraphSampler()

    def window_sampler(self) -> Callable:
        return self.graphs


@dataclass
class SpeculativeDecoding(Autoregressive):
    """Exact: an int8 copy of the prior drafts codes with the same noise, one pass of the prior verifies them."""

    num_draft_tokens: int = 16  # codes drafted before a pass verifies them, at most

    def __post_init__(self) -> None:
        super().__post_init__()
        self.draft_model = PackedPrior(self.prior, int8=True)

    def window_sampler(self) -> Callable:
        return partial(
            sample_window_speculative, draft=self.draft, num_draft_tokens=self.num_draft_tokens
        )

    def draft(self, decoder: WindowDecoder, window: SamplingWindow, t: int, end: int) -> int:
        """Draft codes from t on: the same as the prior's nine times of ten or more. Steps cannot leave a row.

        Not the last one: nothing is read after it, so the pass decides it without a draft.
        """
        end = min(end, (t // decoder.row + 1) * decoder.row)
        for now in range(t, end - 1):
            logits = decoder.step(self.draft_model, window.tokens_BT, now)
            write_tokens(window, now, window.sample(logits, now).codes)
        return end


@dataclass
class JacobiDecoding(Autoregressive):
    """Exact: what a pass over a block of codes samples is the draft of the next pass, until it samples it again.

    Song by song: side by side they would wait for each other at every wrong draft. What `job.codes` holds where
    nothing is known yet is the first draft.
    """

    num_draft_tokens: int = 128  # codes of a block at most

    @torch.inference_mode()
    def sample(self, job: LevelJob, progress: Progress) -> None:
        for song in range(len(job.conditioning)):
            super().sample(job.for_song(song), progress)

    def window_sampler(self) -> Callable:
        return partial(
            sample_window_speculative,
            draft=lambda decoder, window, t, end: end,  # the codes of the last pass are there
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
        self.sample_rows = sample_window
        if self.prior.head.weight.device.type == "cuda":
            self.sample_rows = CudaGraphSampler()

    def window_sampler(self) -> Callable:
        return self.sample_rows

    @torch.inference_mode()
    def sample(self, job: LevelJob, progress: Progress) -> None:
        rows = []
        known_BT = job.known_BT.cpu()
        for span in self.spans(job.total):
            for song in range(len(job.conditioning)):
                if not bool(known_BT[song, span.new : span.end].all()):
                    rows.append(WindowRow(song, span))
        prefix = self.prior.config.prefix_tokens
        for first in range(0, len(rows), self.max_rows):
            batch = rows[first : first + self.max_rows]
            window = build_window(self.prior, job, batch)
            # Of a run-up only the prompt is known: it must not depend on what a neighbour has sampled by now.
            for m, row in enumerate(batch):
                span = row.span
                run_up = slice(prefix, prefix + span.new - span.start)
                window.known_BT[m, run_up] = job.prompt_BT[row.song, span.start : span.new]
            if isinstance(window.token_sampler, ClassifierFreeGuidance):
                for g, m in enumerate(window.token_sampler.songs_G.tolist()):
                    window.known_BT[len(batch) + g] = window.known_BT[m]  # the unconditional row
            self.run(job, batch, window, progress)

    def spans(self, total: int) -> list[WindowSpan]:
        window = self.prior.config.window
        run_up = window_hop(self.prior.config, self.run_up)
        if total <= window:
            return [WindowSpan(0, 0, total)]
        spans = []
        for start in range(0, total - run_up, window - run_up):
            new = start + run_up if start else 0
            spans.append(WindowSpan(start, new, min(start + window, total)))
        return spans


@dataclass
class JacobiAcrossWindows(JacobiDecoding):
    """Exact: the codes of all windows at once are the draft; what a seam changed is settled again, window by window."""

    def __post_init__(self) -> None:
        super().__post_init__()
        wide = self.prior.config.transformer.width >= WIDE_PRIOR
        on_cpu = self.prior.head.weight.device.type == "cpu"
        self.draft_windows = WindowParallelDecoding(self.prior, int8=self.int8 or (wide and on_cpu))

    @torch.inference_mode()
    def sample(self, job: LevelJob, progress: Progress) -> None:
        draft = replace(job, codes_BT=job.codes_BT.clone(), known_BT=job.known_BT.clone())
        self.draft_windows.sample(draft, lambda count: progress(0))
        job.codes_BT.copy_(draft.codes_BT)
        super().sample(job, progress)


class Decoding(NamedTuple):
    """A way to sample a level: `build(prior, **settings)` makes its level sampler."""

    build: Callable[..., LevelSampler]
    exact: bool = True  # the codes are those of `sequential`
    windows_in_lockstep: bool = False  # takes memory for all windows of a song at once
    captures_steps: bool = False  # as graphs on a GPU, which take memory of their own


# A new decoding takes an entry here: `--decoding`, requests, memory_budget.py and records follow.
DECODINGS: dict[str, Decoding] = {
    "sequential": Decoding(Autoregressive),
    "speculative": Decoding(SpeculativeDecoding),
    "jacobi": Decoding(JacobiDecoding),
    "jacobi_windows": Decoding(JacobiAcrossWindows, windows_in_lockstep=True, captures_steps=True),
    "cuda_graph": Decoding(CudaGraphDecoding, captures_steps=True),
    "parallel_windows": Decoding(
        WindowParallelDecoding, exact=False, windows_in_lockstep=True, captures_steps=True
    ),
}


def build_level_sampler(prior: Prior, decoding: str, **settings) -> LevelSampler:
    """The level sampler of that name; names of version 0.1 are accepted.

    Raises:
        UserError: there is none of that name.
    """
    name = current_decoding(decoding)
    if name not in DECODINGS:
        raise UserError(f"decoding {decoding!r} is unknown; choose one of {', '.join(DECODINGS)}")
    return DECODINGS[name].build(prior, **settings)
