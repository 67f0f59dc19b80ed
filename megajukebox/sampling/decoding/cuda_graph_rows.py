"""Windows sampled without the host between codes: the step of each column of a row is a CUDA graph.

A row's steps differ by their column alone (reads of the current row have a fixed length). What else they need is on the
device, in memory that stays: caches, and what the host queues there for the row (`RowSteps.load_row`): its number,
known codes, noise, embedded positions. So a graph is captured once and replayed for every row of every window, as long
as the prior stays loaded and as many songs go in lockstep. On a CPU the same code runs without capture.

Near ties are recorded on the device, and resolved once a row: the row is sampled again from the first code that the
full forward pass decides otherwise.
"""

# B songs   T positions of the window   R rows   L positions in a row   V vocabulary   W width
import torch
from torch import Tensor

from megajukebox.sampling.decoding.cuda_device import on_device
from megajukebox.sampling.decoding.decoder import PackedPrior, WindowDecoder
from megajukebox.sampling.decoding.kv_cache import FlatCache, StepSpan
from megajukebox.sampling.decoding.window_sampler import (
    Progress,
    SamplingWindow,
    prefill,
    resolve_near_ties,
    write_tokens,
)

# Sets of graphs that are kept, with their caches: that of full batches, and that of the songs left over.
MAX_GRAPH_SETS = 2


class RowSteps:
    """The steps of a row for windows of one batch size; `begin` a window, then `sample` its rows in order."""

    def __init__(self, packed: PackedPrior, window: SamplingWindow):
        prior = packed.prior
        songs = len(window.tokens_BT)
        device = window.tokens_BT.device
        self.packed = packed
        self.decoder = WindowDecoder(prior, window.conditioning, songs)
        self.window = window
        self.token_sampler = window.token_sampler.clone()
        self.all_rows_1R = torch.arange(self.decoder.rows, device=device)[None]
        self.columns_L = torch.arange(self.decoder.row, device=device)
        # What the graphs read and write of a row:
        self.row = torch.zeros(1, dtype=torch.long, device=device)
        self.rows_seen_1R = torch.zeros_like(self.all_rows_1R, dtype=torch.bool)
        self.tokens_BL = window.tokens_BT[:, : self.decoder.row].clone()
        self.known_BL = window.known_BT[:, : self.decoder.row].clone()
        self.near_ties_BL = torch.zeros_like(self.known_BL)
        self.position_BL = window.positions(0, self.decoder.row)
        self.noise_BLV = window.gumbel(0, self.decoder.row, prior.vocabulary).clone()
        self.first_B1W = self.decoder.start.clone()  # what stands before the row
        self.embedded_LW = prior.input.positions.weight[: self.decoder.row].clone()
        self.added_BLW: Tensor | None = None
        if window.conditioning.added is not None:
            self.added_BLW = window.conditioning.added[:, : self.decoder.row].clone()
        self.flat_index_L = self.columns_L.clone()
        self.flat_mask_LT: Tensor | None = None
        if any(isinstance(layer, FlatCache) for layer in self.decoder.layers):
            self.all_positions_T = torch.arange(self.decoder.length, device=device)
            self.flat_mask_LT = self.all_positions_T <= self.columns_L[:, None]
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self.stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self.stream = torch.cuda.Stream(device)
            self.pool = torch.cuda.graph_pool_handle()  # one graph runs at a time: they share it

    def begin(self, window: SamplingWindow) -> None:
        """Go to the beginning of another window: nothing of the one before is left."""
        self.window = window
        values = window.token_sampler.tensors()
        for name, tensor in self.token_sampler.tensors().items():
            tensor.copy_(values[name])
        self.decoder.restart(window.conditioning)

    def sample(self, t: int, end: int) -> Tensor:
        """Sample positions t .. end - 1, of one row, of the window. Returns which are near ties, [B, N]."""
        row, column = divmod(t, self.decoder.row)
        self.load_row(row)
        sampled = slice(column, column + end - t)
        for c in range(sampled.start, sampled.stop):
            self.run(c)
        self.window.tokens_BT[:, t:end] = self.tokens_BL[:, sampled]
        return self.near_ties_BL[:, sampled] & ~self.known_BL[:, sampled]

    def load_row(self, row: int) -> None:
        """Queue everything that the steps of this row read, beside the caches and the codes that they sample."""
        window = self.window
        decoder = self.decoder
        decoder.enter_row(row)
        first = row * decoder.row
        positions = slice(first, first + decoder.row)
        entry = window.prior.input
        self.row.fill_(row)
        torch.le(self.all_rows_1R, self.row, out=self.rows_seen_1R)
        self.tokens_BL.copy_(window.tokens_BT[:, positions])
        self.known_BL.copy_(window.known_BT[:, positions])
        self.position_BL.copy_(window.positions(first, decoder.row))
        self.noise_BLV.copy_(window.gumbel(first, decoder.row, self.noise_BLV.shape[-1]))
        before = entry.tokens(window.tokens_BT[:, first - 1 : first]) if row else decoder.start
        self.first_B1W.copy_(before)
        self.embedded_LW.copy_(entry.positions.weight[positions])
        if self.added_BLW is not None:
            assert window.conditioning.added is not None
            self.added_BLW.copy_(window.conditioning.added[:, positions])
        torch.add(self.columns_L, first, out=self.flat_index_L)
        if self.flat_mask_LT is not None:
            index_L1 = self.flat_index_L[:, None]
            torch.le(self.all_positions_T, index_L1, out=self.flat_mask_LT)

    def run(self, column: int) -> None:
        """Sample the codes of this column: by its graph, where steps are captured."""
        if self.stream is None:
            self.step(column)
            return
        if column not in self.graphs:
            self.graphs[column] = self._captured(column, self.stream)
        self.graphs[column].replay()

    def _captured(self, column: int, stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
        """The graph of a column. Its step is done once before: libraries load their kernels then, which no graph may.

        It writes what the replay will write again.
        """
        current = torch.cuda.current_stream(self.row.device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            self.step(column)
        current.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on using the GPU.
        with torch.cuda.graph(
            graph, pool=self.pool, stream=stream, capture_error_mode="thread_local"
        ):
            self.step(column)
        return graph

    def step(self, column: int) -> None:
        """The codes in `column` of the row and their near ties, from memory into memory."""
        decoder = self.decoder
        here = slice(column, column + 1)
        added = None if self.added_BLW is None else self.added_BLW[:, here]
        flat_mask = None if self.flat_mask_LT is None else self.flat_mask_LT[here]
        span = StepSpan(
            column,
            1,
            column,
            self.row,
            decoder.rows,
            self.rows_seen_1R,
            self.flat_index_L[here],
            flat_mask,
            self.columns_L[here] if self.packed.fused else None,
        )
        logits = decoder.forward(self.packed, self.embedded(column), added, span)
        sampled = self.token_sampler(
            logits, self.position_BL[:, here], gumbel=self.noise_BLV[:, here]
        )
        tokens = self.tokens_BL[:, here]
        torch.where(self.known_BL[:, here], tokens, sampled.codes, out=tokens)
        if self.packed.exact:
            self.near_ties_BL[:, here] = sampled.near_tie

    def embedded(self, column: int) -> Tensor:
        """The input [B, 1, W] of a column's position, without conditioning."""
        if column == 0:
            return self.first_B1W + self.embedded_LW[0]
        tokens = self.packed.prior.input.tokens(self.tokens_BL[:, column - 1 : column])
        return tokens + self.embedded_LW[column]


class CudaGraphSampler:
    """`sample_window` with graphs on a GPU; keeps them for later windows of the same prior."""

    def __init__(self) -> None:
        self.kept: dict[tuple, RowSteps] = {}  # the one used last comes last

    @torch.inference_mode()
    def __call__(
        self, packed: PackedPrior, window: SamplingWindow, progress: Progress = lambda t: None
    ) -> Tensor:
        with on_device(window.tokens_BT.device):
            steps = self._steps(packed, window)
            begin, until = window.unknown_span()
            prefill(steps.decoder, window, begin)
            t = begin
            while t < until:
                end = min(until, (t // steps.decoder.row + 1) * steps.decoder.row)
                near_ties_BN = steps.sample(t, end)
                accepted = end - t
                if packed.exact and bool(near_ties_BN.any()):
                    # What may stay: all up to the first near tie that is decided otherwise.
                    sampled_BN = window.tokens_BT[:, t:end].clone()
                    resolved_BN = resolve_near_ties(window, sampled_BN, near_ties_BN, t, sampled_BN)
                    accepted = write_tokens(window, t, resolved_BN, sampled_BN)
                t += accepted
                if t == end:
                    progress(t)
        return window.tokens_BT

    def _steps(self, packed: PackedPrior, window: SamplingWindow) -> RowSteps:
        """The steps of windows like this one, at its beginning."""
        tensors = window.token_sampler.tensors()
        shapes = [(name, tensor.shape, tensor.dtype) for name, tensor in tensors.items()]
        kind = (id(packed), len(window.tokens_BT), *shapes)
        steps = self.kept.pop(kind, None)
        if steps is None:
            while len(self.kept) >= MAX_GRAPH_SETS:
                del self.kept[next(iter(self.kept))]  # before another one takes memory
            steps = RowSteps(packed, window)
        self.kept[kind] = steps
        steps.begin(window)
        return steps
