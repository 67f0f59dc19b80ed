"""What memory is worth is measured in windows that return, and only there."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from megajukebox.evaluation.evaluators.likelihood import held_out_bits, remembered_share

WINDOW, MARGIN = 8, 3


class TwoSongs:
    """Windows of song 0 of which none, three and all codes return; those of song 1 remember nothing."""

    shards = SimpleNamespace(key=lambda row: f"song-{row}")

    def clips(self, part: str) -> np.ndarray:
        return np.array([3, 2])

    def read(self, song: int, clip: int, rng: None) -> dict[str, Any]:
        memory = np.zeros(WINDOW + 2 * MARGIN, np.int64)
        memory[:MARGIN] = 1  # of the margin, which does not count
        if song == 0:
            memory[MARGIN : MARGIN + (0, 3, 8)[clip]] = 1 + clip
        codes = np.full(WINDOW, clip)
        return {"codes": codes, "memory": memory, "conditions": {"artist": np.array([song])}}


def bits(batch: dict[str, Any]) -> torch.Tensor:
    """5 bits, and one less for each code that is remembered in a window."""
    remembered = (batch["memory"][:, MARGIN:-MARGIN] > 0).sum(1)
    return 5.0 - remembered.float() / 8


def test_only_windows_that_return_count() -> None:
    windows: Any = TwoSongs()
    found = held_out_bits(bits, windows, [0, 1], 3, torch.device("cpu"))
    assert found["song-0"]["memory_gain_bits"] == pytest.approx(1.0), (
        "the window that returns whole"
    )
    assert "memory_gain_bits" not in found["song-1"]
    assert found["song-1"]["bits_per_code"] == 5.0


def test_a_prior_without_memory_has_no_share() -> None:
    assert remembered_share({"codes": np.zeros(4)}) == 0.0
