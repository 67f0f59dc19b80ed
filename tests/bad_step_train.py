"""train.py with a fault put into the model: FAULT="nan_loss 5-6 1" does it in training passes 5 and 6 on rank 1.

Kinds: nan_loss, nan_gradient (the loss stays a number), spike (a loss, and so a gradient, a thousand times too large),
flip (one bit of a weight).
"""

import os

import torch
import typer

from megajukebox import train
from megajukebox.models import prior, stages

kind, passes, rank = os.environ["FAULT"].split()
FIRST, LAST = (int(number) for number in passes.split("-"))
PLAIN = prior.loss_and_metrics
made: list[torch.nn.Module] = []
count = 0


def faulty(*given: object) -> tuple:
    global count
    loss, metrics = PLAIN(*given)
    if not torch.is_grad_enabled():
        return loss, metrics
    count += 1
    if FIRST <= count <= LAST and int(os.environ.get("RANK", 0)) == int(rank):
        if kind == "flip":
            weight = next(p for p in made[0].parameters())
            weight.data.view(torch.int32).view(-1)[3] ^= 1
        elif kind == "nan_gradient":
            loss.register_hook(lambda gradient: gradient * float("nan"))
        else:
            loss = loss * {"nan_loss": float("nan"), "spike": 1000.0}[kind]
    return loss, metrics


BUILD = prior.Prior.__init__


def built(self: torch.nn.Module, *given: object) -> None:
    BUILD(self, *given)
    made.append(self)


prior.Prior.__init__ = built
prior.loss_and_metrics = stages.loss_and_metrics = faulty

if __name__ == "__main__":
    typer.run(train.main)
