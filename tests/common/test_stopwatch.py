"""Laps are added up, and what a GPU has not passed yet is never waited for."""

import time

import torch

from megajukebox.common.stopwatch import Stopwatch


class PretendGpu(Stopwatch):
    """Hands out events that a GPU reaches when the test says so."""

    def __init__(self, *events: "PretendEvent") -> None:
        super().__init__(torch.device("cpu"))
        self.events = list(events)

    def now(self) -> "PretendEvent":  # type: ignore[override]
        return self.events.pop(0)


class PretendEvent:
    def __init__(self, milliseconds: float, passed: bool = True) -> None:
        self.milliseconds, self.passed = milliseconds, passed

    def query(self) -> bool:
        return self.passed

    def elapsed_time(self, end: "PretendEvent") -> float:
        assert end.passed, "the GPU would have been waited for"
        return end.milliseconds - self.milliseconds


def test_laps_are_summed_and_told_once() -> None:
    watch, started = Stopwatch(torch.device("cpu")), time.perf_counter()
    for _ in range(2):
        begun = watch.now()
        time.sleep(0.02)
        watch.lap(begun)
        time.sleep(0.05)
    assert 0.04 <= watch.take() <= time.perf_counter() - started - 0.1
    assert watch.take() == 0


def test_what_the_gpu_has_not_reached_is_told_the_next_time() -> None:
    late = PretendEvent(70, passed=False)
    watch = PretendGpu(PretendEvent(0), PretendEvent(10), PretendEvent(50), late)
    for _ in range(2):
        watch.lap(watch.now())
    assert watch.take() == 0.010
    assert watch.take() == 0
    late.passed = True
    assert watch.take() == 0.020
