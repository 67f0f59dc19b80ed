"""train.py with a fault put into the model: FAULT="nan_loss 5-6 1" does it in training passes 5 and 6 on rank 1.

Kinds: nan_loss, nan_gradient (the loss stays a number), spike (a loss, and so a gradient, a thousand times too large),
overflow (the gradient is infinite), flip (one bit of a weight), flip_share (one bit of a 16-bit weight in a rank's own
share of ZeRO-3), wrong_matmul (from the first of the passes on products are a little too large, in evaluation too),
unsteady_matmul (every other time), none.
"""

import os

import torch
import typer
from deepspeed.accelerator import get_accelerator

from megajukebox import train
from megajukebox.models import prior, stages

kind, passes, rank = os.environ["FAULT"].split()
FIRST, LAST = (int(number) for number in passes.split("-"))
PLAIN = prior.loss_and_metrics
made: list[torch.nn.Module] = []
count = forwards = 0


def faulty(*given: object) -> tuple:
    global count, forwards
    loss, metrics = PLAIN(*given)
    forwards += 1
    if not torch.is_grad_enabled():
        return loss, metrics
    count += 1
    if FIRST <= count <= LAST and int(os.environ.get("RANK", 0)) == int(rank):
        if kind == "flip":
            weight = next(p for p in made[0].parameters())
            weight.data.view(torch.int32).view(-1)[3] ^= 1
        elif kind == "flip_share":
            share = next(p for p in made[0].parameters()).ds_tensor
            share.data.view(torch.int16).view(-1)[3] ^= 1
        elif kind == "overflow":
            loss.register_hook(lambda gradient: gradient * float("inf"))
        elif kind.endswith("matmul"):
            if count == FIRST:
                spoil_products()
        elif kind == "nan_gradient":
            loss.register_hook(lambda gradient: gradient * float("nan"))
        elif kind != "none":
            loss = loss * {"nan_loss": float("nan"), "spike": 1000.0}[kind]
    return loss, metrics


def spoil_products() -> None:
    linear = torch.nn.functional.linear

    def wrong(*given: object) -> torch.Tensor:
        right = linear(*given)
        return right * 1.01 if kind == "wrong_matmul" or forwards % 2 else right

    torch.nn.functional.linear = wrong


BUILD = prior.Prior.__init__


def built(self: torch.nn.Module, *given: object) -> None:
    BUILD(self, *given)
    made.append(self)


prior.Prior.__init__ = built
get_accelerator().is_fp16_supported = lambda: True  # torch computes in it on any CPU, slowly; DeepSpeed wants it fast
prior.loss_and_metrics = stages.loss_and_metrics = faulty

if __name__ == "__main__":
    typer.run(train.main)
