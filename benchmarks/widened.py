"""A trained prior made wider and deeper without changing what it says: its guesses are its own, its cost a wide one's.

Each channel comes k times, so that norms see the same numbers; weights that read channels are divided by k. Layers past
the old ones add nothing, and take as long as any. Used by sampling_trained.py, as a wide prior takes hours to train.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from megajukebox.models.prior import Conditioning, Prior
from megajukebox.models.transformer import TransformerBlock

WIDTH, DEPTH = 512, 12


def widened(prior: Prior) -> Prior:
    """`prior` (of a level below the top) at `WIDTH` and `DEPTH`."""
    shape, copies = prior.config.transformer, WIDTH // prior.config.transformer.width
    larger = shape.model_copy(update={"width": WIDTH, "depth": DEPTH})
    alone: dict[str, Any] = {
        "conditions": {},
        "conditions_at_every_position": False,
        "timing": None,
        "upsampler_conditioner": None,
    }
    wide = Prior(prior.config.model_copy(update={"transformer": larger, **alone}))
    wide.config = prior.config.model_copy(update={"transformer": larger})
    with torch.no_grad():
        for new, old in (
            (wide.input.tokens, prior.input.tokens),
            (wide.input.positions, prior.input.positions),
        ):
            new.weight = nn.Parameter(old.weight.repeat_interleave(copies, 1))
        wide.head.weight = nn.Parameter(prior.head.weight.repeat_interleave(copies, 1) / copies)
        for n, block in enumerate(wide.blocks):
            if n < len(prior.blocks):
                widen(block, prior.blocks[n], copies)
            else:
                for layer in (block.attention.merge, block.mlp.narrow):
                    layer.weight.zero_()
    wide.conditioning = repeated_conditioning(prior.conditioning, copies)  # type: ignore[method-assign]
    wide.input.start_vector = lambda batch, start: start  # type: ignore[method-assign]
    return wide.eval().requires_grad_(False)


def repeated_conditioning(
    conditioning: Callable[[dict], Conditioning], copies: int
) -> Callable[[dict], Conditioning]:
    def conditioning_of(batch: dict) -> Conditioning:
        return Conditioning(
            *(None if x is None else x.repeat_interleave(copies, -1) for x in conditioning(batch))
        )

    return conditioning_of


def widen(new: TransformerBlock, old: TransformerBlock, copies: int) -> None:
    """The sums of `old`. Heads are wider: queries are divided, or each product would count `copies` ** 0.5 times."""

    def outputs(x: Tensor) -> Tensor:
        return x.repeat_interleave(copies, 0)

    def both(x: Tensor) -> Tensor:
        return outputs(x).repeat_interleave(copies, 1) / copies

    assert old.attention.pattern == new.attention.pattern
    mine, theirs = new.attention.project, old.attention.project
    shrink = (copies**-0.5, 1.0, 1.0)
    mine.weight.copy_(torch.cat([both(x) * s for x, s in zip(theirs.weight.chunk(3), shrink)]))
    mine.bias.copy_(torch.cat([outputs(x) * s for x, s in zip(theirs.bias.chunk(3), shrink)]))
    for mine, theirs in (
        (new.attention.merge, old.attention.merge),
        (new.mlp.widen, old.mlp.widen),
        (new.mlp.narrow, old.mlp.narrow),
    ):
        mine.weight.copy_(both(theirs.weight))
        mine.bias.copy_(outputs(theirs.bias))
    for norm, before in ((new.norm_attention, old.norm_attention), (new.norm_mlp, old.norm_mlp)):
        norm.weight.copy_(outputs(before.weight))
        norm.bias.copy_(outputs(before.bias))
