"""Jukebox's Adam: epsilon outside the root and not bias-corrected, decay scaled like the step (spec
section 9).
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class JukeboxAdam(Optimizer):
    """m <- b1 m + (1-b1) g;  v <- b2 v + (1-b2) g^2;  p <- p - a (m / (sqrt(v) + eps) + decay p)

    with a = lr sqrt(1 - b2^t) / (1 - b1^t) at the t-th applied step. torch.optim.AdamW instead
    corrects v before it adds epsilon and scales the decay by lr alone; results differ in the first
    steps.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 3e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            b1, b2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state.update(step=0, mean=torch.zeros_like(p), square=torch.zeros_like(p))
                state["step"] += 1
                mean = state["mean"]
                square = state["square"]
                t = state["step"]
                mean.mul_(b1).add_(p.grad, alpha=1 - b1)
                square.mul_(b2).addcmul_(p.grad, p.grad, value=1 - b2)
                rate = group["lr"] * math.sqrt(1 - b2**t) / (1 - b1**t)
                change = mean / (square.sqrt() + group["eps"])
                p.sub_(change.add_(p, alpha=group["weight_decay"]), alpha=rate)
        return loss
