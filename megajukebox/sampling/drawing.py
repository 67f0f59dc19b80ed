"""From logits to codes: temperature, filters, and the noise that decides. argmax(log p + noise) is a sample of p.

The noise is a hash of the place (noise.py), so the same logits give the same code in any batch, window or process.
Logits themselves differ in their last bits with the shape of a matrix product; `Drawn.margin` says when that could
matter: by how much the best code beat the second.
"""

# B songs   N positions   V vocabulary   G guided songs
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from megajukebox.sampling import noise


class Drawn(NamedTuple):
    """Codes [B, N] and by how much each beat the second best, in nats [B, N]."""

    codes: Tensor
    margin: Tensor


# Logits [B, N, V] and absolute positions [B, N] (codes since the start of the song) -> what is drawn.
Drawing = Callable[[Tensor, Tensor], Drawn]


@dataclass(frozen=True)
class Draw:
    """How codes are drawn from logits, for each of B songs: whose noise decides, temperature and filters."""

    keys_B: Tensor  # int64, of `noise.keys`
    temperature_B: Tensor
    top_k_B: Tensor | None = None  # int64; 0: no limit
    top_p_B: Tensor | None = None  # 0: no limit

    def of(self, songs_B: Tensor) -> "Draw":
        """The drawing of those songs, in that order; a song may come several times."""
        top_k_B, top_p_B = (None if value is None else value[songs_B] for value in (self.top_k_B, self.top_p_B))
        return Draw(self.keys_B[songs_B], self.temperature_B[songs_B], top_k_B, top_p_B)

    def __call__(self, logits_BNV: Tensor, position_BN: Tensor) -> Drawn:
        logits = logits_BNV.float() / self.temperature_B[:, None, None]
        if self.top_k_B is not None or self.top_p_B is not None:
            logits = self._filtered(logits)
        best, codes = (logits + noise.gumbel(self.keys_B[:, None], position_BN, logits.shape[-1])).topk(2)
        return Drawn(codes[..., 0], best[..., 0] - best[..., 1])

    def _filtered(self, logits_BNV: Tensor) -> Tensor:
        size = logits_BNV.shape[1]
        logits = logits_BNV.flatten(0, 1)
        if self.top_k_B is not None:
            logits = most_likely(logits, self.top_k_B.repeat_interleave(size))
        if self.top_p_B is not None:
            logits = most_mass(logits, self.top_p_B.repeat_interleave(size))
        return logits.view_as(logits_BNV)


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


@dataclass(frozen=True)
class Guided:
    """Draws the codes of B songs and G twins: the songs draw from guided logits, the twins follow their songs.

    logits = untold + strength * (told - untold)          (Ho and Salimans 2022)
    """

    draw: Draw
    songs_G: Tensor  # int64, which of the B songs
    strength_G: Tensor

    def __call__(self, logits_BNV: Tensor, position_BN: Tensor) -> Drawn:
        guided = len(self.songs_G)
        told_BNV, untold_GNV = logits_BNV.split([len(logits_BNV) - guided, guided])
        guided_GNV = untold_GNV + self.strength_G[:, None, None] * (told_BNV[self.songs_G] - untold_GNV)
        drawn = self.draw(told_BNV.index_copy(0, self.songs_G, guided_GNV), position_BN[: len(told_BNV)])
        return Drawn(*(torch.cat([x, x[self.songs_G]]) for x in drawn))
