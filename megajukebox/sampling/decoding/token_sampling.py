"""From logits to codes: temperature, filters, and the noise that decides. argmax(log p + noise) is a sample of p.

The noise is a hash of seed, level, position and code (gumbel_noise.py), so the same logits give the same code in any
batch, window or process. Logits themselves differ in their last bits with the shape of a matrix product.
`SampledTokens.near_tie` marks where that could matter: where the two best codes, or the best one and the boundary of a
filter, are nearer than the logits' error, which guidance and a low temperature magnify.
"""

# B songs   N positions   V vocabulary   G guided songs   M = B N
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from megajukebox.sampling.decoding import gumbel_noise

# By how much two logits may move against each other, in nats, if none is greater than ORDINARY_LOGIT; more in
# proportion. Two ways to compute float32 logits differed by 2e-6 of the greatest (tests/sampling/test_decoder.py).
NEAR_TIE_NATS = 1e-4
ORDINARY_LOGIT = 10.0


class SampledTokens(NamedTuple):
    """Codes [B, N], and which of them an error of the logits could have decided [B, N]."""

    codes: Tensor
    near_tie: Tensor


class TokenSamplerProtocol(Protocol):
    """Samples codes from logits [B, N, V] at absolute positions [B, N] (codes since the start of the song)."""

    def __call__(
        self, logits_BNV: Tensor, position_BN: Tensor, *, gumbel: Tensor | None = None
    ) -> SampledTokens: ...

    def gumbel(self, position_BN: Tensor, codes: int) -> Tensor:
        """The noise [B, N, V] that decides there, for a caller that makes that of several steps at once."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """What it reads, by name: two samplers that read tensors of the same names and shapes do the same."""
        ...

    def clone(self) -> "TokenSamplerProtocol":
        """One that reads copies of its tensors."""
        ...


@dataclass(frozen=True)
class TokenSampler:
    """How codes are sampled from logits, for each of B songs: the key of its noise, temperature and filters."""

    keys_B: Tensor  # int64, of `noise_keys`
    temperature_B: Tensor
    filters: Mapping[str, Tensor] = field(default_factory=dict)  # name in FILTERS -> value [B]

    def select(self, songs_B: Tensor) -> "TokenSampler":
        """The sampler of those songs, in that order; a song may come several times."""
        filters = {name: value_B[songs_B] for name, value_B in self.filters.items()}
        return TokenSampler(self.keys_B[songs_B], self.temperature_B[songs_B], filters)

    def gumbel(self, position_BN: Tensor, codes: int) -> Tensor:
        return gumbel_noise.gumbel(self.keys_B[:, None], position_BN, codes)

    def tensors(self) -> dict[str, Tensor]:
        return {"keys": self.keys_B, "temperature": self.temperature_B, **self.filters}

    def clone(self) -> "TokenSampler":
        filters = {name: value_B.clone() for name, value_B in self.filters.items()}
        return TokenSampler(self.keys_B.clone(), self.temperature_B.clone(), filters)

    def __call__(
        self,
        logits_BNV: Tensor,
        position_BN: Tensor,
        error_BN: Tensor | None = None,
        *,
        gumbel: Tensor | None = None,
    ) -> SampledTokens:
        """Sample.

        Args:
            error_BN: error of the logits [B, N], if it is not the usual one of their size.
            gumbel: the noise [B, N, V], if it was made before.
        """
        if error_BN is None:
            error_BN = logit_error(logits_BNV)
        logits = logits_BNV.float() / self.temperature_B[:, None, None]
        error_BN = error_BN / self.temperature_B[:, None].clamp(max=1.0)
        if gumbel is None:
            gumbel = self.gumbel(position_BN, logits.shape[-1])
        if not self.filters:
            best, codes = logits.add_(gumbel).topk(2)
            return SampledTokens(codes[..., 0], best[..., 0] - best[..., 1] < error_BN)
        kept, unsure = self._apply_filters(logits, error_BN)
        best, codes = (kept + gumbel).topk(2)
        rival_BN = (logits + gumbel).masked_fill(~unsure, -torch.inf).amax(-1)
        nearest_BN = torch.maximum(best[..., 1], rival_BN)
        return SampledTokens(codes[..., 0], best[..., 0] - nearest_BN < error_BN)

    def _apply_filters(self, logits_BNV: Tensor, error_BN: Tensor) -> tuple[Tensor, Tensor]:
        """The logits with what is filtered out at minus infinity; which codes an error could let in or out."""
        size = logits_BNV.shape[1]
        logits = logits_BNV.flatten(0, 1)
        error_M = error_BN.flatten()
        unsure = torch.zeros_like(logits, dtype=torch.bool)
        for name, token_filter in FILTERS.items():
            if name not in self.filters:
                continue
            value_M = self.filters[name].repeat_interleave(size)
            # Where an earlier filter is unsure of one code, the mass of the others is unsure too.
            unsure |= unsure.any(1, keepdim=True)
            unsure |= token_filter.boundary(logits, value_M, error_M)
            logits = token_filter.apply(logits, value_M)
        return logits.view_as(logits_BNV), unsure.view_as(logits_BNV)


def logit_error(logits_BNV: Tensor) -> Tensor:
    """By how much two logits of a position may move against each other when computed in another way, [B, N]."""
    largest = logits_BNV.abs().amax(-1).float().clamp(min=ORDINARY_LOGIT)
    return largest * (NEAR_TIE_NATS / ORDINARY_LOGIT)


# ---- Filters --------------------------------------------------------------------------------------------------------


class TokenFilter(NamedTuple):
    """A filter over the vocabulary. Its name in FILTERS is the setting of a request that turns it on."""

    # (logits [M, V], value [M]) -> logits with what is filtered out at minus infinity
    apply: Callable[[Tensor, Tensor], Tensor]
    # (logits [M, V], value [M], error [M]) -> which codes [M, V] an error of the logits could let in or out
    boundary: Callable[[Tensor, Tensor, Tensor], Tensor]
    off: float  # the value that filters nothing


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
    """Which codes [M, V] `top_k_filter` could keep or not, if logits moved by `error` [M] against others."""
    size = logits_MV.shape[1]
    ranked = logits_MV.sort(dim=1, descending=True).values
    cut = torch.where(k_M > 0, k_M, size).clamp(max=size)[:, None]
    last = ranked.gather(1, cut - 1)
    next_ = ranked.gather(1, cut.clamp(max=size - 1))
    near = (logits_MV > last - error_M[:, None]) & (logits_MV < next_ + error_M[:, None])
    return near & (cut < size)


def top_p_boundary(logits_MV: Tensor, p_M: Tensor, error_M: Tensor) -> Tensor:
    """Which codes [M, V] `top_p_filter` could keep or not: what mass may stand before a code at least and at most?"""
    ranked, order = logits_MV.sort(dim=1, descending=True)
    mass = ranked.softmax(1)
    falling = -ranked
    error = error_M[:, None]
    before = F.pad(mass.cumsum(1), (1, 0))  # [M, V + 1], of the first so many codes
    least = before.gather(1, torch.searchsorted(falling, falling - error))
    most = before.gather(1, torch.searchsorted(falling, falling + error, right=True)) - mass
    p = torch.where(p_M > 0, p_M, 2.0)[:, None]
    unsure = (least * (1 - error) <= p) & (most * (1 + error) > p) & ranked.isfinite()
    return torch.empty_like(unsure).scatter(1, order, unsure)


# In the order in which they apply. A new filter: an entry here, and a setting of its name in songs/requests.py.
FILTERS: dict[str, TokenFilter] = {
    "top_k": TokenFilter(top_k_filter, top_k_boundary, off=0),
    "top_p": TokenFilter(top_p_filter, top_p_boundary, off=0.0),
}


# ---- Guidance -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassifierFreeGuidance:
    """Samples the codes of B songs from guided logits; each of G unconditional rows copies the codes of its song.

    logits = unconditional + strength * (conditional - unconditional)          (Ho and Salimans 2022)
    """

    token_sampler: TokenSampler
    songs_G: Tensor  # int64, which of the B songs
    strength_G: Tensor

    def gumbel(self, position_BN: Tensor, codes: int) -> Tensor:
        return self.token_sampler.gumbel(position_BN[: len(self.token_sampler.keys_B)], codes)

    def tensors(self) -> dict[str, Tensor]:
        guidance = {"guided": self.songs_G, "strength": self.strength_G}
        return self.token_sampler.tensors() | guidance

    def clone(self) -> "ClassifierFreeGuidance":
        token_sampler = self.token_sampler.clone()
        return ClassifierFreeGuidance(token_sampler, self.songs_G.clone(), self.strength_G.clone())

    def __call__(
        self, logits_BNV: Tensor, position_BN: Tensor, *, gumbel: Tensor | None = None
    ) -> SampledTokens:
        songs = len(logits_BNV) - len(self.songs_G)
        conditional_BNV = logits_BNV[:songs]
        unconditional_GNV = logits_BNV[songs:]
        strength = self.strength_G[:, None, None]
        difference_GNV = conditional_BNV[self.songs_G] - unconditional_GNV
        guided_GNV = unconditional_GNV + strength * difference_GNV
        all_error = logit_error(logits_BNV)
        error_BN = all_error[:songs]
        error_GN = (
            strength[..., 0].abs() * error_BN[self.songs_G]
            + (1 - strength[..., 0]).abs() * all_error[songs:]
        )
        sampled = self.token_sampler(
            conditional_BNV.index_copy(0, self.songs_G, guided_GNV),
            position_BN[:songs],
            error_BN.index_copy(0, self.songs_G, error_GN),
            gumbel=gumbel,
        )
        return SampledTokens(*(torch.cat([x, x[self.songs_G]]) for x in sampled))
