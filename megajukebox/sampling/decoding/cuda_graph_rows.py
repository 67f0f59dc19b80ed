"""A window sampled without the host between steps: what a step needs is on the device, so it can be a CUDA graph.

The column of a step is fixed when it is captured (reads of the current row have a fixed length), the row is a number on
the device: one graph a column, each replayed once a row. Between rows the host only advances the caches. On a CPU the
same code runs without capture, which is how it is tested; no GPU has run it yet.

Near ties are recorded on the device, and resolved once a row: the row is sampled again from the first code that the
full forward pass decides otherwise.
"""

# B songs   T positions of the window   R rows
import torch
import torch.nn.functional as F
from torch import Tensor

from megajukebox.sampling.decoding.decoder import PackedPrior, WindowDecoder, window_decoder
from megajukebox.sampling.decoding.kv_cache import StepSpan
from megajukebox.sampling.decoding.window_sampler import (
    Progress,
    SamplingWindow,
    prefill,
    resolve_near_ties,
    write_tokens,
)


class RowSteps:
    """The steps of one row, by column: the row, the mask of the rows to come and the tokens live on the device."""

    def __init__(
        self, packed: PackedPrior, window: SamplingWindow, decoder: WindowDecoder, capture: bool
    ):
        self.packed = packed
        self.window = window
        self.decoder = decoder
        self.capture = capture
        device = window.tokens_BT.device
        length = window.tokens_BT.shape[1]
        self.row = torch.zeros(1, dtype=torch.long, device=device)
        self.rows_seen = torch.zeros(1, decoder.rows, dtype=torch.bool, device=device)
        self.all_rows = torch.arange(decoder.rows, device=device)
        self.all_positions = torch.arange(length, device=device)
        self.near_ties_BT = torch.zeros_like(window.known_BT)
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def run(self, column: int) -> None:
        """Sample the code in `column` of the row: by the graph of that column, where steps are captured."""
        if not self.capture:
            self.step(column)
            return
        if column not in self.graphs:
            # Warming up writes the same codes and keys as the replay will: it may be done twice.
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self.step(column)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.step(column)
            self.graphs[column] = graph
        self.graphs[column].replay()

    def step(self, column: int) -> None:
        """One step: the codes of the position in `column` and their near ties, all on the device."""
        decoder = self.decoder
        window = self.window
        t = self.row * decoder.row + column  # [1]
        entry = window.prior.input
        before = entry.tokens(window.tokens_BT.index_select(1, (t - 1).clamp(min=0)))
        content = torch.where((t == 0)[:, None, None], decoder.start, before)
        h = content + F.embedding(t, entry.positions.weight)
        added = None
        if decoder.conditioning.added is not None:
            added = decoder.conditioning.added.index_select(1, t)
        flat = (self.all_positions <= t)[None]
        span = StepSpan(column, 1, column, self.row, decoder.rows, self.rows_seen, t, flat)
        logits = decoder.forward(self.packed, h, added, span)
        prefix = window.prior.config.prefix_tokens
        sampled = window.token_sampler(logits, window.start_B[:, None] + t - prefix)
        kept = window.tokens_BT.index_select(1, t)
        known = window.known_BT.index_select(1, t)
        window.tokens_BT.index_copy_(1, t, torch.where(known, kept, sampled.codes))
        self.near_ties_BT.index_copy_(1, t, sampled.near_tie & ~known)


@torch.inference_mode()
def sample_window_cuda_graph(
    packed: PackedPrior, window: SamplingWindow, progress: Progress = lambda t: None
) -> Tensor:
    """`sample_window` with the host out of the way; captured where there is a GPU."""
    begin = window.known_prefix()
    until = window.unknown_end()
    with window_decoder(window.prior, window.conditioning, len(window.tokens_BT)) as decoder:
        prefill(decoder, window, begin)
        steps = RowSteps(packed, window, decoder, capture=window.tokens_BT.device.type == "cuda")
        t = begin
        while t < until:
            row, column = divmod(t, decoder.row)
            decoder.enter_row(row)
            steps.row.fill_(row)
            torch.le(steps.all_rows[None], steps.row, out=steps.rows_seen)
            end = min(until, (row + 1) * decoder.row)
            for c in range(column, column + end - t):
                steps.run(c)
            accepted = end - t
            near_ties_BN = steps.near_ties_BT[:, t:end]
            if packed.exact and bool(near_ties_BN.any()):
                # What may stay: all up to the first near tie that is decided otherwise.
                sampled_BN = window.tokens_BT[:, t:end].clone()
                resolved_BN = resolve_near_ties(window, sampled_BN, near_ties_BN, t, sampled_BN)
                accepted = write_tokens(window, t, resolved_BN, sampled_BN)
            t += accepted
            if t == end:
                progress(t)
    return window.tokens_BT
