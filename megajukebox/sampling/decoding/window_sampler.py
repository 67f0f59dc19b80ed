"""One window of some songs in lockstep: sampled code by code, or guessed ahead and verified; and the slow plain twin.

Every way below gives the codes of the plain one: x_t = argmax(log p(x_t | x before t) + noise_t) at every position.
Where the order of a sum could decide (`Drawn.close`), the plain full forward pass of that song alone decides, whatever
way is taken. So one seed is one song: in any batch, by any way.
"""

# B songs (and twins of guided ones)   T positions of the window   N positions of a step
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from megajukebox.models.prior import Conditioning, Prior
from megajukebox.sampling.decoding.decoder import PackedPrior, WindowDecoder, window_decoder
from megajukebox.sampling.decoding.token_sampling import (
    ClassifierFreeGuidance,
    SampledTokens,
    TokenSampler,
    TokenSamplerProtocol,
)

# Codes of all songs whose noise is made at once: one by one it takes four times as long, by hundreds ten times.
NOISE_BLOCK = 16
Progress = Callable[[int], None]  # position up to which the window is done
# Writes guesses into tokens t .. end - 1, or fewer; says where they end.
DraftModel = Callable[[WindowDecoder, "SamplingWindow", int, int], int]
# Codes of a window's first block, and of any at least; passes in which a code goes from a block's end to its beginning.
FIRST_BLOCK, MIN_BLOCK, PASSES_PER_CODE = 64, 8, 6


@dataclass
class SamplingWindow:
    """A window of B songs: what each is told, the tokens so far, and which of them stay as they are."""

    prior: Prior
    conditioning: Conditioning
    tokens_BT: Tensor  # int64; written as codes are drawn
    known_BT: Tensor  # bool
    start_B: Tensor  # int64, absolute position (codes since the start of the song) of the window's first code
    token_sampler: TokenSamplerProtocol
    shared_prefix_B: Tensor | None = (
        None  # which songs share told and known beginning; None: none do
    )
    noise: tuple[int, Tensor] | None = None  # of the positions from that one on, [B, N, V]

    def positions(self, t: int, size: int) -> Tensor:
        """Absolute positions [B, N] of N positions of the window."""
        places = torch.arange(
            t - self.prior.config.prefix_tokens, t - self.prior.config.prefix_tokens + size
        )
        return self.start_B[:, None] + places.to(self.start_B.device)

    def sample(self, logits_BNV: Tensor, t: int) -> SampledTokens:
        """What is drawn at positions t .. t + N - 1."""
        size, codes = logits_BNV.shape[1:]
        return self.token_sampler(
            logits_BNV, self.positions(t, size), gumbel=self.gumbel(t, size, codes)
        )

    def gumbel(self, t: int, size: int, codes: int) -> Tensor:
        """The noise of positions t .. t + N - 1, kept until a later position is asked for first."""
        first, noise = self.noise or (t, None)
        end = first if noise is None else first + noise.shape[1]
        if noise is None or not first <= t <= end:
            first, end, noise = t, t, None
        if noise is None or t + size > end:
            many = max(1, NOISE_BLOCK // len(self.start_B))
            more = [
                self.token_sampler.gumbel(self.positions(n, many), codes)
                for n in range(end, t + size, many)
            ]
            first, noise = self.noise = (
                t,
                torch.cat(([] if noise is None else [noise[:, t - first :]]) + more, dim=1),
            )
        return noise[:, t - first : t - first + size]

    def known_prefix(self) -> int:
        """How many positions at the head are known in every song."""
        unknown = (~self.known_BT).any(0).nonzero()
        return int(unknown[0]) if len(unknown) else self.tokens_BT.shape[1]

    def unknown_end(self) -> int:
        """The position after the last one that is not known in every song."""
        unknown = (~self.known_BT).any(0).nonzero()
        return int(unknown[-1]) + 1 if len(unknown) else 0


@torch.inference_mode()
def sample_window(
    packed: PackedPrior, window: SamplingWindow, progress: Progress = lambda t: None
) -> Tensor:
    """`tokens` with what is not known sampled, code by code."""
    begin, until = window.known_prefix(), window.unknown_end()
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
    """`sample_window` in fewer passes: some codes are guessed, one pass decides over all of them, the right ones stay.

    guessed   a b c d e      the pass gives the right code after every right beginning:
    decided   a b x y z      a b x are right (x follows a right beginning), y z are better guesses at most

    Blocks are as long as pays: `ahead` codes at most, fewer where few of them turn out right.
    """
    begin, until, mean = (
        window.known_prefix(),
        window.unknown_end(),
        min(num_draft_tokens, FIRST_BLOCK) / PASSES_PER_CODE,
    )
    with window_decoder(window.prior, window.conditioning, len(window.tokens_BT)) as decoder:
        prefill(decoder, window, begin)
        t = begin
        while t < until:
            size = min(num_draft_tokens, max(MIN_BLOCK, round(PASSES_PER_CODE * mean)))
            end = draft(decoder, window, t, min(t + size, until))
            row, right = t // decoder.row, verify_draft(decoder, packed, window, t, end)
            t, mean = t + right, mean + (right - mean) / 8
            if t // decoder.row > row or t == until:
                progress(t)
    return window.tokens_BT


def verify_draft(
    decoder: WindowDecoder, packed: PackedPrior, window: SamplingWindow, t: int, end: int
) -> int:
    """One pass over the guesses at t .. end - 1, which its own codes replace. How many of them are right."""
    before = window.tokens_BT[:, t:end].clone()
    logits = decoder.step(packed, window.tokens_BT, t, end - t)
    return write_tokens(window, t, sample_tokens(packed, window, logits, t, before), before)


@torch.inference_mode()
def sample_window_slowly(window: SamplingWindow) -> Tensor:
    """The plain twin of all ways: one full forward pass for every code, nothing kept."""
    for t in range(window.known_prefix(), window.unknown_end()):
        logits = window.prior.logits(window.tokens_BT, window.conditioning)[:, t : t + 1]
        write_tokens(window, t, sample_tokens(None, window, logits, t))
    return window.tokens_BT


def prefill(decoder: WindowDecoder, window: SamplingWindow, begin: int) -> None:
    """Take in the known beginning, once for songs that share it."""
    if not begin:
        return
    if window.shared_prefix_B is None:
        decoder.prefill(window.tokens_BT[:, :begin])
        return
    first = [
        int((window.shared_prefix_B == u).nonzero()[0])
        for u in range(int(window.shared_prefix_B.max()) + 1)
    ]
    decoder.prefill(window.tokens_BT[first, :begin], window.shared_prefix_B)


def sample_tokens(
    packed: PackedPrior | None,
    window: SamplingWindow,
    logits_BNV: Tensor,
    t: int,
    guess_BN: Tensor | None = None,
) -> Tensor:
    """Codes [B, N] of positions t .. t + N - 1; near ties among those that count are decided by the plain pass."""
    found = window.sample(logits_BNV, t)
    close_BN = found.near_tie & ~window.known_BT[:, t : t + logits_BNV.shape[1]]
    if packed is not None and not packed.exact:
        return found.codes
    return (
        resolve_near_ties(window, found.codes, close_BN, t, guess_BN)
        if bool(close_BN.any())
        else found.codes
    )


def resolve_near_ties(
    window: SamplingWindow, found_BN: Tensor, close_BN: Tensor, t: int, guess_BN: Tensor | None
) -> Tensor:
    """The codes `found` with the close ones decided by full forward passes, a song at a time, in order.

    Past the first wrong guess nothing counts yet, so nothing is decided there.
    """
    codes_BN = found_BN.clone()
    songs = num_songs(window.token_sampler, len(codes_BN))
    for b, n in close_BN.nonzero().tolist():
        guessed = codes_BN[b, :n] if guess_BN is None else guess_BN[b, :n]
        wrong = bool((codes_BN[b, :n] != guessed)[~window.known_BT[b, t : t + n]].any())
        if b < songs and not wrong:
            rows, draw = song_sampler(window.token_sampler, b)
            codes_BN[rows, n] = reference_tokens(window, rows, draw, t + n)
    return codes_BN


def reference_tokens(
    window: SamplingWindow, rows: list[int], draw: TokenSamplerProtocol, t: int
) -> Tensor:
    """Codes of those rows at position t, by the full forward pass over them alone."""
    given = Conditioning(*(None if x is None else x[rows] for x in window.conditioning))
    tokens = window.tokens_BT[rows].clone()
    tokens[:, t:] = 0
    logits = window.prior.logits(tokens, given)[:, t : t + 1]
    return draw(logits, window.positions(t, 1)[rows]).codes[:, 0]


def num_songs(draw: TokenSamplerProtocol, rows: int) -> int:
    return rows - len(draw.songs_G) if isinstance(draw, ClassifierFreeGuidance) else rows


def song_sampler(draw: TokenSamplerProtocol, song: int) -> tuple[list[int], TokenSamplerProtocol]:
    """The rows of one song (and its twin), and how they draw among themselves."""
    assert isinstance(draw, (TokenSampler, ClassifierFreeGuidance))
    inner = draw if isinstance(draw, TokenSampler) else draw.token_sampler
    one = torch.tensor([song], device=inner.keys_B.device)
    twin = (
        [g for g, s in enumerate(draw.songs_G.tolist()) if s == song]
        if isinstance(draw, ClassifierFreeGuidance)
        else []
    )
    if not twin:
        return [song], inner.select(one)
    assert isinstance(draw, ClassifierFreeGuidance)
    guided = replace(
        draw,
        token_sampler=inner.select(one),
        songs_G=torch.zeros_like(one),
        strength_G=draw.strength_G[twin],
    )
    return [song, len(inner.keys_B) + twin[0]], guided


def write_tokens(
    window: SamplingWindow, t: int, codes_BN: Tensor, guess_BN: Tensor | None = None
) -> int:
    """Write codes where nothing is known. How many of them are right, given the guesses they came from."""
    size = codes_BN.shape[1]
    own = window.tokens_BT[:, t : t + size]
    codes_BN = torch.where(window.known_BT[:, t : t + size], own, codes_BN)
    own.copy_(codes_BN)
    if guess_BN is None or size == 1:
        return size
    wrong = (codes_BN != guess_BN).any(0).nonzero()
    return int(wrong[0]) + 1 if len(wrong) else size
