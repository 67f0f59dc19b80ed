"""How a layer of a prior reads the lyrics: the attention weights from which sung times are found (spec section 13)."""

# B batch   T codes of a window   P positions (lyrics, codes)   S keys   N lyric tokens   H heads   D size of a head
import torch
from torch import Tensor

from megajukebox.models.prior import Prior
from megajukebox.models.transformer import Attention, TransformerBlock

READERS = ("lyrics", "prefix", "dense")


def lyric_layers(prior: Prior) -> list[int]:
    """The layers whose codes see lyrics: those of a lyrics encoder, or those that see the whole lyric prefix."""
    if prior.config.lyrics is None:
        return []
    readers = READERS[:1] if prior.lyrics is not None else READERS[1:]
    return [d for d, pattern in enumerate(prior.config.transformer.patterns) if pattern in readers]


@torch.no_grad()
def lyric_attention(prior: Prior, batch: dict, layers: list[int]) -> dict[int, Tensor]:
    """For each layer the weights [B, H, T, N] in float32 with which each code of the window reads each lyric token.

    `batch` is that of `Prior.forward`. ValueError for a layer that reads no lyrics.
    """
    known = lyric_layers(prior)
    for layer in layers:
        if layer not in known:
            raise ValueError(f"layer {layer} of this prior reads no lyrics; choose among {known}")
    given = prior.conditioning(batch)
    weights = {}
    h = prior.input(prior.tokens(batch), given.start, given.added)
    for d, block in enumerate(prior.blocks[: max(layers) + 1]):
        assert isinstance(block, TransformerBlock)
        if d in layers:
            weights[d] = _weights(
                block.attention, block.norm_attention(h), given.lyrics, prior.config.prefix_tokens
            )
        h = block(h, given.lyrics) if block.attention.pattern == "lyrics" else block(h)
    return weights


def _weights(attention: Attention, x_BPW: Tensor, lyrics_BNW: Tensor | None, prefix: int) -> Tensor:
    """Attention weights [B, H, T, N] in float32 of the codes' own rows over the lyric tokens."""
    if attention.pattern == "lyrics":
        assert lyrics_BNW is not None
        q_BPHD = attention.split(attention.query(x_BPW))
        k_BSHD = attention.lyric_keys(lyrics_BNW)[0]
    else:
        q_BPHD, k_BSHD, _ = attention.qkv(x_BPW)
        if attention.pattern == "prefix":
            k_BSHD = k_BSHD[:, : attention.prefix]
    scores = torch.einsum("bphd,bshd->bhps", q_BPHD.float(), k_BSHD.float())
    scores = scores / q_BPHD.shape[-1] ** 0.5
    if attention.pattern == "lyrics":
        return scores.softmax(dim=-1)
    causal_PS = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    # Only the codes' own rows and the lyric columns tell of singing; a softmax over all keys came before the cut.
    weights = scores.masked_fill(~causal_PS, -torch.inf).softmax(dim=-1)
    return weights[:, :, prefix:, :prefix]
