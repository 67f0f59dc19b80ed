"""One window of some songs in lockstep: sampled code by code, or drafted and verified; and the slow plain twin.

All of them give the codes of the plain one: x_t = argmax(log p(x_t | x before t) + noise_t) at every position. Where
the order of a sum could decide (`SampledTokens.near_tie`), the full forward pass of that song alone decides, in every
decoding. So one seed is one song: in any batch, by any decoding.
"""

# B songs (and unconditional rows of guided ones)   T positions of the window   N positions of a step   V vocabulary
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from megajukebox.models.prior import Conditioning, Prior
from megajukebox.sampling.decoding.cuda_device import upload
from megajukebox.sampling.decoding.decoder import PackedPrior, WindowDecoder, window_decoder
from megajukebox.sampling.decoding.kv_cache import first_songs
from megajukebox.sampling.decoding.token_sampling import (
    ClassifierFreeGuidance,
    SampledTokens,
    TokenSampler,
    TokenSamplerProtocol,
)

# Codes of all songs whose noise is made at once: one by one it takes four times as long, by hundreds ten times.
NOISE_BLOCK = 16
FIRST_BLOCK = 64  # codes of a window's first drafted block, at most
MIN_BLOCK = 8  # codes of any drafted block
PASSES_PER_CODE = 6  # passes in which a code moves from the end of a block to its start
ACCEPTED_DECAY = 8  # blocks over which the mean number of accepted codes is taken

Progress = Callable[[int], None]  # called with the position up to which the window is sampled
# Writes drafts into tokens t .. end - 1, or fewer; returns where they end.
DraftModel = Callable[[WindowDecoder, "SamplingWindow", int, int], int]


@dataclass
class SamplingWindow:
    """A window of B songs: their conditioning, the tokens so far, and which of them are known and stay."""

    prior: Prior
    conditioning: Conditioning
    tokens_BT: Tensor  # int64; written as codes are sampled
    known_BT: Tensor  # bool
    start_B: Tensor  # int64, absolute position (codes since the start of the song) of the window's first code
    token_sampler: TokenSamplerProtocol
    # On the host: int64, number of a song's prefix; None: no two share one.
    shared_prefix_B: Tensor | None = None
    noise: tuple[int, Tensor] | None = None  # of the positions from that one on, [B, N, V]

    def positions(self, t: int, size: int) -> Tensor:
        """Absolute positions [B, N] of N positions of the window."""
        first = t - self.prior.config.prefix_tokens
        return self.start_B[:, None] + torch.arange(first, first + size, device=self.start_B.device)

    def sample(self, logits_BNV: Tensor, t: int) -> SampledTokens:
        """Sample positions t .. t + N - 1."""
        size, codes = logits_BNV.shape[1:]
        noise_BNV = self.gumbel(t, size, codes)
        return self.token_sampler(logits_BNV, self.positions(t, size), gumbel=noise_BNV)

    def gumbel(self, t: int, size: int, codes: int) -> Tensor:
        """The noise [B, N, V] of positions t .. t + N - 1, kept until a later position is asked for first."""
        first, noise = self.noise or (t, None)
        end = first if noise is None else first + noise.shape[1]
        if noise is None or not first <= t <= end:
            end = t
            noise = None
        elif t + size <= end:
            return noise[:, t - first : t - first + size]
        blocks = [] if noise is None else [noise[:, t - first :]]
        block_size = max(1, NOISE_BLOCK // len(self.start_B))
        if (
            self.start_B.device.type == "cuda"
        ):  # as many launches for one position as for a thousand
            block_size = max(size, block_size)
        for position in range(end, t + size, block_size):
            positions_BN = self.positions(position, block_size)
            blocks.append(self.token_sampler.gumbel(positions_BN, codes))
        noise = torch.cat(blocks, dim=1)
        self.noise = (t, noise)
        return noise[:, :size]

    def unknown_span(self) -> tuple[int, int]:
        """How many positions from the first on are known in every song, and where the last unknown one ends."""
        unknown = (~self.known_BT).any(0).cpu().nonzero()
        if not len(unknown):
            return self.tokens_BT.shape[1], 0
        return int(unknown[0]), int(unknown[-1]) + 1


@torch.inference_mode()
def sample_window(
    packed: PackedPrior, window: SamplingWindow, progress: Progress = lambda t: None
) -> Tensor:
    """The window's tokens with what is not known sampled, code by code."""
    begin, until = window.unknown_span()
    with window_decoder(window.prior, window.conditioning, len(window.tokens_BT)) as decoder:
        prefill(decoder, window, begin)
        for t in range(begin, until):
            logits = decoder.step(packed, window.tokens_BT, t)
            write_tokens(window, t, sample_tokens(packed, window, logits, t))
            if (t + 1) % decoder.row == 0 or t + 1 == until:
                progress(t + 1)
    return window.tokens_BT


@torch.inference_mode()
def sample_window_speculative(
    packed: PackedPrior,
    window: SamplingWindow,
    draft: DraftModel,
    num_draft_tokens: int,
    progress: Progress = lambda t: None,
) -> Tensor:
    """`sample_window` in fewer passes: some codes are drafted, one pass verifies all of them, the right ones stay.

    drafted    a b c d e      the pass gives the right code after every right prefix:
    verified   a b x y z      a b x are right (x follows a right prefix), y z are better drafts at most

    Blocks are as long as pays: `num_draft_tokens` codes at most, fewer where few of them turn out right.
    """
    begin, until = window.unknown_span()
    mean_accepted = min(num_draft_tokens, FIRST_BLOCK) / PASSES_PER_CODE
    with window_decoder(window.prior, window.conditioning, len(window.tokens_BT)) as decoder:
        prefill(decoder, window, begin)
        t = begin
        while t < until:
            size = min(num_draft_tokens, max(MIN_BLOCK, round(PASSES_PER_CODE * mean_accepted)))
            end = draft(decoder, window, t, min(t + size, until))
            row = t // decoder.row
            draft_BN = window.tokens_BT[:, t:end].clone()
            logits = decoder.step(packed, window.tokens_BT, t, end - t)
            verified_BN = sample_tokens(packed, window, logits, t, draft_BN)
            accepted = write_tokens(window, t, verified_BN, draft_BN)
            t += accepted
            mean_accepted += (accepted - mean_accepted) / ACCEPTED_DECAY
            if t // decoder.row > row or t == until:
                progress(t)
    return window.tokens_BT


@torch.inference_mode()
def sample_window_slowly(window: SamplingWindow) -> Tensor:
    """The plain twin of all decodings: one full forward pass for every code, nothing cached."""
    for t in range(*window.unknown_span()):
        logits = window.prior.logits(window.tokens_BT, window.conditioning)[:, t : t + 1]
        write_tokens(window, t, sample_tokens(None, window, logits, t))
    return window.tokens_BT


def prefill(decoder: WindowDecoder, window: SamplingWindow, begin: int) -> None:
    """Take in the known prefix, once for songs that share it."""
    if not begin:
        return
    shared_B = window.shared_prefix_B
    if shared_B is None:
        decoder.prefill(window.tokens_BT[:, :begin])
        return
    prefixes = int(shared_B.max()) + 1
    songs_B = upload(shared_B, window.tokens_BT.device)
    first_U = first_songs(songs_B, prefixes)
    decoder.prefill(window.tokens_BT[first_U, :begin], songs_B)


def sample_tokens(
    packed: PackedPrior | None,
    window: SamplingWindow,
    logits_BNV: Tensor,
    t: int,
    draft_BN: Tensor | None = None,
) -> Tensor:
    """Codes [B, N] of positions t .. t + N - 1; near ties among those that count are decided by the full pass."""
    sampled = window.sample(logits_BNV, t)
    near_tie_BN = sampled.near_tie & ~window.known_BT[:, t : t + logits_BNV.shape[1]]
    inexact = packed is not None and not packed.exact
    if inexact or not bool(near_tie_BN.any()):
        return sampled.codes
    return resolve_near_ties(window, sampled.codes, near_tie_BN, t, draft_BN)


def resolve_near_ties(
    window: SamplingWindow,
    sampled_BN: Tensor,
    near_tie_BN: Tensor,
    t: int,
    draft_BN: Tensor | None,
) -> Tensor:
    """The sampled codes with near ties decided by full forward passes, a song at a time, in order.

    Past the first wrong draft nothing counts yet, so nothing is decided there.
    """
    codes_BN = sampled_BN.clone()
    songs = len(codes_BN)
    if isinstance(window.token_sampler, ClassifierFreeGuidance):
        songs -= len(window.token_sampler.songs_G)  # the last rows are the unconditional ones
    for b, n in near_tie_BN.nonzero().tolist():
        draft = codes_BN[b, :n] if draft_BN is None else draft_BN[b, :n]
        wrong = bool((codes_BN[b, :n] != draft)[~window.known_BT[b, t : t + n]].any())
        if b < songs and not wrong:
            rows, sampler = song_sampler(window.token_sampler, b)
            codes_BN[rows, n] = reference_tokens(window, rows, sampler, t + n)
    return codes_BN


def reference_tokens(
    window: SamplingWindow, rows: list[int], sampler: TokenSamplerProtocol, t: int
) -> Tensor:
    """Codes of those rows at position t, by the full forward pass over them alone."""
    conditioning = Conditioning(*(None if x is None else x[rows] for x in window.conditioning))
    tokens = window.tokens_BT[rows].clone()
    tokens[:, t:] = 0
    logits = window.prior.logits(tokens, conditioning)[:, t : t + 1]
    return sampler(logits, window.positions(t, 1)[rows]).codes[:, 0]


def song_sampler(
    sampler: TokenSamplerProtocol, song: int
) -> tuple[list[int], TokenSamplerProtocol]:
    """The rows of one song (itself, and its unconditional row), and the sampler of these rows alone."""
    if isinstance(sampler, TokenSampler):
        return [song], sampler.select(torch.tensor([song], device=sampler.keys_B.device))
    assert isinstance(sampler, ClassifierFreeGuidance)
    songs = sampler.token_sampler
    index = torch.tensor([song], device=songs.keys_B.device)
    unconditional = (sampler.songs_G == song).nonzero()[:, 0].tolist()
    if not unconditional:
        return [song], songs.select(index)
    alone = replace(
        sampler,
        token_sampler=songs.select(index),
        songs_G=torch.zeros_like(index),
        strength_G=sampler.strength_G[unconditional],
    )
    return [song, len(songs.keys_B) + unconditional[0]], alone


def write_tokens(
    window: SamplingWindow, t: int, codes_BN: Tensor, draft_BN: Tensor | None = None
) -> int:
    """Write codes where nothing is known. How many of them are right, given the drafts they were computed from."""
    size = codes_BN.shape[1]
    tokens_BN = window.tokens_BT[:, t : t + size]
    codes_BN = torch.where(window.known_BT[:, t : t + size], tokens_BN, codes_BN)
    tokens_BN.copy_(codes_BN)
    if draft_BN is None or size == 1:
        return size
    wrong = (codes_BN != draft_BN).any(0).nonzero()
    return int(wrong[0]) + 1 if len(wrong) else size
