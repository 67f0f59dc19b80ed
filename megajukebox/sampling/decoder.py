"""One window of codes, sampled token by token with caches; and its slow twin, a full forward for every token."""

# B songs   T positions of the window   V vocabulary   W width
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from megajukebox.models.prior import Conditioning, Prior
from megajukebox.sampling import noise
from megajukebox.sampling.cache import LayerCache, attention_cache

Progress = Callable[[int], None]
Drawing = Callable[[Tensor, int], Tensor]  # logits [B, V] and absolute position -> codes [B]; a `Draw`


@dataclass(frozen=True)
class Draw:
    """How codes are drawn from logits, for each of B songs: whose noise decides, temperature and filters."""

    keys_B: Tensor  # int64, of `noise.keys`
    temperature_B: Tensor
    top_k_B: Tensor | None = None  # int64; 0: no limit
    top_p_B: Tensor | None = None  # 0: no limit

    def __call__(self, logits_BV: Tensor, position: int | Tensor) -> Tensor:
        """Codes [B] for the absolute `position` (codes since the start of the song), of all songs or of each [B]."""
        logits = logits_BV.float() / self.temperature_B[:, None]
        if self.top_k_B is not None:
            logits = most_likely(logits, self.top_k_B)
        if self.top_p_B is not None:
            logits = most_mass(logits, self.top_p_B)
        place = torch.zeros_like(self.keys_B) + position
        return (logits + noise.gumbel(self.keys_B, place, logits.shape[1])).argmax(1)


def most_likely(logits_BV: Tensor, k_B: Tensor) -> Tensor:
    """`logits` with all but the k greatest (and those equal to the k-th) at minus infinity."""
    size = logits_BV.shape[1]
    ranked = logits_BV.sort(dim=1, descending=True).values
    last = torch.where(k_B > 0, k_B, size).clamp(max=size) - 1
    return logits_BV.masked_fill(logits_BV < ranked.gather(1, last[:, None]), -torch.inf)


def most_mass(logits_BV: Tensor, p_B: Tensor) -> Tensor:
    """`logits` with everything after the first codes that together pass probability p at minus infinity."""
    ranked, order = logits_BV.sort(dim=1, descending=True)
    mass = ranked.softmax(1)
    outside = mass.cumsum(1) - mass > torch.where(p_B > 0, p_B, 2.0)[:, None]
    return logits_BV.masked_fill(torch.empty_like(outside).scatter(1, order, outside), -torch.inf)


class WindowDecoder:
    """The layers of a prior with their caches, for one window of B songs. Make it with `decoding`."""

    def __init__(self, prior: Prior, given: Conditioning, batch: int):
        self.prior, self.given, self.length = prior, given, prior.config.length
        self.start = prior.input.start_vector(batch, given.start)
        self.layers: list[LayerCache] = [
            attention_cache(block.attention, batch, self.length, given.lyrics) for block in prior.blocks
        ]

    def fill(self, tokens_BN: Tensor) -> None:
        """Take in the N known tokens at the head of the window in one parallel pass."""
        known = tokens_BN.shape[1]
        row = self.length // self.prior.config.transformer.rows
        padded = torch.nn.functional.pad(tokens_BN, (0, -known % row))
        added = None if self.given.added is None else self.given.added[:, : padded.shape[1]]
        h = self.prior.input(padded, self.start, added)
        for block, layer in zip(self.prior.blocks, self.layers):
            h = block.update(h, layer.fill(block.norm_attention(h), known))

    def step(self, previous_B: Tensor | None, t: int) -> Tensor:
        """Logits [B, V] of position t, given the token before it (None at t = 0)."""
        h = self.prior.input.one(previous_B, t, self.start)
        added = None if self.given.added is None else self.given.added[:, t : t + 1]
        h = h if added is None else h + added
        for block, layer in zip(self.prior.blocks, self.layers):
            h = block.update(h, layer.step(block.norm_attention(h), t))
        return self.prior.predict(h, added)[:, 0]


@contextmanager
def decoding(prior: Prior, given: Conditioning, batch: int) -> Iterator[WindowDecoder]:
    """The decoder's memory exists only inside the block."""
    decoder = WindowDecoder(prior, given, batch)
    try:
        yield decoder
    finally:
        decoder.layers.clear()


@torch.inference_mode()
def sample_window(
    prior: Prior, given: Conditioning, tokens_BT: Tensor, known: int, until: int, draw: Drawing, first: int,
    progress: Progress = lambda count: None,
) -> Tensor:  # fmt: skip
    """`tokens` [B, T] with positions `known` .. `until` - 1 sampled; the first `known` stay as they are.

    `first` is the absolute position (codes since the start of the song) of the window's first code.
    """
    tokens, prefix = tokens_BT.clone(), prior.config.prefix_tokens
    with decoding(prior, given, len(tokens)) as decoder:
        if known:
            decoder.fill(tokens[:, :known])
        for t in range(known, until):
            logits = decoder.step(tokens[:, t - 1] if t else None, t)
            tokens[:, t] = draw(logits, first + t - prefix)
            progress(1)
    return tokens


@torch.inference_mode()
def sample_window_slowly(
    prior: Prior, given: Conditioning, tokens_BT: Tensor, known: int, until: int, draw: Drawing, first: int
) -> Tensor:
    """The twin of `sample_window` without caches: one full forward pass for every token."""
    tokens = tokens_BT.clone()
    for t in range(known, until):
        logits = prior.logits(tokens, given)[:, t]
        tokens[:, t] = draw(logits, first + t - prior.config.prefix_tokens)
    return tokens
