"""From logits to codes: temperature, filters, and the noise that decides. argmax(log p + noise) is a sample of p.

The noise is a hash of the place (noise.py), so the same logits give the same code in any batch, window or process.
Logits themselves differ in their last bits with the shape of a matrix product. `Drawn.close` says where that could
matter: where the two best codes, or the best one and the edge of a filter, are nearer than the logits' error, which
guidance and a low temperature magnify.
"""

# B songs   N positions   V vocabulary   G guided songs   M = B N
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from megajukebox.sampling.decoding import gumbel_noise

# By how much two logits may move against each other, in nats, if none is greater than ORDINARY; more in proportion.
# Two ways to compute float32 logits were seen to differ by 2e-6 of the greatest (tests/sampling/test_decoder.py).
NEAR_TIE_NATS, ORDINARY_LOGIT = 1e-4, 10.0


class SampledTokens(NamedTuple):
    """Codes [B, N], and which of them an error of the logits could have decided [B, N]."""

    codes: Tensor
    near_tie: Tensor


class TokenSamplerProtocol(Protocol):
    """Draws codes of logits [B, N, V] at absolute positions [B, N] (codes since the start of the song)."""

    def __call__(
        self, logits_BNV: Tensor, position_BN: Tensor, *, gumbel: Tensor | None = None
    ) -> SampledTokens: ...

    def gumbel(self, position_BN: Tensor, codes: int) -> Tensor:
        """The noise that decides there, for who wants to make that of several steps at once."""
        ...


@dataclass(frozen=True)
class TokenSampler:
    """How codes are drawn from logits, for each of B songs: whose noise decides, temperature and filters."""

    keys_B: Tensor  # int64, of `noise.keys`
    temperature_B: Tensor
    top_k_B: Tensor | None = None  # int64; 0: no limit
    top_p_B: Tensor | None = None  # 0: no limit

    def select(self, songs_B: Tensor) -> "TokenSampler":
        """The drawing of those songs, in that order; a song may come several times."""
        top_k_B, top_p_B = (
            None if value is None else value[songs_B] for value in (self.top_k_B, self.top_p_B)
        )
        return TokenSampler(self.keys_B[songs_B], self.temperature_B[songs_B], top_k_B, top_p_B)

    def gumbel(self, position_BN: Tensor, codes: int) -> Tensor:
        return gumbel_noise.gumbel(self.keys_B[:, None], position_BN, codes)

    def __call__(
        self,
        logits_BNV: Tensor,
        position_BN: Tensor,
        error_BN: Tensor | None = None,
        *,
        gumbel: Tensor | None = None,
    ) -> SampledTokens:
        """`error`: of the logits [B, N], if it is not the usual one of their size. `gumbel`: if it was made before."""
        error_BN = logit_error(logits_BNV) if error_BN is None else error_BN
        logits = logits_BNV.float() / self.temperature_B[:, None, None]
        error_BN = error_BN / self.temperature_B[:, None].clamp(max=1.0)
        gumbel = self.gumbel(position_BN, logits.shape[-1]) if gumbel is None else gumbel
        if self.top_k_B is None and self.top_p_B is None:
            best, codes = logits.add_(gumbel).topk(2)
            return SampledTokens(codes[..., 0], best[..., 0] - best[..., 1] < error_BN)
        kept, unsure = self._filtered(logits, error_BN)
        best, codes = (kept + gumbel).topk(2)
        rival_BN = (logits + gumbel).masked_fill(~unsure, -torch.inf).amax(-1)
        nearest_BN = torch.maximum(best[..., 1], rival_BN)
        return SampledTokens(codes[..., 0], best[..., 0] - nearest_BN < error_BN)

    def _filtered(self, logits_BNV: Tensor, error_BN: Tensor) -> tuple[Tensor, Tensor]:
        """The logits with what is filtered out at minus infinity; which codes an error could let in or out."""
        size, logits, error_M = logits_BNV.shape[1], logits_BNV.flatten(0, 1), error_BN.flatten()
        unsure = torch.zeros_like(logits, dtype=torch.bool)
        if self.top_k_B is not None:
            k_M = self.top_k_B.repeat_interleave(size)
            unsure |= top_k_boundary(logits, k_M, error_M)
            logits = top_k_filter(logits, k_M)
        if self.top_p_B is not None:
            p_M = self.top_p_B.repeat_interleave(size)
            unsure |= unsure.any(1, keepdim=True)  # the mass of the others is unsure too
            unsure |= top_p_boundary(logits, p_M, error_M)
            logits = top_p_filter(logits, p_M)
        return logits.view_as(logits_BNV), unsure.view_as(logits_BNV)


def logit_error(logits_BNV: Tensor) -> Tensor:
    """By how much two logits of a position may move against each other when computed in another way, [B, N]."""
    return logits_BNV.abs().amax(-1).float().clamp(min=ORDINARY_LOGIT) * (
        NEAR_TIE_NATS / ORDINARY_LOGIT
    )


def top_k_filter(logits_BV: Tensor, k_B: Tensor) -> Tensor:
    """`logits` with all but the k greatest (and those equal to the k-th) at minus infinity."""
    size = logits_BV.shape[1]
    ranked = logits_BV.sort(dim=1, descending=True).values
    last = torch.where(k_B > 0, k_B, size).clamp(max=size) - 1
    return logits_BV.masked_fill(logits_BV < ranked.gather(1, last[:, None]), -torch.inf)


def top_p_filter(logits_BV: Tensor, p_B: Tensor) -> Tensor:
    """`logits` with everything after the first codes that together pass probability p at minus infinity."""
    ranked, order = logits_BV.sort(dim=1, descending=True)
    mass = ranked.softmax(1)
    outside = mass.cumsum(1) - mass > torch.where(p_B > 0, p_B, 2.0)[:, None]
    return logits_BV.masked_fill(torch.empty_like(outside).scatter(1, order, outside), -torch.inf)


def top_k_boundary(logits_MV: Tensor, k_M: Tensor, error_M: Tensor) -> Tensor:
    """Which codes [M, V] the filter of the k greatest could keep or not, if logits moved by `error` against others."""
    size = logits_MV.shape[1]
    ranked = logits_MV.sort(dim=1, descending=True).values
    cut = torch.where(k_M > 0, k_M, size).clamp(max=size)[:, None]
    last, next_ = ranked.gather(1, cut - 1), ranked.gather(1, cut.clamp(max=size - 1))
    near = (logits_MV > last - error_M[:, None]) & (logits_MV < next_ + error_M[:, None])
    return near & (cut < size)


def top_p_boundary(logits_MV: Tensor, p_M: Tensor, error_M: Tensor) -> Tensor:
    """The same of the filter of probability p: for a code, what mass may stand before it at least and at most?"""
    ranked, order = logits_MV.sort(dim=1, descending=True)
    mass, falling, error = ranked.softmax(1), -ranked, error_M[:, None]
    before = F.pad(mass.cumsum(1), (1, 0))  # [M, V + 1], of the first so many codes
    least = before.gather(1, torch.searchsorted(falling, falling - error))
    most = before.gather(1, torch.searchsorted(falling, falling + error, right=True)) - mass
    p = torch.where(p_M > 0, p_M, 2.0)[:, None]
    unsure = (least * (1 - error) <= p) & (most * (1 + error) > p) & ranked.isfinite()
    return torch.empty_like(unsure).scatter(1, order, unsure)


@dataclass(frozen=True)
class ClassifierFreeGuidance:
    """Draws the codes of B songs and G twins: the songs draw from guided logits, the twins follow their songs.

    logits = untold + strength * (told - untold)          (Ho and Salimans 2022)
    """

    token_sampler: TokenSampler
    songs_G: Tensor  # int64, which of the B songs
    strength_G: Tensor

    def gumbel(self, position_BN: Tensor, codes: int) -> Tensor:
        return self.token_sampler.gumbel(position_BN[: len(self.token_sampler.keys_B)], codes)

    def __call__(
        self, logits_BNV: Tensor, position_BN: Tensor, *, gumbel: Tensor | None = None
    ) -> SampledTokens:
        guided = len(self.songs_G)
        told_BNV, untold_GNV = logits_BNV.split([len(logits_BNV) - guided, guided])
        strength = self.strength_G[:, None, None]
        guided_GNV = untold_GNV + strength * (told_BNV[self.songs_G] - untold_GNV)
        error_BN, untold_error_GN = logit_error(logits_BNV).split([len(told_BNV), guided])
        error_GN = (
            strength[..., 0].abs() * error_BN[self.songs_G]
            + (1 - strength[..., 0]).abs() * untold_error_GN
        )
        logits, error = (
            x.index_copy(0, self.songs_G, y)
            for x, y in ((told_BNV, guided_GNV), (error_BN, error_GN))
        )
        drawn = self.token_sampler(logits, position_BN[: len(told_BNV)], error, gumbel=gumbel)
        return SampledTokens(*(torch.cat([x, x[self.songs_G]]) for x in drawn))
