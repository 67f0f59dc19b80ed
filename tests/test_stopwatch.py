"""A rank's own time is told apart from the time in which it waits for others."""

import time

import torch
from little_models import little_vqvae

from megajukebox.training.survival.stopwatch import Stopwatch


def test_laps_are_summed_up_to_the_first_stop_of_each() -> None:
    watch = Stopwatch(torch.device("cpu"))
    for _ in range(2):
        watch.start()
        time.sleep(0.02)
        watch.stop()
        time.sleep(0.05)
        watch.stop()  # as a second hook, or a recomputed layer, would
    assert 0.04 <= watch.seconds() < 0.09
    watch.clear()
    assert watch.seconds() == 0


def test_a_vqvae_tells_what_it_computes_before_the_ranks_meet() -> None:
    model, heard = little_vqvae(), []
    model.before_meeting.register_forward_hook(lambda *_: heard.append("alone"))
    for level in model.levels.values():
        level.codebook.update = lambda *_, **__: heard.append("meeting") or {}
    model.train()({"audio": torch.randn(1, 256, 1)})
    assert heard[0] == "alone" and heard.count("meeting") == len(model.levels)
